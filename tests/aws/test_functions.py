"""Each function of the prepared package, under Lambda's own runtime client, against the stack in moto."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict
from werkzeug import Request, Response

from chalicelib.adapters.dynamodb import records
from chalicelib.domain.build import Status
from chalicelib.domain.materials import attempt_secret
from chalicelib.domain.record import replace
from chalicelib.ports import Question
from chalicelib.settings import BUILDKIT
from chalicelib.usecases import accounts, builds
from infra.aws import bootstrap
from infra.aws.package import ROOT
from infra.bench.serving import served
from tests.aws import stack
from tests.aws.conftest import Deployed, recorded

pytestmark = pytest.mark.slow


@pytest.fixture
def empty_registry(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Functions find one without images."""
    with served(lambda _: Response(status=404)) as address:
        plain = {"SLIPWAY_REGISTRY_KIND": "plain", "SLIPWAY_REGISTRY": f"{address}/slipway"}
        deployed.endpoints.update(plain)
        for name, value in plain.items():
            monkeypatch.setenv(name, value)
        vars(deployed.services).clear()  # as in a new process
        yield


@pytest.mark.usefixtures("empty_registry")
def test_every_function_does_its_part(deployed: Deployed) -> None:
    """From a project to the end of a build, each step by the function that does it in AWS."""
    answer = deployed.call("APIHandler", "app", recorded("create_project"))
    assert answer["statusCode"] == 201, answer
    assert deployed.services.projects.get("ada", "vision")

    assert deployed.call("OnRequest", "on_request", recorded("requests")) == {"batchItemFailures": []}
    assert deployed.build().name == "nightly"

    answer = deployed.call("Dispatch", "dispatch", recorded("dispatch"))
    assert [each["itemIdentifier"] for each in answer["batchItemFailures"]] == [
        recorded("dispatch")["Records"][1]["messageId"]  # it names no build
    ]
    handle = deployed.build().handle
    assert handle is not None and handle.startswith(f"{stack.NAME}-builds:")

    build = deployed.build()
    secret = attempt_secret(deployed.services.deployment_secrets.build_key(), build.uuid, build.attempt)
    question = Question("materials", str(build.key), build.attempt, secret, {})
    assert "Dockerfile " in deployed.call("Broker", "broker", asdict(question))["answer"]
    refused = deployed.call("Broker", "broker", asdict(replace(question, secret="guessed")))
    assert refused["refused"] == "Forbidden"

    deployed.until_ended(handle)
    event = recorded("codebuild_state_change")
    event["detail"]["build-id"] = f"arn:aws:codebuild:us-east-1:123456789012:build/{handle}"
    deployed.call("OnCodebuildEvent", "on_codebuild_event", event)
    assert deployed.build().last_status is Status.FAILED
    assert "SLIPWAY_ENGINE" in str(deployed.build().history[-1].message)

    services = deployed.services
    ada = services.accounts.user("ada")
    assert ada is not None
    content = {"content": "{version: 1, kind: build, image: 'python:3.12-slim', build_steps: ['true']}"}
    lost = builds.create(services, ada, "ada", "vision", content).build
    services.builds.save(replace(lost, check_at=services.now() - timedelta(seconds=1)))
    deployed.call("Reconcile", "reconcile", recorded("schedule"))
    assert deployed.build(2).handle is not None

    dropped = builds.create(services, ada, "ada", "vision", content).build
    builds.archive(services, ada, dropped.key, delete=True)
    archived = services.builds.get(dropped.key)
    assert archived is not None
    services.builds.save(replace(archived, deleted_at=services.now() - timedelta(hours=2)))
    assert deployed.call("Announce", "announce", recorded("changes")) == {"batchItemFailures": []}
    assert deployed.call("Deliver", "deliver", recorded("hooks")) == {"batchItemFailures": []}  # it is gone

    answer = deployed.call("CleanUp", "clean_up", recorded("schedule"))
    assert answer["builds"] == 1
    assert deployed.find(3) is None


TRACE = "Root=1-65e1c3a0-0123456789abcdef01234567;Parent=53995c3f42cd8ad8;Sampled={}"


