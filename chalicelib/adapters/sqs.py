"""The dispatch queue on SQS."""

from __future__ import annotations

from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.domain.build import BuildKey
from chalicelib.errors import Unavailable


class SqsBuildQueue:
    """`BuildQueue` on SQS: the body of a message is the text of a build's key."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sqs: Any = boto3.client("sqs")

    def announce(self, key: BuildKey) -> None:
        try:
            self._sqs.send_message(QueueUrl=self._url, MessageBody=str(key))
        except (BotoCoreError, ClientError) as exc:
            raise Unavailable("The queue did not answer.") from exc
