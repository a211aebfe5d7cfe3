"""What was archived long enough or deleted is forgotten, whole, wherever the cleanup is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.repositories import cache_repository
from chalicelib.errors import Conflict, NotFound, Unavailable
from chalicelib.usecases import builds, execution, projects, schedule
from chalicelib.usecases.cleanup import Cleaned, cleanup
from tests.factories import make_project, make_user
from tests.fakes import Died, FakeServices
from tests.usecases.conftest import Create, tick, upload

ADA = make_user()


def archive(services: FakeServices, key: BuildKey, *, delete: bool = False) -> None:
    builds.archive(services, ADA, key, delete=delete)


def test_an_archived_build_is_purged_after_its_days_with_all_that_is_its_own(
    services: FakeServices, create: Create
) -> None:
    key, kept = create(name="it"), create()
    services.bookmarks.add("bob", key, services.now())
    archive(services, key)

    services.clock.forward(days=7, minutes=-1)
    assert cleanup(services) == Cleaned()
    services.clock.forward(minutes=2)
    assert cleanup(services) == Cleaned(builds=1)

    assert list(services.records.builds) == list(services.records.bodies) == [kept]
    assert (services.records.bookmarks, services.records.names) == ({}, {})
    assert cleanup(services) == Cleaned()


def test_a_build_that_changes_meanwhile_waits_and_the_others_are_purged(
    services: FakeServices, create: Create
) -> None:
    keys = [create() for _ in range(3)]
    for key in keys:
        archive(services, key)
    services.clock.forward(days=8)
    first = services.records.builds[keys[0]]
    services.records.before_write.append(lambda: services.builds.save(first))

    assert cleanup(services) == Cleaned(builds=2)
    assert list(services.records.builds) == keys[:1]
    assert cleanup(services) == Cleaned(builds=1)


def test_a_restored_build_stays(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key)
    services.clock.forward(days=8)
    builds.restore(services, ADA, key)

    assert cleanup(services) == Cleaned()
    assert builds.get(services, ADA, key).build.key == key


def test_a_deleted_build_is_purged_once_it_has_stopped(services: FakeServices, create: Create) -> None:
    key = create()
    execution.attend(services, key)
    archive(services, key, delete=True)
    assert cleanup(services) == Cleaned()

    execution.attend(services, key)
    assert cleanup(services) == Cleaned(), "whatever handled it just now may still write"
    services.clock.forward(minutes=61)
    assert cleanup(services) == Cleaned(builds=1)
    assert services.sources.staged == {}


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("after", [1, 2])
def test_a_hidden_build_is_stopped_though_who_hid_it_died(
    services: FakeServices, create: Create, after: int, delete: bool
) -> None:
    key = create()
    execution.attend(services, key)
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


def test_lists_do_not_show_builds_of_projects_that_are_private_by_now(
    services: FakeServices, create: Create
) -> None:
    bob = make_user("bob")
    services.accounts.users["bob"] = bob
    builds.bookmark(services, bob, create())
    assert builds.bookmarked(services, bob, "bob", 0, 20).builds

    project = services.projects.get("ada", "vision")
    assert project is not None
    services.projects.save(replace(project, is_public=False))
    assert not builds.bookmarked(services, bob, "bob", 0, 20).builds


def test_builds_of_a_deleted_project_are_in_no_list(services: FakeServices, create: Create) -> None:
    services.accounts.users["ada"] = ADA
    archived, marked = create(), create()
    archive(services, archived)
    builds.bookmark(services, ADA, marked)
    projects.archive(services, ADA, "ada", "vision", delete=True)

    assert not builds.archived(services, ADA, "ada", 0, 20).builds
    assert not builds.bookmarked(services, ADA, "ada", 0, 20).builds


def test_a_deleted_build_cannot_be_restored(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key, delete=True)
    with pytest.raises(NotFound):
        builds.restore(services, ADA, key)


def test_ids_of_purged_builds_are_not_used_again(services: FakeServices, create: Create) -> None:
    key = create()
    archive(services, key, delete=True)
    services.clock.forward(minutes=61)
    assert cleanup(services) == Cleaned(builds=1)
    assert create().id == key.id + 1


def test_a_dry_run_only_says_what_it_would_do(services: FakeServices, create: Create) -> None:
    archive(services, create(), delete=True)
    create()
    projects.archive(services, ADA, "ada", "vision", delete=True)
    services.clock.forward(minutes=61)
    before = services.written()

    assert cleanup(services, dry_run=True) == Cleaned(builds=1)
    assert services.written() == before


def test_a_deleted_project_goes_after_its_builds_have_stopped(services: FakeServices, create: Create) -> None:
    running = create()
    execution.attend(services, running)
    archive(services, create())
    services.queue.take()
    projects.archive(services, ADA, "ada", "vision", delete=True)
    with pytest.raises(NotFound):
        builds.get(services, ADA, running)

    assert cleanup(services).projects == 0
    for key in services.queue.take():
        execution.attend(services, key)
    assert cleanup(services).projects == 0  # its log is being kept, and a deletion settles for an hour
    services.clock.forward(minutes=61)
    tick(services)
    tick(services)
    image = services.records.builds[running].image
    assert services.registry.prepared == {image.rpartition(":")[0], cache_repository(image)}
    cleanup(services)
    assert (services.records.projects, services.records.builds) == ({}, {})
    assert services.registry.prepared == {image.rpartition(":")[0]}, "images stay, layers go"


def test_an_archived_project_hides_its_builds_until_it_is_restored(
    services: FakeServices, create: Create
) -> None:
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
    execution.attend(services, key)
    projects.archive(services, ADA, "ada", "vision")
    services.queue.take()

    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert services.codebuild.stopped == [services.codebuild.run_of(key).handle]


def sweep(services: FakeServices) -> int:
    """Every tick of a day."""
    count = 0
    for _ in range(256):
        count += cleanup(services).uploads
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
        execution.attend(services, key)
    services.clock.now += timedelta(days=8)

    interrupted([getattr(services, name) for name in where], after)
    for _ in range(4):
        services.clock.forward(minutes=61)
        with suppress(Died):
            cleanup(services)

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
        cleanup(services)
        assert services.now() - began_at < timedelta(seconds=240), "the function has no more time"
        ticks += 1
        services.clock.now = max(services.clock.now, began_at + timedelta(minutes=5))

    assert ticks <= 8
    assert services.now() - began_at < timedelta(minutes=30)


def slow(services: FakeServices, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        services.clock.forward(seconds=0.05)
        return call(*arguments)

    return called


def test_what_cannot_be_purged_keeps_no_other_waiting(services: FakeServices, create: Create) -> None:
    stuck, other = create(), create()
    for key in (stuck, other):
        archive(services, key, delete=True)
    services.clock.forward(minutes=61)
    discard = services.sources.discard

    def discard_others(build: Build) -> None:
        if build.key == stuck:
            raise ValueError("a bug")
        discard(build)

    services.sources.discard = discard_others  # type: ignore[method-assign]
    assert cleanup(services) == Cleaned(builds=1)
    assert list(services.records.builds) == [stuck]


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
