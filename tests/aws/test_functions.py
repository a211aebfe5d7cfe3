"""Each function of the prepared package, under Lambda's own runtime client, against the stack in moto."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from chalicelib.domain.build import Status
from chalicelib.usecases import accounts, builds
from infra.aws.bootstrap import bootstrap
from tests.aws import stack
from tests.aws.conftest import Deployed, recorded

pytestmark = pytest.mark.slow


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
    assert deployed.find(3) is None


def test_the_first_superuser_is_made_from_the_stack(deployed: Deployed) -> None:
    url, token = bootstrap(stack.NAME, "root")

    assert url == deployed.stack.outputs["Url"]
    assert accounts.authenticate(deployed.services, token).is_superuser
