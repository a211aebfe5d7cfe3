"""Log lines from CloudWatch Logs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import boto3

from chalicelib.adapters.aws import answered
from chalicelib.domain.build import Build
from chalicelib.errors import NoLog
from chalicelib.ports import LogLine

_OF_A_CLUSTER = ".var.log.containers."  # in names of streams that a cluster's add-on ships


class CloudWatchLogs:
    """`Logs` on CloudWatch Logs; `log` is `group:stream`."""

    def __init__(self, reported_group: str, client: Any = None) -> None:
        self._reported_group = reported_group
        self._logs: Any = client or boto3.client("logs")

    def lines(self, log: str) -> Iterator[LogLine]:
        for page in self._pages(log):
            yield from page

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        group, _, stream = log.partition(":")
        answer = self._read(group, stream, startFromHead=False, limit=count)
        return _lines(stream, answer)[-count:]

    def reported(self, build: Build) -> str:
        return f"{self._reported_group}:{build.uuid}"

    def append(self, log: str, lines: Sequence[LogLine]) -> None:
        group, _, stream = log.partition(":")
        with answered("The log service", missing=NoLog):
            with suppress(self._logs.exceptions.ResourceAlreadyExistsException):
                self._logs.create_log_stream(logGroupName=group, logStreamName=stream)
            for batch in _batches(lines):
                self._logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=batch)

    def _pages(self, log: str) -> Iterator[list[LogLine]]:
        """Pages from the oldest on. A page may be empty although more follow; the end is where the token
        repeats (GetLogEvents)."""
        group, _, stream = log.partition(":")
        token: str | None = None
        while True:
            answer = self._read(group, stream, startFromHead=True, **({"nextToken": token} if token else {}))
            yield _lines(stream, answer)
            if answer["nextForwardToken"] == token:
                return
            token = answer["nextForwardToken"]

    def _read(self, group: str, stream: str, **query: Any) -> dict[str, Any]:
        try:
            with answered("The log service", missing=NoLog):
                answer: dict[str, Any] = self._logs.get_log_events(
                    logGroupName=group, logStreamName=stream, **query
                )
        except NoLog:
            return {"events": [], "nextForwardToken": query.get("nextToken")}
        return answer


def _batches(lines: Sequence[LogLine]) -> Iterator[list[dict[str, Any]]]:
    """Events within the limits of one PutLogEvents: 1 MB with 26 bytes for each, 10,000 of them."""
    batch: list[dict[str, Any]] = []
    size = 0
    for line in lines:
        text = line.text or " "  # an event needs one
        event = {"timestamp": int(line.at.timestamp() * 1000), "message": text}
        length = len(text.encode()) + 26
        if batch and (size + length > 1_000_000 or len(batch) >= 10_000):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += length
    if batch:
        yield batch


def _lines(stream: str, answer: dict[str, Any]) -> list[LogLine]:
    is_json = _OF_A_CLUSTER in stream
    return [
        LogLine(datetime.fromtimestamp(event["timestamp"] / 1000, UTC), text)
        for event in answer["events"]
        for text in (_logged(event["message"]) if is_json else event["message"]).rstrip("\n").split("\n")
    ]


def _logged(message: str) -> str:
    """What a container printed, of an event that Fluent Bit made of it."""
    try:
        return str(json.loads(message)["log"])
    except (ValueError, KeyError, TypeError):
        return message
