"""Log lines from CloudWatch Logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.errors import NoLog, Unavailable
from chalicelib.ports import LogLine


class CloudWatchLogs:
    """`LogReader` on CloudWatch Logs; `log` is `group:stream`."""

    def __init__(self, client: Any = None) -> None:
        self._logs: Any = client or boto3.client("logs")

    def lines(self, log: str) -> Sequence[LogLine]:
        lines = [line for page in self._pages(log) for line in page]
        if not lines:
            raise NoLog("File not found: the log is still empty.")
        return lines

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        group, _, stream = log.partition(":")
        answer = self._read(group, stream, startFromHead=False, limit=count)
        return _lines(answer)[-count:]

    def _pages(self, log: str) -> Iterator[list[LogLine]]:
        """Pages from the oldest on. A page may be empty although more follow; the end is where the token
        repeats (GetLogEvents)."""
        group, _, stream = log.partition(":")
        token: str | None = None
        while True:
            answer = self._read(group, stream, startFromHead=True, **({"nextToken": token} if token else {}))
            yield _lines(answer)
            if answer["nextForwardToken"] == token:
                return
            token = answer["nextForwardToken"]

    def _read(self, group: str, stream: str, **query: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._logs.get_log_events(
                logGroupName=group, logStreamName=stream, **query
            )
        except ClientError as exc:
            if exc.response["Error"]["Code"] == "ResourceNotFoundException":
                return {"events": [], "nextForwardToken": query.get("nextToken")}
            raise Unavailable("The log service did not answer; try again.") from exc
        except BotoCoreError as exc:
            raise Unavailable("The log service did not answer; try again.") from exc
        return answer


def _lines(answer: dict[str, Any]) -> list[LogLine]:
    return [
        LogLine(datetime.fromtimestamp(event["timestamp"] / 1000, UTC), text)
        for event in answer["events"]
        for text in event["message"].rstrip("\n").split("\n")
    ]