def test_a_sampled_invocation_is_traced_and_others_load_no_tracing(deployed: Deployed) -> None:
    with daemon() as (address, sent):
        environment = {**deployed.stack.environment("APIHandler"), **deployed.endpoints}
        environment["AWS_XRAY_DAEMON_ADDRESS"] = address
        with deployed.lambda_.start("app.app", environment) as function:
            function.invoke(recorded("create_project"), TRACE.format(0))
            assert sent() == []
            function.invoke(recorded("get_build"), TRACE.format(1))
            *calls, work = sent()
            lines = [json.loads(line) for line in function.log()]

    assert work["name"] == "get_build"
    assert work["trace_id"] == "1-65e1c3a0-0123456789abcdef01234567"
    assert work["parent_id"] == "53995c3f42cd8ad8"
    assert "annotations" not in work  # there is no such build
    # the read that may lag, and the consistent one before a refusal
    assert [(call["name"], call["aws"]["operation"]) for call in calls] == [("dynamodb", "BatchGetItem")] * 2
    assert {call["parent_id"] for call in calls} == {work["id"]}
    assert [line["status"] for line in lines] == [201, 404]  # and nothing else is logged
    assert all(line["requestId"] and line["duration_ms"] > 0 for line in lines)
    assert lines[1]["build"] == "ada/vision/1"
    assert "Token" not in json.dumps([calls, work, lines])


HANDLERS = (
    ("OnRequest", "on_request", "requests"),
    ("APIHandler", "app", "get_build"),
    ("Dispatch", "dispatch", "dispatch"),
    ("Broker", "broker", "broker"),
    ("Announce", "announce", "changes"),
    ("OnCodebuildEvent", "on_codebuild_event", "codebuild_state_change"),
    ("KeepLog", "keep_log", "keep_log"),
    ("Reconcile", "reconcile", "schedule"),
    ("CleanUp", "clean_up", "schedule"),
)


@pytest.mark.usefixtures("empty_registry")
def test_one_filter_finds_the_traces_of_all_functions_that_had_to_do_with_a_build(deployed: Deployed) -> None:
    """In Lambda the SDK's own segments do not count, so the annotation is in a subsegment."""
    deployed.call("APIHandler", "app", recorded("create_project"))
    found = {}
    for resource, handler, event in HANDLERS:
        with daemon() as (address, sent):
            environment = {**deployed.stack.environment(resource), **deployed.endpoints}
            environment["AWS_XRAY_DAEMON_ADDRESS"] = address
            with deployed.lambda_.start(f"app.{handler}", environment) as function:
                function.invoke(event_about_the_build(deployed, event), TRACE.format(1))
            found[resource] = [
                each["annotations"]["build"] for each in sent() if each.get("annotations", {}).get("build")
            ]
        if resource == "Dispatch":
            deployed.until_ended(deployed.build().handle)
        if resource == "KeepLog":  # so that the schedules find something to do
            services, build = deployed.services, deployed.build()
            services.builds.save(replace(build, check_at=services.now() - timedelta(seconds=1)))
        if resource == "Reconcile":
            ada = deployed.services.accounts.user("ada")
            assert ada is not None
            build = deployed.build()
            deployed.services.builds.save(replace(build, check_at=None))
            builds.archive(deployed.services, ada, build.key, delete=True)
            build = deployed.build()
            hours_ago = deployed.services.now() - timedelta(hours=2)
            uuid = deployed.services.builds.save(replace(build, deleted_at=hours_ago)).uuid
    assert found == {resource: [uuid] for resource, _, _ in HANDLERS}


def event_about_the_build(deployed: Deployed, name: str) -> Any:
    """What wakes a function, about the one build."""
    if name == "broker":
        build = deployed.build()
        secret = attempt_secret(deployed.services.deployment_secrets.build_key(), build.uuid, build.attempt)
        return asdict(Question("materials", str(build.key), build.attempt, secret, {}))
    event = recorded(name)
    if name == "changes":
        event["Records"] = event["Records"][:1]
        change = event["Records"][0]["dynamodb"]
        change["NewImage"] = records.encode_build(deployed.build()).serialize()
    if name == "codebuild_state_change":
        handle = deployed.build().handle
        event["detail"]["build-id"] = f"arn:aws:codebuild:us-east-1:123456789012:build/{handle}"
    return event


