"""Queues on SQS."""

import re
from collections.abc import Sequence
from typing import Any

import boto3
import msgspec

from chalicelib.adapters.aws import answered
from chalicelib.domain.build import BuildKey
from chalicelib.errors import NotFound
from chalicelib.ports import Announcement, Delivery

MAX_REASONS = 4_000  # characters; body and attributes of a message share 256 KB
_REFUSED = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # by SQS, in any text


class _Queue:
    def __init__(self, url: str) -> None:
        self._url = url
        self._sqs: Any = boto3.client("sqs")

    def _send(self, body: str, **about: Any) -> None:
        with answered("The queue"):
            self._sqs.send_message(QueueUrl=self._url, MessageBody=body, **about)


class SqsBuildQueue(_Queue):
    """`BuildQueue` on SQS; the body of a message is a build's key as text."""

    def announce(self, key: BuildKey, after_seconds: int = 0) -> None:
        self._send(str(key), DelaySeconds=after_seconds)


class SqsHookQueue(_Queue):
    """`HookQueue` on SQS: the body of a message is a delivery as JSON."""

    def send(self, delivery: Delivery) -> None:
        self._send(msgspec.json.encode(delivery).decode())

    def hide(self, receipt: str, seconds: int) -> None:
        with answered("The queue"):
            self._sqs.change_message_visibility(QueueUrl=self._url, ReceiptHandle=receipt, VisibilityTimeout=seconds)


def delivery(body: str) -> Delivery:
    """That a message of this queue has."""
    return msgspec.json.decode(body, type=Delivery)


class SqsReplies(_Queue):
    """`Replies` to queues of this region; the request is an attribute of the message."""

    def send(self, queue: str, request: str, announcement: Announcement) -> None:
        url = "/".join((self._url.rsplit("/", 2)[0], *queue.split(":")[-2:]))  # account and name
        about = _attribute("request", request)
        with answered("The queue", refusal=lambda code, _: NotFound() if code.endswith("NonExistentQueue") else None):
            self._sqs.send_message(QueueUrl=url, MessageBody=announcement.text, MessageAttributes=about)


class SqsDeadLetters(_Queue):
    """`DeadLetters` on SQS; the reasons are an attribute of the message."""

    def put(self, body: str, reasons: Sequence[str]) -> None:
        self._send(body, MessageAttributes=_attribute("reasons", "\n".join(reasons)[:MAX_REASONS]))


def _attribute(name: str, text: str) -> dict[str, Any]:
    return {name: {"DataType": "String", "StringValue": _REFUSED.sub("\ufffd", text)}}
