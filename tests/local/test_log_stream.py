"""Lines of a build on their way to CloudWatch, within the limits of PutLogEvents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from infra.local.codebuild.log_stream import MAX_EVENT_BYTES, LogStream


class FakeCloudWatch:
    """Takes what the service takes, and refuses what it refuses."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.fail_next: deque[Exception] = deque()

    def create_log_group(self, **_: str) -> None:
        raise error("ResourceAlreadyExistsException", "CreateLogGroup")

    def create_log_stream(self, **_: str) -> None:
        pass

    def put_log_events(self, *, logEvents: list[dict[str, Any]], **_: str) -> None:  # noqa: N803
        if self.fail_next:
            raise self.fail_next.popleft()
        sizes = [len(event["message"].encode()) + 26 for event in logEvents]
        assert 1 <= len(logEvents) <= 10_000
        assert sum(sizes) <= 1_048_576
        assert max(sizes) <= 262_144
        assert all(event["message"] for event in logEvents)
        times = [event["timestamp"] for event in logEvents]
        assert times == sorted(times)
        self.messages += [event["message"] for event in logEvents]


def error(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


@pytest.fixture
def cloudwatch() -> FakeCloudWatch:
    return FakeCloudWatch()


@pytest.fixture
def stream(cloudwatch: FakeCloudWatch) -> Iterator[LogStream]:
    opened = LogStream(cloudwatch, "group", "stream")
    yield opened
    opened.close()


@pytest.mark.parametrize(("count", "size"), [(50, 1), (25_000, 1), (60, 60_000)], ids=str)
def test_what_one_call_cannot_take_becomes_several_in_order(
    cloudwatch: FakeCloudWatch, stream: LogStream, count: int, size: int
) -> None:
    lines = [str(number).ljust(size, ".") for number in range(count)]
    for line in lines:
        stream.say(line)
    stream.flush()
    assert cloudwatch.messages == [f"{line}\n" for line in lines]


@pytest.mark.parametrize("letter", ["x", "é", "☃", "🚢"])
def test_a_line_beyond_one_event_becomes_several_and_loses_nothing(
    cloudwatch: FakeCloudWatch, stream: LogStream, letter: str
) -> None:
    line = letter * (MAX_EVENT_BYTES + 1)
    stream.say(line)
    stream.flush()
    assert "".join(cloudwatch.messages) == f"{line}\n"


def test_an_empty_line_is_kept(cloudwatch: FakeCloudWatch, stream: LogStream) -> None:
    """The service takes no empty messages."""
    stream.say("")
    stream.flush()
    assert cloudwatch.messages == ["\n"]


def test_what_the_service_did_not_take_is_sent_again(cloudwatch: FakeCloudWatch, stream: LogStream) -> None:
    refusal = error("ThrottlingException", "PutLogEvents")
    cloudwatch.fail_next += [refusal, refusal]
    stream.say("one")
    stream.say("two")
    stream.flush()
    assert cloudwatch.messages == ["one\n", "two\n"]


def test_closing_sends_what_still_waits(cloudwatch: FakeCloudWatch) -> None:
    stream = LogStream(cloudwatch, "group", "stream")
    stream.say("last words")
    stream.close()
    assert cloudwatch.messages == ["last words\n"]
