"""The CodeBuild on this machine, over its wire protocol. Its builds are shell only: no engine is needed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError

from chalicelib.domain.log_lines import Lines, LogLine
from infra.local.codebuild import buildspec, log_stream
from infra.local.codebuild.api import WHEN_STOPPED, CodeBuild
from infra.local.storage import Storage

pytestmark = pytest.mark.slow

PROJECT = "slipway-builds"
PATIENCE_SECONDS = 30.0
PHASES = ["SUBMITTED", "QUEUED", "PROVISIONING", "DOWNLOAD_SOURCE", "INSTALL", "PRE_BUILD", "BUILD"]
PHASES += ["POST_BUILD", "UPLOAD_ARTIFACTS", "FINALIZING", "COMPLETED"]


@dataclass
class Local:
    """A CodeBuild that runs one build at a time, with minutes of a fifth of a second."""

    client: Any
    logs: Any
    service: CodeBuild
    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    now: float = 1_700_000_000.0

    def start(self, *commands: str, **more: Any) -> str:
        """Starts a build of these commands in phase BUILD; its id."""
        spec = {"version": 0.2, "phases": {"build": {"commands": list(commands)}}}
        request = {"projectName": PROJECT, "buildspecOverride": yaml.safe_dump(spec), **more}
        return str(self.client.start_build(**request)["build"]["id"])

    def describe(self, build: str) -> Any:
        return self.client.batch_get_builds(ids=[build])["builds"][0]

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not met():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    def until_done(self, build: str) -> Any:
        self.until(lambda: bool(self.describe(build)["buildComplete"]))
        return self.describe(build)

    def log(self, build: str) -> list[str]:
        _, _, stream = build.partition(":")
        events = self.logs.get_log_events(logGroupName=f"/aws/codebuild/{PROJECT}", logStreamName=stream)
        lines = Lines("")
        pieces = [LogLine(datetime.now(UTC), event["message"].rstrip("\n")) for event in events["events"]]
        return [line for piece in pieces for line in lines.add(piece)]

    def gate(self) -> tuple[str, Path]:
        """A command that waits until a file is there, and that file."""
        path = self.folder / f"gate-{threading.get_ident()}-{time.monotonic_ns()}"
        return f"while [ ! -e {path} ]; do sleep 0.02; done", path


@pytest.fixture
def local(on_aws: None, tmp_path: Path) -> Iterator[Local]:
    logs = boto3.client("logs")
    events: list[dict[str, Any]] = []
    holder: list[Local] = []
    service = CodeBuild(
        {PROJECT: {"SLIPWAY_ENGINE": "none"}},
        logs=logs,
        deliver=events.append,
        state=tmp_path / "work",
        concurrency=1,
        seconds_per_minute=0.2,
        clock=lambda: holder[0].now,
    )
    client = boto3.client("codebuild", endpoint_url=service.start())
    holder.append(Local(client, logs, service, tmp_path, events))
    yield holder[0]
    service.close()


def code_of(refusal: pytest.ExceptionInfo[ClientError]) -> str:
    return str(refusal.value.response["Error"]["Code"])


def phases(described: Mapping[str, Any]) -> dict[str, str]:
    return {phase["phaseType"]: phase.get("phaseStatus", "") for phase in described["phases"]}


def test_a_build_goes_through_all_phases_and_logs(local: Local) -> None:
    build = local.start("echo one", "echo two >&2; echo three")
    described = local.until_done(build)

    assert described["buildStatus"] == "SUCCEEDED"
    assert list(phases(described)) == PHASES
    assert local.log(build) == ["one", "two", "three"]
    assert described["logs"]["groupName"] == f"/aws/codebuild/{PROJECT}"


def test_phases_do_not_wait_for_the_log(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lines go with those that are sent from time to time, at the latest before the end is told."""
    monkeypatch.setattr(log_stream, "FLUSH_SECONDS", 3600.0)
    calls: list[object] = []
    local.logs.meta.events.register("before-call.cloudwatch-logs.PutLogEvents", lambda **_: calls.append(None))
    build = local.start("echo one")
    local.until_done(build)

    assert (local.log(build), len(calls)) == (["one"], 1)


