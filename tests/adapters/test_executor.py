"""What an Executor promises: the fake, CodeBuild over the wire to the one on this machine, and EKS over
TLS to the fake Kubernetes API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from chalicelib.adapters import steps
from chalicelib.adapters.codebuild import CodeBuildExecutor, buildspec, observation_of, start_build_request
from chalicelib.adapters.eks.api import TRIES
from chalicelib.domain.build import Build, Source, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.ports import Executor
from infra.local.codebuild.api import CodeBuild
from tests.adapters.clusters import API_URL, EXECUTION, eks_executor, kubernetes
from tests.factories import NOW, make_claimed
from tests.fakes import Clock, FakeExecutor

BUILDKIT = "docker.io/moby/buildkit@sha256:" + "ab" * 32
PROJECT = "slipway-builds"
PATIENCE_SECONDS = 30.0


@dataclass
class Stage:
    """An executor, and what a test does around it."""

    executor: Executor
    forget_token: Callable[[], None]
    refuse: Callable[[str], None]


@pytest.fixture(params=["fake", "CodeBuild", "EKS"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    if request.param == "fake":
        clock = Clock(datetime.now(UTC))
        fake = FakeExecutor(clock)

        def refuse(code: str) -> None:
            error = Busy if code == "AccountLimitExceededException" else ExecutorRefused
            fake.fail_next.append(error(code))

        yield Stage(fake, lambda: clock.forward(minutes=6), refuse)
        return
    request.getfixturevalue("on_aws")
    if request.param == "EKS":
        with kubernetes() as (api, eks):
            yield Stage(
                eks_executor(eks),
                lambda: None,  # names of Jobs are known for as long as they are there
                lambda code: api.answer_next(429 if code == "AccountLimitExceededException" else 422, TRIES),
            )
        return
    skipped_seconds = [0.0]
    service = CodeBuild(
        {PROJECT: {"SLIPWAY_ENGINE": "none"}},
        logs=boto3.client("logs"),
        deliver=lambda event: None,
        state=tmp_path,
        clock=lambda: time.time() + skipped_seconds[0],
    )
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("AWS_ENDPOINT_URL_CODEBUILD", service.start())

    def forget_token() -> None:
        skipped_seconds[0] += 301

    yield Stage(
        code_build_executor(),
        forget_token,
        service.refuse_next,
    )
    service.close()


def code_build_executor() -> CodeBuildExecutor:
    return CodeBuildExecutor(EXECUTION, lambda uuid, attempt: "hush")


def claimed(stage: Stage, number: int = 1) -> Build:
    return replace(make_claimed(number=number), submitting_at=datetime.now(UTC) - timedelta(seconds=5))


def test_one_attempt_submitted_twice_is_one_build(stage: Stage) -> None:
    build = claimed(stage)
    assert stage.executor.submit(build) == stage.executor.submit(build)


def test_another_attempt_is_another_build(stage: Stage) -> None:
    build = claimed(stage)
    assert stage.executor.submit(build) != stage.executor.submit(replace(build, attempt=2))


def test_an_attempt_is_found_when_its_handle_got_lost(stage: Stage) -> None:
    build, other = claimed(stage), claimed(stage, 2)
    handle = stage.executor.submit(build)
    stage.executor.submit(other)
    stage.forget_token()

    assert stage.executor.find_handle(build) == handle
    assert stage.executor.find_handle(replace(build, attempt=2)) is None


def test_a_submitted_build_is_observed_by_its_handle(stage: Stage) -> None:
    build, other = claimed(stage), claimed(stage, 2)
    handles = [stage.executor.submit(build), stage.executor.submit(other)]
    seen = stage.executor.observe([*handles, "slipway-builds:unknown"])

    assert set(seen) == set(handles)
    assert [(seen[handle].key, seen[handle].attempt) for handle in handles] == [
        (str(build.key), 1),
        (str(other.key), 1),
    ]


def test_a_stopped_build_ends_and_stopping_is_idempotent(stage: Stage) -> None:
    handle = stage.executor.submit(claimed(stage))
    stage.executor.stop(handle)
    stage.executor.stop(handle)
    stage.executor.stop("slipway-builds:unknown")

    deadline = time.monotonic() + PATIENCE_SECONDS
    outcome = None
    while outcome is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        seen = stage.executor.observe([handle]).get(handle)
        outcome = seen.outcome if seen else Outcome.GONE
    assert outcome in (Outcome.STOPPED, Outcome.GONE, Outcome.FAILED)  # it may have ended first


def test_a_full_account_means_wait(stage: Stage) -> None:
    build = claimed(stage)
    stage.refuse("AccountLimitExceededException")
    with pytest.raises(Busy):
        stage.executor.submit(build)
    assert stage.executor.find_handle(build) is None


def test_what_will_never_run_is_refused(stage: Stage) -> None:
    build = claimed(stage)
    stage.refuse("InvalidInputException")
    with pytest.raises(ExecutorRefused):
        stage.executor.submit(build)


# CodeBuild alone


def test_the_buildspec_runs_the_steps_and_fits() -> None:
    assert len(buildspec()) <= 25_600  # CodeBuild's limit of an inline one
    document = yaml.safe_load(buildspec())
    assert document["version"] == 0.2
    assert document["env"] == {"shell": "bash", "variables": steps.VARIABLES}
    commands = {name: phase["commands"] for name, phase in document["phases"].items()}
    assert commands == {
        "pre_build": [
            'sh -c "$SLIPWAY_ASK" ask _materials',
            '. "$SLIPWAY_MEMORY/fetch_code"',
            '. "$SLIPWAY_MEMORY/complete_dockerfile"',
            '. "$SLIPWAY_MEMORY/report_code"',
        ],
        "build": ['. "$SLIPWAY_MEMORY/build_and_push"', '. "$SLIPWAY_MEMORY/report_image"'],
        "post_build": ['. "$SLIPWAY_MEMORY/end_of_log"'],
    }


def test_the_request_is_a_function_of_build_and_attempt() -> None:
    build = make_claimed(attempt=2, nocache=True, source=Source(code_sha256="ab", context="app"))
    settings = replace(EXECUTION, buildkit_image=BUILDKIT, queue_timeout_minutes=30, build_timeout_minutes=45)
    request = start_build_request(build, settings, "hush")

    assert request.pop("buildspecOverride") == buildspec()
    variables = {each["name"]: each["value"] for each in request.pop("environmentVariablesOverride")}
    assert variables == {
        "SLIPWAY_BUILD": "ada/vision/1",
        "SLIPWAY_UUID": build.uuid,
        "SLIPWAY_API": f"{API_URL}/ada/vision/builds/1",
        "SLIPWAY_ATTEMPT": "2",
        "SLIPWAY_SECRET": "hush",
        "SLIPWAY_IMAGE": "registry.test:5000/ada/vision-0000:1",
        "SLIPWAY_NONCE": build.nonce,
        "SLIPWAY_NOCACHE": "1",
        "SLIPWAY_GIT_URL": "",
        "SLIPWAY_GIT_REVISION": "",
        "SLIPWAY_CONTEXT": "app",
        "SLIPWAY_DOCKERFILE": "",
        "SLIPWAY_BUILDKIT_IMAGE": BUILDKIT,
        "SLIPWAY_CACHE_REPOSITORY": "registry.test:5000/cache/ada/vision-0000",
    }
    assert request == {
        "projectName": PROJECT,
        "idempotencyToken": f"{build.uuid}-2",
        "sourceTypeOverride": "NO_SOURCE",
        "timeoutInMinutesOverride": 45,
        "queuedTimeoutInMinutesOverride": 30,
        "autoRetryLimitOverride": 0,
    }


def test_resources_choose_the_machine() -> None:
    build = make_claimed(resources={"memory": {"requests": 6_000}})
    request = start_build_request(build, EXECUTION, "hush")
    assert request["computeTypeOverride"] == "BUILD_GENERAL1_MEDIUM"


def described(status: str = "IN_PROGRESS", *phases: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One element of BatchGetBuilds' answer."""
    variables = [
        {"name": "SLIPWAY_BUILD", "value": "ada/vision/1"},
        {"name": "SLIPWAY_ATTEMPT", "value": "1"},
    ]
    answer = {
        "id": f"{PROJECT}:1",
        "buildStatus": status,
        "startTime": NOW,
        "phases": list(phases),
        "environment": {"environmentVariables": variables},
        "logs": {"groupName": "/aws/codebuild/x", "streamName": "1"},
        "timeoutInMinutes": 60,
        "queuedTimeoutInMinutes": 30,
    }
    return {**answer, **more}


