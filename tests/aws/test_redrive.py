"""`make redrive`: what it asks SQS for, and what it asks the operator before."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra.aws import redrive

DEAD, REQUESTS = "https://sqs.test/1/dead", "https://sqs.test/1/requests"
DEAD_ARN, REQUESTS_ARN = "arn:aws:sqs:us-east-1:1:dead", "arn:aws:sqs:us-east-1:1:requests"


@pytest.fixture
def sqs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    clients = {name: boto3.client(name, region_name="us-east-1") for name in ("cloudformation", "sqs")}
    described = {
        "StackName": "s",
        "CreationTime": datetime(2026, 11, 27, tzinfo=UTC),
        "StackStatus": "CREATE_COMPLETE",
        "Parameters": [],
        "Outputs": [
            {"OutputKey": "RequestsDeadQueueUrl", "OutputValue": DEAD},
            {"OutputKey": "RequestsQueueUrl", "OutputValue": REQUESTS},
        ],
    }
    monkeypatch.setattr(boto3, "client", clients.__getitem__)
    with Stubber(clients["cloudformation"]) as cloudformation, Stubber(clients["sqs"]) as stub:
        cloudformation.add_response("describe_stacks", {"Stacks": [described]})
        yield stub
        stub.assert_no_pending_responses()


def count(sqs: Stubber, messages: int) -> None:
    for url, arn in ((DEAD, DEAD_ARN), (REQUESTS, REQUESTS_ARN)):
        attributes = {"QueueArn": arn, "ApproximateNumberOfMessages": str(messages)}
        asked = {"QueueUrl": url, "AttributeNames": ["QueueArn", "ApproximateNumberOfMessages"]}
        sqs.add_response("get_queue_attributes", {"Attributes": attributes}, asked)


def move(sqs: Stubber, *tasks: dict[str, Any]) -> None:
    asked = {"SourceArn": DEAD_ARN, "DestinationArn": REQUESTS_ARN, "MaxNumberOfMessagesPerSecond": 50}
    sqs.add_response("start_message_move_task", {"TaskHandle": "t"}, asked)
    for task in tasks:
        sqs.add_response("list_message_move_tasks", {"Results": [task]}, {"SourceArn": DEAD_ARN, "MaxResults": 1})


def test_dead_letters_go_back_after_a_question(sqs: Stubber) -> None:
    count(sqs, 3)
    running = {"Status": "RUNNING", "ApproximateNumberOfMessagesMoved": 1}
    move(sqs, running, {"Status": "COMPLETED", "ApproximateNumberOfMessagesMoved": 3})
    said: list[str] = []
    asked: list[str] = []
    slept: list[float] = []

    def agrees(question: str) -> bool:
        asked.append(question)
        return True

    redrive.redrive("s", said.append, agrees, slept.append)

    assert asked == [f"About 3 requests go back into the queue {REQUESTS}. Move them? [y/N] "]
    assert said == ["3 requests are in the queue again."]
    assert slept == [5]


@pytest.mark.parametrize("command", ["redrive", "teardown"])
def test_without_a_terminal_nothing_is_done_and_a_sentence_says_how(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """As in a pipeline. `make redrive` counts before it asks; `make teardown` asks first."""
    if command == "redrive":
        count(request.getfixturevalue("sqs"), 3)
    monkeypatch.setattr(sys, "argv", ["infra.aws", command, "s"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit, match="YES=1"):
        runpy.run_module("infra.aws", run_name="__main__")


def test_nothing_is_moved_without_leave(sqs: Stubber) -> None:
    count(sqs, 3)
    said: list[str] = []
    redrive.redrive("s", said.append, lambda _: False)
    assert said == ["Nothing was moved."]


def test_nobody_is_asked_about_nothing(sqs: Stubber) -> None:
    count(sqs, 0)
    said: list[str] = []
    redrive.redrive("s", said.append, lambda _: pytest.fail("it asked"))
    assert said == ["There are no dead letters."]


def test_a_task_that_ends_half_way_is_told(sqs: Stubber) -> None:
    count(sqs, 3)
    failed = {"Status": "FAILED", "ApproximateNumberOfMessagesMoved": 1, "FailureReason": "KmsAccessDenied"}
    move(sqs, failed)
    with pytest.raises(redrive.NotMoved, match=r"moved 1, then: KmsAccessDenied"):
        redrive.redrive("s", print, lambda _: True)
