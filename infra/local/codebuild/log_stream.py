"""One CloudWatch log stream, written within the limits of PutLogEvents."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.adapters.aws import answered

MAX_EVENTS = 10_000
MAX_BYTES = 1_048_576
EVENT_OVERHEAD_BYTES = 26
MAX_EVENT_BYTES = 262_144 - EVENT_OVERHEAD_BYTES
FLUSH_SECONDS = 0.3
RETRIES = 20
EXISTS = "ResourceAlreadyExistsException"

log = logging.getLogger(__name__)


class LogStream:
    """The lines of one build, in order. None is lost if the log service fails for less than about 20 seconds."""

    def __init__(self, client: Any, group: str, stream: str) -> None:
        self._client, self._group, self._stream = client, group, stream
        self._lock = threading.Lock()  # guards what waits
        self._sending = threading.Lock()  # keeps batches in order
        self._waiting: list[dict[str, Any]] = []
        self._last_ms = 0
        self._closing = threading.Event()
        with answered("The log service", ignored=[EXISTS]):
            client.create_log_group(logGroupName=group)
        with answered("The log service", ignored=[EXISTS]):  # as after a restart
            client.create_log_stream(logGroupName=group, logStreamName=stream)
        self._thread = threading.Thread(target=self._flush_often, daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Adds a line and a newline; a line that exceeds the limit of an event becomes several events."""
        characters = MAX_EVENT_BYTES // 4  # of at most four bytes each
        text = f"{line}\n"
        pieces = [text[at : at + characters] for at in range(0, len(text), characters)]
        with self._lock:
            self._last_ms = max(self._last_ms, int(time.time() * 1000))
            self._waiting += [{"timestamp": self._last_ms, "message": piece} for piece in pieces]

    def flush(self) -> None:
        """Sends all waiting lines."""
        with self._sending:
            with self._lock:
                events, self._waiting = self._waiting, []
            while events:
                batch = events[: _fitting(events)]
                self._put(batch)
                events = events[len(batch) :]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self.flush()

    def _flush_often(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self.flush()

    def _put(self, batch: list[dict[str, Any]]) -> None:
        for attempt in range(RETRIES):
            try:
                self._client.put_log_events(logGroupName=self._group, logStreamName=self._stream, logEvents=batch)
                return
            except (ClientError, BotoCoreError):
                log.warning("Log events could not be written, try %d of %d", attempt + 1, RETRIES)
                time.sleep(0.1 * attempt)
        log.error("%d log events could not be written and are lost", len(batch))


def _fitting(events: list[dict[str, Any]]) -> int:
    """How many events, from the first on, fit into one call."""
    size = 0
    for count, event in enumerate(events[:MAX_EVENTS]):
        size += len(event["message"].encode()) + EVENT_OVERHEAD_BYTES
        if size > MAX_BYTES:
            return count
    return min(len(events), MAX_EVENTS)