def phase(name: str, status: str = "SUCCEEDED", message: str = "") -> dict[str, Any]:
    contexts = [{"statusCode": "X", "message": message}]
    return {"phaseType": name, "phaseStatus": status, "startTime": NOW, "contexts": contexts}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("SUBMITTED", Status.SCHEDULED),
        ("QUEUED", Status.SCHEDULED),
        ("PROVISIONING", Status.SCHEDULED),
        ("DOWNLOAD_SOURCE", Status.BUILDING),
        ("INSTALL", Status.BUILDING),
        ("PRE_BUILD", Status.BUILDING),
        ("BUILD", Status.RUNNING),
        ("POST_BUILD", Status.RUNNING),
        ("UPLOAD_ARTIFACTS", Status.RUNNING),
        ("FINALIZING", Status.RUNNING),
    ],
)
def test_each_phase_is_a_status(name: str, status: Status) -> None:
    assert [step.status for step in observation_of(described("IN_PROGRESS", phase(name))).steps] == [status]


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (described("SUCCEEDED"), Outcome.SUCCEEDED, None),
        (described("STOPPED"), Outcome.STOPPED, None),
        (described("FAILED", phase("BUILD", "FAILED", "no")), Outcome.FAILED, "BUILD: no"),
        (
            described("FAILED", phase("BUILD", "FAILED", "command: # b. Reason: exit status 137")),
            Outcome.FAILED,
            "BUILD: The command was killed (signal 9); the machine may have run out of memory.",
        ),
        (described("FAULT", phase("PROVISIONING", "FAULT", "hm")), Outcome.FAULT, "PROVISIONING: hm"),
        (
            described("TIMED_OUT", phase("QUEUED", "TIMED_OUT")),
            Outcome.TIMED_OUT,
            "The build waited longer than 30 minutes in the queue.",
        ),
        (
            described("TIMED_OUT", phase("BUILD", "TIMED_OUT")),
            Outcome.TIMED_OUT,
            "The build took longer than 60 minutes.",
        ),
        (described(), None, None),
    ],
    ids=["succeeded", "stopped", "failed", "killed", "fault", "queue", "time", "running"],
)
def test_each_end_is_an_outcome(answer: dict[str, Any], outcome: Outcome | None, reason: str | None) -> None:
    seen = observation_of(answer)
    assert (seen.outcome, seen.reason, seen.log) == (outcome, reason, "/aws/codebuild/x:1")


class Scripted:
    """A CodeBuild client that counts its calls."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch_get_builds(self, ids: list[str]) -> dict[str, Any]:
        self.asked.append(len(ids))
        return {"builds": [described(id=each) for each in ids]}


def test_builds_are_observed_by_hundreds(on_aws: None) -> None:
    executor = code_build_executor()
    executor._codebuild = scripted = Scripted()
    handles = [f"{PROJECT}:{number}" for number in range(250)]

    assert set(executor.observe(handles)) == set(handles)
    assert scripted.asked == [100, 100, 50]


def test_a_service_that_does_not_answer_is_unavailable(on_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CODEBUILD", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable) as trouble:
        code_build_executor().observe(["x"])
    assert trouble.value.__cause__ is not None
