"""A build's record fits an item of DynamoDB, whatever was written to it, and one that is too large by now
can still be brought to its end."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.records import build_columns, encode_build, next_version
from chalicelib.adapters.dynamodb.table import client
from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, Source, Status, StatusEntry
from chalicelib.domain.build_request import MAX_TEXT, parse_request
from chalicelib.domain.environment import MAX_ANNOTATION, MAX_ENTRIES, Placement
from chalicelib.domain.lifecycle import MAX_HISTORY, MAX_MESSAGE, MAX_TEXT_BYTES
from chalicelib.domain.record import replace
from chalicelib.domain.spec import MAX_TAG, MAX_TAGS
from chalicelib.usecases import builds, cleanup, reports, schedule
from chalicelib.usecases.reports import REFERENCE_FIELDS
from tests.factories import NOW, after, make_body, make_build, make_project, make_user
from tests.fakes import FakeServices

ADA = make_user()
ITEM_BYTES = 400 * 1024  # DynamoDB's limit
WIDE = "\U0001f40d"  # four bytes
ESCAPED = "\x01"  # six bytes in JSON


@pytest.fixture
def services(dynamodb_table: Records) -> FakeServices:
    """The use cases on an emulated DynamoDB; everything else is a fake."""
    services = FakeServices()
    services.use(dynamodb_table)
    services.projects.add(make_project())
    return services


def largest_build() -> Build:
    """A build that runs elsewhere, each field as large as requests can make it."""
    tags = tuple(f"{number:02}" + WIDE * (MAX_TAG - 2) for number in range(MAX_TAGS))
    name = "n" * 63
    entries = {f"user.slipway/{number:02}{name[2:]}": WIDE * MAX_ANNOTATION for number in range(MAX_ENTRIES)}
    toleration = {"key": "k" * 317, "operator": "Equal", "value": name, "effect": "PreferNoSchedule"}
    parse_request({"description": WIDE * MAX_TEXT, "tags": list(tags), "is_managed": False})  # is allowed
    return make_build(
        user="u" * 128,
        name="n" * 128,
        description=WIDE * MAX_TEXT,
        tags=tags,
        backend=WIDE * 16,
        image="i" * 512,
        is_managed=False,
        node_scheduled=ESCAPED * 256,
        reported_backend=WIDE * 16,
        reported_node=ESCAPED * 256,
        resources={
            kind: {"requests": 999_999_999.123456, "limits": 999_999_999.123456}
            for kind in ("cpu", "memory", "gpu", "tpu")
        },
        placement=Placement(entries, entries, entries, (toleration,) * MAX_ENTRIES),
        commit=WIDE * REFERENCE_FIELDS["commit"],
        source=Source("c" * 64, "g" * 2_000, "r" * 128, "c" * 512, "d" * 512),
        handle="h" * 512,
        log="l" * 512,
        image_digest="sha256:" + "d" * 64,
        on_behalf_of=WIDE * 128,
        code_reference={field: WIDE * limit for field, limit in REFERENCE_FIELDS.items()},
    )


def size_of(build: Build) -> int:
    """Names and values of all attributes, as DynamoDB counts an item; keys have less than 500 bytes."""
    columns = {name: value for name, value in build_columns(build).items() if value is not None}
    return 500 + sum(len(name) + len(str(value).encode()) for name, value in columns.items())


WORST: list[dict[str, Any]] = [
    {"message": ESCAPED * MAX_MESSAGE, "traceback": ESCAPED * MAX_TEXT_BYTES},
    {"message": WIDE * MAX_MESSAGE, "details": {"d": WIDE * 300}},
    {"traceback": "t" * MAX_TEXT_BYTES, "details": {"d": "d" * (MAX_TEXT_BYTES - 9)}},
    {"traceback": '"\\' * (MAX_TEXT_BYTES // 2)},
    {"details": {"d": "\n" * ((MAX_TEXT_BYTES - 9) // 2)}},
]


@pytest.mark.parametrize("fields", WORST, ids=lambda fields: " ".join(fields))
def test_the_largest_record_takes_every_status_and_its_end(services: FakeServices, fields: dict[str, Any]) -> None:
    build = largest_build()
    for number in range(MAX_HISTORY - 2):
        build = lifecycle.advance(build, (Status.UNSCHEDULABLE, Status.WARNING)[number % 2], NOW, **fields)
    services.builds.add(build, make_body(), None)
    sent: list[int] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        sent.append(len(params["body"]))

    events = client().meta.events
    events.register("before-call.dynamodb.UpdateItem", note)
    try:
        ended = reports.report_status(services, ADA, build.key, {"status": "failed", **fields})
    finally:
        events.unregister("before-call.dynamodb.UpdateItem", note)

    assert len(sent) == 1
    assert len(ended.history) == MAX_HISTORY
    assert ended.history[-1].message == fields.get("message")
    assert len(msgspec.json.encode(ended.history)) <= 32 * 1024
    assert size_of(ended) < ITEM_BYTES / 3
    assert sent[0] < ITEM_BYTES * 3 / 4, "with two escapes of six bytes for each wide character"
    assert services.builds.get(build.key) == ended


def grown(build: Build, item_bytes: int) -> Build:
    """The build with a history that makes it almost as large, as a version without a bound has written it."""
    while True:
        count = len(build.history) + 1
        row = StatusEntry(count, f"{count:032x}", Status.UNSCHEDULABLE, NOW, "m", "t" * 4_000)
        larger = replace(build, history=(*build.history, row))
        if size_of(larger) > item_bytes:
            return build
        build = larger


def test_a_change_makes_room_in_a_record_that_is_full() -> None:
    full = grown(largest_build(), ITEM_BYTES)
    assert size_of(full) > ITEM_BYTES - 5_000

    written, _, _ = next_version(full)

    assert size_of(written) < ITEM_BYTES / 3
    assert [row.status for row in written.history] == [row.status for row in full.history]


def stored_before_the_bound(number: int, services: FakeServices) -> Build:
    """The emulator counts what a change replaces, so that a full record could never be changed there."""
    small = largest_build()
    small = replace(small, key=replace(small.key, id=number), check_at=after(60))
    services.builds.add(small, make_body(), None)
    build = grown(small, 300_000)
    encode_build(build).save()
    assert services.builds.get(build.key) == build
    return build


def test_a_record_that_is_too_large_by_now_can_be_used_to_its_end(services: FakeServices) -> None:
    stopped, changed, overdue, archived = (stored_before_the_bound(n, services) for n in range(1, 5))

    builds.stop(services, ADA, stopped.key)
    assert builds.get(services, ADA, stopped.key).build.last_status is Status.STOPPED

    builds.update(services, ADA, changed.key, {"description": "d" * MAX_TEXT})
    reports.heartbeat(services, ADA, changed.key)
    reports.report_status(services, ADA, changed.key, {"status": "succeeded", "message": "at last"})
    build = builds.get(services, ADA, changed.key).build
    assert (build.history[-1].message, len(build.history)) == ("at last", len(changed.history) + 1)

    builds.archive(services, ADA, archived.key)
    builds.restore(services, ADA, archived.key)
    builds.archive(services, ADA, archived.key, delete=True)

    services.clock.forward(minutes=31)
    schedule.reconcile(services)
    assert builds.get(services, ADA, overdue.key).build.last_status is Status.FAILED

    services.clock.forward(minutes=61)
    cleanup.cleanup(services)
    assert services.builds.get(archived.key) is None
