"""What may be uploaded as code: gzipped tars that can do no harm when they are unpacked."""

from __future__ import annotations

import gzip
import io
import tarfile
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


@pytest.mark.parametrize(
    "size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"7" * 11], ids=["huge", "negative", "8 GB"]
)
def test_an_impossible_size_is_refused_at_once(size: bytes) -> None:
    """tarfile would skip so many bytes in small steps, also past the end of the archive."""
    with pytest.raises(Invalid, match="impossible size"):
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
    with pytest.raises(Invalid, match="neither a plain file"):
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


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_listed_or_refused(data: bytes, zipped: bool) -> None:
    try:
        listing(gzip.compress(data) if zipped else data)
    except Invalid as refusal:
        assert refusal.sentences()


def test_a_text_is_read_from_an_archive() -> None:
    data = make_archive({"docker/Dockerfile": "FROM x\n"})
    assert archive.read_text(io.BytesIO(data), len(data), "./docker/Dockerfile") == "FROM x\n"
    with pytest.raises(Invalid, match="has no file `other`"):
        archive.read_text(io.BytesIO(data), len(data), "other")


@pytest.mark.parametrize(("content", "reason"), [(b"\xff", "not UTF-8"), (b"x" * 65_537, "more than 65536")])
def test_what_is_no_text_is_refused(content: bytes, reason: str) -> None:
    data = packed(file("Dockerfile"), content=content)
    with pytest.raises(Invalid, match=reason):
        archive.read_text(io.BytesIO(data), len(data), "Dockerfile")
