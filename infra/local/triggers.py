"""What wakes functions in AWS, in threads here: SQS messages, events and schedules, given to the same
handlers in the same shape."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import boto3
from chalice.app import Chalice
from chalice.local import LambdaContext

from infra.local.aws import REGION

log = logging.getLogger(__name__)
WORKERS = 2  # messages of the queue are handled side by side, as Lambda does
WAIT_SECONDS = 1  # of one long poll: bounds how long closing takes


class Triggers:
    """Feeds `app`'s handlers until closed."""

    def __init__(self, app: Chalice, queue_url: str, reconcile_every_seconds: float) -> None:
        self._app = app
        self._queue_url = queue_url
        self._every_seconds = reconcile_every_seconds
        self._closing = threading.Event()
        loops = [self._poll] * WORKERS + [self._tick]
        self._threads = [threading.Thread(target=loop, daemon=True, name=loop.__name__) for loop in loops]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def ring(self, event: dict[str, Any]) -> None:
        """Delivers an EventBridge event, as EventBridge does: a failure is tried twice more."""
        for attempt in range(3):
            try:
                self._call("on_codebuild_event", event)
                return
            except Exception:
                log.warning("event %s failed, attempt %d", event.get("id"), attempt + 1, exc_info=True)

    def _poll(self) -> None:
        sqs = boto3.client("sqs")
        while not self._closing.is_set():
            try:
                answer = sqs.receive_message(
                    QueueUrl=self._queue_url,
                    MaxNumberOfMessages=10,
                    WaitTimeSeconds=WAIT_SECONDS,
                    AttributeNames=["All"],
                )
                self._handle(sqs, answer.get("Messages", []))
            except Exception:
                log.exception("the queue could not be read")
                self._closing.wait(WAIT_SECONDS)

    def _handle(self, sqs: Any, messages: list[dict[str, Any]]) -> None:
        """One batch; messages that the handler does not name as failed are deleted, the others come back
        when their visibility timeout ends."""
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
                "eventSourceARN": f"arn:aws:sqs:{REGION}:000000000000:{self._queue_url.rpartition('/')[2]}",
                "awsRegion": REGION,
            }
            for message in messages
        ]
        answer = self._call("dispatch", {"Records": records})
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in messages:
            if message["MessageId"] not in failed:
                sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"])

    def _tick(self) -> None:
        while not self._closing.wait(self._every_seconds):
            try:
                self._call("reconcile", _scheduled_event())
            except Exception:
                log.exception("the schedule failed")

    def _call(self, function: str, event: dict[str, Any]) -> Any:
        handler: Callable[[Any, Any], Any] = self._app.handler_map[function]
        return handler(event, LambdaContext(function, 512, 60_000))


def _scheduled_event() -> dict[str, Any]:
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
