"""The schedule finds what messages and events lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from chalicelib.domain.build import CODEBUILD, BuildKey, Status
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.errors import Unavailable
from chalicelib.usecases import builds, execution, projects, schedule
from tests.factories import make_user
from tests.fakes import Died, FakeServices
from tests.usecases.conftest import Create, end_with_an_image, stored


def test_a_build_whose_message_got_lost_is_started(services: FakeServices, create: Create) -> None:
    key = create()
    services.queue.take()

    assert schedule.reconcile(services) == 0  # nothing is due yet
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_build_whose_last_event_got_lost_is_ended(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    end_with_an_image(services, key)

    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_that_goes_on_is_looked_at_again_later(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    services.clock.forward(minutes=6)

    assert schedule.reconcile(services) == 1
    assert schedule.reconcile(services) == 0
    services.clock.forward(minutes=6)
    assert schedule.reconcile(services) == 1
    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_change_beside_what_a_tick_records_is_kept(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    end_with_an_image(services, key)
    services.clock.forward(minutes=6)

    def describe() -> None:
        builds.update(services, make_user(), key, {"description": "mine"})

    services.records.before_write += [lambda: None, describe]  # the first write is the lease
    schedule.reconcile(services)

    build = stored(services, key)
    assert (build.last_status, build.description) == (Status.SUCCEEDED, "mine")


def test_a_build_its_executor_forgot_has_disappeared(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    services.codebuild.forget(services.codebuild.run_of(key))
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    build = stored(services, key)
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build disappeared from where it was running."


def test_a_build_its_executor_forgot_after_it_pushed_has_succeeded(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    services.push(stored(services, key))
    services.codebuild.forget(services.codebuild.run_of(key))
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_past_its_deadline_is_stopped_and_fails_with_the_reason(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    key = create()
    execution.process(services, key)
    handle = services.codebuild.run_of(key).handle
    services.codebuild.find_handle = lambda _: pytest.fail("it is known")  # type: ignore[assignment, method-assign]
    services.clock.forward(minutes=131)
    schedule.reconcile(services)

    build = stored(services, key)
    assert services.codebuild.stopped == [handle]
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build did not end within 120 minutes of being started."
    (record,) = [each for each in caplog.records if "given up" in each.message]
    assert record.message == f"Build {key} was given up: {build.history[-1].message}"
    assert (vars(record)["build"], vars(record)["measures"]) == (str(key), {"GivenUp": 1})


def test_a_message_about_a_build_that_takes_too_long_leaves_its_end_to_the_schedule(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    services.clock.forward(minutes=131)
    execution.process(services, key)
    assert (stored(services, key).last_status, services.codebuild.stopped) == (Status.SCHEDULED, [])

    schedule.reconcile(services)
    assert stored(services, key).last_status is Status.FAILED


def test_a_build_nobody_could_start_fails_with_the_reason(services: FakeServices, create: Create) -> None:
    key = create()
    services.registry.is_down = True  # it is not asked: nothing was started that could have made an image
    services.clock.forward(minutes=71)
    schedule.reconcile(services)

    build = stored(services, key)
    assert services.codebuild.runs == {}
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "The build could not be started within 60 minutes."


def test_a_build_whose_start_came_to_nothing_fails_with_the_reason(services: FakeServices, create: Create) -> None:
    key = create()
    services.codebuild.fail_next.append(Died())
    with pytest.raises(Died):
        execution.process(services, key)
    services.clock.forward(minutes=75)
    schedule.reconcile(services)

    assert stored(services, key).history[-1].message == "The build could not be started within 60 minutes."


def test_trouble_with_one_build_does_not_keep_others_waiting(services: FakeServices, create: Create) -> None:
    troubled, other = create(), create()
    services.codebuild.fail_next.append(Unavailable("CodeBuild did not answer."))
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert stored(services, troubled).last_status is Status.CREATED
    assert stored(services, other).last_status is Status.SCHEDULED
    services.clock.forward(minutes=6)
    schedule.reconcile(services)
    assert stored(services, troubled).last_status is Status.SCHEDULED


def test_one_tick_is_bounded_and_the_next_continues(services: FakeServices, create: Create) -> None:
    keys = [create() for _ in range(schedule.MAX_BUILDS + 1)]
    services.clock.forward(minutes=6)

    assert schedule.reconcile(services) == schedule.MAX_BUILDS
    assert schedule.reconcile(services) == 1
    assert {stored(services, key).last_status for key in keys} == {Status.SCHEDULED}


def test_a_log_is_not_asked_for_before_its_last_lines_can_have_arrived(services: FakeServices, create: Create) -> None:
    """The tick comes directly after the event of the end."""
    key = create()
    execution.process(services, key)
    services.clock.forward(minutes=5)
    end_with_an_image(services, key)
    execution.process(services, key)

    assert schedule.reconcile(services) == 1

    assert services.log_queue.take() == []
    assert services.log_queue.later == [key, key]


def test_a_log_that_is_to_be_kept_has_a_quarter_of_an_hour_before_it_is_asked_for_again(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    end_with_an_image(services, key)
    execution.process(services, key)
    services.clock.forward(minutes=6)
    services.codebuild.observe = lambda *_: pytest.fail("it has ended")  # type: ignore[method-assign]

    assert schedule.reconcile(services) == 1
    assert services.log_queue.take() == [key]
    assert stored(services, key).check_at == services.now() + timedelta(minutes=15)


def test_a_build_of_a_hidden_project_that_cannot_be_stopped_ends_at_its_deadline(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    projects.archive(services, make_user(), "ada", "vision")
    services.codebuild.is_down = True
    for _ in range(2):
        services.clock.forward(minutes=100)
        schedule.reconcile(services)

    assert stored(services, key).last_status is Status.STOPPED


def test_a_tick_logs_and_measures_how_many_builds_it_looked_at(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "chalicelib.usecases.schedule")
    for key in (create(), create()):
        execution.process(services, key)
    services.clock.forward(minutes=6)
    schedule.tick(services, lambda _: pytest.fail("events tell of these builds"))

    (record,) = caplog.records
    assert record.message == "Checked 2 builds."
    assert vars(record)["measures"] == {"Reconciled": 2}


# A tick that ends half way


class OutOfMemory(BaseException):
    """Lambda ends the function: nothing in it can catch that."""


@pytest.mark.parametrize("state", ["not started", "running", "stopping", "ended"])
def test_a_build_that_ends_every_tick_keeps_no_other_waiting(
    services: FakeServices, create: Create, state: str
) -> None:
    deadly, other = create(), create()
    if state != "not started":
        execution.process(services, deadly)
    if state == "stopping":
        builds.stop(services, make_user(), deadly)
    if state == "ended":
        services.codebuild.end(services.codebuild.run_of(deadly), Outcome.FAILED, "no", has_own_reason=True)
        execution.observe(services, CODEBUILD, [services.codebuild.run_of(deadly).handle])
    services.queue.take()
    dies_for(services, deadly)

    deaths = 0
    for _ in range(5):
        services.clock.forward(minutes=6)
        try:
            schedule.reconcile(services)
        except OutOfMemory:
            deaths += 1

    assert deaths > 0
    assert stored(services, other).last_status is Status.SCHEDULED


def dies_for(services: FakeServices, deadly: BuildKey) -> None:
    """Whatever is done for this build ends the function, except for its lease."""
    build = stored(services, deadly)
    words = (build.uuid, str(deadly), repr(deadly), build.handle or build.uuid)

    def deadly_for(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            about = repr((args, more))
            if any(word in about for word in words):
                raise OutOfMemory
            return call(*args, **more)

        return called

    for port, names in {
        services.builds: ("get", "save", "body"),
        services.codebuild: ("submit", "find_handle", "observe", "stop"),
        services.log_queue: ("announce",),
        services.logs: ("read", "tail"),
    }.items():
        for name in names:
            setattr(port, name, deadly_for(getattr(port, name)))


@pytest.mark.parametrize("trouble", [Unavailable("no"), ValueError("a bug"), MemoryError()], ids=repr)
def test_any_exception_of_one_build_stays_with_it(services: FakeServices, create: Create, trouble: Exception) -> None:
    troubled, other = create(), create()
    services.codebuild.fail_next.append(trouble)
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert stored(services, troubled).last_status is Status.CREATED
    assert stored(services, other).last_status is Status.SCHEDULED


@pytest.mark.parametrize("others", [1, 2])
def test_one_answer_that_cannot_be_understood_keeps_no_other_build_waiting(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    keys = [create() for _ in range(1 + others)]
    for key in keys:
        execution.process(services, key)
    odd = services.codebuild.run_of(keys[1])
    odd.observation = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    for key in (keys[0], *keys[2:]):
        services.codebuild.end(services.codebuild.run_of(key), Outcome.FAILED, "no", has_own_reason=True)
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    found = [stored(services, key).last_status for key in keys]
    assert found == ["failed", "scheduled", "failed"][: 1 + others]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"build {keys[1]} could not be handled: division by zero"
    ]


def test_builds_that_cannot_be_handled_do_not_stay_at_the_head(services: FakeServices, create: Create) -> None:
    """More of them than one tick looks at, and a build behind them."""
    for _ in range(schedule.MAX_BUILDS):
        create()
    services.clock.forward(seconds=1)
    last = create()
    services.codebuild.fail_next.extend([Unavailable("no")] * schedule.MAX_BUILDS)
    services.clock.forward(minutes=6)

    schedule.reconcile(services)
    schedule.reconcile(services)

    assert stored(services, last).last_status is Status.SCHEDULED


def test_a_build_past_its_deadline_is_asked_about_once_more(services: FakeServices, create: Create) -> None:
    """Its last event and all ticks were lost, as on a machine that slept."""
    key = create()
    execution.process(services, key)
    end_with_an_image(services, key)
    services.clock.forward(minutes=300)

    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_past_its_deadline_whose_end_is_found_was_not_given_up(services: FakeServices, create: Create) -> None:
    """The executor does not answer the first question about all builds."""
    key = create()
    execution.process(services, key)
    services.codebuild.end(services.codebuild.run_of(key), Outcome.FAILED, "no disk", has_own_reason=True)
    services.clock.forward(minutes=300)
    observe, questions = services.codebuild.observe, list[object]()

    def answers_later(handles: Sequence[str]) -> Mapping[str, Observation]:
        questions.append(handles)
        if len(questions) == 1:
            raise Unavailable("The executor did not answer.")
        return observe(handles)

    services.codebuild.observe = answers_later  # type: ignore[method-assign]
    schedule.reconcile(services)

    assert stored(services, key).history[-1].message == "no disk"
    assert (len(questions), services.codebuild.stopped) == (2, [])


def test_an_end_that_a_tick_finds_past_the_deadline_needs_no_second_question(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    services.codebuild.end(services.codebuild.run_of(key), Outcome.FAILED, "no disk", has_own_reason=True)
    services.clock.forward(minutes=300)
    calls: list[str] = []
    services.codebuild.observe = counted(calls, "observe", services.codebuild.observe)  # type: ignore[method-assign]
    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.FAILED
    assert calls == ["observe"]


def test_a_build_whose_start_was_never_noted_is_searched_before_it_is_given_up(
    services: FakeServices, create: Create
) -> None:
    key = create()
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    end_with_an_image(services, key)
    services.clock.forward(minutes=300)

    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED
    assert len(services.codebuild.runs) == 1


def test_a_quiet_tick_costs_one_lease_a_build(services: FakeServices, create: Create) -> None:
    for key in [create() for _ in range(schedule.MAX_BUILDS)]:
        execution.process(services, key)
    services.clock.forward(minutes=6)
    calls: list[str] = []
    for port, names in {
        services.builds: ("get", "save", "due", "lease", "body", "open"),
        services.projects: ("get", "save"),
    }.items():
        for name in names:
            setattr(port, name, counted(calls, name, getattr(port, name)))

    schedule.reconcile(services)

    assert len(calls) == 1 + schedule.MAX_BUILDS + 1  # due, the leases, and the one project


def counted(calls: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **more: Any) -> Any:
        calls.append(name)
        return call(*args, **more)

    return called
