"""Runs the phases of a buildspec as CodeBuild does: bash, one process group, output line by line."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

TERM_SECONDS = 10  # between asking a build to end and ending it
KILLED = 128 + signal.SIGKILL  # what a shell ends with when its command was killed


@dataclass(frozen=True)
class Buildspec:
    """The part of version 0.2 that is used here: variables, and commands by phase."""

    variables: Mapping[str, str]
    commands: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Ended:
    """How a phase ended: with `exit_code` 0, or `command` is the one that failed."""

    exit_code: int
    command: str = ""


@lru_cache(maxsize=8)  # all builds have the same text
def parse(text: str) -> Buildspec:
    """Parses a buildspec. Raises ValueError unless it is one of version 0.2."""
    try:
        document = yaml.safe_load(text)
        if document["version"] != 0.2:
            raise ValueError("only version 0.2 is understood")
        variables = {str(k): str(v) for k, v in document.get("env", {}).get("variables", {}).items()}
        phases = {
            name: [str(command) for command in phase.get("commands", [])] for name, phase in document["phases"].items()
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the buildspec cannot be read: {error}") from error
    return Buildspec(variables, phases)


def in_words(error: OSError) -> str:
    """The reason of a build that failed because this machine could not run it."""
    return f"This machine could not run the build: {error.strerror or error}."


class Phase:
    """The commands of one phase, in one bash process: a command sees the variables that earlier ones have set. The next
    phase sees only files (in CodeBuild also variables, which our buildspec does not need).

    `clean_up` is called when processes of the phase were killed, because an engine then leaves its step running. Raises
    OSError, for example when the disk is full.
    """

    def __init__(
        self,
        commands: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        say: Callable[[str], None],
        clean_up: Callable[[], None] = lambda: None,
        *,
        echoes: bool = False,
    ) -> None:
        """With `echoes`, each command is printed before it runs, and an empty line after it."""
        self._commands = commands
        self._control = folder.parent / f"{folder.name}-control"
        self._control.mkdir(exist_ok=True)
        self._say, self._clean_up = say, clean_up
        script = []
        for number, command in enumerate(commands):
            (self._control / str(number)).write_text(command)
            # `1<>` overwrites the number in place, which works even when the disk is full. The command is sourced as a
            # simple command, because within `if` or `||` bash would ignore its `set -e`.
            echo = [_ECHO.format(file=self._control / str(number))] if echoes else []
            run = [f"echo {number} 1<> {self._control}/at", f". {self._control}/{number}", "s=$?", _STOP_IF]
            script += [*echo, *run, *(["echo"] if echoes else [])]
        (self._control / "at").write_text("0")  # that of an earlier phase names another command
        (self._control / "phase").write_text("\n".join([*script, ""]))
        self._process = subprocess.Popen(
            ["bash", str(self._control / "phase")],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, seconds: float) -> Ended | None:
        """Waits up to `seconds`; how the phase ended, or None while it runs."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._signal(signal.SIGKILL)  # background processes would keep the output open
        self._reader.join()
        if code in (-signal.SIGKILL, KILLED):
            self._clean_up()
        at = int((self._control / "at").read_text())
        return Ended(code, self._commands[at] if code else "")

    def end(self) -> None:
        """Ends the phase with all its processes."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + TERM_SECONDS
        # The shell ends at once; the engine needs the time to end its step and clean up.
        while is_running := self._signal(0):
            self._process.poll()  # else a shell that has ended still counts as a process of the group
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        if is_running:
            self._clean_up()

    def _signal(self, number: int) -> bool:
        """Signals the process group; False if it has no process any more."""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._say(line.decode(errors="replace").rstrip("\r\n"))


_ECHO = (
    "TZ=UTC printf '[Container] %(%Y/%m/%d %H:%M:%S)T.%s Running command ' -1 \"${{EPOCHREALTIME#*.}}\"; "
    "printf '%s\\n' \"$(<{file})\""
)
_STOP_IF = 'if [ "$s" -ne 0 ]; then exit "$s"; fi'