def test_builds_that_are_kept_are_settled_or_go_on_at_the_next_start(local: Local, tmp_path: Path) -> None:
    def served(kept: Storage) -> CodeBuild:
        deliver, state = local.events.append, tmp_path / "kept-work"
        service = CodeBuild({PROJECT: {}}, logs=local.logs, deliver=deliver, state=state, concurrency=1, storage=kept)
        local.client = boto3.client("codebuild", endpoint_url=service.start())
        return service

    with closing(Storage(tmp_path / "kept")) as kept:
        with closing(served(kept)):
            ended = local.start("true")
            before = local.until_done(ended)
            running = local.start("sleep 3600", idempotencyToken="once")
            local.until(lambda: local.describe(running)["currentPhase"] == "BUILD")
            waiting = local.start("echo waited")
        local.events.clear()
        with closing(served(kept)) as service:
            service.resume()
            assert local.describe(ended) == before
            settled = local.until_done(running)
            assert settled["buildStatus"] == "FAILED"
            assert settled["phases"][-2]["contexts"][0]["message"] == WHEN_STOPPED
            assert local.start("sleep 3600", idempotencyToken="once") == running
            assert local.until_done(waiting)["buildStatus"] == "SUCCEEDED"
        told = [each["detail"]["build-id"].rpartition("build/")[2] for each in local.events]
    assert told.count(running) == 1
    assert ended not in told


def test_events_ring_at_every_phase_and_at_both_ends(local: Local) -> None:
    build = local.start("true")
    local.until_done(build)
    local.service.close()

    kinds = [event["detail-type"].removeprefix("CodeBuild Build ") for event in local.events]
    assert kinds == ["State Change", *["Phase Change"] * (len(PHASES) - 1), "State Change"]
    assert [event["detail"].get("build-status") for event in (local.events[0], local.events[-1])] == [
        "IN_PROGRESS",
        "SUCCEEDED",
    ]
    assert {event["detail"]["build-id"].rpartition("build/")[2] for event in local.events} == {build}
    json.dumps(local.events)


def test_a_failing_command_ends_the_phase_and_post_build_still_runs(local: Local) -> None:
    spec = {
        "version": 0.2,
        "phases": {
            "build": {"commands": ["exit 3", "echo never"]},
            "post_build": {"commands": ["echo after"]},
        },
    }
    build = local.start(buildspecOverride=yaml.safe_dump(spec))
    described = local.until_done(build)

    assert described["buildStatus"] == "FAILED"
    assert phases(described)["BUILD"] == "FAILED"
    failed = next(phase for phase in described["phases"] if phase["phaseType"] == "BUILD")
    assert failed["contexts"][0]["message"] == "Error while executing command: exit 3. Reason: exit status 3"
    assert local.log(build) == ["after"]


def test_a_source_is_refused(local: Local) -> None:
    with pytest.raises(ClientError) as refusal:
        local.start("true", sourceTypeOverride="S3", sourceLocationOverride="bucket/builds/7/")
    assert code_of(refusal) == "InvalidInputException"


def test_a_build_has_a_folder_of_its_own_in_memory_until_it_ends(local: Local) -> None:
    build = local.start('test -d "$SLIPWAY_MEMORY" && echo "$SLIPWAY_MEMORY"')
    local.until_done(build)
    (memory,) = local.log(build)
    assert not Path(memory).exists()


