"""What was archived long enough or deleted is forgotten, whole, wherever the cleanup is interrupted."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import pytest

from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.cleanup import CLEANUP, purge_at
from chalicelib.domain.project import ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.repositories import cache_repository
from chalicelib.errors import Conflict, Forbidden, NotFound, Unavailable
from chalicelib.usecases import builds, cleanup, execution, projects, schedule
from chalicelib.usecases.cleanup import MAX_SECONDS, MAX_SHOWN, Cleaned
from tests.factories import SETTINGS, make_project, make_user
from tests.fakes import Died, FakeServices
from tests.usecases.conftest import Create, end_with_an_image, stored, tick, upload

ADA = make_user()
ROOT = make_user("root", is_superuser=True)


def archive(services: FakeServices, key: BuildKey, *, delete: bool = False) -> None:
    builds.archive(services, ADA, key, delete=delete)


def test_an_archived_build_is_purged_after_its_days_with_all_that_is_its_own(
    services: FakeServices, create: Create
) -> None:
    key, kept = create(name="it"), create()
    services.bookmarks.add("bob", key, services.now())
    archive(services, key)

    services.clock.forward(days=7, seconds=-1)
    assert cleanup.cleanup(services) == Cleaned()
    services.clock.forward(seconds=1)
    assert cleanup.cleanup(services) == Cleaned(builds=1)

    assert list(services.records.builds) == list(services.records.bodies) == [kept]
    assert (services.records.bookmarks, services.records.names) == ({}, {})
    assert cleanup.cleanup(services) == Cleaned()


def test_a_build_that_changes_meanwhile_waits_and_the_others_are_purged(services: FakeServices, create: Create) -> None:
    keys = [create() for _ in range(3)]
    for key in keys:
        archive(services, key)
    services.clock.forward(days=8)
    first = services.records.builds[keys[0]]
    services.records.before_write.append(lambda: services.builds.save(first))

    assert cleanup.cleanup(services) == Cleaned(builds=2)
    assert list(services.records.builds) == keys[:1]
    assert cleanup.cleanup(services) == Cleaned(builds=1)


def test_a_restored_build_stays(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key)
    services.clock.forward(days=8)
    builds.restore(services, ADA, key)

    assert cleanup.cleanup(services) == Cleaned()
    assert builds.get(services, ADA, key).build.key == key


@pytest.mark.parametrize("fate", ["restored", "archived again", "deleted just now"])
def test_what_changed_since_the_index_was_written_is_not_purged(
    services: FakeServices, create: Create, fate: str
) -> None:
    """The index of what is purgeable may be behind."""
    key = create()
    archive(services, key)
    projects.archive(services, ADA, "ada", "vision")
    services.clock.forward(days=8)
    found = [*services.archive.purgeable(services.now(), services.now())]
    assert len(found) == 2
    services.archive.purgeable = lambda *_: iter(found)  # type: ignore[method-assign]

    projects.restore(services, ADA, "ada", "vision")
    builds.restore(services, ADA, key)
    if fate != "restored":
        archive(services, key, delete=fate == "deleted just now")
        projects.archive(services, ADA, "ada", "vision", delete=fate == "deleted just now")

    before = (dict(services.records.builds), dict(services.records.projects))
    assert cleanup.cleanup(services) == Cleaned()
    assert (services.records.builds, services.records.projects) == before


def test_a_cleanup_reads_nothing_that_is_not_due(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(services, create())
    archive(services, create(), delete=True)
    services.clock.forward(minutes=59)
    monkeypatch.setattr(services.builds, "get", lambda key: pytest.fail(f"{key} is not due"))

    assert cleanup.cleanup(services) == Cleaned()


def test_a_project_whose_builds_are_gone_in_part_is_purged_after_the_others(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cleanup has purged the first of them since they were listed."""
    gone, other = create(), create()
    execution.process(services, other)
    projects.archive(services, ADA, "ada", "vision", delete=True)
    services.clock.forward(minutes=120)
    del services.records.builds[gone]
    monkeypatch.setattr(services.archive, "builds_of", lambda _: iter([gone, other]))

    assert cleanup.cleanup(services) == Cleaned()
    assert stored(services, other).stop_requested_at is not None
    assert services.projects.get("ada", "vision") is not None


