"""What requests cost: calls to DynamoDB and the units they consume, at size.

ministack is the emulator, because its transactions are right, its write units too, and 100,000 rows take it
seconds. No emulator at hand counts reads right: read units are computed here by DynamoDB's rules (4 KB each,
half for reads that may lag) from what was answered.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import urllib3

from chalicelib.adapters import dynamodb
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.usecases import builds, execution
from infra.local import aws
from infra.local.__main__ import STATE
from tests.factories import SETTINGS, SPEC, after, make_body, make_build, make_project, make_user
from tests.fakes import FakeServices

pytestmark = pytest.mark.slow
MINISTACK = "ministack==1.5.33"  # in an environment of its own: it needs an older botocore
PATIENCE_SECONDS = 60
KB4 = 4096
ADA = make_user()


@dataclass
class Meter:
    """Every call to DynamoDB, with what it consumed."""

    calls: list[tuple[str, float, float]] = field(default_factory=list)  # operation, read and write units
    _asked: dict[str, Any] = field(default_factory=dict)

    def watch(self, client: Any) -> None:
        client.meta.events.register("provide-client-params.dynamodb", self._ask)
        client.meta.events.register("after-call.dynamodb", self._answered)

    def _ask(self, params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        self._asked = params
        return {**params, "ReturnConsumedCapacity": "TOTAL"}

    def _answered(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        totals = consumed if isinstance(consumed, list) else [consumed]
        is_write = model.name in ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems")
        written = sum(each["CapacityUnits"] for each in totals) if is_write else 0
        self.calls.append((model.name, read_units(model.name, self._asked, parsed), written))

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _, _ in self.calls]

    @property
    def read(self) -> float:
        return sum(units for _, units, _ in self.calls)

    @property
    def written(self) -> float:
        return sum(units for _, _, units in self.calls)


def read_units(operation: str, asked: dict[str, Any], answer: dict[str, Any]) -> float:
    if operation == "GetItem":
        return max(math.ceil(size(answer.get("Item", {})) / KB4), 1) * (
            1 if asked.get("ConsistentRead") else 0.5
        )
    if operation == "BatchGetItem":
        (table,) = asked["RequestItems"].values()
        found = [item for items in answer["Responses"].values() for item in items]
        missing = len(table["Keys"]) - len(found)
        units = sum(math.ceil(size(item) / KB4) for item in found) + missing
        return units * (1 if table.get("ConsistentRead") else 0.5)
    if operation == "Query":
        read = sum(size(item) for item in answer.get("Items", []))
        return max(math.ceil(read / KB4), 1) * (1 if asked.get("ConsistentRead") else 0.5)
    return 0


def size(item: dict[str, Any]) -> int:
    return sum(
        len(name.encode()) + len(str(next(iter(value.values()))).encode()) for name, value in item.items()
    )


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    home = (STATE / MINISTACK).absolute()
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = (home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, MINISTACK], check=True)
        (home / "ready").touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [home / "bin" / "python", "-m", "hypercorn", "ministack.app:app", "--bind", address],
        env={**os.environ, "SERVICES": "dynamodb", "LOG_LEVEL": "WARNING"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib3.request("GET", f"http://{address}/", retries=False, timeout=1)
            break
        except urllib3.exceptions.HTTPError:
            assert time.monotonic() < deadline, "ministack did not start"
            time.sleep(0.1)
    yield f"http://{address}"
    server.terminate()
    server.wait()


@pytest.fixture
def metered(ministack: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Meter, FakeServices]:
    """The use cases on a metered DynamoDB; everything else is a fake."""
    for name, value in {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": ministack}.items():
        monkeypatch.setenv(name, value)
    dynamodb.use_table(f"costs-{time.monotonic_ns()}")
    dynamodb.Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
    services = FakeServices(SETTINGS)
    services.store = dynamodb.DynamoBuildStore()  # type: ignore[assignment]
    services.store.add_project(make_project())
    meter = Meter()
    assert dynamodb._connection is not None
    for connection in (dynamodb.Item._get_connection().connection, dynamodb._connection):
        meter.watch(connection.client)
    return meter, services


def seed(count: int) -> None:
    """So many builds, written in bulk; of the first one the texts as well."""
    key = ("P#ada/vision", "P")
    with dynamodb.Item.batch_write() as batch:
        for number in range(1, count + 1):
            build = replace(typical(number), updated_at=after(number))
            batch.save(dynamodb._build_item(build))
            if number == 1:
                batch.save(dynamodb._body_item(build.key, make_body()))
    item = dynamodb.Item(*key)
    item.update([dynamodb.Item.last_build_id.set(count), dynamodb.Item.live_builds.set(count)])


def typical(number: int) -> Build:
    return make_build(
        number=number,
        name=f"trainer-{number}",
        description="the nightly training image",
        tags=("nightly", "gpu"),
        handle="slipway-builds:8745a7a9-c340-456a-9166-edf953571bEX",
        log="/aws/codebuild/slipway-builds:8745a7a9-c340-456a-9166-edf953571bEX",
        submitting_at=after(1),
        attempt=1,
    )


def test_a_page_costs_the_same_however_many_builds_there_are(metered: tuple[Meter, FakeServices]) -> None:
    meter, services = metered
    costs = []
    for count in (100, 100_000):
        seed(count)
        for number in (count, count - 3):
            services.store.bookmark("ada", BuildKey("ada", "vision", number), after(1))
        meter.calls.clear()
        page = builds.page(services, ADA, "ada", "vision", 0, 20)
        assert (len(page.builds), page.count, len(page.bookmarked)) == (20, count, 2)
        costs.append((meter.operations, meter.read))

    assert costs[0] == costs[1]
    assert costs[0][0] == ["GetItem", "Query", "Query"]
    assert costs[0][1] <= 4


def test_one_call_opens_a_build(metered: tuple[Meter, FakeServices]) -> None:
    meter, services = metered
    seed(1)
    meter.calls.clear()
    builds.get(services, ADA, BuildKey("ada", "vision", 1))
    assert meter.operations == ["BatchGetItem"]
    assert meter.read <= 4


def test_creating_is_one_read_and_one_transaction(metered: tuple[Meter, FakeServices]) -> None:
    meter, services = metered
    meter.calls.clear()
    builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    assert meter.operations == ["GetItem", "TransactWriteItems"]
    assert meter.written <= 13


def test_a_status_change_is_one_read_and_one_update(metered: tuple[Meter, FakeServices]) -> None:
    meter, services = metered
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.executor.run_of(created.key)
    services.executor.enter(run, Status.SCHEDULED, Status.BUILDING)
    meter.calls.clear()
    execution.observe(services, created.executor, [run.handle])
    assert meter.operations == ["GetItem", "UpdateItem"]
    assert meter.written <= 6


def test_what_is_not_news_is_one_read(metered: tuple[Meter, FakeServices]) -> None:
    meter, services = metered
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.executor.run_of(created.key)
    execution.observe(services, created.executor, [run.handle])
    meter.calls.clear()
    execution.record(services, run.observation())
    assert meter.operations == ["GetItem"]
