"""What requests cost: calls to DynamoDB and the units they consume, at size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.keys import record_key
from chalicelib.adapters.dynamodb.records import encode_body, encode_build
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.usecases import builds, execution
from infra.bench.capacity import Meter
from tests.factories import SETTINGS, SPEC, after, make_body, make_build, make_project, make_user
from tests.fakes import FakeServices

pytestmark = pytest.mark.slow
ADA = make_user()


@pytest.fixture
def services(table_in_emulator: Records) -> FakeServices:
    """The use cases on an emulated DynamoDB; everything else is a fake."""
    services = FakeServices(SETTINGS)
    services.use(table_in_emulator)
    services.projects.add(make_project())
    return services


def seed(count: int) -> None:
    """So many builds, written in bulk; of the first one the texts as well."""
    with Item.batch_write() as batch:
        for number in range(1, count + 1):
            build = replace(typical(number), updated_at=after(number))
            batch.save(encode_build(build))
            if number == 1:
                batch.save(encode_body(build.key, make_body()))
    item = Item(*record_key(make_project().key))
    item.update([Item.last_build_id.set(count), Item.live_builds.set(count)])


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


def test_a_page_costs_the_same_however_many_builds_there_are(services: FakeServices) -> None:
    costs = []
    for count in (100, 10_000):  # `make bench-requests` shows 100,000
        seed(count)
        for number in (count, count - 3):
            services.bookmarks.add("ada", BuildKey("ada", "vision", number), after(1))
        with Meter() as meter:
            page = builds.page(services, ADA, "ada", "vision", 0, 20)
        assert (len(page.builds), page.count, len(page.bookmarked)) == (20, count, 2)
        costs.append((meter.operations, meter.read))

    assert costs[0] == costs[1]
    assert costs[0][0] == ["GetItem", "Query", "Query"]
    assert costs[0][1] <= 4


def test_one_call_opens_a_build(services: FakeServices) -> None:
    seed(1)
    with Meter() as meter:
        builds.get(services, ADA, BuildKey("ada", "vision", 1))
    assert meter.operations == ["BatchGetItem"]
    assert meter.read <= 4


def test_creating_is_one_read_one_update_and_one_transaction(services: FakeServices) -> None:
    with Meter() as meter:
        builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    assert meter.operations == ["GetItem", "UpdateItem", "TransactWriteItems"]
    assert meter.written <= 13


def test_a_status_change_is_one_read_and_one_update(services: FakeServices) -> None:
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.codebuild.run_of(created.key)
    services.codebuild.enter(run, Status.SCHEDULED, Status.BUILDING)
    with Meter() as meter:
        execution.observe(services, created.executor, [run.handle])
    assert meter.operations == ["GetItem", "UpdateItem"]
    assert meter.written <= 6


def test_what_is_not_news_is_one_read(services: FakeServices) -> None:
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.attend(services, created.key)
    run = services.codebuild.run_of(created.key)
    execution.observe(services, created.executor, [run.handle])
    with Meter() as meter:
        execution.record(services, run.observation())
    assert meter.operations == ["GetItem"]
