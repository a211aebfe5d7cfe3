"""A handler may end between any two calls to the outside; the next ring, soon or late, completes its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.domain.build import CODEBUILD, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.usecases import builds, execution, schedule
from tests.factories import DIGEST, make_user
from tests.fakes import RECORDS, Died, FakeServices
from tests.usecases.conftest import Create

MORE_THAN_ANY_HANDLER_MAKES = 40
soon_or_late = pytest.mark.parametrize("later_seconds", [1, 3_600], ids=["soon", "late"])


class FailsAfter:
    """A port, or anything else, that is called through a countdown to death."""

    def __init__(self, port: Any, count: Callable[[], None]) -> None:
        self._port, self._count = port, count

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if not callable(found):
            return found

        def call(*args: Any, **more: Any) -> Any:
            self._count()
            return found(*args, **more)

        return call


def dying(services: FakeServices, calls: int) -> Any:
    """The services, for a handler that ends after so many calls: everything before has really happened."""
    left = [calls]

    def count() -> None:
        if left[0] == 0:
            raise Died
        left[0] -= 1

    failing = FailsAfter(services, lambda: None)
    for name in (*RECORDS, "queue", "sources", "registry", "logs", "log_archive"):
        vars(failing)[name] = FailsAfter(getattr(services, name), count)
    vars(failing)["executor"] = lambda name: FailsAfter(services.executor(name), count)
    return failing


def ends_at_every_call(story: Callable[[int], bool]) -> None:
    """Tells the story with a death after 0, 1, 2, … calls, until nobody dies in it any more."""
    for calls in range(MORE_THAN_ANY_HANDLER_MAKES):
        if not story(calls):
            assert calls > 1
            return
    raise AssertionError("the handler never came to its end")


def dies(handle: Callable[[], object]) -> bool:
    try:
        handle()
    except Died:
        return True
    return False


def finish(services: FakeServices, key: BuildKey) -> None:
    """The executor ends what it was given, and its last event arrives."""
    run = services.codebuild.run_of(key)
    services.push(services.records.builds[key])
    services.codebuild.end(run, Outcome.SUCCEEDED)
    execution.observe(services, CODEBUILD, [run.handle])


@soon_or_late
def test_a_start_that_is_cut_off_anywhere_becomes_one_build(
    services: FakeServices, create: Create, later_seconds: int
) -> None:
    def story(calls: int) -> bool:
        key = create()
        died = dies(lambda: execution.process(dying(services, calls), key))
        services.clock.forward(seconds=later_seconds)
        execution.process(services, key)

        assert [run.build.key for run in services.codebuild.runs.values()].count(key) == 1
        finish(services, key)
        build = services.records.builds[key]
        assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)
        return died

    ends_at_every_call(story)


def test_a_record_that_is_cut_off_anywhere_is_completed_by_the_same_event(
    services: FakeServices, create: Create
) -> None:
    def story(calls: int) -> bool:
        key = create()
        execution.process(services, key)
        run = services.codebuild.run_of(key)
        services.push(services.records.builds[key])
        services.codebuild.end(run, Outcome.SUCCEEDED)
        died = dies(lambda: execution.observe(dying(services, calls), CODEBUILD, [run.handle]))
        execution.observe(services, CODEBUILD, [run.handle])

        assert [str(entry.status) for entry in services.records.builds[key].history].count("succeeded") == 1
        return died

    ends_at_every_call(story)


def test_a_second_attempt_whose_announcement_got_lost_is_started_by_the_schedule(
    services: FakeServices, create: Create
) -> None:
    def story(calls: int) -> bool:
        key = create()
        execution.process(services, key)
        run = services.codebuild.run_of(key)
        services.codebuild.end(run, Outcome.FAULT)
        died = dies(lambda: execution.observe(dying(services, calls), CODEBUILD, [run.handle]))
        for _ in range(2):  # one looks at the first attempt, if that was not recorded; one starts the second
            services.clock.forward(minutes=6)
            schedule.reconcile(services)

        finish(services, key)
        assert services.records.builds[key].last_status is Status.SUCCEEDED
        assert services.records.builds[key].attempt == 2
        return died

    ends_at_every_call(story)


@pytest.mark.parametrize("delete", [False, True], ids=["stop", "delete"])
def test_a_stop_that_is_cut_off_anywhere_reaches_the_build_once_it_is_recorded(
    services: FakeServices, create: Create, delete: bool
) -> None:
    def story(calls: int) -> bool:
        key = create()
        execution.process(services, key)
        failing = dying(services, calls)
        died = dies(
            lambda: (
                builds.archive(failing, make_user(), key, delete=True)
                if delete
                else builds.stop(failing, make_user(), key)
            )
        )
        is_recorded = services.records.builds[key].stop_requested_at is not None
        services.clock.forward(minutes=6)
        schedule.reconcile(services)

        is_stopped = services.codebuild.run_of(key).outcome is Outcome.STOPPED
        assert is_stopped is is_recorded
        assert is_recorded or died
        assert (services.records.builds[key].last_status is Status.STOPPED) is is_recorded
        return died

    ends_at_every_call(story)


@soon_or_late
def test_a_handler_that_stops_a_build_may_end_anywhere(
    services: FakeServices, create: Create, later_seconds: int
) -> None:
    def story(calls: int) -> bool:
        key = create()
        execution.process(services, key)
        builds.stop(services, make_user(), key)
        died = dies(lambda: execution.process(dying(services, calls), key))
        services.clock.forward(seconds=later_seconds)
        execution.process(services, key)

        assert services.codebuild.run_of(key).outcome is Outcome.STOPPED
        assert services.records.builds[key].last_status is Status.STOPPED
        return died

    ends_at_every_call(story)


def test_a_change_that_is_cut_off_anywhere_is_written_whole_or_not_at_all(
    services: FakeServices, create: Create
) -> None:
    def story(calls: int) -> bool:
        key = create()
        before = services.builds.open(key, "ada")
        fields = {"name": f"n{calls}", "description": "mine", "tags": ["a"], "dockerfile": "FROM x\n"}
        died = dies(lambda: builds.update(dying(services, calls), make_user(), key, fields))

        after = services.builds.open(key, "ada")
        assert after is not None
        shown = (after.build.name, after.build.description, after.build.tags, after.body.reported_dockerfile)
        assert after == before if died else shown == (f"n{calls}", "mine", ("a",), "FROM x\n")
        return died

    ends_at_every_call(story)


def test_a_creation_that_is_cut_off_leaves_a_build_that_starts_or_nothing(
    services: FakeServices, create: Create
) -> None:
    config = services.records.bodies[create()].config

    def story(calls: int) -> bool:
        before = set(services.records.builds)
        died = dies(
            lambda: builds.create(
                dying(services, calls), make_user(), "ada", "vision", {"config": config}, once=f"key {calls}"
            )
        )
        builds.create(services, make_user(), "ada", "vision", {"config": config}, once=f"key {calls}")
        (key,) = set(services.records.builds) - before

        assert key in services.queue.take()
        return died

    ends_at_every_call(story)
