"""A thousand messages with duplicates, poison and `kill -9` between end as exactly the right builds."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.machine.machine import Machine
from tests.required_engines import with_one_engine
from tests.stack.conftest import PROJECT
from tests.stack.test_storage import Up, keeping

pytestmark = [*with_one_engine, pytest.mark.slow, pytest.mark.proof]
MESSAGES = int(os.environ.get("MESSAGES", "1000"))
PATIENCE_SECONDS = 1_800  # the machine may be busy; nothing here depends on how fast it is
HEAD = {"version": 1, "owner": "root", "project": "quick-start"}
POISON: list[Any] = ["{", "[]", "{}", {**HEAD, "action": "explode"}, {**HEAD, "action": "stop", "build": 10**11}]
POISON += [{**HEAD, "project": "none", "action": "create", "is_managed": False}]


def queues(up: Up) -> tuple[Any, str, str]:
    """A client of SQS, the queue of requests and that of its dead letters."""
    return up.sqs(), up.ready["requests_queue"], f"{up.ready['requests_queue']}-dead"


def send(up: Up, messages: Sequence[Any], killed_at: set[int]) -> None:
    """Sends them by tens. Where a ten is in `killed_at`, the stack is killed while it works on what was sent, and
    started again; what may not have arrived is sent again."""
    for start in range(0, len(messages), 10):
        texts = [each if isinstance(each, str) else json.dumps(each) for each in messages[start : start + 10]]
        entries: Any = [{"Id": str(number), "MessageBody": text} for number, text in enumerate(texts)]
        for _ in range(2):
            try:
                sqs, requests, _dead = queues(up)
                assert not sqs.send_message_batch(QueueUrl=requests, Entries=entries).get("Failed")
            except (BotoCoreError, ClientError):
                continue
            if start // 10 not in killed_at:
                break
            killed_at.remove(start // 10)
            up.end(signal.SIGKILL)
            up.start()


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)


def is_empty(up: Up) -> bool:
    sqs, requests, _ = queues(up)
    names: Any = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    counts = sqs.get_queue_attributes(QueueUrl=requests, AttributeNames=names)["Attributes"]
    return {*counts.values()} == {"0"}


def everything(up: Up, path: str) -> list[Any]:
    found: list[Any] = []
    while page := up.get(f"{path}?limit=500&offset={len(found)}&sort=created_at")["results"]:
        found += page
    return found


def dead_letters(up: Up) -> set[str]:
    sqs, _, dead = queues(up)
    found: set[str] = set()
    while letters := sqs.receive_message(QueueUrl=dead, MaxNumberOfMessages=10).get("Messages"):
        for letter in letters:
            found.add(letter["Body"])
            sqs.delete_message(QueueUrl=dead, ReceiptHandle=letter["ReceiptHandle"])
    return found


def test_messages_end_as_exactly_the_right_builds(local_machine: Machine, tmp_path: Path) -> None:
    """Of ten messages six create a build, one of them comes twice, one is poison, and two change builds later. Those
    that are sent around a kill come twice as well."""
    rng = random.Random(20)
    creates: list[dict[str, Any]] = [
        {**HEAD, "action": "create", "is_managed": False, "name": f"r-{number}", "idempotency_key": f"k-{number}"}
        for number in range(MESSAGES * 6 // 10)
    ]
    first = creates + rng.sample(creates, MESSAGES // 10) + [rng.choice(POISON) for _ in range(MESSAGES // 10)]
    rng.shuffle(first)
    tens = len(first) // 10
    with keeping(local_machine, tmp_path / "kept") as up:
        up.start()
        assert up.call("POST", "/projects", {"name": "quick-start"})[0] == 201
        send(up, first, {tens // 3, 2 * tens // 3})
        until(lambda: is_empty(up))
        made = {build["name"]: build["id"] for build in everything(up, f"{PROJECT}/builds")}
        assert sorted(made) == sorted(each["name"] for each in creates)

        names = rng.sample(sorted(made), MESSAGES // 10)
        changes = [{**HEAD, "action": "archive", "build": made[name]} for name in names]
        changes += [{**HEAD, "action": "stop", "build": made[name]} for name in names[: MESSAGES // 20]]
        changes += rng.sample(changes, MESSAGES // 20)
        rng.shuffle(changes)
        send(up, changes, {len(changes) // 20})
        until(lambda: is_empty(up))

        left = {build["name"] for build in everything(up, f"{PROJECT}/builds")}
        archived = {build["name"] for build in everything(up, "/archives/automation/builds")}
        assert (left, archived) == (made.keys() - set(names), set(names))
        poison = {each if isinstance(each, str) else json.dumps(each) for each in first if each not in creates}
        assert dead_letters(up) == poison  # a stop that comes after its archive finds nothing left to do
