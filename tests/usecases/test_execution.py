"""From a recorded build to a running one and back, whatever is lost, repeated, late or ended half way."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from chalicelib.adapters.codebuild import CodeBuildExecutor
from chalicelib.adapters.eks.executor import EksExecutor
from chalicelib.domain import lifecycle
from chalicelib.domain.build import CODEBUILD, Build, BuildBody, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.ports import Executor
from chalicelib.usecases import builds, execution, schedule
from tests.factories import DIGEST, make_project, make_user
from tests.fakes import Died, FakeServices, Run
from tests.usecases.conftest import Create, end_with_an_image, stored

RUNNING = (Status.SCHEDULED, Status.BUILDING, Status.RUNNING)


def statuses(services: FakeServices, key: BuildKey) -> list[str]:
    return [str(entry.status) for entry in stored(services, key).history]


def run_to_the_end(services: FakeServices, key: BuildKey) -> None:
    """What CodeBuild does with a submitted build, and its last event."""
    run = services.codebuild.run_of(key)
    services.codebuild.enter(run, *RUNNING)
    end_with_an_image(services, key)
    execution.observe(services, CODEBUILD, [run.handle])


def started(services: FakeServices, create: Create) -> tuple[BuildKey, Run]:
    """A build that runs on CodeBuild, and its run."""
    key = create()
    execution.process(services, key)
    return key, services.codebuild.run_of(key)


def end(services: FakeServices, run: Run, outcome: Outcome) -> None:
    """CodeBuild ends a run, and its event comes."""
    services.codebuild.end(run, outcome)
    execution.observe(services, CODEBUILD, [run.handle])


def test_a_build_goes_all_the_way(services: FakeServices, create: Create) -> None:
    key = create()
    assert services.queue.take() == [key]

    execution.process(services, key)
    assert stored(services, key).handle == services.codebuild.run_of(key).handle
    services.codebuild.enter(services.codebuild.run_of(key), Status.SCHEDULED)
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(key).handle])
    run_to_the_end(services, key)

    build = stored(services, key)
    assert statuses(services, key) == ["created", "scheduled", "building", "running", "succeeded"]
    assert build.image_digest == DIGEST
    assert build.check_at is not None  # its log has to be kept
    assert services.queue.take() + services.queue.later == [], "nobody needs to hear of it again"


def test_a_message_delivered_twice_starts_one_build(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    execution.process(services, key)

    assert len(services.codebuild.runs) == 1
    assert stored(services, key).attempt == 1


def test_two_handlers_at_once_start_one_build(services: FakeServices, create: Create) -> None:
    key = create()
    services.records.before_write.append(lambda: execution.process(services, key))

    execution.process(services, key)

    assert len(services.codebuild.runs) == 1
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


@pytest.mark.parametrize("later_seconds", [1, 149, 151, 3_600], ids=str)
def test_a_handler_that_dies_after_the_start_leaves_one_build(
    services: FakeServices, create: Create, later_seconds: int
) -> None:
    """Within the life of the idempotency token the start is repeated, later the build is searched for."""
    key = create()
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    assert stored(services, key).handle is None

    services.clock.forward(seconds=later_seconds)
    execution.process(services, key)

    assert len(services.codebuild.runs) == 1
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


@pytest.mark.parametrize("later_seconds", [1, 150, 3_600], ids=str)
def test_a_handler_that_dies_before_the_start_is_continued(
    services: FakeServices, create: Create, later_seconds: int
) -> None:
    key = create()
    services.codebuild.fail_next.append(Died())
    with pytest.raises(Died):
        execution.process(services, key)

    services.clock.forward(seconds=later_seconds)
    execution.process(services, key)

    assert len(services.codebuild.runs) == 1
    # Only a new claim, a conditional write, keeps two late handlers apart.
    build = stored(services, key)
    claimed_again = later_seconds >= services.codebuild.replay_seconds
    assert build.attempt == (2 if claimed_again else 1)
    assert build.submitting_at == (services.now() if claimed_again else build.created_at)
    run_to_the_end(services, key)
    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_that_runs_elsewhere_is_never_started(services: FakeServices, create: Create) -> None:
    key = create(is_managed=False)
    execution.process(services, key)
    assert services.codebuild.runs == {}
    assert stored(services, key).attempt == 0


def test_a_build_whose_project_is_gone_is_stopped_and_never_started(services: FakeServices, create: Create) -> None:
    key = create()
    services.archive.purge(services.records.projects["ada", "vision"])
    execution.process(services, key)
    assert services.codebuild.runs == {}
    assert stored(services, key).last_status is Status.STOPPED


def test_an_event_that_overtakes_the_handle_brings_it_along(services: FakeServices, create: Create) -> None:
    key = create()

    def event() -> None:
        run = services.codebuild.run_of(key)
        services.codebuild.enter(run, *RUNNING)
        execution.observe(services, CODEBUILD, [run.handle])

    services.codebuild.after_start = event
    execution.process(services, key)

    assert statuses(services, key) == ["created", "scheduled", "building", "running"]
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


def test_an_end_that_overtakes_the_handle_leaves_nothing_to_ask(services: FakeServices, create: Create) -> None:
    key = create()

    def end() -> None:
        end_with_an_image(services, key)
        execution.observe(services, CODEBUILD, [services.codebuild.run_of(key).handle])
        services.codebuild.is_down = True

    services.codebuild.after_start = end
    execution.process(services, key)
    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_build_that_was_started_is_not_started_again_though_its_executor_has_forgotten_it(
    services: FakeServices, create: Create
) -> None:
    key = create()
    execution.process(services, key)
    services.codebuild.forget(services.codebuild.run_of(key))
    services.clock.forward(seconds=services.codebuild.forgets_after_seconds)
    execution.process(services, key)

    assert services.codebuild.runs == {}
    assert stored(services, key).attempt == 1


def test_a_busy_executor_makes_the_build_wait_and_not_fail(services: FakeServices, create: Create) -> None:
    key = create()
    services.codebuild.fail_next.append(Busy("CodeBuild asks us to wait."))
    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.submitting_at, build.handle) == (Status.CREATED, None, None)
    assert (build.is_waiting, build.waiting_reason) == (True, "CodeBuild asks us to wait.")

    execution.process(services, key)
    assert len(services.codebuild.runs) == 1


def test_a_repeat_that_is_not_heard_of_either_is_followed_by_another_soon(
    services: FakeServices, create: Create
) -> None:
    key = started_unheard(services, create)
    services.clock.forward(seconds=10)
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    assert stored(services, key).check_at == services.now() + timedelta(seconds=30)


@pytest.mark.parametrize("answer", [Busy("wait"), ExecutorRefused("mismatch")], ids=repr)
def test_what_is_answered_to_a_start_that_was_claimed_anew_counts(
    services: FakeServices, create: Create, answer: Exception
) -> None:
    key = create()
    services.codebuild.fail_next += [Died(), answer]
    with pytest.raises(Died):
        execution.process(services, key)
    services.clock.forward(seconds=services.codebuild.replay_seconds)
    execution.process(services, key)

    build = stored(services, key)
    if isinstance(answer, Busy):
        assert (build.is_waiting, build.waiting_reason) == (True, "wait")
    else:
        assert (build.last_status, build.history[-1].message) == (Status.FAILED, "mismatch")


def test_a_refused_repeat_notes_what_the_first_start_made(services: FakeServices, create: Create) -> None:
    key = started_unheard(services, create)
    services.codebuild.fail_next.append(ExecutorRefused("mismatch"))
    execution.process(services, key)
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


# Another handler repeats a start whose answer it does not know


def started_unheard(services: FakeServices, create: Create) -> BuildKey:
    """The executor has started the build; the handler that asked for it died before it could note that."""
    key = create()
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    return key


@pytest.mark.parametrize("is_gone", [False, True])
def test_an_attempt_that_has_its_code_is_not_started_again(
    services: FakeServices, create: Create, is_gone: bool
) -> None:
    """The next attempt is, if nothing is left of this one: as when somebody has deleted its Job."""
    key = started_unheard(services, create)
    services.records.save(replace(stored(services, key), fetched_attempt=1))
    if is_gone:
        services.codebuild.runs.clear()

    services.clock.forward(seconds=10)
    execution.process(services, key)
    assert (stored(services, key).attempt, len(services.codebuild.runs)) == (1, 0 if is_gone else 1)
    services.clock.forward(seconds=150)
    execution.process(services, key)
    assert (stored(services, key).attempt, len(services.codebuild.runs)) == (2 if is_gone else 1, 1)
    run_to_the_end(services, key)
    assert stored(services, key).last_status is Status.SUCCEEDED


@pytest.mark.parametrize("answer", [Busy("wait"), ExecutorRefused("mismatch"), Unavailable("no")], ids=repr)
def test_what_is_answered_to_a_repeated_start_does_not_give_the_claim_away(
    services: FakeServices, create: Create, answer: Exception
) -> None:
    key = started_unheard(services, create)
    services.clock.forward(seconds=10)
    services.codebuild.fail_next.append(answer)
    with suppress(Unavailable):
        execution.process(services, key)

    for _ in range(3):  # later handlers, some of them after the executor forgot the attempt
        services.clock.forward(seconds=150)
        execution.process(services, key)
    run_to_the_end(services, key)

    assert len(services.codebuild.runs) == 1
    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_first_start_that_is_told_to_wait_gives_no_claim_away_that_another_repeats(
    services: FakeServices, create: Create
) -> None:
    """Two messages side by side: the second handler starts the claimed attempt, the first is told to wait."""
    key = create()

    def another_starts_it() -> None:
        services.codebuild.fail_next.clear()
        execution.process(services, key)
        services.codebuild.fail_next.append(Busy("wait"))

    submit = services.codebuild.submit

    def slow_submit(build: Build) -> str:
        services.codebuild.submit = submit  # type: ignore[method-assign]
        another_starts_it()
        return submit(build)

    services.codebuild.submit = slow_submit  # type: ignore[method-assign]
    execution.process(services, key)

    run_to_the_end(services, key)
    assert len(services.codebuild.runs) == 1
    assert stored(services, key).last_status is Status.SUCCEEDED


@pytest.mark.parametrize("answer", [Busy("wait"), ExecutorRefused("mismatch")], ids=repr)
def test_a_first_start_that_is_refused_gives_no_claim_away_whose_repeat_was_not_heard_of(
    services: FakeServices, create: Create, answer: Exception
) -> None:
    """The second handler dies after it started the claimed attempt, before it could note that."""
    key = create()
    submit = services.codebuild.submit

    def slow_submit(build: Build) -> str:
        services.codebuild.submit = submit  # type: ignore[method-assign]
        services.codebuild.dies_after_start = True
        with suppress(Died):
            execution.process(services, key)
        services.codebuild.fail_next.append(answer)
        return submit(build)

    services.codebuild.submit = slow_submit  # type: ignore[method-assign]
    execution.process(services, key)

    services.clock.forward(seconds=services.codebuild.forgets_after_seconds)
    execution.process(services, key)
    assert len(services.codebuild.runs) == 1
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


@pytest.mark.parametrize("answer", [Busy("wait"), ExecutorRefused("mismatch")], ids=repr)
def test_a_build_whose_repeated_start_was_refused_is_looked_at_again_soon(
    services: FakeServices, create: Create, answer: Exception
) -> None:
    key = started_unheard(services, create)
    services.codebuild.forget(services.codebuild.run_of(key))
    claimed_at = services.now()
    services.clock.forward(seconds=10)
    services.codebuild.fail_next.append(answer)
    execution.process(services, key)

    build = stored(services, key)
    assert (build.submitting_at, build.attempt, build.is_waiting) == (claimed_at, 1, False)
    replay = timedelta(seconds=services.codebuild.replay_seconds)
    soon = services.now() + timedelta(seconds=30)
    assert build.check_at == (soon if isinstance(answer, Busy) else claimed_at + replay)


def test_a_build_is_not_given_up_while_its_start_is_under_way(services: FakeServices, create: Create) -> None:
    """It was claimed in its last minute, and the executor takes two to answer."""
    key = create()
    submit = services.codebuild.submit

    def slow_submit(build: Build) -> str:
        services.clock.forward(minutes=2)
        schedule.reconcile(services)
        return submit(build)

    services.codebuild.submit = slow_submit  # type: ignore[method-assign]
    services.clock.forward(minutes=69)
    execution.process(services, key)

    assert stored(services, key).last_status is Status.SCHEDULED
    assert services.codebuild.stopped == []


def test_a_build_whose_start_may_be_repeated_is_given_up_when_that_is_over(
    services: FakeServices, create: Create
) -> None:
    key = create()
    services.clock.forward(minutes=69)
    claimed_at = services.now()
    services.codebuild.fail_next.append(Died())
    with pytest.raises(Died):
        execution.process(services, key)
    services.clock.forward(minutes=2)
    schedule.reconcile(services)
    over = claimed_at + timedelta(seconds=services.codebuild.replay_seconds)
    assert (stored(services, key).last_status, stored(services, key).check_at) == (Status.CREATED, over)

    services.clock.now = over
    schedule.reconcile(services)
    assert stored(services, key).last_status is Status.FAILED


def test_a_build_whose_start_was_never_noted_and_that_goes_on_is_not_given_up(
    services: FakeServices, create: Create
) -> None:
    key = started_unheard(services, create)
    services.clock.forward(minutes=75)
    schedule.reconcile(services)

    build = stored(services, key)
    assert (build.last_status, build.handle) == (Status.SCHEDULED, services.codebuild.run_of(key).handle)
    look_again = timedelta(seconds=services.settings.look_again_seconds)
    assert build.check_at == services.now() + look_again


@pytest.mark.parametrize("answer", [Busy("wait"), ExecutorRefused("mismatch")], ids=repr)
def test_a_build_whose_repeated_start_was_refused_can_be_stopped(
    services: FakeServices, create: Create, answer: Exception
) -> None:
    key = started_unheard(services, create)
    services.codebuild.fail_next.append(answer)
    execution.process(services, key)

    stop(services, key)
    execution.process(services, key)

    assert services.codebuild.run_of(key).outcome is Outcome.STOPPED
    assert stored(services, key).last_status is Status.STOPPED


@pytest.mark.parametrize(("seconds", "words"), [(2, "in time"), (21, "took long")])
def test_the_age_of_a_claim_is_checked_directly_before_the_start(
    services: FakeServices, create: Create, seconds: int, words: str
) -> None:
    key = started_unheard(services, create)
    services.clock.forward(seconds=services.codebuild.replay_seconds - 1)
    save = services.builds.save

    def slow_save(build: Build, body: BuildBody | None = None) -> Build:
        saved = save(build, body)
        services.clock.forward(seconds=seconds)
        return saved

    services.builds.save = slow_save  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match=words):
        execution.process(services, key)
    services.builds.save = save  # type: ignore[method-assign]
    execution.process(services, key)

    assert len(services.codebuild.runs) == 1
    assert stored(services, key).handle == services.codebuild.run_of(key).handle


def test_between_a_claim_and_its_start_nothing_else_is_asked(services: FakeServices, create: Create) -> None:
    """While it is, another handler may find the image of an earlier attempt and end the build."""
    key, run = started(services, create)
    end(services, run, Outcome.FAULT)
    services.push(stored(services, key))
    services.registry.images.clear()
    asked: list[str] = []
    services.registry.find = lambda image: asked.append("find")  # type: ignore[method-assign]
    services.registry.prepare = lambda image: asked.append("prepare")  # type: ignore[method-assign]
    save = services.builds.save

    def noted_save(build: Build, body: BuildBody | None = None) -> Build:
        asked.append("save")
        return save(build, body)

    services.builds.save = noted_save  # type: ignore[method-assign]
    services.codebuild.after_start = lambda: asked.append("start")

    execution.process(services, key)

    assert asked[:4] == ["find", "prepare", "save", "start"]


@pytest.mark.parametrize("executor", [CodeBuildExecutor, EksExecutor])
def test_a_repeated_start_ends_before_the_executor_forgets_the_attempt(executor: type[Executor]) -> None:
    """CodeBuild keeps an idempotency token for five minutes."""
    config = json.loads(Path(".chalice/config.json").read_text())
    functions = config["stages"]["aws"]["lambda_functions"]
    longest = max(functions[name]["lambda_timeout"] for name in ("dispatch", "reconcile", "on_codebuild_event"))
    assert executor.replay_seconds + longest < 300


def test_what_the_executor_refuses_fails_with_its_words(services: FakeServices, create: Create) -> None:
    key = create()
    services.codebuild.fail_next.append(ExecutorRefused("CodeBuild refused the build: no such project"))
    execution.process(services, key)

    build = stored(services, key)
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == "CodeBuild refused the build: no such project"


def test_no_success_without_an_image(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    end(services, run, Outcome.SUCCEEDED)

    build = stored(services, key)
    assert (build.last_status, build.image_digest) == (Status.FAILED, None)


def test_while_the_registry_is_down_nothing_is_decided(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    end_with_an_image(services, key)
    services.registry.is_down = True
    with pytest.raises(Unavailable):
        execution.observe(services, CODEBUILD, [run.handle])
    assert stored(services, key).last_status is Status.SCHEDULED

    services.registry.is_down = False
    execution.observe(services, CODEBUILD, [run.handle])
    assert stored(services, key).last_status is Status.SUCCEEDED


STEP_FAILED = 'ERROR: process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1'


def failed(services: FakeServices, create: Create, *lines: str, with_end: bool = False) -> tuple[BuildKey, Run]:
    """A build that CodeBuild has ended, and the log that has arrived by then."""
    key, run = started(services, create)
    end = [f"slipway-end {stored(services, key).nonce}"] if with_end else []
    services.logs.write(f"logs:{run.handle}", *lines, *end)
    services.codebuild.end(run, Outcome.FAILED, "BUILD: exit status 1", has_own_reason=False)
    services.queue.take()
    execution.observe(services, CODEBUILD, [run.handle])
    return key, run


@pytest.mark.parametrize("end", ["", "[Container] 2024/03/01 12:01:07.485 Phase complete: PRE_BUILD State: FAILED"])
def test_a_failure_is_explained_from_the_log(services: FakeServices, create: Create, end: str) -> None:
    key, _ = failed(services, create, STEP_FAILED, *([end] if end else []), with_end=not end)

    assert stored(services, key).history[-1].message == "Exit code 1: pip install nope"
    assert stored(services, key).last_status is Status.FAILED


def test_a_failure_waits_for_the_last_lines_and_all_else_is_fixed_at_once(
    services: FakeServices, create: Create
) -> None:
    waiting = create()
    services.codebuild.slots = 0
    execution.process(services, waiting)
    services.codebuild.slots = 1
    key, run = failed(services, create, "#7 0.1 installing")
    ended_at = services.now()

    build = stored(services, key)
    assert (build.finished_at, build.is_done) == (ended_at, False)
    assert waiting in services.queue.take()  # its slot is free
    services.clock.forward(seconds=15)
    services.logs.write(f"logs:{run.handle}", STEP_FAILED, f"slipway-end {build.nonce}")
    services.codebuild.forget(run)
    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.history[-1].message) == (Status.FAILED, "Exit code 1: pip install nope")
    assert (build.finished_at, build.history[-1].created_at) == (ended_at, ended_at)
    services.logs.write(f"logs:{run.handle}", "ERROR: too late")
    execution.process(services, key)
    assert stored(services, key) == build


@pytest.mark.parametrize("by", ["message", "schedule"])
@pytest.mark.parametrize("trouble", ["silent", "down"])
def test_a_log_without_its_end_is_waited_for_one_minute(
    services: FakeServices, create: Create, by: str, trouble: str
) -> None:
    services.logs.is_down = trouble == "down"
    key, _ = failed(services, create, *([] if trouble == "down" else ["#7 ERROR: perhaps"]))
    for _ in range(2):
        assert not stored(services, key).is_done
        services.clock.forward(seconds=30)
        if by == "message":
            execution.process(services, key)
        else:
            services.codebuild.is_down = True  # nobody asks it any more
            schedule.reconcile(services)

    expected = "BUILD: exit status 1" if trouble == "down" else "perhaps"
    assert stored(services, key).history[-1].message == expected
    assert stored(services, key).billed_minutes == 0


@pytest.mark.parametrize(("seconds", "runs"), [(20, 1), (21, 0)])
def test_a_handler_whose_claim_took_long_starts_nothing_and_the_next_one_does(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch, seconds: int, runs: int
) -> None:
    key, save = create(), services.builds.save

    def slowly(build: Build, *more: Any) -> Build:
        saved = save(build, *more)
        services.clock.forward(seconds=seconds if build.handle is None else 0)
        return saved

    with monkeypatch.context() as slow, nullcontext() if runs else pytest.raises(Unavailable, match="took long"):
        slow.setattr(services.builds, "save", slowly)
        execution.process(services, key)
    assert len(services.codebuild.runs) == runs

    execution.process(services, key)
    assert len(services.codebuild.runs) == 1
    assert stored(services, key).handle is not None


@pytest.mark.parametrize(("minutes", "message"), [(120, "out of words"), (121, "BUILD: exit status 1")])
def test_a_log_that_nobody_could_read_for_two_hours_keeps_no_build_from_ending(
    services: FakeServices, create: Create, minutes: int, message: str
) -> None:
    key, run = started(services, create)
    services.logs.write(f"logs:{run.handle}", "ERROR: out of words", f"slipway-end {stored(services, key).nonce}")
    services.codebuild.end(run, Outcome.FAILED, "BUILD: exit status 1", has_own_reason=False)
    services.clock.forward(minutes=minutes)
    if message != "out of words":
        services.logs.tail = None  # type: ignore[assignment, method-assign] # whoever reads it is ended

    execution.process(services, key)

    assert stored(services, key).history[-1].message == message


def test_the_executors_own_reason_is_not_replaced_by_the_log(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    services.logs.write(f"logs:{run.handle}", "ERROR: something else")
    services.codebuild.end(run, Outcome.FAILED, "The build needed more memory.", has_own_reason=True)
    execution.observe(services, CODEBUILD, [run.handle])

    assert stored(services, key).history[-1].message == "The build needed more memory."


def test_a_build_that_took_too_long_says_so_whatever_is_in_its_log(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    services.logs.write(
        f"logs:{run.handle}",
        'ERROR: process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1',
    )
    services.codebuild.end(run, Outcome.TIMED_OUT, "The build took longer than 60 minutes.")
    execution.observe(services, CODEBUILD, [run.handle])

    assert stored(services, key).history[-1].message == "The build took longer than 60 minutes."


@pytest.mark.parametrize("happens", ["another attempt", "the end"])
def test_a_handle_that_comes_late_is_not_noted_on_what_came_after(
    services: FakeServices, create: Create, happens: str
) -> None:
    key = create()
    after: list[Build] = []

    def meanwhile() -> None:
        services.codebuild.after_start = lambda: None
        run = services.codebuild.run_of(key)
        services.codebuild.end(run, Outcome.FAULT if happens == "another attempt" else Outcome.FAILED)
        execution.observe(services, CODEBUILD, [run.handle])
        if happens == "another attempt":
            services.builds.save(lifecycle.claim(stored(services, key), services.now()))
        after.append(stored(services, key))

    services.codebuild.after_start = meanwhile
    execution.process(services, key)

    assert stored(services, key).history == after[0].history
    assert stored(services, key).attempt == after[0].attempt
    assert stored(services, key).handle in (None, after[0].handle)
    ended = services.codebuild.run_of(key).handle
    assert services.codebuild.stopped == ([] if happens == "the end" else [ended])


def test_a_fault_is_tried_once_more(services: FakeServices, create: Create) -> None:
    key = create()
    services.queue.take()
    for expected in (Status.WARNING, Status.FAILED):
        execution.process(services, key)
        run = services.codebuild.run_of(key)
        end(services, run, Outcome.FAULT)
        assert stored(services, key).last_status is expected

    assert len(services.codebuild.runs) == 2
    assert services.queue.take() == [key]  # announced for the second attempt, not after it


def test_a_fault_after_the_push_is_a_success_with_its_evidence(services: FakeServices, create: Create) -> None:
    """The executor had a fault after the push: tags cannot be overwritten, and need not be."""
    key, first = started(services, create)
    services.codebuild.enter(first, *RUNNING)
    execution.observe(services, CODEBUILD, [first.handle])
    services.push(stored(services, key))
    services.clock.forward(seconds=100)
    end(services, first, Outcome.FAULT)

    build = stored(services, key)
    assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)
    assert (build.handle, build.log, build.billed_minutes) == (first.handle, f"logs:{first.handle}", 2)
    assert statuses(services, key) == ["created", "scheduled", "building", "running", "succeeded"]


def test_an_image_that_appears_after_a_fault_is_a_success_of_that_attempt(
    services: FakeServices, create: Create
) -> None:
    """The registry answered late: tags cannot be overwritten, and need not be."""
    key, first = started(services, create)
    services.codebuild.enter(first, *RUNNING)
    execution.observe(services, CODEBUILD, [first.handle])
    end(services, first, Outcome.FAULT)
    services.push(stored(services, key))

    execution.process(services, key)

    build = stored(services, key)
    assert len(services.codebuild.runs) == 1
    assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)
    assert (build.handle, build.log) == (first.handle, f"logs:{first.handle}")
    assert statuses(services, key) == ["created", "scheduled", "building", "running", "warning", "succeeded"]


def test_a_late_event_of_a_purged_build_says_nothing_about_the_new_one_of_its_key(
    services: FakeServices, create: Create
) -> None:
    key, former = started(services, create)
    services.archive.purge(stored(services, key))
    services.archive.purge(services.records.projects["ada", "vision"])
    services.projects.add(make_project(uuid="f" * 32))
    assert create() == key
    execution.process(services, key)

    end(services, former, Outcome.STOPPED)

    assert stored(services, key).last_status is Status.SCHEDULED


def test_late_news_of_a_former_attempt_ask_and_change_nothing(services: FakeServices, create: Create) -> None:
    key, former = started(services, create)
    end(services, former, Outcome.FAULT)
    execution.process(services, key)
    before = stored(services, key)
    services.registry.is_down = True
    services.logs.tail = lambda *_: pytest.fail("asked in vain")  # type: ignore[method-assign]

    for outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
        services.codebuild.end(former, outcome)
        execution.observe(services, CODEBUILD, [former.handle])
    assert stored(services, key) == before


def test_a_handle_whose_fault_was_recorded_meanwhile_is_not_noted(services: FakeServices, create: Create) -> None:
    key = create()

    def fault() -> None:
        services.codebuild.after_start = lambda: None
        run = services.codebuild.run_of(key)
        end(services, run, Outcome.FAULT)

    services.codebuild.after_start = fault
    execution.process(services, key)
    assert (stored(services, key).handle, stored(services, key).faults) == (None, 1)

    execution.process(services, key)
    run_to_the_end(services, key)
    assert (stored(services, key).last_status, stored(services, key).attempt) == (Status.SUCCEEDED, 2)


def test_an_image_of_which_the_executor_knows_nothing_any_more_is_a_success(
    services: FakeServices, create: Create
) -> None:
    key, run = started(services, create)
    end(services, run, Outcome.FAULT)
    services.push(stored(services, key))
    services.codebuild.forget(run)

    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.image_digest, build.attempt) == (Status.SUCCEEDED, DIGEST, 1)
    assert (build.handle, len(services.codebuild.runs)) == ("", 0)


def test_of_several_attempts_the_last_one_that_was_started_made_the_image(
    services: FakeServices, create: Create
) -> None:
    """Two starts were not heard of; the third attempt finds the image."""
    key = started_unheard(services, create)
    services.builds.save(lifecycle.claim(stored(services, key), services.now()))
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    second = services.codebuild.run_of(key)
    assert len(services.codebuild.runs) == 2
    services.push(stored(services, key))
    services.clock.forward(seconds=60)
    services.builds.save(lifecycle.claim(stored(services, key), services.now()))

    execution.process(services, key)

    build = stored(services, key)
    assert build.submitting_at == services.now()
    assert (build.last_status, build.attempt, build.handle) == (Status.SUCCEEDED, 2, second.handle)


def test_before_a_build_is_given_up_the_registry_is_asked(services: FakeServices, create: Create) -> None:
    """Its first attempt pushed and had a fault, and the second could never be started."""
    key, run = started(services, create)
    end(services, run, Outcome.FAULT)
    services.push(stored(services, key))
    services.clock.forward(minutes=200)

    schedule.reconcile(services)

    build = stored(services, key)
    assert (build.last_status, build.image_digest, build.handle) == (Status.SUCCEEDED, DIGEST, run.handle)


def test_a_run_that_goes_on_when_its_image_is_a_success_is_stopped(services: FakeServices, create: Create) -> None:
    """It has pushed and reported, and does not come to its end before the deadline."""
    key, run = started(services, create)
    services.push(stored(services, key))
    services.clock.forward(minutes=200)

    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SUCCEEDED
    assert services.codebuild.stopped == [run.handle]


def test_a_second_attempt_is_stopped_when_the_first_reports_its_push_late(
    services: FakeServices, create: Create
) -> None:
    """Nobody has noted the second one when the report comes."""
    key, first = started(services, create)
    end(services, first, Outcome.FAULT)
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    (second,) = [run for run in services.codebuild.runs.values() if run.handle != first.handle]
    services.push(replace(stored(services, key), attempt=1))

    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.attempt, build.handle) == (Status.SUCCEEDED, 1, first.handle)
    assert services.codebuild.stopped == [second.handle]


def test_a_run_that_nobody_can_note_any_more_is_stopped(services: FakeServices, create: Create) -> None:
    """The build was given up while its start was under way."""
    key = create()

    def give_up() -> None:
        failed = lifecycle.advance(stored(services, key), Status.FAILED, services.now(), message="late")
        services.builds.save(failed)

    services.codebuild.after_start = give_up
    execution.process(services, key)

    assert services.codebuild.run_of(key).outcome is Outcome.STOPPED
    assert stored(services, key).last_status is Status.FAILED


def test_a_success_of_an_attempt_that_was_never_noted_has_its_log_and_times(
    services: FakeServices, create: Create
) -> None:
    """Its start was not heard of, and when it is searched for, the search fails once."""
    key = started_unheard(services, create)
    run = services.codebuild.run_of(key)
    services.codebuild.enter(run, *RUNNING)
    end_with_an_image(services, key)
    services.builds.save(lifecycle.claim(stored(services, key), services.now()))
    services.clock.forward(seconds=60)

    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.handle, build.log) == (
        Status.SUCCEEDED,
        run.handle,
        f"logs:{run.handle}",
    )
    assert statuses(services, key) == ["created", "scheduled", "building", "running", "succeeded"]
    assert len(services.codebuild.runs) == 1


# Builds that wait for their turn


def test_when_a_build_ends_the_one_that_waited_longest_is_announced(services: FakeServices, create: Create) -> None:
    running = create()
    execution.process(services, running)
    waiting = []
    for _ in range(3):
        services.clock.forward(seconds=1)
        waiting.append(create())
    for key in reversed(waiting):
        services.codebuild.fail_next.append(Busy("no slot is free"))
        execution.process(services, key)
    services.codebuild.enter(services.codebuild.run_of(running), Status.SCHEDULED, Status.BUILDING)
    services.queue.take()
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(running).handle])
    assert services.queue.take() == [], "no slot is free yet"

    run_to_the_end(services, running)

    assert services.queue.take() == [waiting[0]]


def test_a_build_whose_turn_has_come_brings_those_behind_it_along(services: FakeServices, create: Create) -> None:
    """Two slots became free, and one message told of it."""
    keys = [create() for _ in range(4)]
    for key in keys:
        services.codebuild.fail_next.append(Busy("no slot is free"))
        execution.process(services, key)
    services.codebuild.slots = 2

    execution.process(services, keys[0])

    started = [not stored(services, key).is_waiting for key in keys]
    assert started == [True, True, False, False]


def test_a_build_that_still_waits_brings_no_other_along(services: FakeServices, create: Create) -> None:
    services.codebuild.slots = 0
    first, second = create(), create()
    for key in (first, second):
        execution.process(services, key)
    asked: list[BuildKey] = []
    submit = services.codebuild.submit

    def noted(build: Build) -> str:
        asked.append(build.key)
        return submit(build)

    services.codebuild.submit = noted  # type: ignore[method-assign]
    execution.process(services, first)
    assert asked == [first]


def test_a_build_that_is_given_up_when_its_turn_comes_leaves_it_to_the_next(
    services: FakeServices, create: Create
) -> None:
    services.codebuild.slots = 0
    late = create()
    execution.process(services, late)
    services.clock.forward(minutes=services.settings.wait_timeout_minutes + 1)
    following = create()
    execution.process(services, following)
    services.codebuild.slots = 1
    execution.process(services, late)

    assert stored(services, late).last_status is Status.FAILED
    assert stored(services, following).last_status is Status.SCHEDULED


def test_a_build_that_did_not_wait_brings_no_other_along(services: FakeServices, create: Create) -> None:
    services.codebuild.slots = 0
    waiting, newcomer = create(), create()
    execution.process(services, waiting)
    services.codebuild.slots = 2
    execution.process(services, newcomer)
    assert stored(services, newcomer).handle is not None
    assert stored(services, waiting).is_waiting


def test_those_that_wait_are_looked_at_until_the_executor_takes_no_more(services: FakeServices, create: Create) -> None:
    services.codebuild.slots = 0
    keys = [create() for _ in range(5)]
    for key in keys:
        execution.process(services, key)
    services.codebuild.slots = 2
    assert execution.serve_waiting(services, CODEBUILD, 10) == 3, "two were started, and the third still waits"
    assert [stored(services, key).is_waiting for key in keys] == [False, False, True, True, True]


def test_an_end_is_recorded_though_the_next_in_the_line_cannot_be_told(
    services: FakeServices, create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    running, waiting = create(), create()
    execution.process(services, running)
    services.codebuild.fail_next.append(Busy("no slot is free"))
    execution.process(services, waiting)
    services.queue.is_down = True
    run_to_the_end(services, running)

    assert stored(services, running).last_status is Status.SUCCEEDED
    assert f"the next build after {running} could not be handled: The queue did not answer." in caplog.text


def test_a_build_whose_turn_came_late_has_its_time_to_be_started(services: FakeServices, create: Create) -> None:
    """It waited longer than a start may take, and then its start is interrupted."""
    key = create()
    services.codebuild.fail_next.append(Busy("no slot is free"))
    execution.process(services, key)
    services.clock.forward(minutes=200)
    services.registry.is_down = True
    with suppress(Unavailable):
        execution.process(services, key)
    services.registry.is_down = False
    services.clock.forward(minutes=6)

    schedule.reconcile(services)

    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_success_that_a_repeated_start_finds_has_the_handle_of_that_attempt(
    services: FakeServices, create: Create
) -> None:
    key = create()
    services.codebuild.fail_next.append(Died())
    with pytest.raises(Died):
        execution.process(services, key)
    services.clock.forward(seconds=200)
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    run = services.codebuild.run_of(key)
    end_with_an_image(services, key)

    execution.process(services, key)

    build = stored(services, key)
    assert (build.attempt, build.last_status, build.handle) == (2, Status.SUCCEEDED, run.handle)


def test_a_burst_of_builds_leaves_no_slot_idle_while_one_waits(services: FakeServices, create: Create) -> None:
    """200 builds of one second on two slots; messages arrive within the second, ticks each minute."""
    services.codebuild.slots = 2
    keys = [create() for _ in range(200)]
    idle_seconds = 0
    for second in range(400):
        for key in services.queue.take():
            execution.process(services, key)
        if second % 60 == 59:
            schedule.reconcile(services)
        going = [run for run in services.codebuild.runs.values() if run.outcome is None]
        if len(going) < 2 and any(stored(services, key).is_waiting for key in keys):
            idle_seconds += 1
        services.clock.forward(seconds=1)
        for run in going:
            services.push(run.build)
            end(services, run, Outcome.SUCCEEDED)
        if all(stored(services, key).is_done for key in keys):
            break

    assert {stored(services, key).last_status for key in keys} == {Status.SUCCEEDED}
    assert idle_seconds <= 2
    assert second <= 102
    assert max(stored(services, key).attempt for key in keys) <= 5


def test_a_waiting_build_that_cannot_be_handled_does_not_stay_at_the_head(
    services: FakeServices, create: Create
) -> None:
    """The lease comes before the work: whatever ends the function, the next one starts with another build."""
    services.codebuild.slots = 0
    first, second = create(), create()
    for key in (first, second):
        execution.process(services, key)
    services.codebuild.slots = 2
    services.clock.forward(seconds=31)
    find_project = services.projects.get

    def fail(*_: str) -> None:
        raise ValueError("a bug")

    services.projects.get = fail  # type: ignore[method-assign, assignment]
    assert execution.serve_waiting(services, CODEBUILD, 1) == 1
    assert stored(services, first).check_at == services.now() + timedelta(seconds=30)
    services.projects.get = find_project  # type: ignore[method-assign]
    assert execution.serve_waiting(services, CODEBUILD, 1) == 1

    assert stored(services, first).handle is None
    assert stored(services, second).handle is not None


# Stopping, in every state


def stop(services: FakeServices, key: BuildKey) -> None:
    builds.stop(services, make_user(), key)


def test_a_build_stopped_before_it_was_submitted_never_starts(services: FakeServices, create: Create) -> None:
    key = create()
    stop(services, key)
    assert stored(services, key).last_status is Status.STOPPED

    execution.process(services, key)  # the message was on its way
    assert services.codebuild.runs == {}


def test_a_running_build_is_stopped_where_it_runs(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    services.queue.take()
    stop(services, key)
    stop(services, key)  # twice changes nothing
    assert services.queue.take() == [key]

    execution.process(services, key)
    assert services.codebuild.stopped == [services.codebuild.run_of(key).handle]
    assert stored(services, key).last_status is Status.STOPPED


def test_a_stop_while_the_build_is_being_submitted_reaches_it(services: FakeServices, create: Create) -> None:
    key = create()
    services.codebuild.after_start = lambda: stop(services, key)
    execution.process(services, key)

    assert services.codebuild.stopped == [services.codebuild.run_of(key).handle]
    assert stored(services, key).last_status is Status.STOPPED


@pytest.mark.parametrize("was_started", [True, False])
def test_a_stop_after_the_submitter_died_waits_until_it_is_certain(
    services: FakeServices, create: Create, was_started: bool
) -> None:
    key = create()
    services.codebuild.dies_after_start = was_started
    if not was_started:
        services.codebuild.fail_next.append(Died())
    with pytest.raises(Died):
        execution.process(services, key)
    stop(services, key)

    execution.process(services, key)
    build = stored(services, key)
    if not was_started:  # whoever claimed it may start it yet
        assert (build.last_status, build.submitting_at) == (Status.CREATED, services.now())
        assert build.check_at == services.now() + timedelta(seconds=services.codebuild.replay_seconds)
    services.clock.forward(seconds=services.codebuild.replay_seconds)
    execution.process(services, key)

    assert stored(services, key).last_status is Status.STOPPED
    assert len(services.codebuild.runs) == (1 if was_started else 0)
    assert all(run.outcome is Outcome.STOPPED for run in services.codebuild.runs.values())


def test_stopping_what_has_ended_changes_nothing(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    run_to_the_end(services, key)
    before = services.written()

    stop(services, key)

    assert services.written() == before


def test_a_build_that_ended_before_the_stop_reached_it_keeps_its_end(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    end_with_an_image(services, key)
    stop(services, key)

    execution.process(services, key)

    assert stored(services, key).last_status is Status.SUCCEEDED


def test_a_deleted_build_is_stopped_where_it_runs(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    services.queue.take()
    builds.archive(services, make_user(), key, delete=True)

    for announced in services.queue.take():
        execution.process(services, announced)

    assert services.codebuild.run_of(key).outcome is Outcome.STOPPED
    assert stored(services, key).last_status is Status.STOPPED


def test_late_and_repeated_news_change_nothing(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    early = run.observation()
    run_to_the_end(services, key)
    before = services.written()
    services.registry.is_down = True  # nor is anything asked
    services.projects.get = lambda *_: pytest.fail("nor read")  # type: ignore[method-assign]

    execution.process(services, key)

    execution.record(services, early)
    execution.record(services, run.observation())
    execution.observe(services, CODEBUILD, ["unknown"])

    assert services.written() == before


def test_a_running_build_that_has_pushed_asks_the_registry_at_its_end_only(
    services: FakeServices, create: Create
) -> None:
    key, run = started(services, create)
    services.codebuild.enter(run, *RUNNING)
    services.push(stored(services, key))
    services.registry.is_down = True

    execution.observe(services, CODEBUILD, [run.handle])

    assert stored(services, key).last_status is Status.RUNNING


def test_a_build_that_has_reported_no_image_ends_without_the_registry(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    services.codebuild.end(run, Outcome.SUCCEEDED)
    services.registry.is_down = True

    execution.observe(services, CODEBUILD, [run.handle])

    assert stored(services, key).last_status is Status.FAILED


def test_the_tag_is_asked_for_once_although_the_build_waits(services: FakeServices, create: Create) -> None:
    """Who waits for its turn has claimed and given the claim back."""
    key = create()
    services.codebuild.slots = 0
    execution.process(services, key)
    services.codebuild.slots = 1
    services.registry.images[stored(services, key).image] = DIGEST  # a stranger's, which its push meets

    execution.process(services, key)

    assert stored(services, key).last_status is Status.SCHEDULED


def test_a_second_attempt_of_an_older_version_is_not_refused_for_its_own_image(
    services: FakeServices, create: Create
) -> None:
    """Nobody had asked for the tag then."""
    key, run = started(services, create)
    services.builds.save(replace(stored(services, key), tag_was_free=False))
    end(services, run, Outcome.FAULT)
    services.registry.push(stored(services, key).image)

    execution.process(services, key)

    assert (stored(services, key).last_status, stored(services, key).image_digest) == (Status.SUCCEEDED, DIGEST)


def test_until_the_log_says_why_a_build_failed_it_is_looked_at_at_growing_distances(
    services: FakeServices, create: Create
) -> None:
    key, _ = failed(services, create, "#7 0.1 installing")
    assert not stored(services, key).is_done
    assert services.queue.later.count(key) == len(execution.UNTIL_REASON_SECONDS)
    assert key not in services.queue.announced


def test_what_an_executor_says_is_cut_also_while_the_log_is_awaited(services: FakeServices, create: Create) -> None:
    """A record has to fit into an item of the table."""
    key, run = started(services, create)
    services.logs.write(f"logs:{run.handle}", "#7 0.1 installing")
    services.codebuild.end(run, Outcome.FAILED, "x" * 10_000, has_own_reason=False)

    execution.observe(services, CODEBUILD, [run.handle])

    build = stored(services, key)
    assert not build.is_done
    assert build.end_reason is not None
    assert len(build.end_reason) <= lifecycle.MAX_MESSAGE


def test_a_failure_that_was_recorded_keeps_its_reason_though_its_executor_forgets_the_build(
    services: FakeServices, create: Create
) -> None:
    key, run = failed(services, create, "#7 0.1 installing")
    services.clock.now += lifecycle.WORDS_WITHIN

    execution.record(services, replace(run.observation(), outcome=Outcome.GONE, reason=None))

    build = stored(services, key)
    assert (build.last_status, build.history[-1].message) == (Status.FAILED, "BUILD: exit status 1")


def test_the_log_of_a_build_that_has_ended_is_kept_without_a_tick(services: FakeServices, create: Create) -> None:
    """Its next look stays as it was: to move it would cost more than the message."""
    key, _ = started(services, create)
    check_at = stored(services, key).check_at
    end_with_an_image(services, key)

    execution.process(services, key)

    assert stored(services, key).check_at == check_at
    assert services.log_queue.later == [key]


def test_a_build_ends_also_where_nobody_can_be_asked_to_keep_its_log(services: FakeServices, create: Create) -> None:
    key, _ = started(services, create)
    end_with_an_image(services, key)
    services.log_queue.is_down = True
    execution.process(services, key)
    assert stored(services, key).last_status is Status.SUCCEEDED
    services.log_queue.is_down = False

    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    assert services.log_queue.take() == [key]


def test_a_failure_without_any_log_waits_for_no_words(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    services.codebuild.end(run, Outcome.FAILED, "The node was lost.", has_own_reason=False)

    execution.record(services, replace(run.observation(), log=None))

    build = stored(services, key)
    assert (build.last_status, build.history[-1].message) == (Status.FAILED, "The node was lost.")


def test_a_build_that_was_stopped_after_its_push_is_stopped(services: FakeServices, create: Create) -> None:
    key, run = started(services, create)
    services.push(stored(services, key))
    builds.stop(services, make_user(), key)
    end(services, run, Outcome.STOPPED)

    build = stored(services, key)
    assert (build.last_status, build.image_digest) == (Status.STOPPED, None)


def test_a_build_that_disappears_while_it_is_being_stopped_says_who_stopped_it(
    services: FakeServices, create: Create
) -> None:
    key, run = started(services, create)
    builds.archive(services, make_user(), key)
    execution.record(services, replace(run.observation(), outcome=Outcome.GONE))

    build = stored(services, key)
    assert (build.last_status, build.history[-1].message) == (Status.STOPPED, "Build is scheduled for deletion.")


def test_a_second_attempt_is_stopped_although_the_first_is_forgotten(services: FakeServices, create: Create) -> None:
    key, first = started(services, create)
    end(services, first, Outcome.FAULT)
    services.codebuild.dies_after_start = True
    with pytest.raises(Died):
        execution.process(services, key)
    services.push(replace(stored(services, key), attempt=1))
    (second,) = [run for run in services.codebuild.runs.values() if run.handle != first.handle]
    services.codebuild.forget(first)

    execution.process(services, key)

    build = stored(services, key)
    assert (build.last_status, build.handle) == (Status.SUCCEEDED, second.handle)
    assert services.codebuild.stopped == [second.handle]
