"""What a BuildQueue promises: the fake and SQS alike."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.errors import Unavailable
from chalicelib.ports import BuildQueue
from tests.fakes import FakeBuildQueue

Take = Callable[[], list[BuildKey]]
KEYS = [BuildKey("ada", "vision", 1), BuildKey("ada", "vision", 2), BuildKey("ada", "vision", 1)]


@pytest.fixture
def sqs(on_aws: None) -> Any:
    import boto3

    return boto3.client("sqs")


@pytest.fixture(params=["fake", "SQS"])
def queue(request: pytest.FixtureRequest) -> tuple[BuildQueue, Take]:
    """A queue, and what takes its messages away."""
    if request.param == "fake":
        fake = FakeBuildQueue()
        return fake, fake.take
    from chalicelib.adapters.sqs import SqsBuildQueue

    sqs = request.getfixturevalue("sqs")
    url = sqs.create_queue(QueueName=f"dispatch-{uuid.uuid4().hex}")["QueueUrl"]

    def take() -> list[BuildKey]:
        found: list[BuildKey] = []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            found += [BuildKey.parse(message["Body"]) for message in messages]
        return found

    return SqsBuildQueue(url), take


def test_what_is_announced_arrives(queue: tuple[BuildQueue, Take]) -> None:
    announce, take = queue[0].announce, queue[1]

    for key in KEYS:
        announce(key)

    assert sorted(take()) == sorted(KEYS)


def test_a_queue_that_is_not_there_is_unavailable(sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsBuildQueue

    url = sqs.create_queue(QueueName="gone")["QueueUrl"]
    sqs.delete_queue(QueueUrl=url)

    with pytest.raises(Unavailable):
        SqsBuildQueue(url).announce(KEYS[0])


def test_dead_letters_carry_their_reasons(sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsDeadLetters

    url = sqs.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    SqsDeadLetters(url).put("{", ["The message is not JSON.", "x" * 9_999])

    (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]
    assert message["Body"] == "{"
    reasons = message["MessageAttributes"]["reasons"]["StringValue"]
    assert reasons.startswith("The message is not JSON.\nxxx")
    assert len(reasons) == 4_000


def test_reasons_quote_nothing_that_sqs_refuses(sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsDeadLetters

    url = sqs.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
    SqsDeadLetters(url).put("{", ["`a\x01\ufffe\ud800` is no field.", "🚢\t"])

    (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]
    assert message["MessageAttributes"]["reasons"]["StringValue"] == "`a\ufffd\ufffd\ufffd` is no field.\n🚢\t"
