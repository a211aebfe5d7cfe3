"""`make up` ended, by `kill -9` too, and started again: what it had promised holds. `make soak` does it often."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import urllib3
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.codebuild.api import WHEN_STOPPED
from infra.local.machine.machine import Machine
from tests.required_engines import with_one_engine
from tests.stack.conftest import DONE, HTTP, PATIENCE_SECONDS, POLL_SECONDS, PROJECT

pytestmark = [*with_one_engine, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
ALL_DONE_SECONDS = 1_800  # all builds are posted at once, and wait for each other
KILLS = int(os.environ.get("KILLS", "3"))
CLIENTS = 2
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"


class Ended(Exception):
    """The stack did not answer."""


@dataclass
class Up:
    """`make up` as a program that keeps its records in a folder."""

    folder: Path
    environment: dict[str, str]
    port: int = 0
    program: subprocess.Popen[str] | None = None
    ready: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        words = [sys.executable, "-m", "infra.local", "up", "--port", str(self.port), "--keep", str(self.folder)]
        self.program = subprocess.Popen(words, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.program.stdout is not None
        line = self.program.stdout.readline()
        assert line, f"it ended with {self.program.wait()}"
        self.ready = json.loads(line)
        self.port = int(self.ready["url"].rpartition(":")[2])

    def end(self, number: signal.Signals) -> None:
        assert self.program is not None
        self.program.send_signal(number)
        self.program.wait()

    def call(self, method: str, path: str, fields: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and body. Raises Ended."""
        headers = {"Authorization": f"token {self.ready['token']}"}
        try:
            url = f"{self.ready['url']}/api/v1{path}"
            answer = HTTP.request(method, url, headers=headers, json=fields, retries=False)
            is_json = answer.headers.get("Content-Type") == "application/json" and answer.data
            return answer.status, json.loads(answer.data) if is_json else answer.data.decode()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Ended from error

    def get(self, path: str) -> Any:
        """Asks again where the service is too busy to answer, as it says itself."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        status, body = self.call("GET", path)
        while status == 503 and time.monotonic() < deadline:
            time.sleep(1)
            status, body = self.call("GET", path)
        assert status == 200, (path, status, body)
        return body

    def content(self, *steps: str) -> str:
        spec = {"version": 1, "kind": "build", "image": self.ready["base_image"], "build_steps": [*steps]}
        return json.dumps(spec)

    def post(self, *steps: str, **more: Any) -> str:
        """A build's path."""
        status, body = self.call("POST", f"{PROJECT}/builds/", {"content": self.content(*steps), **more})
        if status >= 500:  # it is about to end
            raise Ended
        assert status == 201, body
        return f"{PROJECT}/builds/{body['id']}"

    def sqs(self) -> Any:
        """A client of the stack's queues."""
        return boto3.client(
            "sqs",
            endpoint_url=self.ready["aws_endpoint"],
            region_name="us-east-1",
            aws_access_key_id=self.ready["aws_access_key_id"],
            aws_secret_access_key=self.ready["aws_secret_access_key"],
        )

    def send(self, body: dict[str, Any]) -> None:
        """A message to the queue for requests. Raises Ended."""
        try:
            self.sqs().send_message(QueueUrl=self.ready["requests_queue"], MessageBody=json.dumps(body))
        except (BotoCoreError, ClientError) as error:
            raise Ended from error

    def until(self, path: str, met: Callable[[Any], bool], seconds: float = PATIENCE_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not met(build := self.get(path)):
            assert time.monotonic() < deadline, f"waited in vain: {self.get(f'{path}/statuses')}"
            time.sleep(POLL_SECONDS)
        return build

    def until_done(self, path: str, seconds: float = PATIENCE_SECONDS) -> Any:
        return self.until(path, lambda build: build["last_status"] in DONE, seconds)

    def last_message(self, path: str) -> str:
        return str(self.get(f"{path}/statuses")["results"][-1]["message"])

    def missing_from_registry(self, build: Any) -> list[tuple[str, int]]:
        """What the registry does not answer of a build's image, manifest or layers, and its status."""
        host, _, name = build["image"].partition("/")
        repository = name.rpartition(":")[0]
        headers = urllib3.make_headers(basic_auth=self.ready["registry_login"]) | {"Accept": MANIFEST}
        url = f"http://{host}/v2/{repository}"
        # docker-registry 2.8 answers 500 while another build pushes the same layer; clients ask again, as here
        again = urllib3.Retry(5, backoff_factor=0.1, status_forcelist=[500], raise_on_status=False)
        answer = HTTP.request("GET", f"{url}/manifests/{build['image_digest']}", headers=headers, retries=again)
        if answer.status != 200:
            return [(build["image_digest"], answer.status)]
        blobs = [each["digest"] for each in (answer.json()["config"], *answer.json()["layers"])]
        found = [(each, HTTP.request("HEAD", f"{url}/blobs/{each}", headers=headers, retries=again)) for each in blobs]
        return [(blob, answer.status) for blob, answer in found if answer.status != 200]


@pytest.fixture
def up(local_machine: Machine, tmp_path: Path) -> Iterator[Up]:
    with keeping(local_machine, tmp_path / "state" / "kept") as up:
        yield up


@contextmanager
def keeping(machine: Machine, folder: Path) -> Iterator[Up]:
    up = Up(folder, {**os.environ, **machine.engine.environment})
    try:
        yield up
    finally:
        if up.program is not None:
            with suppress(ProcessLookupError):
                up.end(signal.SIGTERM)


def test_what_was_promised_holds_after_a_kill(up: Up) -> None:
    """Two builds run at a time: one has an image, two run, one waits."""
    up.start()
    up.call("POST", "/projects", {"name": "quick-start"})
    up.call("PUT", f"{PROJECT}/secrets/KEY", {"value": "a secret"})
    made = up.until_done(up.post("echo made > /made"))
    assert made["last_status"] == "succeeded"
    log = up.get(f"{PROJECT}/builds/{made['id']}/logs")
    running = [up.post(f"sleep 36{n}") for n in range(2)]
    for path in running:
        up.until(path, lambda build: build["last_status"] == "running")
    waiting = up.post("echo waited")
    up.until(waiting, lambda build: build["last_status"] == "scheduled")
    before, secrets = up.ready, up.get(f"{PROJECT}/secrets")
    up.end(signal.SIGKILL)
    up.start()

    for name in ("url", "token", "registry", "registry_login"):
        assert up.ready[name] == before[name]
    assert up.get(f"{PROJECT}/builds/{made['id']}") == made
    assert up.get(f"{PROJECT}/builds/{made['id']}/logs") == log
    assert up.get(f"{PROJECT}/secrets") == secrets
    assert up.missing_from_registry(made) == []
    for path in running:
        assert up.until_done(path)["last_status"] == "failed"
        assert up.last_message(path) == f"FINALIZING: {WHEN_STOPPED}"
    assert up.until_done(waiting)["last_status"] == "succeeded"
    assert up.missing_from_registry(up.get(waiting)) == []


@dataclass
class Promises:
    """What clients were promised, over all starts."""

    posted: dict[str, str] = field(default_factory=dict)  # paths of builds, and names that they were given
    sent: list[str] = field(default_factory=list)  # names of builds that messages ask for
    ended: dict[str, Any] = field(default_factory=dict)  # builds, by their paths

    def load(self, up: Up, client: int, ending: threading.Event) -> None:
        """Posts builds and messages until the stack ends."""
        with suppress(Ended):
            for number in range(10**6):
                if ending.wait(0.4):
                    return
                name = f"{client}-{time.time_ns()}"
                if number % 4 == 3:
                    request = {
                        "version": 1,
                        "action": "create",
                        "owner": "root",
                        "project": "quick-start",
                        "idempotency_key": name,
                    }
                    up.send(request | {"content": up.content("true"), "name": name})
                    self.sent.append(name)
                    continue
                path = up.post("true", name=name)
                assert path not in self.posted, "an id was given twice"
                self.posted[path] = name
                up.call("PATCH", path, {"description": name})

    def check(self, up: Up) -> None:
        """Of images those that are new, and the oldest, which shares a layer with all others."""
        images = [build for build in self.ended.values() if build["last_status"] == "succeeded"][:1]
        for path, name in self.posted.items():
            build = up.get(path)
            assert build["name"] == name
            if path in self.ended:
                assert build == self.ended[path]
            elif build["last_status"] in DONE:
                self.ended[path] = build
                images += [build] if build["last_status"] == "succeeded" else []
        for build in images:
            assert up.missing_from_registry(build) == []


@pytest.mark.proof
def test_no_promise_is_broken_however_often_it_is_killed(up: Up) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    print(f"SEED={seed}")
    chance, promises = random.Random(seed), Promises()
    up.start()
    up.call("POST", "/projects", {"name": "quick-start"})
    for kill in range(KILLS):
        ending = threading.Event()
        clients = [threading.Thread(target=promises.load, args=(up, n, ending)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(chance.uniform(0.1, 5))
        up.end(signal.SIGTERM if kill % 5 == 4 else signal.SIGKILL)
        ending.set()
        for client in clients:
            client.join()
        up.start()
        promises.check(up)
        print(f"kill {kill + 1}: {len(promises.posted)} builds, {len(promises.sent)} messages")

    endings = {path: up.until_done(path, ALL_DONE_SECONDS) for path in promises.posted}
    promises.check(up)
    for path, build in endings.items():
        assert build["last_status"] == "succeeded" or up.last_message(path).endswith(WHEN_STOPPED)
    wanted = {*promises.sent}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while wanted:
        assert time.monotonic() < deadline, f"no builds came of messages: {wanted}"
        wanted = {name for name in wanted if not up.get(f"{PROJECT}/builds?query=name:{name}")["count"]}
