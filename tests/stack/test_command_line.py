"""The command line as the service hands it out, from a folder to an image, as a program of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3

from chalicelib.adapters.registry import HttpRegistry
from infra.local.machine.machine import Machine
from tests.required_engines import with_one_engine
from tests.stack.conftest import PATIENCE_SECONDS, Client, serving, unique_sleep, wait_until

pytestmark = with_one_engine
OWN = "{}.{}".format(*sys.version_info)
PYTHONS = [
    pytest.param(version, marks=() if version == OWN else pytest.mark.proof)
    for version in ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
]
RESULT = re.compile(r"127\.0\.0\.1:\d+/slipway/root/[\w-]+@sha256:[0-9a-f]{64}\n")


def python(version: str) -> str:
    """A program that is this version and has what the command line needs; the test is skipped without one."""
    if version == OWN:
        return sys.executable
    installed = (f".pyenv/versions/{version}.*/bin/python", f".local/share/uv/python/*-{version}.*/bin/python")
    named = [shutil.which(f"python{version}"), *(path for each in installed for path in Path.home().glob(each))]
    for program in map(str, filter(None, named)):
        asked = [program, "-c", "import ssl, sys; print('{}.{}'.format(*sys.version_info))"]
        if subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == version:
            return program
    pytest.skip(f"there is no Python {version} here")


@dataclass(frozen=True)
class CommandLine:
    """`slipway` in a folder, with a login file of its own."""

    folder: Path
    url: str
    token: str
    python: str = sys.executable
    variables: dict[str, str] = field(default_factory=dict)

    def fetch(self) -> None:
        """As `curl -O` does."""
        (self.folder / "slipway").write_bytes(urllib3.request("GET", f"{self.url}/api/ui/slipway").data)

    def words(self, *arguments: str) -> list[str]:
        return [self.python, "slipway", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        config = {"XDG_CONFIG_HOME": str(self.folder / "config"), "HOME": str(self.folder), "NO_PROXY": "127.0.0.1"}
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **config, **self.variables}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.words(*arguments), cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *arguments: str, typed: str = "") -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        done = subprocess.run(
            self.words(*arguments), cwd=self.folder, env=self.environment, input=typed, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def ok(self, *arguments: str, typed: str = "") -> str:
        status, result, said = self.run(*arguments, typed=typed)
        assert status == 0, said
        return result


@pytest.fixture(scope="module")
def client(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(local_machine, tmp_path_factory.mktemp("stack")) as client:
        yield client


@pytest.fixture
def slipway(client: Client, tmp_path: Path) -> CommandLine:
    """Logged in by variables, beside a folder `app-…` whose Dockerfile takes one file and no ignored one."""
    variables = {"SLIPWAY_URL": client.running.url, "SLIPWAY_TOKEN": client.running.token}
    made = CommandLine(tmp_path, client.running.url, client.running.token, variables=variables)
    made.fetch()
    return made


def app(client: Client, folder: Path, *steps: str) -> str:
    """The name of a folder to build, which is the name of its project as well."""
    name = f"app-{secrets.token_hex(4)}"
    (folder / name / "cache").mkdir(parents=True)
    (folder / name / "cache" / "large").write_text("not wanted")
    (folder / name / "main.py").write_text("print('Ahoy')")
    (folder / name / ".dockerignore").write_text("cache\n")
    lines = [f"FROM {client.machine.base_image}", "COPY build/ /app", "RUN test -f /app/main.py -a ! -e /app/cache"]
    (folder / name / "Dockerfile").write_text("\n".join([*lines, *(f"RUN {step}" for step in steps)]))
    return name


@pytest.mark.parametrize("version", PYTHONS)
def test_from_a_folder_to_an_image_in_a_pipe(client: Client, tmp_path: Path, version: str) -> None:
    """All there is: the file, an address and a token."""
    slipway = CommandLine(tmp_path, client.running.url, client.running.token, python(version))
    slipway.fetch()
    name = app(client, tmp_path)
    slipway.ok("login", slipway.url, typed=f"{slipway.token}\n")
    (kept,) = (tmp_path / "config").rglob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600

    status, result, said = slipway.run("build", name, "--follow")

    assert status == 0, said
    assert RESULT.fullmatch(result)
    build = client.get(f"/root/{name}/builds/1")
    found = HttpRegistry(client.machine.registry_login).find(build["image"])
    assert found is not None
    assert result == f"{build['image'].rpartition(':')[0]}@{found.digest}\n"
    assert client.log(f"/root/{name}/builds/1") in "\n".join(line for line in said.split("\n") if line[:1] != "[")
    assert [word for word in client.statuses(f"/root/{name}/builds/1") if f"] {word}" not in said] == []
    assert "\x1b" not in said and "\r" not in said
    assert slipway.token not in said


def test_a_build_that_fails_says_why_and_a_json_result_is_the_build(client: Client, slipway: CommandLine) -> None:
    name = app(client, slipway.folder, "exit 7")
    status, result, said = slipway.run("build", name, "--follow")
    assert (status, result) == (1, "")
    assert re.search(r"\] failed: .*7", said)
    assert "/slipway/root/" not in slipway.ok("show", f"{name}/1") + slipway.ok("list", name)

    status, result, said = slipway.run("build", name, "--follow", "--json")
    assert status == 1, said
    assert (status, json.loads(result)["last_status"]) == (1, "failed")
    status, result, _ = slipway.run("logs", f"{name}/1", "--follow", "--json")
    assert status == 1
    assert all(json.loads(line).keys() == {"time", "message"} for line in result.splitlines())


def test_other_commands_show_and_stop_builds(client: Client, slipway: CommandLine) -> None:
    name, nap = "by-specification", unique_sleep()
    (slipway.folder / name).mkdir()
    steps = {"image": client.machine.base_image, "build_steps": ["echo first", nap]}
    (slipway.folder / "build.yaml").write_text(json.dumps({"version": 1, "kind": "build", **steps}))
    made = slipway.ok("build", name, "--spec", "build.yaml")
    assert made == f"root/{name}/1\n"
    client.until_logged(f"/root/{name}/builds/1", nap)

    assert "first" in slipway.ok("logs", f"{name}/1")
    assert json.loads(slipway.ok("show", f"{name}/1", "--json")) == client.get(f"/root/{name}/builds/1")
    assert "running" in slipway.ok("show", f"root/{name}/1")
    assert slipway.ok("list", name).startswith(f"root/{name}/1 ")
    assert [each["id"] for each in json.loads(slipway.ok("list", f"root/{name}", "--json"))] == [1]
    assert slipway.ok("list", name, "--query", "status:failed") == ""
    slipway.ok("stop", f"{name}/1")
    assert slipway.run("logs", f"{name}/1", "--follow")[0] == 3
    assert "stopped" in slipway.ok("show", f"{name}/1")


def test_an_archive_that_no_request_can_carry_goes_straight_to_storage(client: Client, slipway: CommandLine) -> None:
    name = app(client, slipway.folder)
    (slipway.folder / name / "weights").write_bytes(os.urandom(6_000_000))
    slipway.ok("build", name)
    assert client.get(f"/root/{name}")["has_code"]
    client.call("POST", f"/root/{name}/builds/1/stop")


def test_mistakes_end_with_a_sentence_and_are_no_failed_build(client: Client, slipway: CommandLine) -> None:
    (slipway.folder / "empty").mkdir()
    (slipway.folder / "other").mkdir()
    elsewhere = CommandLine(
        slipway.folder, "", "", variables={"SLIPWAY_URL": "http://127.0.0.1:1", "SLIPWAY_TOKEN": "x"}
    )
    wrong = CommandLine(slipway.folder, "", "", variables={**slipway.variables, "SLIPWAY_TOKEN": "wrong"})
    nobody = CommandLine(slipway.folder, "", "")
    (slipway.folder / "bad.yaml").write_text("{version: 1, kind: build, dockerfile: a, steps: []}")
    (slipway.folder / "good.yaml").write_text("{version: 1, kind: build, image: x}")
    for who, words, exit_status, sentence in (
        (slipway, ("build", "empty"), 2, "empty has no Dockerfile: name one with --dockerfile"),
        (slipway, ("build", "missing"), 2, "missing is not a folder"),
        (slipway, ("build", "empty", "--spec", "none.yaml"), 4, "none.yaml: No such file or directory"),
        (slipway, ("build", "other", "--spec", "bad.yaml"), 4, "`steps` is not a field of a build; remove it."),
        (slipway, ("build", "empty", "--project", "somebody/else", "--spec", "good.yaml"), 4, "Not found."),
        (slipway, ("show", "empty/99"), 4, "Not found."),
        (slipway, ("logs", "what"), 2, "what does not name a build: write NUMBER"),
        (elsewhere, ("list",), 4, "127.0.0.1:1 does not answer"),
        (wrong, ("list",), 4, "Log in again: python3 slipway login"),
        (nobody, ("list",), 2, "Which service? python3 slipway login https://HOST/api"),
        (nobody, ("login", "nowhere"), 2, "nowhere is not an address"),
    ):
        status, result, said = who.run(*words)
        assert (status, result) == (exit_status, ""), words
        assert said.splitlines()[-1].startswith(sentence) or sentence in said.splitlines()[-1], said
    assert slipway.run("build", "--nonsense")[0] == 2
    assert not client.get("/root/other")["has_code"], "a wrong specification is refused before the upload"
    assert client.call("GET", "/root/empty")[0] == 404, "nothing is made before the command is understood"


# What may happen on the way


def test_who_is_killed_half_way_goes_on_with_another_command(client: Client, slipway: CommandLine) -> None:
    nap = unique_sleep()
    name = app(client, slipway.folder, "echo before", nap)
    path = f"/root/{name}/builds/1"
    first = slipway.start("build", name, "--follow")
    wait_until(lambda: client.call("GET", path)[0] == 200)
    client.until_logged(path, nap)
    first.kill()
    first.communicate()

    assert client.get(path)["last_status"] == "running"

    second = slipway.start("logs", f"{name}/1", "--follow")
    until_said(second, "] running")
    client.call("POST", f"{path}/stop")
    status, log, said = rest_of(second)

    assert status == 3
    assert nap in log and client.log(path).startswith(log)
    assert "] stopped" in said


@dataclass
class Way:
    """Connections to the API go through here, as long as it is open."""

    goal: tuple[str, int]
    port: int = 0
    pairs: list[socket.socket] = field(default_factory=list)
    door: socket.socket | None = None

    def open(self) -> None:
        door = self.door = socket.create_server(("127.0.0.1", self.port))
        self.port = door.getsockname()[1]
        threading.Thread(target=self._serve, args=(door,), daemon=True).start()

    def close(self) -> None:
        """In the middle of what is sent."""
        assert self.door is not None
        for each in (self.door, *self.pairs):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.pairs.clear()

    def _serve(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                pair = (door.accept()[0], socket.create_connection(self.goal))
                self.pairs += pair
                for one, other in (pair, pair[::-1]):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while block := one.recv(65536):
                other.sendall(block)
            other.shutdown(socket.SHUT_WR)


def test_a_lost_connection_is_no_failed_build_and_following_goes_on(client: Client, slipway: CommandLine) -> None:
    host, port = client.running.url.removeprefix("http://").split(":")
    way = Way((host, int(port)))
    way.open()
    slipway.variables["SLIPWAY_URL"] = f"http://127.0.0.1:{way.port}"
    nap = unique_sleep()
    name = app(client, slipway.folder, "echo before", nap)
    path = f"/root/{name}/builds/1"
    command = slipway.start("build", name, "--follow")
    assert command.stderr is not None
    until_said(command, nap)

    way.close()
    assert "does not answer" in until_said(command, "Trying again for 15 minutes.")
    assert command.poll() is None
    way.open()
    until_said(command, "The service answers again.")
    client.call("POST", f"{path}/stop")
    status, result, said = rest_of(command)
    way.close()

    assert (status, result) == (3, "")
    assert "] stopped" in said and "] failed" not in said


def until_said(command: subprocess.Popen[str], words: str) -> str:
    """The first line of standard error that has these words."""
    assert command.stderr is not None
    for line in iter(command.stderr.readline, ""):
        if words in line:
            return line
    raise AssertionError(f"never said: {words}")


def rest_of(command: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, and what was not read so far; `communicate` would lose what is buffered."""
    assert command.stdout is not None and command.stderr is not None
    result, said = command.stdout.read(), command.stderr.read()
    return command.wait(), result, said


