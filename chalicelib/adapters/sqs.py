"""Queues on SQS."""

import re
from collections.abc import Sequence
from typing import Any

import boto3

from chalicelib.adapters.aws import answered
from chalicelib.domain.build import BuildKey

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


class SqsDeadLetters(_Queue):
    """`DeadLetters` on SQS; the reasons are an attribute of the message."""

    def put(self, body: str, reasons: Sequence[str]) -> None:
        text = _REFUSED.sub("\ufffd", "\n".join(reasons)[:MAX_REASONS])
        self._send(body, MessageAttributes={"reasons": {"DataType": "String", "StringValue": text}})
