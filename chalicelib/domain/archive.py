"""Checks uploaded code, a gzipped tar: one that could do harm when it is unpacked is refused."""

from __future__ import annotations

import gzip
import posixpath
import zlib
from itertools import accumulate
from typing import IO, NoReturn

from msgspec import Struct, field

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES
from chalicelib.errors import Invalid, require

MAX_MEMBERS = 50_000
MAX_UNPACKED_BYTES = 2 * 1024**3
MAX_RATIO = 200  # of unpacked to packed bytes; source code compresses 3 to 10 times
RATIO_COUNTS_FROM_BYTES = 64 * 1024**2  # small archives of zeros are harmless
# Linux's PATH_MAX and NAME_MAX; also for the target of a link.
MAX_NAME_BYTES, MAX_PART_BYTES = 4_096, 255
MAX_NAMES_BYTES = 8 * 1024**2  # all names, parent folders and targets of links, which are held in memory
MAX_LINKS = 40  # followed for one path, as in Linux
# Bounds for the headers that tarfile reads into memory: per entry, and in addition for the whole archive.
HEADER_BYTES, MORE_HEADER_BYTES = 4 * 1024, 1024**2


class Listing(Struct, frozen=True):
    """The contents of an archive, as paths relative to its root. If a name occurs twice, the last entry counts."""

    files: frozenset[str]
    directories: frozenset[str]
    links: dict[str, str] = field(default_factory=dict)  # symbolic and hard links, with their targets
    repeated: frozenset[str] = frozenset()  # files that occur more than once

    def real(self, path: str) -> str:
        """The path after links are followed. Raises Invalid for an endless chain of links."""
        at = clean(path)
        for _ in range(MAX_LINKS):
            prefixes = accumulate(at.split("/"), posixpath.join)
            link = next((prefix for prefix in prefixes if prefix in self.links), None)
            if link is None:
                return at
            at = clean(posixpath.join(self.links[link], at[len(link) + 1 :]))
        raise Invalid([f"`{path}` is a link that leads nowhere."])

    def inside(self, context: str | None) -> frozenset[str]:
        """Names of the files directly in `context` (default: the root). Raises Invalid if there is no such
        directory."""
        folder = self.real(context) if context else ""
        require(folder == "" or folder in self.directories, f"The code has no directory `{context}`.")
        return frozenset(posixpath.basename(name) for name in self.files if posixpath.dirname(name) == folder)


