"""What a killed run of the stack leaves: its watcher removes it, or else the next run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.local.machine.run_folder import TMPFS, run_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not found")
PATIENCE_SECONDS = 30.0
# It has a process in a session of its own, with a child that hides what it is, and a third one.
RUN = """
import os, subprocess, sys, tempfile
from infra.local.machine.run_folder import folder_in_memory, run_folder
with run_folder(print) as folder, folder_in_memory() as in_memory:
    step = "env -i sleep 3600 & echo $!; wait"
    step = subprocess.Popen(["sh", "-c", step], stdout=subprocess.PIPE, start_new_session=True)
    third = subprocess.Popen(["sh", "-c", sys.argv[1] + " while :; do sleep 0.1; done"])
    login = tempfile.mkdtemp()
    print(folder, in_memory, third.pid, step.pid, step.stdout.readline().decode().strip(), flush=True)
    input()
"""


class Run:
    """A run as a program, with three processes."""

    def __init__(self, third: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, third], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        folder, in_memory, *numbers = self.process.stdout.readline().split()
        self.folder, self.in_memory = Path(folder), Path(in_memory)
        self.children = [int(number) for number in numbers]
        self.watcher = _watcher_of(folder)

    def alive(self) -> list[int]:
        return [number for number in self.children if _is_alive(number)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def kill_both(self) -> None:
        os.kill(self.watcher, signal.SIGKILL)
        self.kill()

    def remove(self) -> None:
        for number in (*self.children, self.watcher):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.kill()
        for folder in (self.folder, self.in_memory):
            shutil.rmtree(folder, ignore_errors=True)


def _watcher_of(folder: str) -> int:
    """The number of the process. Linux shows a program's arguments only some time after it has begun."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if f"run_folder\0{folder}\0".encode() in _read(path):
                return int(path.parent.name)
        time.sleep(0.01)
    raise AssertionError(f"nothing watches {folder}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def _is_alive(number: int) -> bool:
    return _read(Path(f"/proc/{number}/stat")).rpartition(b")")[2].split()[:1] not in ([], [b"Z"])


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    runs: list[Run] = []

    def start(third: str = "") -> Run:
        runs.append(Run(third))
        assert len(runs[-1].alive()) == 3
        return runs[-1]

    yield start
    for run in runs:
        run.remove()


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_everything_of_a_run_is_in_one_folder_that_only_this_user_may_enter(start: Callable[[], Run]) -> None:
    run = start()
    assert run.folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in run.folder.parent.iterdir()] == [run.folder.name]
    assert len([*run.folder.iterdir()]) == 2  # the lock, and the folder for the login


def test_what_may_not_be_on_a_disk_has_a_folder_in_memory_that_only_this_user_may_enter(
    start: Callable[[], Run],
) -> None:
    run = start()
    assert run.in_memory.parent == TMPFS
    assert run.in_memory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("third", ["", pytest.param("trap '' TERM;", marks=pytest.mark.slow)])
def test_a_killed_run_takes_its_processes_and_files_with_it(start: Callable[[str], Run], third: str) -> None:
    run = start(third)
    run.kill()
    wait_until(lambda: not run.folder.exists())
    assert not run.in_memory.exists()
    assert run.alive() == []
    wait_until(lambda: not _is_alive(run.watcher))


def test_where_the_watcher_was_killed_too_the_next_run_does_it(start: Callable[[], Run]) -> None:
    dead, living = start(), start()
    dead.kill_both()
    assert len(dead.alive()) == 3  # nobody ended them

    said: list[str] = []
    with run_folder(said.append):
        assert not dead.folder.exists()
        assert not dead.in_memory.exists()
        assert dead.alive() == []
        assert len(said) == 1 and "was killed" in said[0]

        assert len(living.alive()) == 3
        assert living.folder.is_dir()
        assert living.in_memory.is_dir()


def test_a_run_that_ends_leaves_nothing_even_without_its_watcher(start: Callable[[], Run]) -> None:
    for lacks_watcher in (False, True):
        run = start()
        if lacks_watcher:
            os.kill(run.watcher, signal.SIGKILL)
        run.process.communicate("\n")
        assert run.process.returncode == 0
        assert not run.folder.exists()
        assert not run.in_memory.exists()
        assert run.alive() == []


def test_folders_of_others_are_left_alone(start: Callable[[], Run], tmp_path: Path) -> None:
    (tmp_path / "slipway-notes").mkdir()  # without a lock
    (tmp_path / "slipway-file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / "slipway-link").symlink_to(elsewhere)
    with run_folder(print):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "slipway-file",
        "slipway-link",
        "slipway-notes",
    ]
