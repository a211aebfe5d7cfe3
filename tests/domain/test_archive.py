"""What may be uploaded as code: gzipped tars that can do no harm when they are unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.domain import archive
from chalicelib.domain.archive import Listing
from chalicelib.errors import Invalid
from tests.factories import make_archive

Change = Callable[[tarfile.TarInfo], None]


def packed(*members: tuple[str, bytes, str], content: bytes = b"x") -> bytes:
    """A gzipped tar of members: name, type, link target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return out.getvalue()


def file(name: str) -> tuple[str, bytes, str]:
    return name, tarfile.REGTYPE, ""


def link(name: str, target: str) -> tuple[str, bytes, str]:
    return name, tarfile.SYMTYPE, target


def listing(data: bytes) -> Listing:
    return archive.listing(io.BytesIO(data), len(data))


def test_files_and_directories_are_listed_once() -> None:
    found = listing(packed(file("./a.py"), ("./app/", tarfile.DIRTYPE, ""), file("app/lib/b.py")))

    assert found.files == {"a.py", "app/lib/b.py"}
    assert found.directories == {"app", "app/lib"}
    assert found.inside(None) == {"a.py"}
    assert found.inside("./app/lib/") == {"b.py"}
    with pytest.raises(Invalid, match="has no directory `other`"):
        found.inside("other")


def test_links_that_stay_inside_are_fine() -> None:
    found = listing(packed(file("a"), link("app/up", "../a"), link("b", "app"), ("c", tarfile.LNKTYPE, "a")))
    assert found.files == {"a", "app/up", "b", "c"}
    assert found.links == {"app/up": "a", "b": "app", "c": "a"}


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("Dockerfile", "docker/Dockerfile"),
        ("./now/", "sub"),
        ("now/Dockerfile", "docker/Dockerfile"),
        ("all/now/own.txt", "sub/own.txt"),
        ("hard", "docker/Dockerfile"),
        ("sub/own.txt", "sub/own.txt"),
        ("nowhere/x", "nowhere/x"),
        ("dangling", "gone"),
    ],
)
def test_links_are_followed_inside(path: str, real: str) -> None:
    found = listing(
        packed(
            file("docker/Dockerfile"),
            file("sub/own.txt"),
            link("Dockerfile", "docker/Dockerfile"),
            link("sub/Dockerfile", "../Dockerfile"),
            link("now", "./sub/"),
            link("all", "."),
            ("hard", tarfile.LNKTYPE, "docker/Dockerfile"),
            link("dangling", "gone"),
        )
    )
    assert found.real(path) == real
    assert found.inside("now") == {"own.txt", "Dockerfile"}


def test_links_in_a_circle_lead_nowhere() -> None:
    found = listing(packed(link("a", "b"), link("b", "a"), link("c", "c/d")))
    for path in ("a", "b/x", "c"):
        with pytest.raises(Invalid, match="leads nowhere"):
            found.inside(path)