def test_a_deleted_build_is_purged_once_it_has_stopped(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    archive(services, key, delete=True)
    assert cleanup.cleanup(services) == Cleaned()

    execution.process(services, key)
    services.clock.forward(minutes=60, seconds=-1)
    assert cleanup.cleanup(services) == Cleaned(), "whatever handled it just now may still write"
    services.clock.forward(seconds=1)
    assert cleanup.cleanup(services) == Cleaned(builds=1)


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("after", [1, 2])
def test_a_hidden_build_is_stopped_though_who_hid_it_died(
    services: FakeServices, create: Create, after: int, delete: bool
) -> None:
    key = create()
    execution.process(services, key)
    services.queue.is_down = True
    interrupted([services.archive, services.builds], after)
    with suppress(Died, Unavailable):
        archive(services, key, delete=delete)
    services.queue.is_down = False

    for _ in range(2):
        with suppress(Died):
            schedule.reconcile(services)
    build = services.builds.get(key)
    assert build is not None
    stopped = [services.codebuild.run_of(key).handle]
    assert services.codebuild.stopped[:1] == (stopped if build.archived_at else [])
    assert (build.archived_at is None) == (after == 1)


def test_lists_do_not_show_builds_of_projects_that_are_private_by_now(services: FakeServices, create: Create) -> None:
    bob = make_user("bob")
    services.accounts.users["bob"] = bob
    builds.bookmark(services, bob, create())
    assert builds.bookmarked(services, bob, "bob", 0, 20, ascending=False).records

    project = services.projects.get("ada", "vision")
    assert project is not None
    services.projects.save(replace(project, is_public=False))
    assert not builds.bookmarked(services, bob, "bob", 0, 20, ascending=False).records


def test_builds_of_a_deleted_project_are_in_no_list(services: FakeServices, create: Create) -> None:
    services.accounts.users["ada"] = ADA
    archived, marked = create(), create()
    archive(services, archived)
    builds.bookmark(services, ADA, marked)
    projects.archive(services, ADA, "ada", "vision", delete=True)

    assert not builds.archived(services, ADA, "ada", 0, 20).records
    assert not builds.bookmarked(services, ADA, "ada", 0, 20, ascending=False).records


def test_a_deleted_build_cannot_be_restored(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key, delete=True)
    with pytest.raises(NotFound):
        builds.restore(services, ADA, key)


def test_ids_of_purged_builds_are_not_used_again(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key, delete=True)
    services.clock.forward(minutes=61)
    assert cleanup.cleanup(services) == Cleaned(builds=1)
    assert create().id == key.id + 1


def test_a_preview_says_what_goes_next_and_when_in_the_order_of_the_cleanup(
    services: FakeServices, create: Create
) -> None:
    """By the index alone, and nothing changes."""
    archived, deleted = create(), create()
    services.projects.add(make_project(name="old"))
    projects.archive(services, ADA, "ada", "old")
    for key in (archived, deleted):
        builds.stop(services, ADA, key)
    services.clock.forward(minutes=60)
    archive(services, archived)
    archive(services, deleted, delete=True)
    before, now = services.written(), services.now()
    services.builds.get = services.projects.get = None  # type: ignore[assignment, method-assign]

    _, shown = cleanup.preview(services, ROOT)

    assert [(str(each.key), each.deleted_at is not None, purge_at(each, 7)) for each in shown] == [
        (str(deleted), True, now + timedelta(hours=1)),
        ("ada/old", False, now + timedelta(days=7, hours=-1)),
        (str(archived), False, now + timedelta(days=7)),
    ]
    assert services.written() == before


def test_a_preview_is_no_longer_than_its_bound_and_reads_no_more(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(services, key := create(), delete=True)
    archive(services, create())
    for number in range(3, MAX_SHOWN + 3):
        copied = replace(key, id=number)
        services.records.builds[copied] = replace(services.records.builds[key], key=copied)
    purgeable = mock.Mock(wraps=services.archive.purgeable)
    monkeypatch.setattr(services.archive, "purgeable", purgeable)
    assert len(cleanup.preview(services, ROOT)[1]) == MAX_SHOWN
    purgeable.assert_called_once_with(services.now(), services.now(), MAX_SHOWN)


def test_a_preview_says_the_rules_as_they_are_set_here(services: FakeServices) -> None:
    services.settings = replace(SETTINGS, purge_after_days=30, keep_images=500, registry_kind="ecr")
    rules = {rule.what: rule for rule in cleanup.preview(services, ROOT)[0]}
    assert rules["builds"].goes == "30 days after archiving, once stopped"
    assert rules["images by count"].goes == "all but the newest 500 of a project; with 0 none"
    assert rules["images by count"].by == rules["cached layers"].by == "ECR lifecycle"

    services.settings = replace(SETTINGS, registry_kind="plain")
    by = {rule.by for rule in cleanup.preview(services, ROOT)[0]}
    assert by == {CLEANUP, "nobody on one machine"}


def test_only_superusers_see_what_goes(services: FakeServices) -> None:
    with pytest.raises(Forbidden):
        cleanup.preview(services, ADA)


def test_a_deleted_project_goes_after_its_builds_have_stopped(services: FakeServices, create: Create) -> None:
    running = create()
    execution.process(services, running)
    archive(services, create())
    services.queue.take()
    projects.archive(services, ADA, "ada", "vision", delete=True)
    with pytest.raises(NotFound):
        builds.get(services, ADA, running)

    assert cleanup.cleanup(services).projects == 0
    for key in services.queue.take():
        execution.process(services, key)
    assert cleanup.cleanup(services).projects == 0  # its log is being kept, and a deletion settles for an hour
    services.clock.forward(minutes=61)
    tick(services)
    tick(services)
    image = services.records.builds[running].image
    assert services.registry.prepared == {image.rpartition(":")[0], cache_repository(image)}
    cleanup.cleanup(services)
    assert (services.records.projects, services.records.builds) == ({}, {})
    assert services.registry.prepared == {image.rpartition(":")[0]}, "images stay, layers go"


def test_an_archived_project_is_purged_in_two_steps_so_that_nobody_restores_half_of_it(
    services: FakeServices, create: Create
) -> None:
    create()
    projects.archive(services, ADA, "ada", "vision")
    for key in services.queue.take():
        execution.process(services, key)
    services.clock.forward(days=8)
    assert cleanup.cleanup(services) == Cleaned()
    assert services.records.projects["ada", "vision"].deleted_at == services.now()
    with pytest.raises(NotFound):
        projects.restore(services, ADA, "ada", "vision")

    services.clock.forward(minutes=60)
    assert cleanup.cleanup(services) == Cleaned(builds=1, projects=1)
    assert (services.records.builds, services.records.projects) == ({}, {})


def deleted_project(services: FakeServices, name: str = "vision") -> None:
    """Deleted long enough to be purged."""
    projects.archive(services, ADA, "ada", name, delete=True)
    services.queue.take()
    services.clock.forward(minutes=61)


@pytest.mark.parametrize("state", ["it runs", "it runs, and nobody looks", "its log is not kept", "deleted so"])
def test_a_project_stays_as_long_as_a_build_of_it_has_to(services: FakeServices, create: Create, state: str) -> None:
    key = create()
    execution.process(services, key)
    if state == "it runs, and nobody looks":
        services.builds.save(replace(stored(services, key), check_at=None))
    elif state != "it runs":
        end_with_an_image(services, key)
        execution.process(services, key)
        assert stored(services, key).check_at is not None
        if state == "deleted so":
            archive(services, key, delete=True)
    deleted_project(services)

    assert cleanup.cleanup(services) == Cleaned()

    runs = state.startswith("it runs")
    assert services.queue.take() == ([key] if runs else [])
    assert stored(services, key).stop_requested_at == (services.now() if runs else None)
    assert list(services.records.projects) == [("ada", "vision")]


@pytest.mark.parametrize("stuck", [0, 1], ids=["the first", "the last"])
def test_a_project_stays_while_one_of_its_builds_cannot_be_purged(
    services: FakeServices, create: Create, stuck: int
) -> None:
    keys = [create(), create()]
    for key in keys:
        builds.stop(services, ADA, key)
    deleted_project(services)
    cannot_be_discarded(services, keys[stuck])

    assert cleanup.cleanup(services) == Cleaned(builds=1)
    assert list(services.records.builds) == [keys[stuck]]
    assert list(services.records.projects) == [("ada", "vision")]


def test_empty_projects_are_purged_and_counted(services: FakeServices) -> None:
    for name in ("one", "two"):
        services.projects.add(make_project(name=name))
        deleted_project(services, name)

    assert cleanup.cleanup(services) == Cleaned(projects=2)
    assert services.records.projects == {}


def test_a_build_whose_purge_is_interrupted_cannot_be_restored(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key)
    services.clock.forward(days=8)
    cannot_be_discarded(services, key)

    assert cleanup.cleanup(services) == Cleaned()
    with pytest.raises(NotFound):
        builds.restore(services, ADA, key)


def test_the_purge_of_a_deleted_build_needs_no_mark(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key, delete=True)
    services.clock.forward(minutes=61)
    services.records.before_write.append(lambda: pytest.fail("a write more for each of thousands"))
    assert cleanup.cleanup(services) == Cleaned(builds=1)


def test_a_count_that_may_be_wrong_is_counted_again_after_a_day(services: FakeServices, create: Create) -> None:
    create()
    project = services.records.projects["ada", "vision"]
    services.records.projects["ada", "vision"] = replace(project, live_builds=7)
    cleanup.cleanup(services)
    assert services.records.projects["ada", "vision"].live_builds == 7
    services.clock.forward(days=1)
    cleanup.cleanup(services)
    assert services.records.projects["ada", "vision"].live_builds == 1


def test_a_project_that_cannot_be_counted_keeps_no_upload(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    create()
    kept(services, "00" * 32)
    services.clock.now = FIRST_TICK + timedelta(days=256)

    def fail(place: ProjectKey) -> None:
        raise Unavailable("The database did not answer; try again.")

    services.projects.recount = fail  # type: ignore[assignment, method-assign]
    assert cleanup.cleanup(services) == Cleaned(uploads=1)
    assert "ada/vision could not be handled: The database did not answer" in caplog.text


def test_a_cleanup_logs_and_measures_what_it_did(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chalicelib.usecases.cleanup")
    archive(services, create(), delete=True)
    services.clock.forward(minutes=61)
    cleanup.cleanup(services)

    (did,) = caplog.records
    assert did.message == "Purged 1 builds, 0 projects, 0 uploads."
    assert vars(did)["measures"] == {"BuildsPurged": 1, "ProjectsPurged": 0, "UploadsPurged": 0}


def test_an_archived_project_hides_its_builds_until_it_is_restored(services: FakeServices, create: Create) -> None:
    key = create()
    projects.archive(services, ADA, "ada", "vision")
    with pytest.raises(NotFound):
        builds.get(services, ADA, key)
    with pytest.raises(NotFound):
        create()

    projects.restore(services, ADA, "ada", "vision")
    assert builds.get(services, ADA, key).build.key == key


def test_the_schedule_stops_builds_of_an_archived_project_that_nobody_announced(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    projects.archive(services, ADA, "ada", "vision")
    services.queue.take()

    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert services.codebuild.stopped == [services.codebuild.run_of(key).handle]


def sweep(services: FakeServices) -> int:
    """Every tick of a day."""
    count = 0
    for _ in range(256):
        count += cleanup.cleanup(services).uploads
        services.clock.forward(minutes=5)
    return count


def test_uploads_that_nobody_has_are_dropped_after_a_day(services: FakeServices, create: Create) -> None:
    used_by_build = upload(services, {"a.txt": "one"})
    create()
    unused, current = (upload(services, {"a.txt": text}) for text in ("two", "three"))
    assert sweep(services) == 0  # none is older than a day yet

    sweep(services)
    sweep(services)
    assert set(services.sources.archives) == {used_by_build, current}
    assert unused not in services.sources.archives


FIRST_TICK = datetime(2024, 3, 1, 2, 40, tzinfo=UTC)  # which sweeps the uploads whose hash begins with 00


def kept(services: FakeServices, sha256: str) -> None:
    """An upload of that hash, of which nobody knows."""
    services.sources.keep(io.BytesIO(b""), sha256, Listing(frozenset(), frozenset()))


def test_a_day_of_ticks_sweeps_every_upload(services: FakeServices) -> None:
    for number in range(256):
        kept(services, f"{number:02x}" * 32)
    services.clock.forward(days=2)
    assert sweep(services) == 256
    assert services.sources.archives == {}


def test_one_sweep_drops_all_that_is_unused_and_says_so_of_nothing_else(services: FakeServices) -> None:
    services.projects.add(make_project())
    used, *unused = ("00" + digit * 62 for digit in "123")
    services.clock.now = FIRST_TICK
    for sha256 in (used, *unused):
        kept(services, sha256)
    services.clock.now += timedelta(days=256)
    services.code_references.note(used, make_project().key, services.now())
    services.code_references.begin_drop(used, services.now())  # another sweep looks for references

    assert cleanup.cleanup(services) == Cleaned(uploads=2)
    assert list(services.sources.archives) == [used]
    dropped = [services.code_references.is_being_dropped(each, services.now()) for each in (used, *unused)]
    assert dropped == [False, True, True]


def test_uploads_that_cannot_be_listed_are_swept_another_time(
    services: FakeServices, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Sequence[str]:
        raise Unavailable("The storage did not answer; try again.")

    services.sources.stale = fail  # type: ignore[assignment, method-assign]
    assert cleanup.cleanup(services) == Cleaned()
    assert "unused uploads could not be handled: The storage did not answer" in caplog.text


def interrupted(ports: Sequence[Any], after: int) -> None:
    """From now on, the n-th write to any of the ports ends the function."""
    calls = [0]

    def counted(name: str, method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == after:
                raise Died
            return method(*arguments, **named)

        return call

    for port in ports:
        for name in ("save", "archive", "purge", "discard", "forget_cache"):
            if hasattr(port, name):
                setattr(port, name, counted(name, getattr(port, name)))


@pytest.mark.parametrize("after", range(1, 7))
@pytest.mark.parametrize(
    "where",
    [("projects", "builds", "archive"), ("sources",), ("registry",)],
    ids=["records", "sources", "registry"],
)
def test_a_cleanup_that_ends_anywhere_is_continued(
    services: FakeServices, create: Create, where: tuple[str, ...], after: int
) -> None:
    create()
    archive(services, create())
    archive(services, create(), delete=True)
    projects.archive(services, ADA, "ada", "vision")
    for key in services.queue.take():
        execution.process(services, key)
    services.clock.now += timedelta(days=8)

    interrupted([getattr(services, name) for name in where], after)
    for _ in range(4):
        services.clock.forward(minutes=61)
        with suppress(Died):
            cleanup.cleanup(services)

    assert (services.records.builds, services.records.projects) == ({}, {})
    assert not [name for name in services.registry.prepared if "cache/ada/vision-" in name]


def test_a_cleanup_works_until_its_time_is_used(services: FakeServices, create: Create) -> None:
    """10,000 deleted builds are gone within half an hour, if each call takes a twentieth of a second."""
    archive(services, first := create(), delete=True)
    build = services.records.builds[first]
    for number in range(1, 10_001):
        key = replace(first, id=number)
        services.records.builds[key] = replace(build, key=key, uuid=f"{number:032x}")
    services.clock.forward(minutes=61)
    for port, name in ((services.builds, "get"), (services.sources, "discard"), (services.archive, "purge")):
        setattr(port, name, slow(services, getattr(port, name)))

    ticks = 0
    while services.records.builds:
        began_at = services.now()
        cleanup.cleanup(services)
        assert services.now() - began_at < timedelta(seconds=240), "the function has no more time"
        ticks += 1
        services.clock.now = max(services.clock.now, began_at + timedelta(minutes=5))

    assert ticks <= 8
    assert services.now() - began_at < timedelta(minutes=30)


@pytest.mark.parametrize("project_is_deleted", [False, True])
def test_a_cleanup_whose_time_is_used_purges_nothing_more(
    services: FakeServices, create: Create, project_is_deleted: bool
) -> None:
    keys = [create(), create()]
    for key in keys:
        archive(services, key, delete=not project_is_deleted)
    if project_is_deleted:
        projects.archive(services, ADA, "ada", "vision", delete=True)
    services.clock.forward(minutes=61)
    find = services.builds.get

    def slow_get(key: BuildKey) -> Build | None:
        services.clock.forward(seconds=MAX_SECONDS)
        return find(key)

    services.builds.get = slow_get  # type: ignore[method-assign]
    assert cleanup.cleanup(services) == Cleaned(builds=1)
    assert list(services.records.builds) == keys[1:]
    assert list(services.records.projects) == [("ada", "vision")]


def slow(services: FakeServices, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        services.clock.forward(seconds=0.05)
        return call(*arguments)

    return called


def test_what_cannot_be_purged_keeps_no_other_waiting(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = create(), create()
    for key in (stuck, other):
        archive(services, key, delete=True)
    services.clock.forward(minutes=61)
    cannot_be_discarded(services, stuck)
    assert cleanup.cleanup(services) == Cleaned(builds=1)
    assert list(services.records.builds) == [stuck]
    assert f"{stuck} could not be handled: a bug" in caplog.text


def cannot_be_discarded(services: FakeServices, stuck: BuildKey) -> None:
    discard = services.sources.discard

    def discard_others(build: Build) -> None:
        if build.key == stuck:
            raise ValueError("a bug")
        discard(build)

    services.sources.discard = discard_others  # type: ignore[method-assign]


def test_an_upload_of_code_that_is_being_dropped_is_refused_or_kept(services: FakeServices) -> None:
    """The sweep looks for references and drops then; an upload of the same content may come in between."""
    services.projects.add(make_project())
    sha256 = upload(services, {"a.txt": "one"})
    upload(services, {"a.txt": "two"})
    services.clock.forward(days=2)
    drop = services.sources.drop

    def overtaken(dropped: str) -> None:
        with pytest.raises(Conflict, match="upload it again"):
            upload(services, {"a.txt": "one"})
        drop(dropped)
        with pytest.raises(Conflict, match="upload it again"):
            upload(services, {"a.txt": "one"})
        drop(dropped)

    services.sources.drop = overtaken  # type: ignore[method-assign, assignment]
    assert sweep(services) == 1
    assert sha256 not in services.sources.archives

    assert upload(services, {"a.txt": "one"}) == sha256
    assert sha256 in services.sources.archives


def test_whoever_drops_code_says_so_until_no_upload_can_miss_it(services: FakeServices) -> None:
    """An upload that looked for the code before it was dropped may look for the mark afterwards."""
    services.projects.add(make_project())
    sha256 = upload(services, {"a.txt": "one"})
    upload(services, {"a.txt": "two"})
    services.clock.forward(days=2)
    drop, dropped_at = services.sources.drop, []

    def noted(dropped: str) -> None:
        dropped_at.append(services.now())
        drop(dropped)

    services.sources.drop = noted  # type: ignore[method-assign, assignment]
    assert sweep(services) == 1

    assert services.code_references.is_being_dropped(sha256, dropped_at[0] + timedelta(minutes=9))