def test_a_message_carries_the_trace_of_the_request_that_sent_it(deployed: Deployed) -> None:
    """SQS keeps the header for the function that receives the message; X-Ray links the two."""
    headers: list[str] = []

    def queue(request: Request) -> Response:
        headers.append(request.headers.get("X-Amzn-Trace-Id", ""))
        return Response(json.dumps({"MessageId": "1"}), content_type="application/x-amz-json-1.0")

    deployed.call("APIHandler", "app", recorded("create_project"))
    event = recorded("create_project")
    event["resource"], event["path"] = "/v1/{owner}/{project}/builds", "/v1/ada/vision/builds/"
    event["requestContext"].update(resourcePath=event["resource"], path="/api/v1/ada/vision/builds/")
    event["pathParameters"] = {"owner": "ada", "project": "vision"}
    event["body"] = json.dumps({"content": "{version: 1, kind: build, image: python}"})
    with served(queue) as address, daemon() as (daemon_address, _):
        environment = {**deployed.stack.environment("APIHandler"), **deployed.endpoints}
        environment |= {
            "AWS_XRAY_DAEMON_ADDRESS": daemon_address,
            "AWS_ENDPOINT_URL_SQS": f"http://{address}",
        }
        with deployed.lambda_.start("app.app", environment) as function:
            assert function.invoke(event, TRACE.format(1))["statusCode"] == 201
    (header,) = headers
    assert header.startswith("Root=1-65e1c3a0-0123456789abcdef01234567;Parent=")
    assert header.endswith(";Sampled=1")


@contextmanager
def daemon() -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    """X-Ray's daemon: its address, and what was sent to it so far."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)

        def sent() -> list[Any]:
            segments = []
            with suppress(TimeoutError):
                while True:
                    segments.append(json.loads(server.recv(65_536).split(b"\n")[1]))
            return segments

        yield f"127.0.0.1:{server.getsockname()[1]}", sent


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str]]:
    """Puts a docker in the way that works, or not, and keeps what it was asked."""
    asked, program = tmp_path / "asked", tmp_path / "docker"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    aws = tmp_path / "aws"  # its command line
    aws.write_text("#!/bin/sh\necho password\n")
    aws.chmod(0o755)

    def works(does: bool) -> list[str]:
        program.write_text(f'#!/bin/sh\necho "$*" >>{asked}\n{str(does).lower()}\n')
        program.chmod(0o755)
        return asked.read_text().splitlines() if asked.exists() else []

    return works


def test_bootstrap_makes_a_superuser_and_has_buildkit_copied(
    deployed: Deployed, docker: Callable[[bool], list[str]]
) -> None:
    """By the commands that docker is given; tests/local has a copy that is really made."""
    docker(True)
    repository, image = deployed.stack.outputs["ToolsRepository"], BUILDKIT["userns"]
    deployed.variables["SLIPWAY_TOOLS_REPOSITORY"] = repository  # as the template gives it to the project
    command = [sys.executable, "-m", "infra.aws", "bootstrap", stack.NAME]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    said = dict(line.split("=", 1) for line in done.stdout.splitlines()[:2])
    assert said["URL"] == deployed.stack.outputs["Url"]
    assert accounts.authenticate(deployed.services, said["TOKEN"]).is_superuser
    digest = image.partition("@sha256:")[2]
    assert docker(True) == [
        f"login --username AWS --password-stdin {repository.partition('/')[0]}",
        f"buildx imagetools create --tag {repository}:buildkit-{digest[:12]} {image}",
        f"buildx imagetools inspect {repository}@sha256:{digest}",
    ]
    assert done.stdout.endswith(f"{repository}@sha256:{digest} is a copy of {image}\n")


def test_a_copy_that_fails_is_said(deployed: Deployed, docker: Callable[[bool], list[str]]) -> None:
    docker(False)
    of = bootstrap.deployment(stack.NAME)
    said: list[str] = []
    with pytest.raises(bootstrap.CopyFailed, match="its log says why"):
        bootstrap.copy_images(of, ["b@sha256:1"], said.append, lambda _: time.sleep(0.05))
    assert said  # how far it was


def test_every_pinned_image_that_a_deployment_uses_is_copied() -> None:
    of = bootstrap.Deployment(
        {},
        {"BuildKitImage": "mirror.test/b:1", "EksCluster": "lab", "EksImage": "", "EksProfile": "rootless"},
    )
    assert bootstrap.buildkit_images(of) == [BUILDKIT["rootless"]]
