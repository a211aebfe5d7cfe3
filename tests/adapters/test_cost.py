"""What requests cost: calls to DynamoDB and the units they consume, at size."""

from __future__ import annotations

import json
import time

import pytest

from chalicelib.adapters.dynamodb import Records, keys, table
from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.adapters.dynamodb.keys import bookmark_key, record_key
from chalicelib.adapters.dynamodb.records import encode_body, encode_build
from chalicelib.adapters.dynamodb.table import Item, client
from chalicelib.domain import lifecycle
from chalicelib.domain.build import CODEBUILD, EKS, Build, BuildKey, Source, Status
from chalicelib.domain.environment import Placement
from chalicelib.domain.record import replace
from chalicelib.usecases import accounts, builds, execution, slots
from infra.bench.capacity import Meter, update_units
from tests.factories import DIGEST, KEY, SETTINGS, SPEC, after, make_body, make_build, make_project, make_user
from tests.fakes import FakeServices

pytestmark = [pytest.mark.slow, pytest.mark.proof]
ADA = make_user()


@pytest.fixture
def services(table_in_emulator: Records) -> FakeServices:
    """The use cases on an emulated DynamoDB; everything else is a fake."""
    services = FakeServices(SETTINGS)
    services.use(table_in_emulator)
    services.projects.add(make_project())
    return services


@pytest.fixture
def token(services: FakeServices) -> str:
    """Of ada, whom no process remembers."""
    services.accounts = DynamoAccounts(remember_seconds=0)  # type: ignore[assignment]
    token = accounts.ensure_superuser(services, "ada")
    accounts.authenticate(services, token)  # the first use of a day is written
    return token


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
    for count in (100, 2_000):  # `make bench-requests` shows 100,000
        seed(count)
        for number in (count, count - 3):
            services.bookmarks.add("ada", BuildKey("ada", "vision", number), after(1))
        with Meter() as meter:
            page = builds.page(services, ADA, "ada", "vision", 0, 20)
        assert (len(page.records), page.count, len(page.bookmarked)) == (20, count, 2)
        costs.append((sorted(meter.operations), meter.read))  # two are side by side

    assert costs[0] == costs[1]
    assert costs[0][0] == ["GetItem", "Query", "Query"]
    assert costs[0][1] <= 4


def test_bookmarks_that_are_not_there_cost_nothing_each(services: FakeServices) -> None:
    with Meter() as meter:
        assert not services.bookmarks.among("ada", [BuildKey("ada", "vision", 1_000 * n) for n in range(1, 501)])
    assert (meter.operations, meter.read) == (["Query"], 0.5)


def test_so_many_bookmarks_between_those_of_a_page_cost_little(services: FakeServices) -> None:
    with Item.batch_write() as batch:
        for number in range(2, 1_000):
            batch.save(Item(*bookmark_key("ada", BuildKey("ada", "vision", number)), is_bookmarked=1))
    asked = [BuildKey("ada", "vision", number) for number in (1, 2, 999, 1_000)]
    with Meter() as meter:
        assert services.bookmarks.among("ada", asked) == {*asked[1:3]}
    assert meter.operations == ["Query", "BatchGetItem"]
    assert meter.read <= 5


def test_one_call_shows_a_build(services: FakeServices) -> None:
    seed(1)
    with Meter() as meter:
        builds.look(services, ADA, KEY)
    assert (meter.operations, meter.read) == (["BatchGetItem"], 2)


def test_two_calls_show_a_build_to_a_caller_who_is_not_remembered(services: FakeServices, token: str) -> None:
    """The caller is read with the build, to which he has no right yet."""
    seed(1)
    with Meter() as meter:
        caller = accounts.authenticate(services, token, KEY)
        assert builds.look(services, caller, KEY).build.key == KEY
    assert meter.operations == ["GetItem", "BatchGetItem"]
    assert meter.read <= 4


