"""The whole service on loopback, once per container engine that works here."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from werkzeug import Response

from infra.bench.serving import served
from infra.local.machine.engine import Engine
from infra.local.machine.machine import STATE, Machine, machine
from infra.local.stack import Running, stack
from tests.git_server import GitServer
from tests.required_engines import EVERY_ENGINE, skipped_without

PATIENCE_SECONDS = 300  # the machine may be busy; nothing depends on how fast it is
POLL_SECONDS = 0.2  # workers share the processor with what they wait for
DONE = ("succeeded", "failed", "stopped")
PROJECT = "/root/quick-start"
MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
HTTP = urllib3.PoolManager(maxsize=16, timeout=PATIENCE_SECONDS)


@dataclass(frozen=True)
class Client:
    """The API as a test uses it; paths are below /api/v1."""

    running: Running
    machine: Machine

    def call(self, method: str, path: str, fields: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status, and the body as JSON or text."""
        answer = HTTP.request(
            method,
            f"{self.running.url}/api/v1{path}",
            headers={"Authorization": f"token {self.running.token}"},
            json=fields,
            retries=False,
        )
        text = answer.data.decode()
        is_json = answer.headers.get("Content-Type") == "application/json" and text
        return answer.status, json.loads(text) if is_json else text

    def get(self, path: str) -> Any:
        status, body = self.call("GET", path)
        assert status == 200, body
        return body

    def upload(self, project: str, archive: bytes) -> None:
        """Puts a gzipped tar up as the project's code."""
        url = f"{self.running.url}/api/v1{project}/repo/upload"
        headers = {"Authorization": f"token {self.running.token}", "Content-Type": "application/gzip"}
        answer = HTTP.request("PUT", url, headers=headers, body=archive, retries=False)
        assert answer.status == 200, answer.data

    def build(self, *steps: str, project: str = PROJECT, **more: Any) -> str:
        """Posts a build of these steps, which all run anew, and returns its path."""
        spec = {"version": 1, "kind": "build", "image": self.machine.base_image, "nocache": True}
        content = {**spec, "build_steps": list(steps), **more}
        status, build = self.call("POST", f"{project}/builds/", {"content": json.dumps(content)})
        assert status == 201, build
        return f"{project}/builds/{build['id']}"

    def until(self, path: str, met: Callable[[Any], bool]) -> Any:
        """The build, as soon as it meets a condition."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not met(build := self.get(path)):
            assert time.monotonic() < deadline, f"waited in vain: {self.statuses(path)}"
            time.sleep(POLL_SECONDS)
        return build

    def until_done(self, path: str) -> Any:
        return self.until(path, lambda build: build["last_status"] in DONE)

    def until_logged(self, path: str, text: str) -> None:
        self.until(path, lambda _: text in self.log(path))

    def statuses(self, path: str) -> list[str]:
        return [row["status"] for row in self.get(f"{path}/statuses")["results"]]

    def last_message(self, path: str) -> str:
        return str(self.get(f"{path}/statuses")["results"][-1]["message"])

    def log(self, path: str) -> str:
        """The log so far, empty while there is none."""
        status, log = self.call("GET", f"{path}/logs")
        return log if status == 200 else ""


@pytest.fixture(scope="session", params=EVERY_ENGINE)
def local_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """This machine with one engine, each that works here."""
    with ExitStack() as closing:
        with skipped_without(request.param):
            ready = closing.enter_context(machine(STATE, print, request.param))
        yield ready


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    """Where builds run."""
    return str(request.param)


@contextmanager
def serving(machine: Machine, folder: Path, **options: Any) -> Iterator[Client]:
    """A stack with an empty project."""
    login = machine.registry_login
    with stack(machine.engine, machine.registry, folder, registry_login=login, **options) as running:
        client = Client(running, machine)
        assert client.call("POST", "/projects", {"name": "quick-start"})[0] == 201
        yield client


def trusting(machine: Machine, git: GitServer) -> Machine:
    """The machine, whose builds trust the certificate of a git server."""
    variables = {**machine.engine.environment, "GIT_SSL_CAINFO": str(git.certificate)}
    return replace(machine, engine=replace(machine.engine, environment=variables))


@contextmanager
def serving_without_engine(folder: Path, **options: Any) -> Iterator[Client]:
    """With an empty registry. No build gets far."""
    with served(lambda _: Response(status=404)) as registry:
        nothing = Machine(Engine("docker", {"SLIPWAY_ENGINE": "none"}), registry, "", "scratch")
        with serving(nothing, folder, **options) as client:
            yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Unless a module has its own."""
    with serving_without_engine(tmp_path / "stack") as client:
        yield client


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(POLL_SECONDS)


def unique_sleep() -> str:
    """A command that takes long and can be told from all others on this machine."""
    return f"sleep {3600 + secrets.randbelow(10**6)}"


def processes(words: str) -> list[str]:
    """Command lines of processes on this machine that contain `words`."""
    return [command for _, command in _each_process("cmdline") if words in command]


def engines_building(image: str) -> list[int]:
    """Numbers of the engine's processes that build an image now."""
    engines = [number for number, command in _each_process("cmdline") if " build " in command]
    mark = f"SLIPWAY_IMAGE={image} "
    return [number for number, variables in _each_process("environ") if number in engines and mark in variables]


def _each_process(file: str) -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        with suppress(OSError):  # it ended meanwhile
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