def test_variables_are_those_given_and_none_of_this_process(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_THIS_PROCESS", "x")
    build = local.start(
        'echo "$GIVEN $SLIPWAY_ENGINE ${A_SECRET_OF_THIS_PROCESS:-none}"',
        environmentVariablesOverride=[{"name": "GIVEN", "value": "a 'b' $c", "type": "PLAINTEXT"}],
    )
    local.until_done(build)
    assert local.log(build) == ["a 'b' $c none none"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder for work has a disk of 64 KB, where root may mount one."""
    folder = tmp_path / "work"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk, on Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("root may mount nothing here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


DISK_FULL = "This machine could not run the build: No space left on device."


def test_a_full_disk_is_said(small_disk: Path, local: Local) -> None:
    (small_disk / "ballast").write_bytes(bytes(2**16 - 4096))
    described = local.until_done(local.start("true"))

    assert described["buildStatus"] == "FAILED"
    (failed,) = [phase for phase in described["phases"] if phase.get("phaseStatus") == "FAILED"]
    assert failed["contexts"][0]["message"] == DISK_FULL


def test_a_disk_that_gets_full_does_not_hide_which_command_failed(small_disk: Path, local: Local) -> None:
    fill = f"cat /dev/zero 2>/dev/null >{small_disk}/ballast || true"
    described = local.until_done(local.start("true", fill, "# says why\nexit 7"))

    assert described["buildStatus"] == "FAILED"
    (failed,) = [phase for phase in described["phases"] if phase.get("phaseStatus") == "FAILED"]
    assert failed["contexts"][0]["message"].endswith("command: # says why\nexit 7. Reason: exit status 7")


def test_an_error_of_the_machine_is_said(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(buildspec, "Phase", refuse)
    described = local.until_done(local.start("true"))

    assert described["buildStatus"] == "FAILED"
    (failed,) = [phase for phase in described["phases"] if phase.get("phaseStatus") == "FAILED"]
    assert failed["contexts"][0]["message"] == "This machine could not run the build: Too many open files."


def test_a_build_without_a_log_still_ends(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(local.service._logs, "create_log_stream", refuse)
        assert local.until_done(local.start("true"))["buildStatus"] == "FAULT"

    later = local.until_done(local.start("true"))  # the first in the queue is one that can run
    assert later["buildStatus"] == "SUCCEEDED"


def test_one_build_runs_and_others_wait_their_turn(local: Local) -> None:
    command, gate = local.gate()
    first, second = local.start(command), local.start("true")
    local.until(lambda: local.describe(first)["currentPhase"] == "BUILD")
    local.until(lambda: local.describe(second)["currentPhase"] == "QUEUED")
    time.sleep(0.2)  # long enough for a build that does not wait to end
    assert local.describe(second)["currentPhase"] == "QUEUED"

    gate.touch()
    assert local.until_done(second)["buildStatus"] == "SUCCEEDED"


def test_more_than_five_waiting_per_slot_are_refused(local: Local) -> None:
    command, gate = local.gate()
    first = local.start(command)
    local.until(lambda: local.describe(first)["currentPhase"] == "BUILD")
    for _ in range(5):
        local.start("true", queuedTimeoutInMinutesOverride=480)

    with pytest.raises(ClientError) as refusal:
        local.start("true")
    assert code_of(refusal) == "AccountLimitExceededException"
    gate.touch()


@pytest.mark.parametrize("while_", ["running", "waiting"])
def test_a_stopped_build_ends(local: Local, while_: str) -> None:
    command, _ = local.gate()
    running, waiting = local.start(command), local.start("echo never")
    local.until(lambda: local.describe(running)["currentPhase"] == "BUILD")

    stopped = running if while_ == "running" else waiting
    local.client.stop_build(id=stopped)
    assert local.until_done(stopped)["buildStatus"] == "STOPPED"
    local.client.stop_build(id=running)


def test_a_build_that_takes_too_long_times_out(local: Local) -> None:
    described = local.until_done(local.start("sleep 3600", timeoutInMinutesOverride=5))
    assert described["buildStatus"] == "TIMED_OUT"
    assert phases(described)["BUILD"] == "TIMED_OUT"


def test_a_build_that_waits_too_long_times_out(local: Local) -> None:
    command, gate = local.gate()
    local.start(command, timeoutInMinutesOverride=600)
    described = local.until_done(local.start("true", queuedTimeoutInMinutesOverride=5))
    assert phases(described)["QUEUED"] == "TIMED_OUT"
    gate.touch()


def test_a_token_names_one_build_for_five_minutes(local: Local) -> None:
    first = local.start("true", idempotencyToken="t")
    assert local.start("true", idempotencyToken="t") == first
    with pytest.raises(ClientError) as refusal:
        local.start("false", idempotencyToken="t")
    assert code_of(refusal) == "InvalidInputException"

    local.now += 300
    assert local.start("true", idempotencyToken="t") != first


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"projectName": "other"}, "ResourceNotFoundException"),
        ({"timeoutInMinutesOverride": 4}, "InvalidInputException"),
        ({"queuedTimeoutInMinutesOverride": 481}, "InvalidInputException"),
        ({"buildspecOverride": "version: 0.1"}, "InvalidInputException"),
        ({"buildspecOverride": "#" * 25_601}, "InvalidInputException"),
    ],
)
def test_what_codebuild_refuses(local: Local, request_: dict[str, Any], code: str) -> None:
    # the client checks some bounds by itself, the service all of them
    unchecked = Config(parameter_validation=False)
    client = boto3.client("codebuild", endpoint_url=local.client.meta.endpoint_url, config=unchecked)
    with pytest.raises(ClientError) as refusal:
        client.start_build(**{"projectName": PROJECT, "buildspecOverride": "version: 0.2", **request_})
    assert code_of(refusal) == code


def test_builds_are_listed_newest_first(local: Local) -> None:
    ids = [local.start("true") for _ in range(3)]
    listed = local.client.list_builds_for_project(projectName=PROJECT, sortOrder="DESCENDING")["ids"]
    assert listed == ids[::-1]


def test_unknown_ids_are_named(local: Local) -> None:
    answer = local.client.batch_get_builds(ids=[f"{PROJECT}:no"])
    assert (answer["builds"], answer["buildsNotFound"]) == ([], [f"{PROJECT}:no"])
