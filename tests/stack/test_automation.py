"""Other programs, schedules, and what is left when all is done: with real queues and a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest

from chalicelib.domain import cleanup as cleanup_rules
from chalicelib.usecases import cleanup
from infra.local.machine.machine import Machine
from tests.required_engines import with_other_engine
from tests.stack.conftest import PROJECT, Client, serving, unique_sleep

pytestmark = with_other_engine


@pytest.fixture(scope="module")
def client(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """With schedules that tick every half second."""
    folder = tmp_path_factory.mktemp("stack")
    with serving(local_machine, folder, reconcile_every_seconds=0.5, clean_up_every_seconds=0.5) as client:
        yield client


def send(client: Client, **fields: Any) -> None:
    message = {"version": 1, "owner": "root", "project": "quick-start", **fields}
    boto3.client("sqs").send_message(QueueUrl=client.running.queues.requests, MessageBody=json.dumps(message))


def spec(client: Client, *steps: str) -> str:
    content = {"version": 1, "kind": "build", "image": client.machine.base_image, "build_steps": [*steps]}
    return json.dumps(content)


def found(client: Client, name: str) -> list[Any]:
    results = client.get(f"{PROJECT}/builds")["results"]
    return [build for build in results if build["name"] == name]


def test_a_message_builds_an_image_once(client: Client) -> None:
    for _ in range(2):
        send(client, action="create", name="nightly", content=spec(client, "true"), idempotency_key="n-1")
    client.until(PROJECT, lambda _: bool(found(client, "nightly")))
    (build,) = found(client, "nightly")

    done = client.until_done(f"{PROJECT}/builds/{build['id']}")
    assert (done["last_status"], done["user"]) == ("succeeded", "automation")
    assert len(found(client, "nightly")) == 1


def test_a_message_stops_a_build(client: Client) -> None:
    path = client.build(unique_sleep())
    client.until(path, lambda build: build["last_status"] == "running")
    send(client, action="stop", build=int(path.rpartition("/")[2]))
    assert client.until_done(path)["last_status"] == "stopped"


def test_a_hopeless_message_is_put_aside_with_its_reason(client: Client) -> None:
    send(client, action="explode")
    queue = client.running.queues.dead_requests
    received: list[Any] = []

    def arrived(_: Any) -> bool:
        answer = boto3.client("sqs").receive_message(QueueUrl=queue, MessageAttributeNames=["All"])
        received.extend(answer.get("Messages", []))
        return bool(received)

    client.until(PROJECT, arrived)
    assert json.loads(received[0]["Body"])["action"] == "explode"
    reason = received[0]["MessageAttributes"]["reasons"]["StringValue"]
    assert reason.startswith("`action` must be one of ")


def test_a_finished_log_is_served_when_the_log_service_has_lost_it(client: Client) -> None:
    path = client.build("echo kept-$((40+2))")
    client.until_done(path)
    logs = boto3.client("logs")
    group = "/aws/codebuild/slipway-builds"

    def is_kept(_: Any) -> bool:
        keys = boto3.client("s3").list_objects_v2(Bucket="slipway-sources", Prefix="logs/")
        return any(client.get(path)["uuid"] in each["Key"] for each in keys.get("Contents", []))

    client.until(path, is_kept)
    for stream in logs.describe_log_streams(logGroupName=group)["logStreams"]:
        logs.delete_log_stream(logGroupName=group, logStreamName=stream["logStreamName"])

    assert "kept-42" in client.log(path)
    assert "slipway-end" not in client.log(path)


def test_a_build_deleted_while_it_runs_leaves_nothing_behind(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cleanup, cleanup_rules):
        monkeypatch.setattr(module, "SETTLES", timedelta(0))  # else an hour
    path = client.build(unique_sleep())
    client.until(path, lambda build: build["last_status"] == "running")
    uuid = client.get(path)["uuid"]
    assert client.call("DELETE", path)[0] == 204

    def is_gone(_: Any) -> bool:
        objects = boto3.client("s3").list_objects_v2(Bucket="slipway-sources", Prefix=f"builds/{uuid}")
        rows = boto3.client("dynamodb").scan(TableName="slipway")["Items"]
        number = path.rpartition("/")[2].zfill(12)
        return "Contents" not in objects and not [
            row for row in rows if row["sk"]["S"] == number or row["pk"]["S"].endswith(f"#{int(number)}")
        ]

    client.until(PROJECT, is_gone)
