"""What a Logs promises: the fake and CloudWatch Logs alike; and CloudWatch's own ways."""

from __future__ import annotations

import json
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from botocore.stub import Stubber

from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.domain.log_lines import Lines, LogLine, Position, ms_of
from chalicelib.errors import Unavailable
from chalicelib.ports import Logs
from tests.factories import make_build
from tests.fakes import FakeLogs

START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # CloudWatch takes no old lines
START_OF_LOG = Position()
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
        events = [{"timestamp": ms_of(line.at), "message": f"{line.text}\n"} for line in lines]
        client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    return CloudWatchLogs("/slipway/reported", client, clock=count().__next__), name, write


def read(reader: Logs, log: str, after: Position = START_OF_LOG, limit: int = 10_000) -> list[LogLine]:
    """All that is behind a position."""
    lines: list[LogLine] = []
    while True:
        part = reader.read(log, after, limit)
        lines += part.lines
        if part.is_end:
            return lines
        after = part.next


def some_lines(*texts: str) -> list[LogLine]:
    return [LogLine(START + timedelta(seconds=i), text) for i, text in enumerate(texts)]


def test_lines_come_oldest_first(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = some_lines("Building: x", "ünï 🚢", "STEP 1/2", "Pushing finished: x")
    write(name, lines[:2])
    write(name, lines[2:])

    assert read(reader, name) == lines


def test_lines_of_the_same_instant_keep_their_order(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = [LogLine(START, str(number)) for number in range(30)]
    write(name, lines)

    assert read(reader, name) == lines


def test_the_tail_is_the_end_oldest_first(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = some_lines(*map(str, range(10)))
    write(name, lines)

    assert reader.tail(name, 3) == lines[-3:]
    assert reader.tail(name, 99) == lines


def test_an_empty_log_is_none(log: tuple[Logs, str, Write]) -> None:
    reader, name, _ = log

    assert read(reader, name) == []
    assert list(reader.tail(name, 5)) == []


def test_an_unknown_log_is_none(log: tuple[Logs, str, Write]) -> None:
    reader = log[0]

    for unknown in ("/slipway/nope:stream", log[1] + "-other"):
        assert read(reader, unknown) == []
        assert list(reader.tail(unknown, 5)) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_parts_join_wherever_they_are_cut(log: tuple[Logs, str, Write], limit: int) -> None:
    """Also within lines of one time."""
    reader, name, write = log
    lines = [LogLine(START + timedelta(milliseconds=number // 4), str(number)) for number in range(17)]
    write(name, lines)

    assert read(reader, name, limit=limit) == lines
    position = START_OF_LOG
    for number, line in enumerate(lines):
        position = position.after(line.at)
        assert read(reader, name, position, limit) == lines[number + 1 :]


def test_a_position_stays_right_while_a_log_grows(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = [LogLine(START + timedelta(milliseconds=number // 3), str(number)) for number in range(10)]
    write(name, lines[:4])
    part = reader.read(name, START_OF_LOG)
    assert reader.read(name, part.next).is_end
    write(name, lines[4:])

    assert [*part.lines, *read(reader, name, part.next)] == lines


def test_what_comes_late_with_an_earlier_time_is_not_behind_a_position(log: tuple[Logs, str, Write]) -> None:
    reader, name, write = log
    lines = some_lines("one", "two", "three")
    write(name, [lines[0], lines[2]])
    position = START_OF_LOG.after(lines[0].at).after(lines[2].at)
    assert read(reader, name, position) == []
    write(name, [lines[1]])

    assert read(reader, name, position) == []
    assert read(reader, name) == lines


# CloudWatch's own ways


@pytest.fixture
def scripted(client: Any) -> Iterator[tuple[CloudWatchLogs, Stubber]]:
    """CloudWatch as a script of answers, all of which must be asked for. Time passes with each call."""
    with Stubber(client) as script:
        yield CloudWatchLogs("/slipway/reported", client, clock=count().__next__), script
        script.assert_no_pending_responses()


AT = datetime.fromtimestamp(1_700_000_000, UTC)


def answer(
    script: Stubber, token: str | None, *messages: str, next_token: str, start: int = 0, limit: int = 10_000
) -> None:
    expected: dict[str, Any] = {"logGroupName": "g", "logStreamName": "s", "startFromHead": True}
    events = [{"timestamp": 1_700_000_000_000, "message": text} for text in messages]
    script.add_response(
        "get_log_events",
        {"events": events, "nextForwardToken": next_token, "nextBackwardToken": "b/0"},
        {**expected, "startTime": start, "limit": limit, **({"nextToken": token} if token else {})},
    )


def texts(lines: Iterable[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_an_empty_page_is_not_the_end_but_a_repeated_token_is(
    scripted: tuple[CloudWatchLogs, Stubber],
) -> None:
    reader, script = scripted
    answer(script, None, next_token="f/1")
    answer(script, "f/1", "one\n", "two\n", next_token="f/2")
    answer(script, "f/2", next_token="f/3")
    answer(script, "f/3", "three\n", next_token="f/4")
    answer(script, "f/4", next_token="f/4")

    assert texts(read(reader, "g:s")) == ["one", "two", "three"]


def test_a_log_service_that_only_has_empty_pages_is_unavailable(
    scripted: tuple[CloudWatchLogs, Stubber],
) -> None:
    reader, script = scripted
    for number in range(100):
        answer(script, f"f/{number}" if number else None, next_token=f"f/{number + 1}")
    with pytest.raises(Unavailable):
        reader.read("g:s", START_OF_LOG)


def test_more_lines_of_one_time_than_a_page_has(client: Any) -> None:
    with Stubber(client) as script:
        answer(script, None, "one\n", "two\n", next_token="f/1", start=1_700_000_000_000, limit=2)
        answer(script, "f/1", "three\n", next_token="f/2", start=1_700_000_000_000, limit=2)
        reader = CloudWatchLogs("/slipway/reported", client)

        assert texts(reader.read("g:s", Position(AT, 2), 2).lines) == ["three"]


def test_the_end_of_a_log_is_found_although_empty_pages_come_first(client: Any) -> None:
    def page(token: str | None, *messages: str, next_token: str) -> None:
        events = [{"timestamp": 1_700_000_000_000, "message": text} for text in messages]
        expected = {"logGroupName": "g", "logStreamName": "s", "startFromHead": False, "limit": 3}
        script.add_response(
            "get_log_events",
            {"events": events, "nextForwardToken": "f/0", "nextBackwardToken": next_token},
            {**expected, **({"nextToken": token} if token else {})},
        )

    with Stubber(client) as script:
        page(None, next_token="b/1")
        page("b/1", "three\n", next_token="b/2")
        page("b/2", "one\n", "two\n", next_token="b/3")
        assert texts(CloudWatchLogs("", client).tail("g:s", 3)) == ["one", "two", "three"]

        page(None, "one\n", next_token="b/1")
        page("b/1", next_token="b/1")
        assert texts(CloudWatchLogs("", client).tail("g:s", 3)) == ["one"]


def test_an_event_may_hold_several_lines(scripted: tuple[CloudWatchLogs, Stubber]) -> None:
    reader, script = scripted
    answer(script, None, "one\ntwo\n", "\n", "three", next_token="f/1")
    answer(script, "f/1", next_token="f/1")

    assert texts(read(reader, "g:s")) == ["one", "two", "", "three"]


def test_a_line_may_be_several_events(client: Any) -> None:
    """One that is long and does not end is a piece; containerd marks it."""
    with Stubber(client) as script:
        answer(script, None, "x" * 4_096, "y\n", "short", next_token="f/1")
        lines = CloudWatchLogs("", client).read("g:s", START_OF_LOG).lines
        assert [(line.text[0], line.goes_on) for line in lines] == [("x", True), ("y", False), ("s", False)]

    stream = "node-application.var.log.containers.pod_build-1.log"
    events = [{"log": "one ", "_p": "P"}, {"log": "line", "_p": "F"}, {"log": "two\n"}]
    with Stubber(client) as script:
        script.add_response(
            "get_log_events",
            {
                "events": [{"timestamp": 1, "message": json.dumps(event)} for event in events],
                "nextForwardToken": "f/1",
            },
        )
        lines = CloudWatchLogs("", client).read(f"g:{stream}", START_OF_LOG).lines
        assert [(line.text, line.goes_on) for line in lines] == [
            ("one ", True),
            ("line", False),
            ("two", False),
        ]


class Counted:
    """A log of CloudWatch that grows, and how often it was asked."""

    def __init__(self, lines: int) -> None:
        self.events: list[dict[str, Any]] = [{"timestamp": n // 3, "message": f"line {n}\n"} for n in range(lines)]
        self.calls = 0

    def get_log_events(self, **query: Any) -> dict[str, Any]:
        self.calls += 1
        start = bisect_left(self.events, query["startTime"], key=lambda event: event["timestamp"])
        first = int(query.get("nextToken", start))
        found = self.events[first : first + query["limit"]]
        return {"events": found, "nextForwardToken": f"{first + len(found)}"}


@pytest.mark.parametrize("size", [300, 300_000])
def test_a_poll_costs_one_call_or_two_whatever_the_size_of_the_log(size: int) -> None:
    log, now = Counted(size), count()
    reader = CloudWatchLogs("", log, clock=now.__next__)
    part = reader.read("g:s", START_OF_LOG)
    while not part.is_end:
        part = reader.read("g:s", part.next)
    assert log.calls == size // 10_000 + (2 if size % 10_000 else 1)

    for is_new_process in (False, True):
        log.events.append({"timestamp": size + 5, "message": "more\n"})
        if is_new_process:
            reader = CloudWatchLogs("", log, clock=now.__next__)
        log.calls = 0
        part = reader.read("g:s", part.next)
        assert (texts(part.lines), log.calls) == (["more"], 1)
        log.calls = 0
        assert reader.read("g:s", part.next).is_end
        assert log.calls == 1
    log.calls = 0
    assert CloudWatchLogs("", log).read("g:s", part.next).is_end
    assert log.calls == 2


@pytest.mark.parametrize("readers", [1, 50])
def test_readers_of_the_same_part_within_a_second_share_a_call(readers: int) -> None:
    log, now = Counted(1_000), [0.0]
    reader = CloudWatchLogs("", log, clock=lambda: now[0])
    end = reader.read("g:s", START_OF_LOG).next
    log.calls = 0
    for second in range(10):
        now[0] = float(second)
        log.events.append({"timestamp": 1_000 + second, "message": "more\n"})
        with ThreadPoolExecutor(readers) as pool:
            parts = list(pool.map(reader.read, ["g:s"] * readers, [end] * readers))
        assert {part.next for part in parts} == {parts[0].next}
        assert texts(parts[0].lines) == ["more"]
        end = parts[0].next
    assert log.calls == 10


@pytest.mark.parametrize("code", ["ThrottlingException", "ServiceUnavailableException"])
def test_trouble_is_unavailable(scripted: tuple[CloudWatchLogs, Stubber], code: str) -> None:
    reader, script = scripted
    script.add_client_error("get_log_events", code)
    with pytest.raises(Unavailable) as trouble:
        reader.read("g:s", START_OF_LOG)
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

    long = "x" * 300_000  # more than an event takes
    logs.append(log, [LogLine(now, "one"), LogLine(now, "")])
    logs.append(log, [LogLine(now, "x" * 200_000)] * 6)  # more than one PutLogEvents takes
    logs.append(log, [LogLine(now, long), LogLine(now, "end")])

    lines = Lines("nonce")
    whole = [text for piece in read(logs, log) for text in lines.add(piece)]
    assert [line[:3] for line in whole] == ["one", "", *["xxx"] * 7, "end"]
    pieces = [line.text for line in read(logs, log)]
    assert "".join(pieces) == "one" + "x" * 1_200_000 + long + "end"
