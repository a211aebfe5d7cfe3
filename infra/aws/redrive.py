"""Puts refused requests back into their queue: `make redrive`, after the reason for the refusal was removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import boto3

from infra.aws.bootstrap import deployment

MESSAGES_PER_SECOND = 50  # each starts a build perhaps
POLL_SECONDS = 5


class NotMoved(Exception):
    """SQS gave up; the message says why. What it has not moved is still with the dead letters."""


def redrive(
    stack: str,
    say: Callable[[str], None],
    agrees: Callable[[str], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Moves the dead letters of a deployment's requests back, if the operator agrees when asked. SQS gives them new
    ids: what protects a request from being done twice is its `idempotency_key`. Raises ClientError, NotMoved."""
    outputs, sqs = deployment(stack).outputs, boto3.client("sqs")
    names: Any = ["QueueArn", "ApproximateNumberOfMessages"]
    dead, requests = (
        sqs.get_queue_attributes(QueueUrl=outputs[name], AttributeNames=names)["Attributes"]
        for name in ("RequestsDeadQueueUrl", "RequestsQueueUrl")
    )
    count, source = int(dead["ApproximateNumberOfMessages"]), dead["QueueArn"]
    if count == 0:
        say("There are no dead letters.")
        return
    if not agrees(f"About {count} requests go back into the queue {outputs['RequestsQueueUrl']}. Move them? [y/N] "):
        say("Nothing was moved.")
        return
    sqs.start_message_move_task(
        SourceArn=source,
        DestinationArn=requests["QueueArn"],  # those that were refused have no other source
        MaxNumberOfMessagesPerSecond=MESSAGES_PER_SECOND,
    )
    while (task := sqs.list_message_move_tasks(SourceArn=source, MaxResults=1)["Results"][0])["Status"] == "RUNNING":
        sleep(POLL_SECONDS)
    if task["Status"] != "COMPLETED":
        raise NotMoved(f"SQS moved {task['ApproximateNumberOfMessagesMoved']}, then: {task.get('FailureReason')}")
    say(f"{task['ApproximateNumberOfMessagesMoved']} requests are in the queue again.")
