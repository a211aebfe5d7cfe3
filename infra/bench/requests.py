"""What requests cost: instructions, calls to AWS and the capacity they consume: `make bench-requests`.

Instructions are counted by valgrind, where it is installed. A process loads `app` and does each thing once,
as a warm function has. Then one fork does a thing `FEWER` times and another does it `MORE` times; the difference of
their counts, divided by that of the times, is the cost of one. Runs differ by less than a percent, under any load.
Signing, JSON, HTTP and the log are counted; the emulators, the kernel, TLS, Lambda's runtime client and traces are not.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import boto3
from awslambdaric.lambda_runtime_log_utils import JsonFormatter
from chalice.local import LambdaContext, LambdaEventConverter, RouteMatcher

from app import app, on_codebuild_event
from chalicelib import settings, telemetry, wiring
from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.adapters.dynamodb.keys import record_key
from chalicelib.adapters.dynamodb.records import encode_build
from chalicelib.adapters.dynamodb.table import Item, use_table
from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.project import Project
from chalicelib.domain.record import replace
from chalicelib.settings import Settings
from chalicelib.usecases import accounts, builds, projects
from infra.bench import ministack
from infra.bench.capacity import Meter
from infra.bench.stand_ins import BUILDS, FIRST_TO_END, MILLION, in_front_of
from infra.local import aws
from infra.local.machine.machine import STATE

FEW, MANY = 100, 100_000  # builds, in the projects of these names
FEWER, MORE = 2, 12  # times that a fork does something
CONTENT = {
    "version": 1,
    "kind": "build",
    "image": "python:3.12-slim",
    "build_steps": ["pip install --no-cache-dir -r requirements.txt", "python -m compileall /code"],
    "env_vars": [["APP_MODE", "prod"], ["RETRIES", 3]],
    "tags": ["nightly", "gpu"],
}
Item.Meta.read_timeout_seconds = 60  # however slow the machine is
TOKEN = "ada"  # noqa: S105 - of an emulator
Thing = Callable[[], None]


class WarmServices(wiring.AwsServices):
    """Remembers callers for an hour, as a warm function does for a short time: too short under valgrind."""

    @wiring.lazily
    def settings(self) -> Settings:
        return replace(settings.read(), account_memory_seconds=3_600)


class Things:
    """What is measured, by name. Each value prepares one run, which makes the measured calls. Where a second run on the
    same build would make fewer calls, each run has another build."""

    def __init__(self, first_build: int) -> None:
        self._builds, self._ending = count(first_build), count(FIRST_TO_END + first_build)
        self.made: Mapping[str, Callable[[], Thing]] = {
            "GET of a build": partial(self._request, "GET", "/ada/few/builds/1"),
            "  caller not remembered": partial(self._forgetful, "GET", "/ada/few/builds/1"),
            "page of 20, of few": partial(self._request, "GET", "/ada/few/builds"),
            "page of 20, of many": partial(self._request, "GET", "/ada/many/builds"),
            "page of 20, of a million": partial(self._request, "GET", "/ada/million/builds"),
            "page of 500, of a million": partial(self._request, "GET", "/ada/million/builds?limit=500"),
            "GET of statuses": partial(self._request, "GET", "/ada/few/builds/1/statuses"),
            "PATCH": lambda: self._request(
                "PATCH", "/ada/few/builds/1", {"description": f"number {next(self._builds)}"}
            ),
            "create": partial(self._request, "POST", "/ada/new/builds", {"content": json.dumps(CONTENT)}),
            "bookmark": partial(self._request, "POST", "/ada/few/builds/1/bookmark"),
            "event: a status": partial(self._event, self._builds),
            "event: the end": partial(self._event, self._ending),
        }

    def _request(self, method: str, path: str, fields: Any = None) -> Thing:
        converter = LambdaEventConverter(RouteMatcher(list(app.routes)), app.api.binary_types)
        headers = {"authorization": f"token {TOKEN}", "content-type": "application/json"}
        body = b"" if fields is None else json.dumps(fields).encode()
        event = converter.create_lambda_event(method, settings.api_prefix() + path, headers, body)
        context = LambdaContext("api_handler", 1024, 60_000)

        def send() -> None:
            answer = app(event, context)
            assert answer["statusCode"] < 300, answer

        return send

    def _forgetful(self, method: str, path: str) -> Thing:
        """The same in a process that does not remember the caller."""
        send, known = self._request(method, path), wiring.services().accounts
        assert isinstance(known, DynamoAccounts)

        def forget_and_send() -> None:
            known._remembered.clear()
            send()

        return forget_and_send

    def _event(self, numbers: Iterator[int]) -> Thing:
        """CodeBuild says that something has changed with its next build."""
        arn = f"arn:aws:codebuild:us-east-1:123456789012:build/builds:{next(numbers)}"
        event = {
            **{"version": "0", "id": "1", "account": "123456789012", "region": "us-east-1", "resources": [arn]},
            **{
                "source": "aws.codebuild",
                "detail-type": "CodeBuild Build Phase Change",
                "time": "2026-11-27T12:00:00Z",
            },
            "detail": {"build-id": arn},
        }
        return lambda: on_codebuild_event(event, LambdaContext("on_codebuild_event", 512, 60_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=MANY, help="builds of the larger project (%(default)s)")
    parser.add_argument("--forks", type=int, metavar="FIRST_BUILD", help="this program itself says so")
    arguments = parser.parse_args()
    if arguments.forks:
        wiring.replace_services(WarmServices())
        log_as_lambda_does()
        fork(Things(arguments.forks))
        return
    with ministack.serve(STATE) as emulator, in_front_of(emulator, million) as url:
        os.environ.update(environment(url))
        for queue in ("dispatch", "logs"):
            boto3.client("sqs").create_queue(QueueName=queue)
        wiring.replace_services(WarmServices())
        say(f"Writing {FEW + arguments.many:,} builds …")
        seed({"few": FEW, "many": arguments.many, MILLION.name: 0})
        things = Things(first_build=1)
        consumed = {name: costs(make) for name, make in things.made.items()}
        say("Counting instructions, which takes a minute or two …")
        instructions = instructions_of(things.made, first_build=20)
    print(f"few: {FEW:,} builds, many: {arguments.many:,}, a million: {BUILDS:,}")
    print(f"{'':<26}{'instructions':>13}{'read units':>12}{'write units':>13}   calls")
    for name, (operations, read, written) in consumed.items():
        counted = f"{instructions[name] / 1e6:.1f} M" if instructions else "-"
        print(f"{name:<26}{counted:>13}{read:>12}{written:>13}   {', '.join(operations)}")
    if not instructions:
        print("Instructions are counted where valgrind is found.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def environment(url: str) -> dict[str, str]:
    return {
        **aws.ENVIRONMENT,
        "AWS_LAMBDA_FUNCTION_NAME": "api_handler",
        "PYTHONHASHSEED": "0",  # of the forks: sets and their costs are the same in every run
        "AWS_ENDPOINT_URL": url,
        "SLIPWAY_TABLE": "slipway",
        "SLIPWAY_DISPATCH_QUEUE_URL": f"{url}/000000000000/dispatch",
        "SLIPWAY_LOG_QUEUE_URL": f"{url}/000000000000/logs",
        "SLIPWAY_HOOK_QUEUE_URL": f"{url}/000000000000/hooks",
        "SLIPWAY_DEAD_LETTER_QUEUE_URL": f"{url}/000000000000/dead",
        "SLIPWAY_CODEBUILD_PROJECT": "builds",
        "SLIPWAY_BUCKET": "bucket",
        "SLIPWAY_REGISTRY": f"{url.removeprefix('http://')}/slipway",
        "SLIPWAY_BUILD_KEY_SECRET": "build-key",
        "SLIPWAY_REGISTRY_KIND": "plain",
    }


def seed(rows: Mapping[str, int]) -> None:
    """Makes a user, and projects with so many builds: copies of one that CodeBuild runs."""
    services = wiring.services()
    use_table(services.settings.table)
    Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
    accounts.ensure_superuser(services, "ada", token=TOKEN)
    ada = services.accounts.user("ada")
    assert ada is not None
    for name in (*rows, "new"):
        projects.create(services, ada, {"name": name})
    for name, number_of_builds in rows.items():
        fields = {"content": json.dumps(CONTENT), "name": "trainer", "description": "the nightly image"}
        opened = builds.create(services, ada, "ada", name, fields)
        claimed = lifecycle.claim(opened.build, services.now())
        with Item.batch_write() as batch:
            for number in range(1, number_of_builds + 1):
                batch.save(encode_build(_copy(claimed, number)))
        _set_counters(opened.project, number_of_builds or BUILDS)


@cache
def million(number: int) -> dict[str, Any]:
    """The row of the index `recent` for the build with this number in the project of a million builds."""
    (key, build), names = _million(), ("data", "last", "version", "recent", "updated_at")
    item = encode_build(_copy(replace(build, key=key), number)).serialize()
    return {name: item[name] for name in ("pk", "sk", *names)}


@cache
def _million() -> tuple[BuildKey, Build]:
    found = wiring.services().builds.get(BuildKey("ada", "few", 1))
    assert found is not None
    return BuildKey(MILLION.owner, MILLION.name, 1), found


def _copy(claimed: Build, number: int) -> Build:
    build = replace(claimed, key=replace(claimed.key, id=number))
    later = claimed.created_at + timedelta(seconds=number)
    return lifecycle.submitted(build, f"builds:{number}", later, later)


def _set_counters(project: Project, number_of_builds: int) -> None:
    item = Item(*record_key(project.key))
    counters = (Item.last_build_id, Item.live_builds)
    item.update([counter.set(number_of_builds) for counter in counters])


def costs(make: Callable[[], Thing]) -> tuple[Sequence[str], float, float]:
    """Calls to AWS, read units and write units of doing it once, when the process remembers the caller."""
    make()()
    thing = make()
    with Meter() as meter:
        thing()
    return meter.operations, meter.read, meter.written


def instructions_of(names: Sequence[str] | Mapping[str, Any], first_build: int) -> dict[str, float]:
    """Instructions of doing each thing once, by name; empty if valgrind is not installed."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        command = [valgrind, "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={folder}/%p"]
        program = [sys.executable, "-m", "infra.bench.requests", "--forks", str(first_build)]
        done = subprocess.run([*command, *program], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"Instructions could not be counted:\n{done.stderr}")
        forks: dict[str, list[int]] = json.loads(done.stdout)
        counts = {name: [_count(Path(folder) / str(pid)) for pid in forks[name]] for name in names}
    return {name: (more - fewer) / (MORE - FEWER) for name, (fewer, more) in counts.items()}


def _count(path: Path) -> int:
    """The number of instructions that a process executed, from cachegrind's output file."""
    summary = next(line for line in path.read_text().splitlines() if line.startswith("summary:"))
    return int(summary.split()[1])


def log_as_lambda_does() -> None:
    """Formats log lines as JSON, as Lambda does, and discards them."""
    handler = logging.FileHandler(os.devnull)
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    telemetry.start()


def fork(things: Things) -> None:
    """Prints the ids of the processes that did each thing `FEWER` times and `MORE` times."""
    for make in things.made.values():
        make()()
    forks = {name: [_forked([make() for _ in range(n)]) for n in (FEWER, MORE)] for name, make in things.made.items()}
    print(json.dumps(forks))


def _forked(work: Sequence[Thing]) -> int:
    pid = os.fork()
    if pid == 0:
        for thing in work:
            thing()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    return pid


if __name__ == "__main__":
    main()