def repeating(*texts: str) -> bytes:
    """`Dockerfile` again and again, as `tar --append` leaves it, and another file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in [*(("Dockerfile", text) for text in texts), ("a", "x")]:
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    data = repeating("FROM old\n", "FROM older\n", "FROM last\n")
    assert archive.read_text(io.BytesIO(data), len(data), listing(data), "Dockerfile") == "FROM last\n"
    found = listing(
        packed(link("a", "b"), file("b"), file("a"), ("c", tarfile.DIRTYPE, ""), ("c", tarfile.DIRTYPE, ""))
    )
    assert (found.links, found.repeated) == ({}, frozenset({"a"}))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([file("../a")], "outside"),
        ([file("a/../../b")], "outside"),
        ([file("/etc/passwd")], "outside"),
        ([file("a\\b")], "outside"),
        ([link("a", "/etc")], "leads out"),
        ([link("a", "..")], "leads out"),
        ([link("a/b", "../../c")], "leads out"),
        ([link("a/b", "c/../../../d")], "leads out"),
        ([link("a", "b"), file("a/c")], "behind a link"),
        ([("a", tarfile.LNKTYPE, "../x")], "outside"),
        ([("a", tarfile.LNKTYPE, "nothing")], "hard link"),
        ([link("a/b/c", "../../x"), ("d", tarfile.LNKTYPE, "a/b/c")], "hard link"),
        ([link("a", "b"), file("a"), ("d", tarfile.LNKTYPE, "a")], "hard link"),
        ([("a", tarfile.DIRTYPE, ""), ("b", tarfile.LNKTYPE, "a")], "hard link"),
        ([file("a/b"), ("c", tarfile.LNKTYPE, "a")], "hard link"),
        ([file("a"), file("a/b")], "lies in a file"),
        ([file("a/b"), file("a")], "lies in a file"),
        ([file("a"), ("a", tarfile.DIRTYPE, "")], "is a directory and something else"),
        ([("a", tarfile.DIRTYPE, ""), link("a", "b")], "is a directory and something else"),
        ([link("venv/bin/python", "/usr/bin/python3")], "leads out of it; leave it out, by tar's --exclude"),
        ([("a", tarfile.CHRTYPE, "")], "neither"),
        ([("a", tarfile.BLKTYPE, "")], "neither"),
        ([("a", tarfile.FIFOTYPE, "")], "neither"),
    ],
    ids=str,
)
def test_what_could_do_harm_is_refused(members: list[tuple[str, bytes, str]], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        listing(packed(*members))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(b"no tar"),
        make_archive({"a": "b" * 5_000})[:-20],
        make_archive({"a": "b"})[:20],
        gzip.compress(b"\0" * 100) + b"rest",
    ],
    ids=["empty", "no gzip", "no tar", "cut", "cut early", "damaged"],
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        listing(data)


def test_a_bomb_is_refused_before_it_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "RATIO_COUNTS_FROM_BYTES", 10_000)
    with pytest.raises(Invalid, match="unpacks to more than"):
        listing(packed(file("a"), content=b"\0" * 10_000_000))


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(Invalid, match="more than 3 entries"):
        listing(packed(*(file(str(number)) for number in range(4))))


def header(kind: bytes, size: bytes = b"0") -> bytearray:
    """A header with the given text of a size, whatever tarfile would write, and a right checksum."""
    info = tarfile.TarInfo("a")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.rjust(11, b"0")[:12].ljust(12, b"\0")
    return signed(block)


def signed(block: bytearray) -> bytearray:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def octal(size: int) -> bytes:
    return b"%o" % size


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"7" * 11], ids=["huge", "negative", "8 GB"])
def test_an_impossible_size_is_refused_at_once(size: bytes) -> None:
    """tarfile would skip so many bytes in small steps, also past the end of the archive."""
    with pytest.raises(Invalid, match="larger than 2 GB, or its size is damaged"):
        listing(gzip.compress(header(tarfile.REGTYPE, size) + b"\0" * 1024))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME], ids=repr)
def test_headers_that_would_fill_the_memory_are_refused(kind: bytes) -> None:
    size = archive.MORE_HEADER_BYTES
    with pytest.raises(Invalid, match="headers are too large"):
        listing(gzip.compress(header(kind, octal(size)) + b"\0" * size + header(tarfile.REGTYPE)))


def test_the_size_that_a_directory_claims_makes_no_room_for_headers() -> None:
    size = 2 * archive.MORE_HEADER_BYTES
    bomb = header(tarfile.XHDTYPE, octal(size)) + b"\0" * size + header(tarfile.REGTYPE)
    with pytest.raises(Invalid, match="headers are too large"):
        listing(gzip.compress(header(tarfile.DIRTYPE, octal(2 * size)) + bomb))


def test_sparse_files_are_refused() -> None:
    block = header(tarfile.GNUTYPE_SPARSE)
    block[386:410] = b"%011o\0%011o\0" % (0, 1)
    with pytest.raises(Invalid, match="sparse file; pack it as a plain one, by tar without --sparse"):
        listing(gzip.compress(signed(block) + b"\0" * 1024))


def test_a_map_of_a_sparse_file_that_would_fill_the_memory_is_refused() -> None:
    block = header(tarfile.GNUTYPE_SPARSE)
    block[386:410], block[482] = b"%011o\0%011o\0" % (0, 1), 1
    more = (b"%011o\0%011o\0" % (0, 1)) * 21 + b"\1" + b"\0" * 7
    with pytest.raises(Invalid, match="headers are too large"):
        listing(gzip.compress(signed(block) + more * (archive.MORE_HEADER_BYTES // 512)))


def test_directories_are_bounded_as_entries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 100)
    assert len(listing(packed(file("d/" * 100 + "a"))).directories) == 100
    with pytest.raises(Invalid, match="more than 100 directories"):
        listing(packed(file("d/" * 101 + "a")))


def test_names_need_not_be_utf_8() -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café"))
    assert listing(data.getvalue()).files == {"caf\\udce9"}  # which can be stored


def test_a_deep_name_takes_no_memory_before_it_is_refused() -> None:
    data = packed(file("d/" * 40_000 + "a"))
    assert len(data) < 1_000
    assert peak_bytes(data, "more than 4096 bytes") < 8 * 1024**2


def test_many_deep_names_take_little_memory_before_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_NAMES_BYTES", 1024**2)
    data = packed(*(file(f"{number:03}" + "/d" * 2_000) for number in range(50)))
    assert peak_bytes(data, "names have more than 1 MiB") < 8 * 1024**2


def test_what_links_lead_to_counts_as_names_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_NAMES_BYTES", 1024**2)
    data = packed(*(link(str(number), "d/" * 2_000 + "a") for number in range(500)))
    assert peak_bytes(data, "names have more than 1 MiB") < 8 * 1024**2


def peak_bytes(data: bytes, reason: str) -> int:
    """How much memory it takes to refuse an archive for this reason."""
    tracemalloc.start()
    try:
        with pytest.raises(Invalid, match=reason):
            listing(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["p" * 255, "é" * 127, "/".join(["p" * 255] * 15)])
def test_names_that_linux_takes_are_listed(name: str) -> None:
    assert listing(packed(file(name), link("l", name))).files == {name, "l"}


@pytest.mark.parametrize("name", ["p" * 256, "é" * 128, "/".join(["p" * 255] * 17)])
def test_names_that_linux_refuses_are_refused(name: str) -> None:
    for member in (file(name), link("l", name), ("h", tarfile.LNKTYPE, name), (name, tarfile.DIRTYPE, "")):
        with pytest.raises(Invalid, match=r"more than (255|4096) bytes"):
            listing(packed(member))


@pytest.mark.parametrize("name", [".", "", "a/", "a/."])
def test_a_file_with_the_name_of_a_directory_is_refused(name: str) -> None:
    block = bytearray(header(tarfile.REGTYPE))
    block[:100] = name.encode().ljust(100, b"\0")
    with pytest.raises(Invalid, match="no directory"):
        listing(gzip.compress(signed(block) + b"\0" * 1024))


def test_the_root_may_be_listed_as_a_directory() -> None:
    assert listing(packed((".", tarfile.DIRTYPE, ""), file("./a"))) == Listing(frozenset({"a"}), frozenset())


@pytest.mark.parametrize("hidden", [bytes(header(tarfile.REGTYPE)), b"x" * 512, b"x"])
@pytest.mark.parametrize("zeros", [512, 1024, 10_240, 100_000])
def test_data_after_the_end_is_refused(hidden: bytes, zeros: int) -> None:
    """Busybox goes on after a lone block of zeros: it would unpack what nobody has checked."""
    with pytest.raises(Invalid, match="data after its end"):
        listing(gzip.compress(bytes(header(tarfile.REGTYPE)) + b"\0" * zeros + hidden))


def test_a_broken_header_after_the_first_is_refused() -> None:
    broken = header(tarfile.REGTYPE)
    broken[0:1] = b"b"  # the checksum is of another name
    with pytest.raises(Invalid, match="data after its end"):
        listing(gzip.compress(bytes(header(tarfile.REGTYPE) + broken) + b"\0" * 1024))


def test_zeros_after_the_end_are_fine() -> None:
    assert listing(gzip.compress(bytes(header(tarfile.REGTYPE)) + b"\0" * 100_000)).files == {"a"}


def test_what_does_not_match_its_checksum_is_refused() -> None:
    data = bytearray(make_archive({"a": "b"}))
    data[-8] ^= 1  # the CRC of the gzip format, four bytes before the length
    with pytest.raises(Invalid, match="damaged"):
        listing(bytes(data))
    with pytest.raises(Invalid, match="damaged"):
        listing(make_archive({"a": "b"}) + b"garbage")


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_listed_or_refused(data: bytes, zipped: bool) -> None:
    try:
        listing(gzip.compress(data) if zipped else data)
    except Invalid as refusal:
        assert refusal.sentences()


def test_a_text_is_read_from_an_archive() -> None:
    data = make_archive({"docker/Dockerfile": "FROM x\n"})
    assert archive.read_text(io.BytesIO(data), len(data), listing(data), "./docker/Dockerfile") == "FROM x\n"
    with pytest.raises(Invalid, match="has no file `other`"):
        archive.read_text(io.BytesIO(data), len(data), listing(data), "other")


@pytest.mark.parametrize(("content", "reason"), [(b"\xff", "not UTF-8"), (b"x" * 65_537, "more than 65536")])
def test_what_is_no_text_is_refused(content: bytes, reason: str) -> None:
    data = packed(file("Dockerfile"), content=content)
    with pytest.raises(Invalid, match=reason):
        archive.read_text(io.BytesIO(data), len(data), listing(data), "Dockerfile")
