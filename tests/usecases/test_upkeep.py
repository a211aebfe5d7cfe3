"""The schedule finds what messages and events lost."""

from __future__ import annotations

from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.errors import Unavailable
from chalicelib.usecases import execution, upkeep
from tests.fakes import FakeServices
from tests.usecases.conftest import Create


def stored(services: FakeServices, key: BuildKey) -> Build:
    build = services.store.get(key)
    assert build is not None
    return build


def test_a_build_whose_message_got_lost_is_started(services: FakeServices, create: Create) -> None:
    services.queue.is_down = False
    key = create()
    services.queue.take()

    assert upkeep.reconcile(services) == 0  # nothing is due yet
    services.clock.forward(minutes=6)
    upkeep.reconcile(services)

    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_build_whose_last_event_got_lost_is_ended(services: FakeServices, create: Create) -> None:
    key = create()
    execution.attend(services, key)
    services.registry.push(stored(services, key).image)
    services.executor.end(services.executor.run_of(key), Outcome.SUCCEEDED)

    services.clock.forward(minutes=6)
    upkeep.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_that_goes_on_is_looked_at_again_later(services: FakeServices, create: Create) -> None:
    key = create()
    execution.attend(services, key)
    services.clock.forward(minutes=6)

    assert upkeep.reconcile(services) == 1
    assert upkeep.reconcile(services) == 0
    services.clock.forward(minutes=6)
    assert upkeep.reconcile(services) == 1
    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_build_its_executor_forgot_has_disappeared(services: FakeServices, create: Create) -> None:
    key = create()
    execution.attend(services, key)
    services.executor.forget(services.executor.run_of(key))
    services.clock.forward(minutes=6)
    upkeep.reconcile(services)

    build = stored(services, key)
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build disappeared from where it was running."


def test_a_build_its_executor_forgot_after_it_pushed_has_succeeded(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.attend(services, key)
    services.registry.push(stored(services, key).image)
    services.executor.forget(services.executor.run_of(key))
    services.clock.forward(minutes=6)
    upkeep.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_past_its_deadline_is_stopped_and_fails_with_the_reason(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.attend(services, key)
    handle = services.executor.run_of(key).handle
    services.clock.forward(minutes=131)
    upkeep.reconcile(services)

    build = stored(services, key)
    assert services.executor.stopped == [handle]
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build did not end within 120 minutes of being started."


def test_a_build_nobody_could_start_fails_with_the_reason(services: FakeServices, create: Create) -> None:
    key = create()
    services.clock.forward(minutes=71)
    upkeep.reconcile(services)

    build = stored(services, key)
    assert services.executor.runs == {}
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build could not be started within 60 minutes."


def test_trouble_with_one_build_does_not_keep_others_waiting(services: FakeServices, create: Create) -> None:
    troubled, other = create(), create()
    services.executor.fail_next.append(Unavailable("CodeBuild did not answer."))
    services.clock.forward(minutes=6)
    upkeep.reconcile(services)

    assert stored(services, troubled).last_status is Status.CREATED
    assert stored(services, other).last_status is Status.SCHEDULED
    services.clock.forward(minutes=6)
    upkeep.reconcile(services)
    assert stored(services, troubled).last_status is Status.SCHEDULED


def test_one_tick_is_bounded_and_the_next_continues(services: FakeServices, create: Create) -> None:
    keys = [create() for _ in range(upkeep.MAX_BUILDS + 1)]
    services.clock.forward(minutes=6)

    assert upkeep.reconcile(services) == upkeep.MAX_BUILDS
    assert upkeep.reconcile(services) == 1
    assert {stored(services, key).last_status for key in keys} == {Status.SCHEDULED}
