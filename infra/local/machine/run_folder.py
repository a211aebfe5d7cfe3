"""What one run of the stack has on this machine: a folder, and processes that have its name in a variable.

A run that is killed (`kill -9`, out of memory) cannot clean up. So a small process watches the run and cleans up
after it; if both are killed, the next start does that. On Linux it ends all processes of the run, elsewhere it only
removes containers.

    python -m infra.local.machine.run_folder FOLDER    the watcher; its standard input is a pipe from the run
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, NamedTuple

from infra.local.machine.engine import MARK, Engine, EngineFailed

PREFIX = "slipway-"
TERM_SECONDS = 10  # between SIGTERM and SIGKILL: an engine needs time to end its step and to unmount
KILL_SECONDS = 5
ENDED = b"ended"  # what the watcher reads from a run that was not killed
ROOT = Path(__file__).parents[3]
TMPFS = Path("/dev/shm")  # of Linux; names of folders in it cannot be guessed  # nosec B108


@contextmanager
def run_folder(say: Callable[[str], None]) -> Iterator[Path]:
    """A folder for all files of this run. It is removed when the block is left, and also when the run is killed.

    Only this user may enter it. Python, and programs that the run starts, make their temporary files there. First
    removes what earlier runs left that were killed; does not touch runs that still go on.
    """
    for dead in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_dead(dead, fcntl.LOCK_NB, say)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / "unlocked").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "unlocked").rename(_lock(folder))  # a run whose lock file is not locked is dead
        watcher = subprocess.Popen(
            [sys.executable, "-m", __name__, folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C does not end it
        )
        assert watcher.stdin is not None
        before = os.environ.get("TMPDIR"), tempfile.tempdir
        os.environ |= {MARK: str(folder), "TMPDIR": str(folder)}
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            os.environ.pop(MARK)
            os.environ.pop("TMPDIR") if before[0] is None else os.environ.update(TMPDIR=before[0])
            tempfile.tempdir = before[1]
            lock.close()
            with suppress(BrokenPipeError):  # the watcher was ended
                watcher.communicate(ENDED)
            if watcher.wait() != 0:
                _remove_dead(folder)


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder of this run that only this user may enter, removed when the block is left; in memory, if the machine has
    /dev/shm."""
    place = TMPFS if TMPFS.is_dir() else None
    name = Path(os.environ.get(MARK, PREFIX)).name
    with tempfile.TemporaryDirectory(prefix=f"{name}.memory-", dir=place) as folder:
        yield Path(folder)


def note_engine(engine: Engine) -> None:
    """Notes which engine has to clean up after this run if it is killed."""
    if folder := os.environ.get(MARK):
        (Path(folder) / "engine.json").write_text(json.dumps(asdict(engine)))


def _remove_dead(folder: Path, mode: int = 0, say: Callable[[str], None] = lambda _: None) -> None:
    """Waits until a run is dead, then ends its processes and removes its files; with LOCK_NB, only if it is dead."""
    with suppress(OSError):  # the folder is not a run's, or is being removed
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        with _lock(folder).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | mode)
            say("A run of the stack was killed; removing what it left …")
            _remove(folder)


def _lock(folder: Path) -> Path:
    return folder / "lock"


def _remove(folder: Path) -> None:
    _end_processes(folder)
    with suppress(OSError, ValueError, EngineFailed):
        engine = Engine(**json.loads((folder / "engine.json").read_text()))
        engine.remove_containers(folder)
        engine.clean_up()
    for in_memory in TMPFS.glob(f"{folder.name}.memory-*"):
        shutil.rmtree(in_memory, ignore_errors=True)
    remove_with_mounts(folder)


def remove_with_mounts(folder: Path) -> None:
    mounts = Path("/proc/mounts")
    mounted = [line.split()[1] for line in mounts.read_text().splitlines()] if mounts.exists() else []
    for path in reversed([path for path in mounted if Path(path).is_relative_to(folder)]):
        subprocess.run(["umount", path], check=False)
    shutil.rmtree(folder, ignore_errors=True)


class _Process(NamedTuple):
    """`started` distinguishes it from a later process with the same number."""

    number: int
    started: str


def _end_processes(folder: Path) -> None:
    """Ends all processes of a run and their children: build steps have sessions and variables of their own."""
    known: set[_Process] = set()
    for signal_, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        signalled: set[_Process] = set()
        deadline = time.monotonic() + seconds
        while (known := _processes(folder, known)) and time.monotonic() < deadline:
            for process in known - signalled:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process.number, signal_)
            signalled |= known
            time.sleep(0.02)


def _processes(folder: Path, known: set[_Process]) -> set[_Process]:
    """Running processes that are `known` or marked as the run's, and all their descendants."""
    mark = f"{MARK}={folder}".encode()
    found: set[_Process] = set()
    children: dict[int, list[_Process]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            # after the name, which may contain anything: state, parent, …, start
            state, parent, *rest = (path / "stat").read_text().rpartition(")")[2].split()
            process = _Process(int(path.name), rest[17])
            if state == "Z" or process.number == os.getpid():
                continue
            children.setdefault(int(parent), []).append(process)
            if process in known or mark in (path / "environ").read_bytes().split(b"\0"):
                found.add(process)
    left = [*found]
    while left:
        more = set(children.get(left.pop().number, ())) - found
        found |= more
        left += more
    return found


def _watch(folder: Path, run: IO[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the run gets them too, and ends by itself
    if run.read() != ENDED:
        print("The stack was killed; ending and removing what it left …", file=sys.stderr, flush=True)
    _remove_dead(folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), sys.stdin.buffer)
