"""Invokes the functions as AWS does: threads pass SQS messages, events and schedule ticks to the same handlers, in the
same format."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
from chalice.app import Chalice
from chalice.local import LambdaContext

from infra.local.aws import REGION
from infra.local.stream import Stream

log = logging.getLogger(__name__)
WORKERS = 2  # per queue: Lambda handles batches in parallel, too
WAIT_SECONDS = 1  # of one long poll; `close` takes no longer


class Triggers:
    """Calls the handlers of `app` until closed."""

    def __init__(self, app: Chalice, queues: Mapping[str, str], schedules: Mapping[str, float], stream: Stream) -> None:
        """`queues` has the URL of each function's queue, `schedules` the seconds between its ticks."""
        self._app, self._stream = app, stream
        self._closing = threading.Event()
        loops: list[tuple[Callable[..., None], str, object]] = []
        loops += [(self._poll, function, url) for function, url in queues.items()] * WORKERS
        loops += [(self._tick, function, seconds) for function, seconds in schedules.items()]
        loops.append((self._follow, "announce", None))
        self._threads = [
            threading.Thread(target=loop, args=(function, of), daemon=True, name=function)
            for loop, function, of in loops
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def deliver(self, event: dict[str, Any]) -> None:
        """Delivers an event, as EventBridge does by the template's rule: the function gets the build's id alone; if it
        fails, it is called twice more."""
        reduced = {**_event(), "source": event["source"], "detail": {"build-id": event["detail"]["build-id"]}}
        for number in (1, 2, 3):
            try:
                self._call("on_codebuild_event", reduced)
                return
            except Exception:
                log.warning("Event %s could not be handled, try %d of 3", event.get("id"), number, exc_info=True)

    def _poll(self, function: str, queue_url: str) -> None:
        sqs = boto3.client("sqs")
        while not self._closing.is_set():
            try:
                answer = sqs.receive_message(
                    QueueUrl=queue_url,
                    MaxNumberOfMessages=10,
                    WaitTimeSeconds=WAIT_SECONDS,
                    AttributeNames=["All"],
                )
                self._handle(sqs, function, queue_url, answer.get("Messages", []))
            except Exception:
                log.exception("Messages of the queue %s were not handled; they come again", queue_url)
                self._closing.wait(WAIT_SECONDS)

    def _handle(self, sqs: Any, function: str, queue_url: str, messages: list[dict[str, Any]]) -> None:
        """Handles one batch. Deletes the messages that the handler does not return as failed; the others are delivered
        again after their visibility timeout."""
        if not messages:
            return
        records = [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message.get("Attributes", {}),
                "messageAttributes": {},
                "eventSource": "aws:sqs",
                "eventSourceARN": f"arn:aws:sqs:{REGION}:000000000000:{queue_url.rpartition('/')[2]}",
                "awsRegion": REGION,
            }
            for message in messages
        ]
        answer = self._call(function, {"Records": records})
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in messages:
            if message["MessageId"] not in failed:
                sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])

    def _follow(self, function: str, _: None) -> None:
        """Gives the stream's records to the function. If a record fails, that record and the later ones come again."""
        records: list[dict[str, Any]] = []
        while not self._closing.is_set():
            records = records or self._stream.read(WAIT_SECONDS)
            if not records:
                continue
            try:
                failed = self._call(function, {"Records": records})["batchItemFailures"]
                numbers = [each["dynamodb"]["SequenceNumber"] for each in records]
                records = records[numbers.index(failed[0]["itemIdentifier"]) :] if failed else []
            except Exception:
                log.exception("Changes of builds could not be handled; they come again")
                failed = records
            if failed:
                self._closing.wait(WAIT_SECONDS)

    def _tick(self, function: str, every_seconds: float) -> None:
        while not self._closing.wait(every_seconds):
            try:
                self._call(function, _event())
            except Exception:
                log.exception("The scheduled call of the function %s failed", function)

    def _call(self, function: str, event: dict[str, Any]) -> Any:
        handler: Callable[[Any, Any], Any] = self._app.handler_map[function]
        return handler(event, LambdaContext(function, 512, 60_000))


def _event() -> dict[str, Any]:
    """An event of a schedule."""
    return {
        "version": "0",
        "id": "00000000-0000-0000-0000-000000000000",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "000000000000",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "region": REGION,
        "resources": [],
        "detail": {},
    }