def test_what_was_read_with_the_caller_is_shown_once_and_soon(
    services: FakeServices, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(1)
    caller = accounts.authenticate(services, token, KEY)
    changed = services.builds.save(replace(builds.look(services, caller, KEY).build, description="another"))
    assert builds.look(services, caller, KEY).build == changed, "it is read once more"

    accounts.authenticate(services, token, KEY)
    again = services.builds.save(replace(changed, description="one more"))
    monkeypatch.setattr(table, "monotonic", lambda: time.monotonic() + table.LAG_SECONDS)
    assert builds.look(services, caller, KEY).build == again


def test_one_call_opens_a_build_to_change_it(services: FakeServices) -> None:
    seed(1)
    with Meter() as meter:
        builds.get(services, ADA, KEY)
    assert (meter.operations, meter.read) == (["BatchGetItem"], 4)


def test_creating_is_one_read_one_update_and_one_transaction(services: FakeServices) -> None:
    with Meter() as meter:
        builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    assert meter.operations == ["GetItem", "UpdateItem", "TransactWriteItems"]
    assert meter.written <= 13


def test_a_status_change_is_one_read_and_one_update(services: FakeServices) -> None:
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.process(services, created.key)
    run = services.codebuild.run_of(created.key)
    services.codebuild.enter(run, Status.SCHEDULED, Status.BUILDING)
    with Meter() as meter:
        execution.observe(services, created.executor, [run.handle])
    assert meter.operations == ["GetItem", "UpdateItem"]
    assert meter.written <= 6


REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
RUN = "8745a7a9-c340-456a-9166-edf953571bec"
FAULT = "The build service had a fault; trying once more."
# A build that has about all the trouble that a managed one can have, and ends with its twelfth status.
TROUBLED = [
    (Status.SCHEDULED, None),
    (
        Status.UNSCHEDULABLE,
        "0/3 nodes are available: 1 node had an untolerated taint, 2 Insufficient memory. "
        "No preemption victims were found for the incoming pod.",
    ),
    (Status.WARNING, f'Back-off pulling image "{REGISTRY}/slipway/buildkit:v0.13.2"'),
    (Status.UNSCHEDULABLE, "0/3 nodes are available: 3 Insufficient cpu."),
    (Status.BUILDING, None),
    (Status.RUNNING, None),
    (Status.WARNING, FAULT),
    (Status.SCHEDULED, None),
    (Status.BUILDING, None),
    (Status.RUNNING, None),
    (Status.FAILED, "Exit code 1: pip install --no-cache-dir -r requirements.txt"),
]
ORDINARY = [
    (Status.SCHEDULED, None),
    (Status.BUILDING, None),
    (Status.RUNNING, None),
    (Status.SUCCEEDED, "Completed"),
]


def large_build(executor: str) -> Build:
    """A claimed build with code, tags, an environment, and names as long as people choose them."""
    build = replace(
        make_build(
            user="research-team",
            created_at=after(0.123),
            image=f"{REGISTRY}/slipway/research-team/image-classifier-93bd808c:1234",
            name="nightly-classifier",
            description="the nightly training image of the classifier",
            tags=("nightly", "gpu", "pytorch"),
            check_at=after(300),
            commit="8d3f0e29a1c94d7bb8f0c6d2e4f1a7b3c9d5e6f0",
            source=Source(code_sha256="ab" * 32),
            resources={"cpu": {"requests": 1, "limits": 2}, "memory": {"requests": 1024, "limits": 2048}},
            executor=executor,
            placement=Placement(labels={"team": "vision"}, node_selector={"pool": "builds"}),
        ),
        key=BuildKey("research-team", "image-classifier", 1234),
    )
    handle = f"slipway-prod-builds:{RUN}"
    return replace(lifecycle.claim(build, after(1.5)), handle=handle, log=f"/aws/codebuild/{handle}")


def costs_of_changes(store: Records, build: Build, story: list[tuple[Status, str | None]]) -> list[float]:
    """Write units of each status, as the emulator and DynamoDB's rule have them alike."""
    name, (pk, sk) = Item.Meta.table_name, record_key(build.key)
    row = {"TableName": name, "Key": {"pk": {"S": pk}, "sk": {"S": sk}}, "ConsistentRead": True}
    indexes = client().describe_table(TableName=name)["Table"]["GlobalSecondaryIndexes"]
    costs = []
    build = store.builds.add(build, make_body(), build.name)
    for number, (status, message) in enumerate(story, 1):
        before = client().get_item(**row)["Item"]
        changed = lifecycle.advance(build, status, after(7.321 * number), message=message)
        if status is Status.SUCCEEDED:
            changed = replace(changed, image_digest=DIGEST)
        with Meter() as meter:
            build = store.builds.save(changed)
        assert meter.operations == ["UpdateItem"]
        assert meter.written == update_units(before, client().get_item(**row)["Item"], indexes)
        costs.append(meter.written)
    return costs


@pytest.mark.parametrize("executor", [CODEBUILD, EKS])
def test_statuses_cost_little_as_long_as_managed_builds_write_them(executor: str, table_in_emulator: Records) -> None:
    assert max(costs_of_changes(table_in_emulator, large_build(executor), TROUBLED)) <= 6


@pytest.mark.parametrize("executor", [CODEBUILD, EKS])
def test_statuses_of_an_ordinary_build_cost_less(executor: str, table_in_emulator: Records) -> None:
    """What lists show of this one, with its resources and digest, exceeds 1 KB at its end."""
    *changes, end = costs_of_changes(table_in_emulator, large_build(executor), ORDINARY)
    assert max(changes) <= 4
    assert end <= 6


def test_what_is_not_news_is_one_read(services: FakeServices) -> None:
    created = builds.create(services, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    execution.process(services, created.key)
    run = services.codebuild.run_of(created.key)
    execution.observe(services, created.executor, [run.handle])
    with Meter() as meter:
        execution.record(services, run.observation())
    assert meter.operations == ["GetItem"]


# Limits on running builds


def test_a_start_under_limits_costs_the_names_of_all_that_run_and_the_line(services: FakeServices) -> None:
    """With 500 running and 1,000 waiting builds, which is what the page on the table says."""
    services.settings = replace(SETTINGS, max_running_builds=500)
    with Item.batch_write() as batch:
        for number in range(1, 1_001):
            waiting = make_build(number=number, check_at=after(number), waiting_reason="wait")
            batch.save(encode_build(waiting))
    going = [BuildKey("a-long-owners-name", "and-a-project", number) for number in range(1, 500)]
    Item(*keys.SLOTS).update([Item.running.set({str(key) for key in going}), Item.version.set(1)])
    services.clock.forward(minutes=60)

    with Meter() as meter:
        assert slots.take(services, make_build(number=1)) is None
    assert meter.operations == ["GetItem", "Query", "UpdateItem"]
    assert meter.calls == [("GetItem", 5, 0), ("Query", 10, 0), ("UpdateItem", 0, 18)]

    with Meter() as meter:
        slots.free(services, make_build(number=1))
    assert meter.calls == [("UpdateItem", 0, 18)]


def test_without_limits_no_slot_is_read_or_written(services: FakeServices) -> None:
    with Meter() as meter:
        assert slots.take(services, make_build()) is None
        slots.free(services, make_build())
        slots.free_ended(services)
        assert slots.with_places(services, [make_build(waiting_reason="wait")])
    assert meter.operations == []
