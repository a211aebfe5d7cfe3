"""What a request changes, it changes whole: whichever of its writes to the table is the last one that
happens, all rows are as they were or as the whole request leaves them.

Left out are a project's counters, which a daily recount heals, and references to code, which are written
before what has the code: one without it is dropped by the cleanup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.table import Item, client
from chalicelib.usecases import builds, projects, reports, sources
from tests.factories import KEY, SPEC, make_archive, make_project, make_user
from tests.fakes import Died, FakeServices

ADA = make_user()
OWN = (ADA, "ada", "vision")
WRITES = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems")
COUNTERS = ("last_build_id", "live_builds", "active", "look_at")
Request = Callable[[FakeServices], object]
CODE = make_archive({"a.py": "x"})
FIELDS = {"name": "new", "description": "mine", "tags": ["a"], "dockerfile": "FROM x\n"}


def create(services: FakeServices) -> None:
    fields = {"content": json.dumps(SPEC), "name": "trainer"}
    builds.create(services, *OWN, fields, once="key")


def create_unmanaged(services: FakeServices) -> None:
    builds.create(services, *OWN, {"is_managed": False, "name": "trainer"})


def archive(services: FakeServices) -> None:
    builds.archive(services, ADA, KEY)


# What is done before, the request, and how many writes it needs.
REQUESTS: dict[str, tuple[tuple[Request, ...], Request, int]] = {
    "create": ((), create, 2),  # the id, then the rest
    "create from code": ((lambda s: sources.upload(s, *OWN, CODE),), create, 3),  # a reference to the code
    "PATCH": ((create,), lambda s: builds.update(s, ADA, KEY, FIELDS), 1),
    "PATCH without a name": (
        (create,),
        lambda s: builds.update(s, ADA, KEY, {**FIELDS, "name": "trainer"}),
        1,
    ),
    "PATCH of the Dockerfile": (
        (create,),
        lambda s: builds.update(s, ADA, KEY, {"dockerfile": "FROM x\n"}),
        1,
    ),
    "PATCH of the description": ((create,), lambda s: builds.update(s, ADA, KEY, {"description": "m"}), 1),
    "PUT": ((create,), lambda s: builds.update(s, ADA, KEY, {"dockerfile": "FROM x\n"}, whole=True), 1),
    "PATCH that changes nothing": ((create,), lambda s: builds.update(s, ADA, KEY, {"name": "trainer"}), 0),
    "status": (
        (create_unmanaged,),
        lambda s: reports.report_status(s, ADA, KEY, {"status": "running", "message": "m"}),
        1,
    ),
    "code reference": ((create,), lambda s: reports.reference(s, ADA, KEY, {"commit": "ab"}), 1),
    "stop": ((create,), lambda s: builds.stop(s, ADA, KEY), 1),
    "archive": ((create,), archive, 2),  # the count of live builds
    "delete": ((create,), lambda s: builds.archive(s, ADA, KEY, delete=True), 2),
    "restore": ((create, archive), lambda s: builds.restore(s, ADA, KEY), 2),
    "bookmark": ((create,), lambda s: builds.bookmark(s, ADA, KEY), 1),
    "unbookmark": (
        (create, lambda s: builds.bookmark(s, ADA, KEY)),
        lambda s: builds.unbookmark(s, ADA, KEY),
        1,
    ),
    "invalidate": ((create,), lambda s: builds.invalidate(s, ADA, KEY), 1),
    "invalidate all": ((create,), lambda s: builds.invalidate_all(s, *OWN), 1),
    "PATCH of a project": (
        (),
        lambda s: projects.update(s, *OWN, {"description": "m", "tags": ["a"], "is_public": False}),
        1,
    ),
    "upload": ((), lambda s: sources.upload(s, *OWN, CODE), 3),  # two references
    "git": ((), lambda s: sources.use_git(s, *OWN, {"git_url": "https://git.test/a"}), 1),
    "archive of a project": ((create,), lambda s: projects.archive(s, *OWN), 1),
    "delete of a project": ((create,), lambda s: projects.archive(s, *OWN, delete=True), 1),
    "restore of a project": ((lambda s: projects.archive(s, *OWN),), lambda s: projects.restore(s, *OWN), 1),
}


@contextmanager
def ends_before_write(number: int | None) -> Iterator[list[str]]:
    """The writes within the block; before this one the function is ended."""
    made: list[str] = []

    def note(model: Any, **_: Any) -> None:
        if model.name in WRITES:
            if len(made) == number:
                raise Died
            made.append(model.name)

    events = client().meta.events
    events.register("before-call.dynamodb", note)
    try:
        yield made
    finally:
        events.unregister("before-call.dynamodb", note)


def rows() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for row in Item.scan(consistent_read=True):
        skipped = COUNTERS if row.sk == "P" else ()
        values = row.to_simple_dict()
        found[row.pk, row.sk] = {name: value for name, value in values.items() if name not in skipped}
    return {key: values for key, values in found.items() if not key[0].startswith("C#")}


def changed_rows(
    services: FakeServices, before: tuple[Request, ...], request: Request, end_before: int | None
) -> tuple[set[tuple[str, str]], list[str]]:
    """Which rows the request changes of those that what comes before leaves, and its writes."""
    for item in Item.scan():
        item.delete()
    services.projects.add(make_project())
    for each in before:
        each(services)
    former = rows()
    with ends_before_write(end_before) as made, suppress(Died):
        request(services)
    new = rows()
    return {key for key in former.keys() | new.keys() if former.get(key) != new.get(key)}, made


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_is_cut_off_leaves_nothing_half_written(name: str, dynamodb_table: Records) -> None:
    services = FakeServices()
    services.use(dynamodb_table)
    before, request, writes = REQUESTS[name]

    whole, made = changed_rows(services, before, request, None)

    assert len(made) == writes, made
    assert bool(whole) is (writes > 0)
    for number in range(1, writes):
        changed, _ = changed_rows(services, before, request, number)
        assert changed in (set(), whole), (number, made)
