"""What the ports of the table promise: the fakes and DynamoDB alike, as two emulators have it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, HTTPClientError, ReadTimeoutError

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.keys import record_key
from chalicelib.adapters.dynamodb.table import Item, client
from chalicelib.domain import lifecycle
from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, MAX_TEXTS_BYTES, Build, BuildKey, Source, Status
from chalicelib.domain.cleanup import Hidden
from chalicelib.domain.project import Code, Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.slots import Running
from chalicelib.errors import AlreadyExists, Conflict, KeyReused, NotFound, Unavailable
from chalicelib.ports import IdempotencyKey, InLine
from chalicelib.usecases import builds
from tests.factories import KEY, NOW, after, make_body, make_build, make_project, make_user
from tests.fakes import Clock, FakeServices, as_listed
from tests.simulation.adapters import ENVIRONMENT
from tests.simulation.dynamodb import DynamoDB
from tests.simulation.faults import NO_FAULTS
from tests.simulation.http_calls import Answer, HttpCalls, Raw, Request, answering
from tests.simulation.scheduler import Scheduler

Store = Records | FakeServices
TABLES = {
    "moto": "dynamodb_table",
    "ministack": "table_in_emulator",
    "simulation": "table_in_simulation",
}


@pytest.fixture
def table_in_simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """On the model that the simulation has of DynamoDB, without faults."""
    model, one_at_a_time, scheduler = (
        DynamoDB(lambda: 0.0, lambda: None),
        threading.Lock(),
        Scheduler(Clock()),
    )
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def answer(request: Request, former: Any) -> Answer:
        with one_at_a_time:
            return model.answer_request(request, former)

    with answering(HttpCalls(scheduler, NO_FAULTS, model.table, answer, None)):
        yield Records("slipway", remember_seconds=0)


@pytest.fixture(
    params=["fake", "moto", "simulation", pytest.param("ministack", marks=[pytest.mark.slow, pytest.mark.proof])]
)
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "fake":
        return FakeServices()
    records: Records = request.getfixturevalue(TABLES[request.param])
    return records


def read_project(store: Store) -> Project:
    project = store.projects.get("ada", "vision")
    assert project is not None
    return project


def add(store: Store, wanted_name: str | None = None, **changes: Any) -> Build:
    """One more build of ada/vision, and the project if it is not there."""
    if store.projects.get("ada", "vision") is None:
        store.projects.add(make_project())
    number = store.builds.next_id(read_project(store), NOW)
    return store.builds.add(make_build(number=number, **changes), make_body(), wanted_name)


def purgeable(store: Store, before: datetime) -> list[BuildKey | ProjectKey]:
    """What was deleted or archived until then."""
    return [hidden.key for hidden in store.archive.purgeable(before, before)]


# Projects


def test_a_project_is_read_as_it_was_added(store: Store) -> None:
    project = make_project(description="two\nlines", tags=("a", "b"), is_public=False, code=Code("ab" * 32, 10, NOW))

    store.projects.add(project)

    assert store.projects.get("ada", "vision") == project
    assert store.projects.get("ada", "other") is None


def test_a_project_is_added_once(store: Store) -> None:
    store.projects.add(make_project())

    with pytest.raises(AlreadyExists):
        store.projects.add(make_project(description="another"))
    assert read_project(store).description is None


def test_saving_a_project_leaves_its_counters_alone(store: Store) -> None:
    store.projects.add(make_project())
    before = read_project(store)
    add(store)

    saved = store.projects.save(replace(before, git_url="https://git.test/a"))

    stored = read_project(store)
    assert (stored.git_url, stored.last_build_id, stored.live_builds) == ("https://git.test/a", 1, 1)
    assert stored.version == saved.version == before.version + 1


def test_a_project_somebody_else_saved_is_a_conflict(store: Store) -> None:
    store.projects.add(make_project())
    before = read_project(store)
    store.projects.save(before)

    with pytest.raises(Conflict):
        store.projects.save(replace(before, description="late"))
    assert read_project(store).description is None


def test_a_project_that_is_not_there_cannot_be_saved(store: Store) -> None:
    with pytest.raises(Conflict):
        store.projects.save(make_project())
    assert store.projects.get("ada", "vision") is None


# Adding


def test_a_build_is_read_as_it_was_added(store: Store) -> None:
    store.projects.add(make_project())
    build = make_build(
        description="ünï\ncode 🚢",
        tags=("b", "a"),
        nocache=True,
        resources={"cpu": {"requests": 0.5, "limits": 2}},
        commit="ab" * 20,
        source=Source(code_sha256="ab" * 32, context="src"),
        check_at=after(300),
        history=lifecycle.advance(
            make_build(), Status.SCHEDULED, after(1), message="waiting", details={"a": [1]}
        ).history,
    )
    body = make_body(content="a: 1\n", config={"build": {"image": "x"}, "n": 1.5, "t": True}, dockerfile=None)

    added = store.builds.add(build, body, None)

    assert added == build
    assert store.builds.get(KEY) == build
    assert store.builds.body(KEY) == body


def test_the_project_counts_its_builds(store: Store) -> None:
    add(store)
    add(store)

    project = read_project(store)
    assert (project.last_build_id, project.live_builds) == (2, 2)


def test_numbers_are_given_once_whatever_becomes_of_them(store: Store) -> None:
    """Many creators take numbers at the same time; one that ends before its build is stored leaves a gap."""
    store.projects.add(make_project())
    place = read_project(store)
    numbers = [store.builds.next_id(place, NOW) for _ in range(3)]
    store.archive.purge(store.builds.add(make_build(number=numbers[-1]), make_body(), None))
    numbers.append(store.builds.next_id(place, NOW))
    assert numbers == [1, 2, 3, 4]


def test_of_two_builds_with_the_same_number_one_is_a_conflict_and_leaves_nothing(store: Store) -> None:
    store.projects.add(make_project())
    store.builds.next_id(read_project(store), NOW)
    store.builds.add(make_build(number=1), make_body(), None)

    with pytest.raises(Conflict):
        store.builds.add(make_build(number=1, description="late"), make_body(content="late"), "taken")

    stored, body = store.builds.get(KEY), store.builds.body(KEY)
    assert stored is not None
    assert stored.description is None
    assert body == make_body()
    assert add(store, "taken").name == "taken", "the name was not used up"


def test_no_project_no_deleted_one_and_no_other_of_its_name_gives_a_number(store: Store) -> None:
    with pytest.raises(NotFound):
        store.builds.next_id(make_project(), NOW)
    store.projects.add(make_project())
    with pytest.raises(NotFound):
        store.builds.next_id(make_project(uuid="f" * 32), NOW)
    deleted = store.projects.save(replace(read_project(store), archived_at=NOW, deleted_at=NOW))
    with pytest.raises(NotFound):
        store.builds.next_id(deleted, NOW)
    assert read_project(store).last_build_id == 0


def test_a_change_of_a_project_does_not_reach_another_of_its_name(store: Store) -> None:
    store.projects.add(make_project())
    with pytest.raises(Conflict):
        store.projects.save(make_project(uuid="f" * 32, description="late"))
    assert read_project(store).description is None


def test_a_wrong_count_is_counted_again_within_a_day(store: Store) -> None:
    """Its creator, or who archived it, ended half way."""
    place = add(store).key.project_key
    store.builds.next_id(read_project(store), NOW)
    assert read_project(store).live_builds == 2
    tomorrow = NOW + timedelta(days=1)
    assert store.projects.miscounted(NOW, 10) == []
    assert store.projects.miscounted(tomorrow, 10) == [place]

    store.projects.recount(place)

    assert read_project(store).live_builds == 1
    assert store.projects.miscounted(tomorrow, 10) == []


def test_what_is_not_there(store: Store) -> None:
    assert store.builds.get(KEY) is None
    assert store.builds.body(KEY) is None
    assert store.builds.open(KEY, "ada") is None


# Names


def test_a_taken_name_gets_the_first_free_suffix(store: Store) -> None:
    names = [add(store, "trainer").name for _ in range(3)]

    assert names == ["trainer", "trainer-1", "trainer-2"]


def test_a_suffix_that_is_taken_is_skipped(store: Store) -> None:
    names = [add(store, name).name for name in ("trainer-1", "trainer", "trainer", "trainer-1")]

    assert names == ["trainer-1", "trainer", "trainer-2", "trainer-1-1"]


def test_names_are_their_projects_own(store: Store) -> None:
    add(store, "trainer")
    store.projects.add(make_project(name="sound"))
    project = store.projects.get("ada", "sound")
    assert project is not None

    build = store.builds.add(make_build(key=BuildKey("ada", "sound", 1)), make_body(), "trainer")

    assert build.name == "trainer"


def test_a_suffixed_name_stays_within_the_length_of_names(store: Store) -> None:
    names = [add(store, "x" * 128).name or "" for _ in range(3)]

    assert len(set(names)) == 3
    assert max(map(len, names)) <= 128


def test_an_archived_build_keeps_its_name(store: Store) -> None:
    build = add(store, "trainer")
    store.archive.archive(replace(build, archived_at=after(1)))

    assert add(store, "trainer").name == "trainer-1"


def test_renaming_frees_the_old_name_and_takes_the_new(store: Store) -> None:
    build = add(store, "old")

    renamed = store.builds.rename(replace(build, description="too"), "new")

    assert (renamed.name, renamed.version) == ("new", build.version + 1)
    assert store.builds.get(KEY) == renamed
    assert add(store, "old").name == "old"
    assert add(store, "new").name == "new-1"


def test_renaming_to_a_taken_name_gets_a_suffix(store: Store) -> None:
    add(store, "taken")
    build = add(store)

    assert store.builds.rename(build, "taken").name == "taken-1"


def test_renaming_what_somebody_else_changed_is_a_conflict(store: Store) -> None:
    build = add(store, "old")
    store.builds.save(build)

    with pytest.raises(Conflict):
        store.builds.rename(build, "new")

    stored = store.builds.get(KEY)
    assert stored is not None
    assert stored.name == "old"
    assert add(store, "new").name == "new", "the name was not used up"


# Saving


def test_a_saved_build_has_its_next_version(store: Store) -> None:
    build = add(store)

    saved = store.builds.save(replace(build, handle="run-1"))

    assert saved == replace(build, handle="run-1", version=build.version + 1)
    assert store.builds.get(KEY) == saved


def test_what_became_none_is_none_after_reading(store: Store) -> None:
    build = add(store, handle="run-1", check_at=after(1), submitting_at=NOW)

    store.builds.save(replace(build, handle=None, check_at=None, submitting_at=None))

    stored = store.builds.get(KEY)
    assert stored is not None
    assert (stored.handle, stored.check_at, stored.submitting_at) == (None, None, None)


def test_of_two_writers_one_meets_a_conflict(store: Store) -> None:
    build = add(store)
    first = store.builds.save(replace(build, handle="first"))

    with pytest.raises(Conflict):
        store.builds.save(replace(build, handle="second"))
    assert store.builds.get(KEY) == first


def test_a_build_that_is_not_there_cannot_be_saved(store: Store) -> None:
    with pytest.raises(Conflict):
        store.builds.save(make_build())
    assert store.builds.get(KEY) is None


def test_of_many_writers_at_once_one_wins(store: Store) -> None:
    build = add(store)

    def write(number: int) -> bool:
        try:
            store.builds.save(replace(build, handle=f"run-{number}"))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))

    assert won.count(True) == 1
    stored = store.builds.get(KEY)
    assert stored is not None
    assert stored.handle == f"run-{won.index(True)}"


# Texts


def test_a_reported_dockerfile_is_shown_and_taken_back(store: Store) -> None:
    build = add(store)

    body = make_body(reported_dockerfile="FROM a\n", found_dockerfile="FROM b\n")
    build = store.builds.save(replace(build, description="mine"), body)
    assert store.builds.body(KEY) == body
    assert store.builds.get(KEY) == build
    build = store.builds.rename(build, "it", make_body())
    assert store.builds.body(KEY) == make_body()
    assert store.builds.get(KEY) == build


def test_a_dockerfile_is_not_written_when_somebody_else_changed_the_build(store: Store) -> None:
    build = add(store)
    store.builds.save(build)

    for write in (store.builds.save, lambda build, body: store.builds.rename(build, "it", body)):
        with pytest.raises(Conflict):
            write(build, make_body(reported_dockerfile="FROM a\n"))
    assert store.builds.body(KEY) == make_body()


def test_a_dockerfile_needs_a_build(store: Store) -> None:
    with pytest.raises(Conflict):
        store.builds.save(make_build(), make_body(reported_dockerfile="FROM a\n"))
    assert store.builds.body(KEY) is None


@pytest.mark.parametrize("field", ["content", "config", "dockerfile"])
def test_texts_may_be_missing(store: Store, field: str) -> None:
    store.projects.add(make_project())
    body = make_body(**{field: None})

    store.builds.add(make_build(), body, None)

    opened = store.builds.open(KEY, "ada")
    assert opened is not None
    assert opened.body == store.builds.body(KEY) == body


def test_the_largest_texts_a_request_can_bring_are_stored(store: Store) -> None:
    store.projects.add(make_project())
    body = make_body(content="é" * (MAX_TEXTS_BYTES // 2 - 100))
    assert not body.is_too_large
    assert replace(body, content=f"{body.content}{'é' * 100}").is_too_large
    dockerfile = "é" * (MAX_DOCKERFILE_BYTES // 2)

    build = store.builds.add(make_build(), body, None)
    later = replace(body, reported_dockerfile=dockerfile, found_dockerfile=dockerfile)
    store.builds.save(build, later)

    assert store.builds.body(KEY) == later


def test_opening_reads_all_that_belongs_to_a_build(store: Store) -> None:
    build = add(store)
    store.bookmarks.add("bob", KEY, NOW)

    opened = store.builds.open(KEY, "bob")

    assert opened is not None
    assert (opened.build, opened.body, opened.project) == (build, make_body(), read_project(store))
    assert opened.bookmarked
    by_ada = store.builds.open(KEY, "ada")
    assert by_ada is not None
    assert not by_ada.bookmarked


# Archiving and lists


def test_builds_with_one_recipe_are_found_newest_first(store: Store) -> None:
    first, second, third = (add(store, recipe="a" * 64) for _ in range(3))
    add(store, recipe="b" * 64)
    add(store)
    saved = store.builds.save(replace(third, image_digest="sha256:1"))

    assert store.builds.equal(make_build(recipe="a" * 64), 2) == [saved, second]
    assert store.builds.equal(make_build(recipe="c" * 64), 2) == []
    store.archive.purge(saved)
    assert store.builds.equal(make_build(recipe="a" * 64), 5) == [second, first]


def test_builds_of_another_project_are_not_equal(store: Store) -> None:
    build = add(store, recipe="a" * 64)
    elsewhere = replace(build, key=replace(build.key, project="other"))
    assert store.builds.equal(elsewhere, 5) == []


def test_an_archived_build_is_in_no_list_and_still_there(store: Store) -> None:
    kept, gone = add(store), add(store)

    archived = store.archive.archive(replace(gone, archived_at=after(1)))

    assert store.builds.list_builds(KEY.project_key, 0, 10) == [as_listed(kept)]
    assert read_project(store).live_builds == 1
    assert store.builds.get(gone.key) == archived
    assert archived.version == gone.version + 1


def test_archiving_what_somebody_else_changed_is_a_conflict(store: Store) -> None:
    build = add(store)
    store.builds.save(build)

    with pytest.raises(Conflict):
        store.archive.archive(replace(build, archived_at=after(1)))
    assert read_project(store).live_builds == 1


def test_pages_hold_the_newest_change_first(store: Store) -> None:
    builds = [add(store, updated_at=after(number)) for number in range(5)]
    store.builds.save(replace(builds[1], updated_at=after(60)))

    def page(offset: int, limit: int) -> list[int]:
        return [build.key.id for build in store.builds.list_builds(KEY.project_key, offset, limit)]

    assert page(0, 10) == [2, 5, 4, 3, 1]
    assert page(0, 2) == [2, 5]
    assert page(2, 2) == [4, 3]
    assert page(4, 2) == [1]
    assert page(9, 2) == []


def test_changes_of_the_same_instant_are_listed_by_number(store: Store) -> None:
    for _ in range(11):
        add(store)

    listed = [build.key.id for build in store.builds.list_builds(KEY.project_key, 0, 20)]

    assert listed == list(range(11, 0, -1))


def test_a_listed_build_knows_its_last_status(store: Store) -> None:
    build = add(store)
    store.builds.save(lifecycle.advance(build, Status.SCHEDULED, after(1)))

    (listed,) = store.builds.list_builds(KEY.project_key, 0, 10)

    assert listed.last_status == Status.SCHEDULED


def test_pages_hold_builds_of_one_project(store: Store) -> None:
    add(store)
    store.projects.add(make_project(name="vision2"))
    project = store.projects.get("ada", "vision2")
    assert project is not None

    assert store.builds.list_builds(project.key, 0, 10) == []


# What is due


def test_due_are_builds_whose_time_has_come_longest_overdue_first(store: Store) -> None:
    for check_at in (after(3), after(1), None, after(2), after(4)):
        add(store, check_at=check_at)

    assert [build.key.id for build in store.builds.due(after(3), 10)] == [2, 4, 1]
    assert [build.key.id for build in store.builds.due(after(3), 2)] == [2, 4]
    assert store.builds.due(NOW, 10) == []


def test_a_build_is_due_until_nothing_can_happen_any_more(store: Store) -> None:
    build = add(store, check_at=after(1))
    build = store.archive.archive(replace(build, archived_at=after(1)))
    assert store.builds.due(after(1), 10) == [build], "an archived build may still have to be stopped"

    store.builds.save(lifecycle.advance(build, Status.STOPPED, after(1)))

    assert store.builds.due(after(1), 10) == []


def test_builds_that_wait_for_their_turn_stand_in_a_line_of_their_executor(store: Store) -> None:
    """Longest waiting first, apart from what is due; a lease takes one out of the line for a while."""
    for check_at, executor in ((after(2), "codebuild"), (after(1), "codebuild"), (after(1), "eks")):
        add(store, check_at=check_at, executor=executor, waiting_reason="no slot is free")
    add(store, check_at=after(1))

    assert [build.key.id for build in store.builds.due(after(9), 10)] == [4]
    line = store.builds.waiting("codebuild", after(9), 10)
    assert [build.key.id for build in line] == [2, 1]
    assert [build.key.id for build in store.builds.waiting("codebuild", after(9), 1)] == [2]
    assert [build.key.id for build in store.builds.waiting("eks", after(9), 10)] == [3]

    store.builds.lease(line[0], after(60))
    assert [build.key.id for build in store.builds.waiting("codebuild", after(9), 10)] == [1]
    store.builds.save(lifecycle.claim(line[1], after(10)))
    assert store.builds.waiting("codebuild", after(9), 10) == []


def test_a_line_names_those_that_wait_and_since_when(store: Store) -> None:
    """Without their records, the longest wait first; what is leased is not in it."""
    waits = {"waiting_reason": "no slot is free"}
    for check_at, executor in ((after(2), "codebuild"), (after(1), "codebuild"), (after(1), "eks")):
        add(store, check_at=check_at, executor=executor, **waits)
    leased = add(store, check_at=after(1), **waits)
    store.builds.lease(leased, after(60))
    add(store, check_at=after(1))

    assert store.builds.line("codebuild", after(9)) == [
        InLine(after(1), BuildKey("ada", "vision", 2), "codebuild"),
        InLine(after(2), BuildKey("ada", "vision", 1), "codebuild"),
    ]
    assert [each.key.id for each in store.builds.line("eks", after(9))] == [3]
    assert [each.key.id for each in store.builds.line("codebuild", after(1))] == [2]


def test_many_builds_are_read_in_the_order_of_their_keys(store: Store) -> None:
    first, second = add(store), add(store)
    missing = replace(first.key, id=9)

    assert store.builds.get_all([second.key, missing, first.key], NOW) == [second, first]
    assert store.builds.get_all([], NOW) == []


def test_a_record_that_cannot_be_read_is_left_out(dynamodb_table: Records) -> None:
    good, bad = add(dynamodb_table), add(dynamodb_table)
    Item(*record_key(bad.key)).update([Item.data.set("{nonsense")])
    assert dynamodb_table.builds.get_all([bad.key, good.key], NOW) == [good]


# Slots

ONE, TWO, THREE = (BuildKey("ada", "vision", number) for number in (1, 2, 3))


def test_slots_are_taken_and_freed(store: Store) -> None:
    assert store.slots.read() == Running()

    store.slots.take(ONE, store.slots.read())
    store.slots.take(TWO, store.slots.read())
    assert store.slots.read().builds == {ONE, TWO}

    store.slots.free([ONE, THREE])
    assert store.slots.read().builds == {TWO}
    store.slots.free([ONE, TWO])
    store.slots.free([TWO])
    assert store.slots.read().builds == set()
    store.slots.take(ONE, store.slots.read())
    assert store.slots.read().builds == {ONE}


def test_slots_that_nobody_ever_took_are_freed(store: Store) -> None:
    store.slots.free([ONE])
    assert store.slots.read().builds == set()


def test_a_slot_is_not_taken_when_another_was_taken_since_all_were_read(store: Store) -> None:
    before = store.slots.read()
    store.slots.take(ONE, before)
    for late in (before, Running(frozenset({ONE}), 7)):
        with pytest.raises(Conflict):
            store.slots.take(TWO, late)
    assert store.slots.read().builds == {ONE}


def test_a_slot_that_became_free_refuses_nobody(store: Store) -> None:
    """With less running, who decided to start is right all the more."""
    store.slots.take(ONE, store.slots.read())
    before = store.slots.read()
    store.slots.free([ONE])
    store.slots.take(TWO, before)
    assert store.slots.read().builds == {TWO}


def test_of_many_that_take_the_last_slot_at_once_one_has_it(store: Store) -> None:
    seen = store.slots.read()

    def take(number: int) -> bool:
        try:
            store.slots.take(BuildKey("ada", "vision", number), seen)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(1, 9))) == 1
    assert len(store.slots.read().builds) == 1


def test_a_slot_is_taken_and_freed_by_one_update_each(dynamodb_table: Records) -> None:
    """Limits hold because the one update that adds a build has the condition that nothing was added before."""
    requests: list[dict[str, Any]] = []
    events = client().meta.events
    events.register("provide-client-params.dynamodb.UpdateItem", lambda params, **_: requests.append(dict(params)))

    dynamodb_table.slots.take(ONE, Running())
    dynamodb_table.slots.take(TWO, dynamodb_table.slots.read())
    dynamodb_table.slots.free([ONE, TWO])

    assert [described(request) for request in requests] == [
        ("ADD running {ada/vision/1}, version 1", "attribute_not_exists (version)"),
        ("ADD running {ada/vision/2}, version 1", "version = 1"),
        ("DELETE running {ada/vision/1 ada/vision/2}", None),
    ]


def described(request: dict[str, Any]) -> tuple[str, str | None]:
    """Update and condition of a request, with the names and values in their places."""
    places = {**request["ExpressionAttributeNames"]}
    for name, value in request["ExpressionAttributeValues"].items():
        places[name] = value["N"] if "N" in value else f"{{{' '.join(sorted(value['SS']))}}}"
    texts = [request["UpdateExpression"], request.get("ConditionExpression")]
    update, condition = (text and re.sub(r"[#:]\w+", lambda found: places[found[0]], text) for text in texts)
    return update, condition


def test_a_lease_moves_the_next_look_and_nothing_else(store: Store) -> None:
    build = add(store, check_at=after(1))

    leased = store.builds.lease(build, after(60))

    assert leased == replace(build, check_at=after(60)) == store.builds.get(KEY)
    assert store.builds.due(after(59), 10) == []
    assert store.builds.save(build).version == build.version + 1, "the version is as it was"


def test_one_of_two_leases_of_the_same_look_is_refused(store: Store) -> None:
    build = add(store, check_at=after(1))
    store.builds.lease(build, after(60))

    with pytest.raises(Conflict):
        store.builds.lease(build, after(61))

    assert store.builds.due(after(60), 10) == [replace(build, check_at=after(60))]


def test_a_build_that_nobody_has_to_look_at_cannot_be_leased(store: Store) -> None:
    build = add(store, check_at=after(1))
    store.builds.save(replace(build, check_at=None, deleted_at=after(1), archived_at=after(1)))

    with pytest.raises(Conflict):
        store.builds.lease(build, after(60))

    stored = store.builds.get(KEY)
    assert stored is not None
    assert stored.check_at is None
    assert purgeable(store, after(1)) == [KEY]


def test_a_deleted_build_is_due_while_it_may_still_run_and_purgeable_only_then(store: Store) -> None:
    """Else nothing would stop what it computes."""
    build = add(store, check_at=after(1))
    build = store.archive.archive(replace(build, archived_at=after(2), deleted_at=after(2)))
    assert (store.builds.due(after(1), 10), purgeable(store, after(9))) == ([build], [])

    build = store.builds.save(replace(build, check_at=after(3)))
    assert (store.builds.due(after(3), 10), purgeable(store, after(9))) == ([build], [])

    store.builds.save(replace(build, check_at=None))
    assert (store.builds.due(after(9), 10), purgeable(store, after(9))) == ([], [KEY])


# Bookmarks


def test_bookmarks_are_each_users_own(store: Store) -> None:
    keys = [add(store).key for _ in range(12)]
    for key in (keys[0], keys[1], keys[11]):
        store.bookmarks.add("ada", key, NOW)
    store.bookmarks.add("ada", keys[0], NOW)
    store.bookmarks.add("bob", keys[2], NOW)

    assert store.bookmarks.among("ada", keys) == {keys[0], keys[1], keys[11]}
    assert store.bookmarks.among("ada", keys[1:3]) == {keys[1]}
    assert store.bookmarks.among("bob", keys) == {keys[2]}
    assert store.bookmarks.among("eve", keys) == frozenset()
    assert store.bookmarks.among("ada", []) == frozenset()


def test_bookmarks_of_builds_far_apart_are_found_as_well(store: Store) -> None:
    near, far, elsewhere = BuildKey("ada", "vision", 1), BuildKey("ada", "vision", 100_000), BuildKey("bob", "art", 2)
    for key in (near, BuildKey("ada", "vision", 500), far, elsewhere):
        store.bookmarks.add("ada", key, NOW)
    assert store.bookmarks.among("ada", [near, far, BuildKey("ada", "vision", 9)]) == {near, far}
    assert store.bookmarks.among("ada", [near, elsewhere, BuildKey("bob", "art", 1)]) == {near, elsewhere}


def test_unbookmarking_repeats_but_needs_a_bookmark_once(store: Store) -> None:
    key = add(store).key

    assert store.bookmarks.remove("ada", key) is False
    store.bookmarks.add("ada", key, NOW)
    assert store.bookmarks.remove("ada", key) is True
    assert store.bookmarks.remove("ada", key) is True
    assert store.bookmarks.among("ada", [key]) == frozenset()
    opened = store.builds.open(key, "ada")
    assert opened is not None
    assert not opened.bookmarked


def test_bookmarks_are_listed_latest_first(store: Store) -> None:
    builds = [add(store) for _ in range(3)]
    for second, build in enumerate((builds[1], builds[0], builds[2])):
        store.bookmarks.add("bob", build.key, after(second))
    store.bookmarks.remove("bob", builds[2].key)

    found, count = store.bookmarks.list_builds("bob", 0, 10, ascending=False)
    assert ([build.key for build in found], count) == ([builds[0].key, builds[1].key], 2)
    assert store.bookmarks.list_builds("bob", 1, 10, ascending=False)[0] == [builds[1]]
    assert store.bookmarks.list_builds("bob", 0, 1, ascending=True) == ([builds[1]], 2)
    assert store.bookmarks.list_builds("eve", 0, 10, ascending=False) == ([], 0)


def test_projects_can_be_bookmarked_as_well(store: Store) -> None:
    store.projects.add(make_project())
    key = ProjectKey("ada", "vision")
    store.bookmarks.add("bob", key, NOW)

    assert store.bookmarks.among("bob", [key]) == {key}
    assert store.bookmarks.list_projects("bob", 0, 10, ascending=False) == ([read_project(store)], 1)
    assert store.bookmarks.remove("bob", key)
    assert store.bookmarks.list_projects("bob", 0, 10, ascending=False) == ([], 0)


def test_projects_are_listed_latest_change_first(store: Store) -> None:
    for second, name in enumerate(("one", "two", "three")):
        store.projects.add(make_project(name=name, is_public=name != "two", updated_at=after(second)))
    hidden = make_project(name="hidden", archived_at=NOW)
    store.projects.add(hidden)

    def names(offset: int, limit: int, *, public: bool = False) -> tuple[list[str], int]:
        found, count = store.projects.list_projects("ada", offset, limit, public=public)
        return [project.name for project in found], count

    assert names(0, 10) == (["three", "two", "one"], 3)
    assert names(1, 1) == (["two"], 3)
    assert names(0, 10, public=True) == (["three", "one"], 2)


def test_archived_builds_are_listed_by_their_creator_until_restored(store: Store) -> None:
    build = add(store, user="bob")
    archived = store.archive.archive(replace(build, archived_at=after(1), updated_at=after(1)))

    found, count = store.archive.list_archived("bob", 0, 10)
    assert ([each.key for each in found], count) == ([build.key], 1)
    assert store.archive.list_archived("ada", 0, 10) == ([], 0)

    store.archive.restore(replace(archived, archived_at=None))
    assert store.archive.list_archived("bob", 0, 10) == ([], 0)
    assert [each.key for each in store.builds.list_builds(KEY.project_key, 0, 10)] == [build.key]
    assert read_project(store).live_builds == 1


def test_what_is_purgeable_is_deleted_or_archived_long_enough(store: Store) -> None:
    waiting = {"check_at": None}
    long, lately, deleted, running = (add(store, **waiting) for _ in range(4))
    store.archive.archive(replace(long, archived_at=after(1)))
    store.archive.archive(replace(lately, archived_at=after(100)))
    store.archive.archive(replace(deleted, archived_at=after(100), deleted_at=after(100)))
    store.archive.archive(replace(running, archived_at=after(1), check_at=after(1)))
    other = make_project(name="other")
    store.projects.add(other)
    store.projects.save(replace(other, archived_at=after(2), deleted_at=after(2)))

    by_then = Hidden(long.key, archived_at=after(1))
    gone = [Hidden(other.key, deleted_at=after(2)), Hidden(deleted.key, deleted_at=after(100))]
    assert list(store.archive.purgeable(after(100), after(50))) == [*gone, by_then]
    assert list(store.archive.purgeable(after(100), after(50), limit=1)) == [gone[0], by_then]
    assert list(store.archive.purgeable(after(1), after(50))) == [by_then], "deletions settle first"


def test_a_purged_build_leaves_nothing(store: Store) -> None:
    build = add(store, "it")
    store.bookmarks.add("bob", build.key, NOW)
    build = store.archive.archive(replace(build, archived_at=NOW, deleted_at=NOW, check_at=None))
    store.archive.purge(build)
    with pytest.raises(Conflict):
        store.archive.purge(build)

    assert (store.builds.get(build.key), store.builds.body(build.key)) == (None, None)
    assert store.bookmarks.list_builds("bob", 0, 10, ascending=False) == ([], 0)
    assert purgeable(store, after(1)) == []
    assert add(store, "it").name == "it"


def test_a_purge_takes_nothing_of_who_has_the_key_by_then(store: Store) -> None:
    """The project was purged and made anew while a slow cleanup was at it."""
    build = add(store, "it")
    former = read_project(store)
    store.archive.purge(build)
    store.archive.purge(former)
    store.projects.add(make_project(uuid="f" * 32))
    number = store.builds.next_id(read_project(store), NOW)
    new = store.builds.add(make_build(number=number, uuid="e" * 32), make_body(), "it")
    store.bookmarks.add("bob", new.key, NOW)
    for record in (build, former):
        with pytest.raises(Conflict):
            store.archive.purge(record)

    assert (store.builds.get(new.key), store.builds.body(new.key)) == (new, make_body())
    assert [each.key for each in store.bookmarks.list_builds("bob", 0, 10, ascending=False)[0]] == [new.key]
    assert add(store, "it").name == "it-1", "the name is still its own"


def test_a_project_in_which_an_id_was_taken_is_not_purged(store: Store) -> None:
    add(store)
    looked_at = read_project(store)
    store.builds.next_id(looked_at, NOW)
    with pytest.raises(Conflict):
        store.archive.purge(looked_at)
    assert read_project(store).last_build_id == 2


def test_a_build_without_a_name_frees_the_one_it_had(store: Store) -> None:
    build = add(store, "it")
    assert store.builds.rename(build, None).name is None
    assert add(store, "it").name == "it"


def test_a_purged_project_leaves_nothing(store: Store) -> None:
    build = add(store)
    store.bookmarks.add("bob", build.key.project_key, NOW)
    assert list(store.archive.builds_of(build.key.project_key)) == [build.key]
    store.archive.purge(build)
    store.archive.purge(read_project(store))

    assert store.projects.get("ada", "vision") is None
    assert store.bookmarks.list_projects("bob", 0, 10, ascending=False) == ([], 0)


def test_code_is_referenced_by_projects_and_builds_that_have_it(store: Store) -> None:
    store.projects.add(make_project())
    for sha256 in ("ab", "cd"):
        store.projects.save(replace(read_project(store), code=Code(sha256, 1, NOW)))
    build = add(store, source=Source(code_sha256="ab"))
    assert store.code_references.is_referenced("ab", NOW)
    assert store.code_references.is_referenced("cd", NOW)
    assert not store.code_references.is_referenced("ef", NOW)
    assert store.code_references.has_code(build.key.project_key, "ab")
    assert store.code_references.has_code(build.key.project_key, "cd")
    assert not store.code_references.has_code(build.key.project_key, "ef")
    assert not store.code_references.has_code(ProjectKey("ada", "visio"), "ab")

    store.archive.purge(build)
    store.projects.save(replace(read_project(store), code=Code("ef", 1, NOW)))
    later = NOW + timedelta(hours=2)  # what was referenced until lately still counts
    for sha256 in ("ab", "cd"):
        store.code_references.is_referenced(sha256, later)
        assert not store.code_references.is_referenced(sha256, later)


def test_code_that_a_project_is_about_to_have_counts_for_an_hour(store: Store) -> None:
    store.projects.add(make_project())
    store.code_references.note("ab", ProjectKey("ada", "vision"), NOW)
    assert store.code_references.is_referenced("ab", after(3_599))
    store.code_references.is_referenced("ab", after(3_601))
    assert not store.code_references.is_referenced("ab", after(3_601))


def test_a_build_of_the_same_id_in_a_later_project_does_not_have_the_code(store: Store) -> None:
    store.archive.purge(add(store, source=Source(code_sha256="ab")))
    store.archive.purge(read_project(store))
    add(store)

    later = NOW + timedelta(hours=2)
    store.code_references.is_referenced("ab", later)
    assert not store.code_references.is_referenced("ab", later)


def test_a_drop_is_seen_while_it_lasts_and_is_no_reference(store: Store) -> None:
    store.code_references.begin_drop("ab", NOW)
    assert store.code_references.is_being_dropped("ab", after(1))
    assert not store.code_references.is_referenced("ab", after(1))
    assert not store.code_references.is_being_dropped("ab", after(601)), "who dropped it has ended"
    store.code_references.end_drop("ab")
    assert not store.code_references.is_being_dropped("ab", after(1))


def mark(at: float = 0, *, key: str = "k", body: str = "ab12") -> IdempotencyKey:
    """Of a request at so many seconds; it is good for a minute."""
    return IdempotencyKey(key, body, after(at), after(at + 60))


def test_what_is_done_once_is_remembered_until_it_expires(store: Store) -> None:
    store.projects.add(make_project())
    project = read_project(store)
    build = store.builds.add(make_build(), make_body(), None, mark())
    again = make_build(number=2)

    assert store.builds.replay(project.key, mark(59)) == build.key
    assert store.builds.replay(project.key, mark(key="other")) is None
    with pytest.raises(KeyReused):
        store.builds.replay(project.key, mark(59, body="cd34"))
    with pytest.raises(Conflict):
        store.builds.add(again, make_body(), None, mark(59))
    assert store.builds.get(again.key) is None

    assert store.builds.replay(project.key, mark(60, body="cd34")) is None
    store.builds.add(again, make_body(), None, mark(60))
    assert store.builds.replay(project.key, mark(60)) == again.key


def test_what_was_changed_once_is_remembered_as_well(store: Store) -> None:
    store.projects.add(make_project())
    build = store.builds.add(make_build(), make_body(), None)
    for _ in range(2):
        store.builds.note(mark(), build.key)
    assert store.builds.replay(build.key.project_key, mark(59)) == build.key
    assert store.builds.replay(build.key.project_key, mark(60)) is None


# What only DynamoDB has: rows that nobody shows, and requests whose effect no emulator has


@pytest.fixture
def dynamo(dynamodb_table: Records) -> Records:
    return dynamodb_table


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Each that follows, as operation and parameters."""
    made: list[tuple[str, dict[str, Any]]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        made.append((model.name, params))

    client().meta.events.register("provide-client-params.dynamodb", note)
    return made


def test_no_row_stays_of_what_was_purged(dynamo: Records) -> None:
    build = add(dynamo, "it", recipe="a" * 64)
    for user in ("ada", "bob"):
        dynamo.bookmarks.add(user, build.key, NOW)
        dynamo.bookmarks.add(user, build.key.project_key, NOW)
    dynamo.bookmarks.remove("bob", build.key)
    build = dynamo.builds.save(build, make_body(reported_dockerfile="FROM a\n"))
    assert len(list(Item.scan())) == 13

    dynamo.archive.purge(dynamo.builds.rename(build, "other"))
    dynamo.archive.purge(read_project(dynamo))

    assert [(row.pk, row.sk) for row in Item.scan()] == []


def test_a_key_of_an_earlier_version_which_kept_no_hash_fits_every_request(dynamo: Records) -> None:
    build = add(dynamo)
    dynamo.builds.note(mark(), build.key)
    (row,) = Item.scan(Item.pk.startswith("I#"))
    row.update([Item.body_sha256.remove()])
    assert dynamo.builds.replay(build.key.project_key, mark(body="cd34")) == build.key


def test_rows_that_are_needed_for_a_time_say_when_they_may_go(dynamo: Records) -> None:
    dynamo.projects.add(make_project())
    dynamo.builds.add(make_build(), make_body(), None, mark())
    dynamo.accounts.count_requests("ada", NOW, 1)

    ttls = {row.pk[:2]: row.ttl for row in Item.scan() if row.ttl is not None}
    assert ttls == {"I#": after(60).timestamp(), "R#": after(3_600).timestamp()}


def test_what_is_decided_on_is_read_as_it_was_written_last(dynamo: Records) -> None:
    """Else a handler would act on a build that another has changed; only lists may lag."""
    build = add(dynamo, source=Source(code_sha256="ab"))
    made = requests()
    dynamo.projects.get("ada", "vision")
    dynamo.builds.get(KEY)
    dynamo.builds.body(KEY)
    dynamo.builds.open(KEY, "ada")
    dynamo.builds.replay(build.key.project_key, mark())
    list(dynamo.archive.builds_of(build.key.project_key))
    dynamo.code_references.is_referenced("ab", NOW)
    dynamo.accounts.token("ab")
    dynamo.archive.purge(build)

    reads = [(name, params) for name, params in made if name in ("GetItem", "BatchGetItem", "Query")]
    assert len(reads) == 10
    for name, params in reads:
        (asked,) = params["RequestItems"].values() if name == "BatchGetItem" else (params,)
        assert asked.get("ConsistentRead") is True, (name, params)


def test_creations_in_one_project_share_no_item(dynamo: Records) -> None:
    """DynamoDB cancels transactions that touch the same item at the same time: with none shared, any number
    of creators succeed. The project's item is changed by one update of its own, which waits for its turn."""
    dynamo.projects.add(make_project())
    made = requests()
    for _ in range(3):
        add(dynamo)

    items = [
        (name, json.dumps(item[kind].get("Key") or {key: item[kind]["Item"][key] for key in ("pk", "sk")}))
        for name, params in made
        if name == "TransactWriteItems"
        for item in params["TransactItems"]
        for kind in item
    ]
    assert len(set(items)) == len(items) == 6
    assert [name for name, _ in made].count("UpdateItem") == 3


def test_fifty_creators_at_once_who_want_one_name_get_fifty_builds(dynamo: Records) -> None:
    services = FakeServices()
    services.use(dynamo)
    services.projects.add(make_project())
    fields = {"is_managed": False, "name": "trainer"}

    def create(_: int) -> Build:
        return builds.create(services, make_user(), "ada", "vision", fields).build

    with ThreadPoolExecutor(16) as creators:
        made = list(creators.map(create, range(50)))

    assert {build.key.id for build in made} == set(range(1, 51))
    assert {build.name for build in made} == {"trainer", *(f"trainer-{k}" for k in range(1, 50))}
    assert read_project(dynamo).live_builds == 50


def test_each_transaction_has_a_token_of_its_own(dynamo: Records) -> None:
    """With it the SDK's repetition of a write that was done, and whose answer got lost, is no conflict."""
    made = requests()
    build = add(dynamo, "it")
    dynamo.builds.rename(build, "other")
    dynamo.bookmarks.add("bob", KEY, NOW)

    tokens = [params["ClientRequestToken"] for name, params in made if name == "TransactWriteItems"]
    assert len(set(tokens)) == len(tokens) == 3


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ConditionalCheckFailed", Conflict),
        ("TransactionConflict", Conflict),
        ("ThrottlingError", Unavailable),
        ("ProvisionedThroughputExceeded", Unavailable),
    ],
)
def test_a_cancelled_transaction_is_a_conflict_if_another_write_was_the_reason(
    dynamo: Records, code: str, error: type[Exception]
) -> None:
    build = add(dynamo)
    reasons = [{"Code": "None"}, {"Code": code, "Message": "why"}]
    refuse("TransactWriteItems", "TransactionCanceledException", CancellationReasons=reasons)

    with pytest.raises(error):
        dynamo.builds.rename(build, "other")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ConditionalCheckFailedException", Conflict),
        ("TransactionConflictException", Conflict),
        ("ResourceNotFoundException", Unavailable),
    ],
)
def test_a_refused_write_is_a_conflict_if_another_write_was_the_reason(
    dynamo: Records, code: str, error: type[Exception]
) -> None:
    build = add(dynamo)
    refuse("UpdateItem", code)

    with pytest.raises(error):
        dynamo.builds.save(build)


@pytest.mark.parametrize("error", [ReadTimeoutError, ConnectTimeoutError, ConnectionClosedError])
def test_a_database_that_does_not_answer_is_unavailable(dynamo: Records, error: type[HTTPClientError]) -> None:
    """PynamoDB cannot name the code of such an error, because there was no answer."""
    build = add(dynamo)

    def fail(request: Any, **_: Any) -> None:
        raise error(endpoint_url=request.url)

    client().meta.events.register("before-send.dynamodb", fail)

    for call in (dynamo.builds.get, dynamo.builds.body):
        with pytest.raises(Unavailable):
            call(KEY)
    for write in (dynamo.builds.save, dynamo.archive.purge):
        with pytest.raises(Unavailable):
            write(build)


def refuse(operation: str, code: str, **more: Any) -> None:
    """DynamoDB answers with this error, as its documentation shows it."""
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": f"[{more}]", **more}

    def answer(request: Any, **_: Any) -> AWSResponse:
        headers = {"Content-Type": "application/x-amz-json-1.0"}
        return AWSResponse(request.url, 400, headers, Raw(json.dumps(body).encode()))

    client().meta.events.register(f"before-send.dynamodb.{operation}", answer)