# On a terminal


@contextmanager
def on_a_terminal(slipway: CommandLine, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The program on a pseudo-terminal of its own, and the other end of that."""
    screen, terminal = pty.openpty()
    program = subprocess.Popen(
        slipway.words(*arguments),
        cwd=slipway.folder,
        env=slipway.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        # what a shell starts in the background ignores it, and so would this
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    try:
        yield program, screen
    finally:
        program.kill()
        program.wait()
        os.close(screen)


def read_until(screen: int, words: str | None) -> str:
    """What is shown until these words are, or to the end."""
    shown = ""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while words is None or words not in shown:
        assert time.monotonic() < deadline, f"waited in vain: {shown[-500:]}"
        assert select.select([screen], [], [], PATIENCE_SECONDS)[0], f"waited in vain: {shown[-500:]}"
        try:
            block = os.read(screen, 65536)
        except OSError:  # as Linux says that nobody writes any more
            break
        if not block:
            break
        shown += block.decode(errors="replace")
    assert words is None or words in shown, shown[-500:]
    return shown


def test_on_a_terminal_progress_is_one_line_and_who_interrupts_learns_how_to_go_on(
    client: Client, slipway: CommandLine
) -> None:
    nap = unique_sleep()
    name = app(client, slipway.folder, nap)
    with on_a_terminal(slipway, "build", name, "--follow") as (program, screen):
        shown = read_until(screen, nap)
        assert re.search(r"\r\x1b\[KUploading: \d+ % of", shown)
        shown = read_until(screen, "running, ")
        assert re.search(r"\r\x1b\[Krunning, \d+ s; asking again in \d s", shown)
        program.send_signal(signal.SIGINT)
        shown = read_until(screen, None)
        assert program.wait() == 130
    assert f"To follow: python3 slipway logs root/{name}/1 --follow" in shown
    assert f"To stop it: python3 slipway stop root/{name}/1" in shown
    assert client.get(f"/root/{name}/builds/1")["last_status"] == "running"

    slipway.ok("stop", f"{name}/1")
    assert slipway.run("logs", f"{name}/1", "--follow")[0] == 3


def test_a_token_that_is_typed_is_not_shown(client: Client, slipway: CommandLine) -> None:
    slipway.variables.clear()
    with on_a_terminal(slipway, "login", client.running.url) as (program, screen):
        read_until(screen, "Token: ")
        os.write(screen, f"{client.running.token}\n".encode())
        shown = read_until(screen, None)
        assert program.wait() == 0
    assert client.running.token not in shown
    assert "knows you as root" in shown


def test_a_reader_who_has_enough_is_no_error(client: Client, slipway: CommandLine) -> None:
    status, build = client.call("POST", "/root/quick-start/builds/", {"is_managed": False})
    assert status == 201
    path = f"/root/quick-start/builds/{build['id']}"
    lines: Any = [f"line {number} of more than a pipe holds" for number in range(5_000)]
    assert client.call("POST", f"{path}/logs", lines)[0] == 200
    command = slipway.start("logs", f"quick-start/{build['id']}")
    assert command.stdout is not None and command.stderr is not None
    assert "line 0 of" in command.stdout.readline()
    command.stdout.close()
    assert "Traceback" not in command.stderr.read()
    command.wait()