def listing(packed: IO[bytes], packed_bytes: int) -> Listing:
    """Reads the whole archive. Raises Invalid unless it is a gzipped tar within the bounds, whose entries are files,
    directories and links that stay inside of its folder.

    After the end mark only zeros may follow, because busybox reads entries there, but Python does not.
    """
    import tarfile  # which takes long, and only uploads need it

    kinds: dict[str, bytes] = {}
    links: set[str] = set()  # also those that a later entry replaces, because both are unpacked
    targets: dict[str, str] = {}
    repeated: set[str] = set()
    names_bytes = 0
    stream = _Bounded(packed, packed_bytes)
    stream.allowed = MORE_HEADER_BYTES
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                if len(kinds) >= MAX_MEMBERS:
                    _refuse(f"it has more than {MAX_MEMBERS} entries")
                name = _confined(member.name)
                names_bytes = _counted(names_bytes, name)
                if not member.isdir() and member.name.rpartition("/")[2] in ("", "."):
                    _refuse(f"`{_short(member.name)}` is the name of a directory, but no directory")
                if not 0 <= member.size <= MAX_UNPACKED_BYTES:  # tarfile would read for a very long time
                    _refuse(f"`{_short(name)}` is larger than 2 GB, or its size is damaged")
                targets.pop(name, None)
                if member.issym():
                    targets[name] = _confined_target(name, member.linkname)
                    links.add(name)
                elif member.islnk():
                    targets[name] = target = _confined(member.linkname)
                    # From another directory, the relative target of a symbolic link may lead out.
                    if target in links or kinds.get(target, tarfile.DIRTYPE) == tarfile.DIRTYPE:
                        _refuse(f"`{_short(name)}` is a hard link to something that is no file in it")
                elif member.issparse():
                    _refuse(f"`{_short(name)}` is a sparse file; pack it as a plain one, by tar without --sparse (-S)")
                elif not (member.isfile() or member.isdir()):
                    _refuse(f"`{_short(member.name)}` is neither a plain file, a directory nor a link")
                if (kinds.get(name, member.type) == tarfile.DIRTYPE) != member.isdir():
                    _refuse(f"`{_short(name)}` is a directory and something else")
                if name in kinds and not member.isdir():
                    repeated.add(name)
                kinds[name] = member.type
                names_bytes = _counted(names_bytes, targets.get(name, ""))
                stream.allowed += HEADER_BYTES + (member.size if member.isfile() else 0)
                archive.members = []  # else tarfile holds all entries in memory
            stream.allowed = stream.bound
            while stream.read(64 * 1024):  # the rest, so that gzip compares its checksum
                pass
            if stream.content_bytes > archive.offset:
                _refuse("it has data after its end")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, UnicodeError) as exc:
        raise Invalid(["The upload is not a gzipped tar archive, or it is damaged."]) from exc
    seen: set[str] = set()  # parent folders that are checked, with all of their own parents
    for name in kinds:
        parent = posixpath.dirname(name)
        while parent and parent not in seen:
            if parent in links:
                _refuse(f"`{_short(name)}` lies behind a link")
            if kinds.get(parent, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                _refuse(f"`{_short(name)}` lies in a file")
            if len(seen) >= MAX_MEMBERS:
                _refuse(f"it has more than {MAX_MEMBERS} directories")
            names_bytes = _counted(names_bytes, parent)
            seen.add(parent)
            parent = posixpath.dirname(parent)
    directories = {name for name, kind in kinds.items() if kind == tarfile.DIRTYPE} | seen
    files = frozenset(kinds) - directories
    return Listing(
        frozenset(map(_readable, files)),
        frozenset(map(_readable, directories - {""})),
        {_readable(name): _readable(target) for name, target in targets.items()},
        frozenset(map(_readable, repeated)),
    )


def read_text(packed: IO[bytes], packed_bytes: int, listing: Listing, path: str) -> str:
    """The text of a file of a checked archive. Raises Invalid if there is no such file of at most 64 KB in UTF-8."""
    import tarfile

    wanted, raw = listing.real(path), None
    with tarfile.open(fileobj=_Bounded(packed, packed_bytes), mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            archive.members = []
            if clean(member.name) == wanted and member.isfile():
                file = archive.extractfile(member)
                raw = file.read(MAX_DOCKERFILE_BYTES + 1) if file else b""
                if wanted not in listing.repeated:
                    break
    if raw is None:
        raise Invalid([f"The code has no file `{path}`."])
    require(len(raw) <= MAX_DOCKERFILE_BYTES, f"`{path}` has more than {MAX_DOCKERFILE_BYTES} bytes.")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise Invalid([f"`{path}` is not UTF-8 text."]) from exc


def clean(path: str) -> str:
    """A path without `./` and double slashes; empty for the root."""
    normal = posixpath.normpath(path)
    return "" if normal == "." else normal


class _Bounded:
    """Unpacks gzip while it is read, within the bounds; a file for tarfile, which only needs `read`."""

    def __init__(self, packed: IO[bytes], packed_bytes: int) -> None:
        self._unpacked = gzip.GzipFile(fileobj=packed, mode="rb")
        self.bound = min(MAX_UNPACKED_BYTES, max(RATIO_COUNTS_FROM_BYTES, packed_bytes * MAX_RATIO))
        self._count = 0
        self.content_bytes = 0  # up to the last byte that is not zero
        self.allowed = self.bound  # how many bytes may be read so far

    def read(self, size: int) -> bytes:
        block = self._unpacked.read(size)
        self._count += len(block)
        if self._count > self.bound:
            _refuse(f"it unpacks to more than {self.bound // 1024**2} MiB")
        if self._count > self.allowed:
            _refuse("its headers are too large")
        if content := block.rstrip(b"\0"):
            self.content_bytes = self._count - len(block) + len(content)
        return block


def _counted(names_bytes: int, name: str) -> int:
    """`names_bytes` plus the bytes of `name`. Raises Invalid if this is more than `MAX_NAMES_BYTES`."""
    names_bytes += _bytes(name)
    if names_bytes > MAX_NAMES_BYTES:
        _refuse(f"its names have more than {MAX_NAMES_BYTES // 1024**2} MiB in all")
    return names_bytes


def _bytes(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))


def _check_length(name: str) -> None:
    if len(name) > MAX_NAME_BYTES or _bytes(name) > MAX_NAME_BYTES:
        _refuse(f"`{_short(name)}…` has more than {MAX_NAME_BYTES} bytes")
    if any(_bytes(part) > MAX_PART_BYTES for part in name.split("/")):
        _refuse(f"`{_short(name)}…` has a part of more than {MAX_PART_BYTES} bytes")


def _confined(name: str) -> str:
    _check_length(name)
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        _refuse(f"`{_short(name)}` would be unpacked outside of its folder")
    return clean(name)


def _confined_target(name: str, target: str) -> str:
    """The target of a symbolic link. Raises Invalid if it leads out. A target may first climb, then descend. No entry
    lies behind a link, so what it climbs are real directories, and it is enough to count them."""
    _check_length(target)
    steps = [step for step in target.split("/") if step not in ("", ".")]
    climbs = 0
    while climbs < len(steps) and steps[climbs] == "..":
        climbs += 1
    if target.startswith("/") or ".." in steps[climbs:] or climbs > name.count("/"):
        _refuse(f"`{_short(name)}` leads out of it; leave it out, by tar's --exclude, .dockerignore or .polyaxonignore")
    return clean(posixpath.join(posixpath.dirname(name), target))


def _readable(name: str) -> str:
    """A name as UTF-8 text, with other bytes written as `\\xNN`. Two names cannot become equal, because names with
    backslashes are refused."""
    return name.encode(errors="backslashreplace").decode()


def _short(name: str) -> str:
    return _readable(name[:100])


def _refuse(why: str) -> NoReturn:
    raise Invalid([f"The archive is refused: {why}."])
