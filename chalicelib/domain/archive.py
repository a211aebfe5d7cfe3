"""Uploaded code: a gzipped tar, read once and refused when unpacking it could do harm."""

from __future__ import annotations

import gzip
import posixpath
import tarfile
import zlib
from dataclasses import dataclass
from typing import IO, NoReturn

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES
from chalicelib.errors import Invalid

MAX_MEMBERS = 50_000
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_RATIO = 200  # of unpacked to packed bytes; source code compresses 3 to 10 times
RATIO_COUNTS_FROM_BYTES = 64 * 1024**2  # small archives of zeros are harmless


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in an archive: paths relative to its root."""

    files: frozenset[str]
    directories: frozenset[str]

    def inside(self, context: str | None) -> frozenset[str]:
        """Names of the files directly in `context` (default: the root). Raises Invalid without it."""
        folder = clean(context) if context else ""
        if folder and folder not in self.directories:
            raise Invalid([f"The code has no directory `{context}`."])
        return frozenset(posixpath.basename(name) for name in self.files if posixpath.dirname(name) == folder)


def listing(packed: IO[bytes], packed_bytes: int) -> Listing:
    """Reads the whole archive. Raises Invalid for what is no gzipped tar, would unpack outside of its
    folder, is neither file, directory nor confined link, or grows beyond measure."""
    kinds: dict[str, bytes] = {}
    links: set[str] = set()
    try:
        with tarfile.open(fileobj=_Bounded(packed, packed_bytes), mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if len(kinds) >= MAX_MEMBERS:
                    _refuse(f"it has more than {MAX_MEMBERS} entries")
                name = _confined(member.name)
                if member.issym():
                    _check_symlink(name, member.linkname)
                    links.add(name)
                elif member.islnk():
                    if _confined(member.linkname) not in kinds:
                        _refuse(f"`{_short(member.name)}` is a hard link to something that is not in it")
                elif not (member.isfile() or member.isdir()):
                    _refuse(f"`{_short(member.name)}` is neither a file, a directory nor a link")
                kinds[name] = member.type
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, UnicodeError) as exc:
        raise Invalid(["The upload is not a gzipped tar archive, or it is damaged."]) from exc
    directories = {name for name, kind in kinds.items() if kind == tarfile.DIRTYPE}
    for name in kinds:
        parents = _parents(name)
        if any(parent in links for parent in parents):
            _refuse(f"`{_short(name)}` lies behind a link")
        directories.update(parents)
    return Listing(frozenset(kinds) - directories, frozenset(directories - {""}))


def read_text(packed: IO[bytes], packed_bytes: int, path: str) -> str:
    """The text of one file of an archive that `listing` accepted. Raises Invalid when it is not there, or
    is no text of at most 64 KB."""
    wanted = clean(path)
    with tarfile.open(fileobj=_Bounded(packed, packed_bytes), mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            if clean(member.name) == wanted and member.isfile():
                file = archive.extractfile(member)
                raw = file.read(MAX_DOCKERFILE_BYTES + 1) if file else b""
                if len(raw) > MAX_DOCKERFILE_BYTES:
                    raise Invalid([f"`{path}` has more than {MAX_DOCKERFILE_BYTES} bytes."])
                try:
                    return raw.decode()
                except UnicodeDecodeError as exc:
                    raise Invalid([f"`{path}` is not UTF-8 text."]) from exc
    raise Invalid([f"The code has no file `{path}`."])


def clean(path: str) -> str:
    """A path without `./` and doubled slashes; the root is empty."""
    normal = posixpath.normpath(path)
    return "" if normal == "." else normal


class _Bounded:
    """Unpacks gzip as it is read, up to the bounds: tarfile only needs `read`."""

    def __init__(self, packed: IO[bytes], packed_bytes: int) -> None:
        self._unpacked = gzip.GzipFile(fileobj=packed, mode="rb")
        self._bound = min(MAX_UNPACKED_BYTES, max(RATIO_COUNTS_FROM_BYTES, packed_bytes * MAX_RATIO))
        self._count = 0

    def read(self, size: int) -> bytes:
        block = self._unpacked.read(size)
        self._count += len(block)
        if self._count > self._bound:
            _refuse(f"it unpacks to more than {self._bound // 1024**2} MiB")
        return block


def _confined(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        _refuse(f"`{_short(name)}` would be unpacked outside of its folder")
    return clean(name)


def _check_symlink(name: str, target: str) -> None:
    """A target may climb first and then descend. Because nothing lies behind a link, what it climbs are
    real directories, so that counting them is enough."""
    steps = [step for step in target.split("/") if step not in ("", ".")]
    climbs = 0
    while climbs < len(steps) and steps[climbs] == "..":
        climbs += 1
    if target.startswith("/") or ".." in steps[climbs:] or climbs > name.count("/"):
        _refuse(f"the link `{_short(name)}` leads out of it")


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _short(name: str) -> str:
    return name[:100].encode(errors="backslashreplace").decode()


def _refuse(why: str) -> NoReturn:
    raise Invalid([f"The archive is refused: {why}."])
