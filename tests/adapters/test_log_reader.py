"""What a Logs promises: the fake and CloudWatch Logs alike; and CloudWatch's own ways."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.stub import Stubber

from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.errors import Unavailable
from chalicelib.ports import LogLine, Logs
from tests.factories import make_build
from tests.fakes import FakeLogs

START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # CloudWatch takes no old lines
Write = Callable[[str, list[LogLine]], None]


@pytest.fixture
def client(on_aws: None) -> Any:
    import boto3

    return boto3.client("logs")


@pytest.fixture(params=["fake", "CloudWatch"])
def log(request: pytest.FixtureRequest) -> tuple[Logs, str, Write]:
    """A reader, a log, and what writes to it."""
    group = f"/slipway/{uuid.uuid4().hex}"
    name = f"{group}:slipway/stream"
    if request.param == "fake":
        fake = FakeLogs()
        return fake, name, lambda log, lines: fake.logs.setdefault(log, []).extend(lines)
    client = request.getfixturevalue("client")
    client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName="slipway/stream")

    def write(log: str, lines: list[LogLine]) -> None:
        group, _, stream = log.partition(":")
        events = [{"timestamp": int(line.at.timestamp() * 1000), "message": line.text} for line in lines]
        client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    return CloudWatchLogs("/slipway/reported", client), name, write


def some_lines(*texts: str) -> list[LogLine]:
    return [LogLine(START + timedelta(seconds=i), text) for i, text in enumerate(texts)]


def test_lines_come_oldest_first(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = some_lines("Building: x", "ünï 🚢", "STEP 1/2", "Pushing finished: x")
    write(name, lines[:2])
    write(name, lines[2:])

    assert list(reader.lines(name)) == lines


def test_lines_of_the_same_instant_keep_their_order(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = [LogLine(START, str(number)) for number in range(30)]
    write(name, lines)

    assert list(reader.lines(name)) == lines


def test_the_tail_is_the_end_oldest_first(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = some_lines(*map(str, range(10)))
    write(name, lines)

    assert reader.tail(name, 3) == lines[-3:]
    assert reader.tail(name, 99) == lines


def test_an_empty_log_is_none(log: tuple[Logs, str, Write]) -> None:
    reader, name, _ = log

    assert list(reader.lines(name)) == []
    assert list(reader.tail(name, 5)) == []


def test_an_unknown_log_is_none(log: tuple[Logs, str, Write]) -> None:
    reader = log[0]

    for unknown in ("/slipway/nope:stream", log[1] + "-other"):
        assert list(reader.lines(unknown)) == []
        assert list(reader.tail(unknown, 5)) == []


# CloudWatch's own ways


@pytest.fixture
def scripted(client: Any) -> Iterator[tuple[CloudWatchLogs, Stubber]]:
    """CloudWatch as a script of answers, all of which must be asked for."""
    with Stubber(client) as script:
        yield CloudWatchLogs("/slipway/reported", client), script
        script.assert_no_pending_responses()


def answer(script: Stubber, token: str | None, *texts: str, next_token: str) -> None:
    expected: dict[str, Any] = {"logGroupName": "g", "logStreamName": "s", "startFromHead": True}
    events = [{"timestamp": 1_700_000_000_000, "message": text} for text in texts]
    script.add_response(
        "get_log_events",
        {"events": events, "nextForwardToken": next_token, "nextBackwardToken": "b/0"},
        {**expected, "nextToken": token} if token else expected,
    )


def texts(lines: Iterable[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_an_empty_page_is_not_the_end_but_a_repeated_token_is(
    scripted: tuple[CloudWatchLogs, Stubber],
) -> None:
    reader, script = scripted
    answer(script, None, next_token="f/1")
    answer(script, "f/1", "one", "two", next_token="f/2")
    answer(script, "f/2", next_token="f/3")
    answer(script, "f/3", "three", next_token="f/4")
    answer(script, "f/4", next_token="f/4")

    assert texts(reader.lines("g:s")) == ["one", "two", "three"]


def test_a_line_may_hold_several(scripted: tuple[CloudWatchLogs, Stubber]) -> None:
    reader, script = scripted
    answer(script, None, "one\ntwo\n", "\n", "three", next_token="f/1")
    answer(script, "f/1", next_token="f/1")

    assert texts(reader.lines("g:s")) == ["one", "two", "", "three"]


@pytest.mark.parametrize("code", ["ThrottlingException", "ServiceUnavailableException"])
def test_trouble_is_unavailable(scripted: tuple[CloudWatchLogs, Stubber], code: str) -> None:
    reader, script = scripted
    script.add_client_error("get_log_events", code)
    with pytest.raises(Unavailable) as trouble:
        list(reader.lines("g:s"))
    assert trouble.value.__cause__ is not None

    script.add_client_error("get_log_events", code)
    with pytest.raises(Unavailable) as trouble:
        reader.tail("g:s", 5)
    assert trouble.value.__cause__ is not None


def test_reported_lines_are_read_back(client: Any) -> None:
    group = f"/slipway/{uuid.uuid4().hex}"
    client.create_log_group(logGroupName=group)
    logs = CloudWatchLogs(group, client)
    log = logs.reported(make_build())
    now = datetime.now(UTC).replace(microsecond=0)

    logs.append(log, [LogLine(now, "one"), LogLine(now, "")])
    logs.append(log, [LogLine(now, "x" * 200_000)] * 6)  # more than one PutLogEvents takes

    assert [line.text[:3] for line in logs.lines(log)] == ["one", " ", *["xxx"] * 6]
