"""The smoke run of a deployment, against one machine: each step that does not need AWS, with real builds."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.aws import smoke
from infra.local.machine.machine import Machine
from tests.required_engines import ENGINE
from tests.stack.conftest import Client, serving

NEED_AWS = {"a build on the cluster", "a build outlives its login", "no alarm rings"}


@pytest.mark.engine
@pytest.mark.proof
@pytest.mark.parametrize("local_machine", [ENGINE], indirect=True)
def test_every_step_that_can_run_here_holds(local_machine: Machine, tmp_path: Path) -> None:
    said: list[str] = []
    with serving(local_machine, tmp_path) as client:
        on = smoke.Smoke(
            f"{client.running.url}/api/v1",
            client.running.token,
            local_machine.base_image,
            client.running.queues.requests,
        )
        assert list(smoke.run(on, said.append)) == []
        skipped = {line.partition(":")[0] for line in said if ": skipped: " in line}
        assert skipped == NEED_AWS
        assert len([line for line in said if ": ok (" in line]) == len(smoke.STEPS) - len(NEED_AWS)


def test_a_broken_step_is_named_and_the_others_go_on(client: Client) -> None:
    said: list[str] = []
    on = smoke.Smoke(f"{client.running.url}/api/v1", secrets.token_hex(32))
    broken = dict(smoke.run(on, said.append))
    assert "answered 401" in broken["a project is made"]
    assert len(said) == len(smoke.STEPS)


@pytest.fixture
def deployed(client: Client) -> Iterator[str]:
    """The name of a stack whose outputs lead to this machine."""
    outputs = {"Url": f"{client.running.url}/api/v1", "RequestsQueueUrl": client.running.queues.requests}
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Parameters": {"Any": {"Type": "String", "Default": "x"}},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    name = f"slipway-{secrets.token_hex(4)}"
    boto3.client("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(template))
    yield name
    boto3.client("cloudformation").delete_stack(StackName=name)


def run(command: str, *arguments: str, token: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.aws", command, *arguments],
        env={**os.environ, "TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_preview_of_a_cleanup_is_printed(client: Client, deployed: str) -> None:
    client.call("POST", "/projects", {"name": "going"})
    client.call("DELETE", "/root/going")
    done = run("cleanup-preview", deployed, token=client.running.token)
    assert done.returncode == 0, done.stderr
    assert "builds: 7 days after archiving, once stopped (clean_up)\n" in done.stdout
    assert "images by count: all but the newest 0 of a project; with 0 none (nobody on one machine)\n" in done.stdout
    assert " root/going, because it was deleted\n" in done.stdout

    refused = run("cleanup-preview", deployed, token="nobody's")
    assert refused.returncode == 1
    assert f"cleanup-preview of {deployed} ended: GET /cleanup answered 401" in refused.stderr


def test_a_deployment_with_a_broken_step_is_not_torn_down(deployed: str) -> None:
    done = run("smoke", deployed, "--teardown", token="nobody's")
    assert done.returncode == 1
    assert "Broken: a project is made" in done.stderr
    assert boto3.client("cloudformation").describe_stacks(StackName=deployed)["Stacks"]
