"""What an EventBus promises: the fake and EventBridge alike. Rules of moto's EventBridge lead to a queue."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import boto3
import jsonschema
import pytest

from app import ROUTES
from chalicelib.adapters.eventbridge import SOURCE, EventBridge
from chalicelib.errors import Unavailable
from chalicelib.ports import Announcement, EventBus
from chalicelib.serializers import announcement
from infra import openapi
from tests.factories import make_build
from tests.fakes import FakeEventBus

Bus = tuple[EventBus, Callable[[], list[int]]]


def made(count: int) -> list[Announcement]:
    """Announcements of builds."""
    return [announcement(build, build.history[-1]) for build in (make_build(number=n + 1) for n in range(count))]


@pytest.fixture
def told(on_aws: None) -> Callable[[], list[Any]]:
    """All that was put on the default bus by Slipway, by a rule that leads to a queue."""
    sqs, bridge, name = boto3.client("sqs"), boto3.client("events"), uuid.uuid4().hex
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    bridge.put_rule(Name=name, EventPattern=json.dumps({"source": [SOURCE]}))
    bridge.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])

    def take() -> list[Any]:
        found: list[Any] = []
        while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            found += [json.loads(message["Body"]) for message in messages]
        return found

    return take


@pytest.fixture(params=["fake", "EventBridge"])
def bus(request: pytest.FixtureRequest) -> Bus:
    """A bus, and the ids of the builds of which it was told."""
    if request.param == "fake":
        fake = FakeEventBus()
        return fake, lambda: [json.loads(each.text)["data"]["build"]["id"] for each in fake.told]
    take = request.getfixturevalue("told")
    return EventBridge("default"), lambda: [each["detail"]["data"]["build"]["id"] for each in take()]


def test_events_arrive(bus: Bus) -> None:
    for event in made(3):
        bus[0].put(event)
    assert sorted(bus[1]()) == [1, 2, 3]


def test_an_event_says_what_it_is_and_is_as_its_schema_says(told: Callable[[], list[Any]]) -> None:
    (event,) = made(1)
    EventBridge("default").put(event)
    (arrived,) = told()
    assert (arrived["source"], arrived["detail-type"]) == (SOURCE, "build.created")
    assert arrived["detail"]["id"] == event.id
    schema = openapi.document(ROUTES, "../v1", "1") | {"$ref": "#/components/schemas/BuildEvent"}
    jsonschema.validate(arrived["detail"], schema)
    arrived["detail"]["data"]["status"]["status"] = "finished"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(arrived["detail"], schema)


class Refusing:
    """EventBridge, which refuses an event with status 200."""

    def put_events(self, **_: Any) -> Any:
        refusal = {"ErrorCode": "ThrottlingException", "ErrorMessage": "slow down"}
        return {"FailedEntryCount": 1, "Entries": [refusal]}


@pytest.mark.parametrize("kind", ["fake", "EventBridge"])
def test_what_was_not_taken_is_said(kind: str, on_aws: None) -> None:
    fake, real = FakeEventBus(), EventBridge("default")
    fake.takes, real._client = 0, Refusing()
    bus: EventBus = fake if kind == "fake" else real
    with pytest.raises(Unavailable):
        bus.put(*made(1))


def test_a_bus_that_does_not_answer_is_unavailable(on_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable):
        EventBridge("default").put(*made(1))
