"""Log lines from CloudWatch Logs."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import takewhile
from typing import Any

import boto3

from chalicelib.adapters.aws import answered
from chalicelib.domain.build import Build
from chalicelib.domain.log_lines import LogLine, Position, at_of, ms_of
from chalicelib.errors import NoLog, Unavailable
from chalicelib.ports import MAX_READ_LINES, LogPart

_OF_A_CLUSTER = ".var.log.containers."  # in names of streams that a cluster's add-on ships
_MAX_EVENT_BYTES = 262_144 - 26
_MAX_PAGES = 100  # empty pages in a row
_PIECE_CHARACTERS = 4_096  # an event without the end of its line is at least this long: containerd splits at 16 KB
_SHARED_SECONDS, _SHARED_PARTS = 1, 8  # a part is shared by all that read it within a second
_TOKEN_SECONDS, _TOKENS = 60, 100  # with a token, the next reader needs one call less; valid for a day


class CloudWatchLogs:
    """`Logs` on CloudWatch Logs; `log` is `group:stream`. CloudWatch sorts events by time and can start at a time;
    the position among events of the same time is counted here."""

    def __init__(self, reported_group: str, client: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._reported_group, self._clock = reported_group, clock
        self._logs: Any = client or boto3.client("logs")
        self._reading = threading.Lock()  # other readers wait, and then share the part
        self._parts: dict[tuple[str, Position, int], tuple[float, LogPart]] = {}
        self._tokens: dict[tuple[str, Position], tuple[float, int, str]] = {}  # noted at, start time in ms, token

    def read(self, log: str, after: Position, limit: int = MAX_READ_LINES) -> LogPart:
        with self._reading:
            now = self._clock()
            read_at, part = self._parts.get((log, after, limit), (-1e9, None))
            if part is None or now - read_at >= _SHARED_SECONDS:
                part = self._read_after(log, after, limit)
                _remember(self._parts, (log, after, limit), (now, part), _SHARED_PARTS)
            return part

    def _read_after(self, log: str, after: Position, limit: int) -> LogPart:
        """Pages may be empty although more follow; at the end GetLogEvents answers the same token again."""
        noted_at, start_ms, token = self._tokens.pop((log, after), (-1e9, 0, ""))
        skip = 0
        if self._clock() - noted_at >= _TOKEN_SECONDS:
            start_ms, token, skip = ms_of(after.at), "", after.count
        query: dict[str, Any] = {"startTime": start_ms, "startFromHead": True, "limit": limit}
        for _ in range(_MAX_PAGES):
            answer = self._get(log, **query, **({"nextToken": token} if token else {}))
            lines = _lines(log, answer)
            served = sum(1 for _ in takewhile(lambda line: line.at == after.at, lines[:skip]))
            skip -= served
            if is_short := served < len(lines):
                skip = 0
            is_end = answer["nextForwardToken"] in (token, None)
            token = answer["nextForwardToken"]
            if is_short or is_end:
                rest = lines[served:]
                next_one = reduce(Position.after, (line.at for line in rest), after)
                if token:
                    _remember(self._tokens, (log, next_one), (self._clock(), start_ms, token), _TOKENS)
                return LogPart(rest, next_one, is_end)
        raise Unavailable("The log service answers without lines; try again.")

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        """Reads pages from the end of the log backwards. The first pages may be empty although more follow."""
        found: list[LogLine] = []
        token = ""
        for _ in range(_MAX_PAGES):
            more = {"nextToken": token} if token else {}
            answer = self._get(log, startFromHead=False, limit=count, **more)
            found = _lines(log, answer) + found
            if len(found) >= count or answer["nextBackwardToken"] in (token, None):
                break
            token = answer["nextBackwardToken"]
        return found[-count:]

    def reported(self, build: Build) -> str:
        return f"{self._reported_group}:{build.uuid}"

    def append(self, log: str, lines: Sequence[LogLine]) -> None:
        group, _, stream = log.partition(":")
        with answered("The log service", missing=NoLog, ignored=["ResourceAlreadyExistsException"]):
            self._logs.create_log_stream(logGroupName=group, logStreamName=stream)
        with answered("The log service", missing=NoLog):
            for batch in _batches(lines):
                self._logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=batch)

    def _get(self, log: str, **query: Any) -> dict[str, Any]:
        group, _, stream = log.partition(":")
        try:
            with answered("The log service", missing=NoLog):
                return dict(self._logs.get_log_events(logGroupName=group, logStreamName=stream, **query))
        except NoLog:
            return {"events": [], "nextForwardToken": None, "nextBackwardToken": None}


def _remember(memory: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Adds an entry; drops the oldest one if there are more than `most`."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]


def _batches(lines: Sequence[LogLine]) -> Iterator[list[dict[str, Any]]]:
    """Batches of events within the limits of PutLogEvents: 10,000 events and 1 MB, with 26 bytes more for each. An
    event ends with a newline, unless its line is too long and continues in the next event."""
    batch: list[dict[str, Any]] = []
    size = 0
    characters = _MAX_EVENT_BYTES // 4  # of four bytes at most
    for line in lines:
        text = f"{line.text}\n"
        for start in range(0, len(text), characters):
            message = text[start : start + characters]
            length = len(message.encode()) + 26
            if batch and (size + length > 1_000_000 or len(batch) >= MAX_READ_LINES):
                yield batch
                batch, size = [], 0
            batch.append({"timestamp": ms_of(line.at), "message": message})
            size += length
    if batch:
        yield batch


def _lines(log: str, answer: dict[str, Any]) -> list[LogLine]:
    is_json = _OF_A_CLUSTER in log
    found: list[LogLine] = []
    for event in answer["events"]:
        at, message, goes_on = at_of(event["timestamp"]), event["message"], False
        if is_json:
            message, goes_on = _logged(message)
        elif not message.endswith("\n"):
            goes_on = len(message) >= _PIECE_CHARACTERS
        texts = message.removesuffix("\n").split("\n")
        found += [LogLine(at, text) for text in texts[:-1]]
        found.append(LogLine(at, texts[-1], goes_on))
    return found


def _logged(message: str) -> tuple[str, bool]:
    """A line, or a piece of one, from an event of Fluent Bit, and whether the line goes on: `_p` is containerd's mark,
    P for partial."""
    try:
        described = json.loads(message)
        return str(described["log"]), described.get("_p") == "P"
    except (ValueError, KeyError, TypeError, AttributeError):
        return message, False
