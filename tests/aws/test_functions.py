"""Each function of the prepared package, under Lambda's own runtime client, against the stack in moto."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from chalicelib.domain.build import BuildKey, Status
from chalicelib.ports import Services
from chalicelib.usecases import accounts, builds
from chalicelib.wiring import AwsServices
from infra.aws.package import ROOT
from infra.aws.runtime import Lambda
from infra.local import aws
from infra.local.codebuild import CodeBuild
from tests.aws import stack
from tests.aws.conftest import Packaged

pytestmark = pytest.mark.slow
EVENTS = ROOT / "tests" / "events"
KEY = BuildKey("ada", "vision", 1)
NO_ENGINE = {
    "SLIPWAY_ENGINE": "none",
    "SLIPWAY_ECR_HOST": "",
}  # every build fails, soon and for a known reason


@dataclass(frozen=True)
class Deployed:
    stack: stack.Stack
    lambda_: Lambda
    services: Services  # as the functions see them
    endpoints: dict[str, str]
    rings: list[dict[str, Any]]  # events that CodeBuild sent

    def call(self, resource: str, handler: str, event: Any) -> Any:
        """Starts a function anew, as a cold start does, and invokes it."""
        environment = {**self.stack.environment(resource), **self.endpoints}
        with self.lambda_.start(f"app.{handler}", environment) as function:
            return function.invoke(event)

    def until_ended(self, handle: str) -> None:
        """Waits until CodeBuild has told of the end of a build."""
        deadline = time.monotonic() + 60
        while not any(
            event["detail"]["build-id"].endswith(handle) and event["detail"].get("build-status") == "FAILED"
            for event in list(self.rings)
        ):
            assert time.monotonic() < deadline, self.rings
            time.sleep(0.05)

    def build(self, number: int = 1) -> Any:
        return self.services.store.get(replace(KEY, id=number))


def recorded(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture
def deployed(
    packaged: Packaged, transformed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployed]:
    moto = aws.Moto()
    moto.start()
    endpoints = {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": moto.url}
    del endpoints["AWS_XRAY_SDK_ENABLED"]
    for name, value in endpoints.items():
        monkeypatch.setenv(name, value)
    created = stack.create(transformed, packaged.archive.read_bytes())
    boto3.client("logs").create_log_group(logGroupName=f"/aws/codebuild/{stack.NAME}-builds")
    rings: list[dict[str, Any]] = []
    codebuild = CodeBuild(
        {f"{stack.NAME}-builds": NO_ENGINE},
        s3=boto3.client("s3"),
        logs=boto3.client("logs"),
        ring=rings.append,
        state=tmp_path / "builds",
    )
    endpoints["AWS_ENDPOINT_URL_CODEBUILD"] = codebuild.start()
    for name, value in {**created.environment("Dispatch"), **endpoints}.items():
        monkeypatch.setenv(name, value)
    services = AwsServices()
    accounts.ensure_superuser(services, "ada", token="ada")
    accounts.ensure_superuser(services, "automation")
    yield Deployed(created, Lambda(packaged.archive, tmp_path), services, endpoints, rings)
    codebuild.close()
    moto.close()


def test_every_function_does_its_part(deployed: Deployed) -> None:
    """From a project to the end of a build, each step by the function that does it in AWS."""
    answer = deployed.call("APIHandler", "app", recorded("create_project"))
    assert answer["statusCode"] == 201, answer
    assert deployed.services.store.project("ada", "vision")

    assert deployed.call("OnRequest", "on_request", recorded("requests")) == {"batchItemFailures": []}
    assert deployed.build().name == "nightly"

    answer = deployed.call("Dispatch", "dispatch", recorded("dispatch"))
    assert [each["itemIdentifier"] for each in answer["batchItemFailures"]] == [
        recorded("dispatch")["Records"][1]["messageId"]  # it names no build
    ]
    handle = deployed.build().handle
    assert handle is not None and handle.startswith(f"{stack.NAME}-builds:")

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
    services.store.save(replace(lost, look_at=services.now() - timedelta(seconds=1)))
    deployed.call("Reconcile", "reconcile", recorded("schedule"))
    assert deployed.build(2).handle is not None

    dropped = builds.create(services, ada, "ada", "vision", content).build
    builds.archive(services, ada, dropped.key, delete=True)
    answer = deployed.call("CleanUp", "clean_up", recorded("schedule"))
    assert answer["builds"] == 1
    assert deployed.build(3) is None
