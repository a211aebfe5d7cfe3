"""What a BuildQueue promises: the fake and SQS alike."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.domain.project import ProjectKey
from chalicelib.errors import NotFound, Unavailable
from chalicelib.ports import Announcement, BuildQueue, Delivery, HookQueue, Replies
from tests.factories import NOW
from tests.fakes import FakeBuildQueue, FakeHookQueue, FakeReplies

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


@pytest.mark.parametrize("kind", ["fake", "SQS"])
def test_a_reply_arrives_with_the_message_that_it_answers(kind: str, sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsReplies

    url = sqs.create_queue(QueueName=f"replies-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    fake = FakeReplies()
    replies: Replies = fake if kind == "fake" else SqsReplies(f"{url.rpartition('/')[0]}/slipway-dispatch")
    replies.send(arn, "nightly ä", TOLD)
    messages = sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"]).get("Messages", [])
    arrived = [(each["Body"], each["MessageAttributes"]["request"]["StringValue"]) for each in messages]
    assert (arrived or [(said.text, request) for _, request, said in fake.sent]) == [(TOLD.text, "nightly ä")]

    sqs.delete_queue(QueueUrl=url)
    fake.deleted.add(arn)
    with pytest.raises(NotFound):
        replies.send(arn, "nightly ä", TOLD)


TOLD = Announcement("m-1", "build.succeeded", NOW, '{"text": "ä"}')
DELIVERY = Delivery(ProjectKey("ada", "vision"), "h-1", TOLD)


@pytest.mark.parametrize("kind", ["fake", "SQS"])
def test_what_webhooks_are_told_arrives_whole(kind: str, sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsHookQueue, delivery

    fake = FakeHookQueue()
    url = sqs.create_queue(QueueName=f"hooks-{uuid.uuid4().hex}")["QueueUrl"]
    queue: HookQueue = fake if kind == "fake" else SqsHookQueue(url)
    queue.send(DELIVERY)
    messages = sqs.receive_message(QueueUrl=url).get("Messages", [])
    assert (fake.sent or [delivery(message["Body"]) for message in messages]) == [DELIVERY]


def test_a_message_is_hidden_for_the_time_that_is_said(sqs: Any) -> None:
    from chalicelib.adapters.sqs import SqsHookQueue

    url = sqs.create_queue(QueueName=f"hooks-{uuid.uuid4().hex}")["QueueUrl"]
    queue = SqsHookQueue(url)
    queue.send(DELIVERY)
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=600)["Messages"]
    queue.hide(message["ReceiptHandle"], 600)
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    queue.hide(message["ReceiptHandle"], 0)
    assert len(sqs.receive_message(QueueUrl=url)["Messages"]) == 1
