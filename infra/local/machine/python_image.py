"""A base image with Python: a public one, or one that is made here if no registry can be reached."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

from infra.local.machine.engine import Engine

PUBLIC = "docker.io/library/python:3.12-slim"
PACKAGES = ("python3", "bash", "busybox-static")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSTRUCTIONS = (
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8",
    'CMD ["python3"]',
)


class NoImage(Exception):
    """No image with Python could be pulled or made; the message says what to do."""


def python_image(engine: Engine, state: Path, say: Callable[[str], None]) -> str:
    """The reference of a base image that is in the engine's store. With `SLIPWAY_PUBLIC_IMAGES=0` nothing is pulled.

    An image that is made here has packages of Debian or Ubuntu, trusts the certificates that this machine trusts, and
    stays as a tar in `state`. Raises NoImage, and EngineFailed when the engine cannot import it.
    """
    own = f"localhost/slipway/python:{_recipe()}"
    if engine.has_image(own):
        return own
    can_make = which("apt-get") is not None
    if os.environ.get("SLIPWAY_PUBLIC_IMAGES") != "0":
        if engine.has_image(PUBLIC):
            return PUBLIC
        say(f"Pulling {PUBLIC} …")
        if engine.pull(PUBLIC, timeout_seconds=30 if can_make else 300):
            return PUBLIC
    if not can_make:
        raise NoImage(
            f"{PUBLIC} cannot be pulled, and an image of our own needs apt-get (Debian or Ubuntu); "
            "connect this machine to a registry"
        )
    tar = state / "python-image" / _recipe() / "root.tar"
    if not tar.exists():
        say("No public image here: making one of this system's packages (about 10 s) …")
        make_tar(tar)
    engine.import_tar(tar, own, *INSTRUCTIONS)
    return own


def make_tar(tar: Path) -> None:
    """Writes the root filesystem of our image; the same inputs give the same bytes. Raises NoImage."""
    root = _Root()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for package in _download_packages(work):
            root.add_package(package)
        root.add_busybox(work)
        root.add_wheel(_download_pip(work))
    root.add_defaults()
    tar.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tar.with_suffix(f".{os.getpid()}")
    root.write(unfinished)
    unfinished.replace(tar)


def _recipe() -> str:
    """A hash of what our image is made of: of this module and of the certificates."""
    return hashlib.sha256(Path(__file__).read_bytes() + _certificates()).hexdigest()[:12]


def _certificates() -> bytes:
    return CERTIFICATES.read_bytes() if CERTIFICATES.exists() else b""


def _download_packages(work: Path) -> list[Path]:
    """Fetches `PACKAGES` and all their dependencies, as if nothing were installed; apt verifies the signatures."""
    nothing_installed = work / "status"
    nothing_installed.touch()
    debs, lists = work / "debs", work / "lists"
    (debs / "partial").mkdir(parents=True)
    (lists / "partial").mkdir(parents=True)
    options = (
        f"Dir::State::status={nothing_installed}",
        f"Dir::Cache::archives={debs}",
        "Debug::NoLocking=1",  # the system's own package state is only read
        "APT::Sandbox::User=",  # the unprivileged user cannot write to our folder
    )
    wanted = PACKAGES if _certificates() else (*PACKAGES, "ca-certificates")
    install = ("install", "--yes", "--no-install-recommends", "--download-only", *wanted)
    own_lists = f"Dir::State::lists={lists}"
    try:
        _apt(options, *install)
    except NoImage:  # the machine has no package lists, or they are too old
        _apt((*options, own_lists), "update")
        _apt((*options, own_lists), *install)
    return sorted(debs.glob("*.deb"))


def _apt(options: Iterable[str], *arguments: str) -> None:
    flags = [flag for option in options for flag in ("--option", option)]
    _run("apt-get", "--quiet", *flags, *arguments)


def _download_pip(work: Path) -> Path:
    """Fetches the newest wheel of pip: since 24.2 it trusts the certificates of the system. Debian's pip and
    the one that Python brings are older."""
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary=:all:", "--dest", str(work), "pip>=24.2")  # fmt: skip
    return next(work.glob("pip-*.whl"))


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise NoImage(f"{' '.join(command[:3])} … failed: {done.stderr.strip()[-500:]}")


@dataclass(frozen=True)
class _Root:
    """The files of an image, by path without a leading slash."""

    entries: dict[str, tuple[tarfile.TarInfo, bytes]] = field(default_factory=dict)

    MERGED = (
        "bin",
        "sbin",
        "lib",
        "lib32",
        "lib64",
        "libx32",
    )  # links into /usr, as on every Debian since 12
    NOT_NEEDED = ("usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/")

    def add_package(self, deb: Path) -> None:
        archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            for member in members:
                name = self._merged(member.name)
                if not name or (member.issym() and member.name.removeprefix("./") in self.MERGED):
                    continue
                if name.startswith(self.NOT_NEEDED) and not name.endswith("/copyright"):
                    continue
                content = members.extractfile(member) if member.isreg() else None
                if member.islnk():
                    member.linkname = self._merged(member.linkname)
                self._add(name, member, content.read() if content else b"")

    def add_busybox(self, work: Path) -> None:
        """Adds links for all commands of busybox that no package has."""
        busybox = work / "busybox"
        busybox.write_bytes(self.entries["usr/bin/busybox"][1])
        busybox.chmod(0o755)
        commands = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout
        for command in commands.split():
            if not {f"usr/bin/{command}", f"usr/sbin/{command}"} & self.entries.keys():
                self._link(f"usr/bin/{command}", "busybox")

    def add_wheel(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as files:
            for name in files.namelist():
                self._file(f"usr/lib/python3/dist-packages/{name}", files.read(name))

    def add_defaults(self) -> None:
        """Adds the commands `pip` and `python`, and the files that installation scripts would have made."""
        for name in self.MERGED:
            if any(path.startswith(f"usr/{name}/") for path in self.entries):
                self._link(name, f"usr/{name}")
        for path in [path for path in self.entries if path.endswith("/EXTERNALLY-MANAGED")]:
            del self.entries[path]
        self._file("etc/passwd", b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
        self._file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        bundled = [path for path in self.entries if path.startswith("usr/share/ca-certificates/")]
        packaged = b"".join(self.entries[path][1] for path in sorted(bundled))
        self._file(str(CERTIFICATES).lstrip("/"), _certificates() or packaged)
        self._link("usr/lib/ssl/certs", "/etc/ssl/certs")
        self._link("usr/lib/ssl/cert.pem", str(CERTIFICATES))
        pip = b"#!/usr/bin/python3\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n"
        self._file("usr/local/bin/pip3", pip, mode=0o755)
        self._link("usr/local/bin/pip", "pip3")
        self._link("usr/local/bin/python", "/usr/bin/python3")

    def write(self, tar: Path) -> None:
        """Writes the entries sorted, without owners and times. Missing parent folders are made on unpacking."""
        with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
            for _, (member, content) in sorted(self.entries.items(), key=self._hard_links_last):
                archive.addfile(member, io.BytesIO(content))

    def _merged(self, name: str) -> str:
        name = name.removeprefix(".").strip("/")
        return f"usr/{name}" if name.partition("/")[0] in self.MERGED else name

    def _file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        member = tarfile.TarInfo()
        member.mode, member.size = mode, len(content)
        self._add(name, member, content)

    def _link(self, name: str, target: str) -> None:
        member = tarfile.TarInfo()
        member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, target
        self._add(name, member, b"")

    def _add(self, name: str, member: tarfile.TarInfo, content: bytes) -> None:
        member.name = name
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.pax_headers = {}
        self.entries[name] = (member, content)

    @staticmethod
    def _hard_links_last(entry: tuple[str, tuple[tarfile.TarInfo, bytes]]) -> tuple[bool, str]:
        return entry[1][0].islnk(), entry[0]
