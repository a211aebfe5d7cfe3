"""What requests cost: calls to DynamoDB counted on the wire, and read units by DynamoDB's rules (4 KB a unit,
half for reads that may lag) from what came back, because no emulator at hand counts reads right."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from chalicelib import wiring
from chalicelib.adapters import dynamodb
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.usecases import builds, execution
from infra.local import aws
from tests.factories import SETTINGS, SPEC, after, make_body, make_build, make_project, make_user
from tests.fakes import FakeServices

pytestmark = pytest.mark.slow
KB4 = 4096
ADA = make_user()


@dataclass
class Metered(aws.Moto):
    """Keeps account of DynamoDB's calls."""

    calls: list[tuple[str, float]] = field(default_factory=list)  # operation, read units

    def __post_init__(self) -> None:
        super().__init__()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if not target.startswith("DynamoDB"):
            return super()._answer(environ, start_response)
        raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(raw)
        answer = list(super()._answer(environ, start_response))
        operation = target.rpartition(".")[2]
        self.calls.append((operation, read_units(operation, json.loads(raw), json.loads(b"".join(answer)))))
        return answer

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.calls]

    @property
    def units(self) -> float:
        return sum(units for _, units in self.calls)


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


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Metered, FakeServices]]:
    """The use cases on a metered DynamoDB; everything else is a fake."""
    server = Metered()
    server.start()
    for name, value in {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    dynamodb.use_table("costs")
    dynamodb.Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
    services = FakeServices(SETTINGS)
    services.store = dynamodb.DynamoBuildStore()  # type: ignore[assignment]
    previous = wiring.install(services)
    services.store.add_project(make_project())
    yield server, services
    wiring.install(previous)
    server.close()


def seed(count: int) -> None:
    """So many builds with a history, written in bulk."""
    key = ("P#ada/vision", "P")
    with dynamodb.Item.batch_write() as batch:
        for number in range(1, count + 1):
            build = replace(typical(number), updated_at=after(number))
            batch.save(dynamodb._build_item(build))
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


def test_a_page_costs_the_same_however_many_builds_there_are(metered: tuple[Metered, FakeServices]) -> None:
    server, services = metered
    costs = []
    for count in (100, 10_000):  # moto reads whole partitions: more would only test moto
        seed(count)
        for number in (count, count - 3):
            services.store.bookmark("ada", BuildKey("ada", "vision", number), after(1))
        server.calls.clear()
        page = builds.page(services, ADA, "ada", "vision", 0, 20)
        assert (len(page.builds), page.count, len(page.bookmarked)) == (20, count, 2)
        costs.append((server.operations, server.units))

    assert costs[0] == costs[1]
    assert costs[0][0] == ["GetItem", "Query", "Query"]
    assert costs[0][1] <= 4


def test_one_call_opens_a_build(metered: tuple[Metered, FakeServices]) -> None:
    server, services = metered
    seed(1)
    server.calls.clear()
    builds.get(services, ADA, BuildKey("ada", "vision", 1))
    assert server.operations == ["BatchGetItem"]
    assert server.units <= 4


def test_creating_is_one_read_and_one_transaction(metered: tuple[Metered, FakeServices]) -> None:
    server, services = metered
    server.calls.clear()
    builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    assert server.operations == ["GetItem", "TransactWriteItems"]


def test_a_status_change_is_one_read_and_one_update(metered: tuple[Metered, FakeServices]) -> None:
    server, services = metered
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.executor.run_of(created.key)
    services.executor.enter(run, Status.SCHEDULED, Status.BUILDING)
    server.calls.clear()
    execution.observe(services, created.executor, [run.handle])
    assert server.operations == ["GetItem", "UpdateItem"]


def test_what_is_not_news_is_one_read(metered: tuple[Metered, FakeServices]) -> None:
    server, services = metered
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.executor.run_of(created.key)
    execution.observe(services, created.executor, [run.handle])
    server.calls.clear()
    execution.record(services, run.observation())
    assert server.operations == ["GetItem"]
