"""Limits on running builds: who starts, who waits and why; limits hold and slots become free again whatever fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from chalicelib.domain.build import CODEBUILD, EKS, Build, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.settings import EksSettings
from chalicelib.usecases import builds, execution, projects, schedule, slots
from tests.factories import SETTINGS, make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, stored
from tests.usecases.test_interruptions import dies, dying, ends_at_every_call

Post = Callable[..., BuildKey]


@pytest.fixture
def post(services: FakeServices) -> Post:
    """A user posts a build, and its message arrives, unless it is `dispatched` later."""

    def post(owner: str = "ada", project: str = "vision", *, dispatched: bool = True, **fields: Any) -> BuildKey:
        if services.projects.get(owner, project) is None:
            services.projects.add(make_project(owner, project))
        services.clock.forward(seconds=1)
        made = builds.create(services, make_user(owner), owner, project, {"config": NESTED, **fields})
        services.queue.announced.remove(made.build.key)
        if dispatched:
            execution.process(services, made.build.key)
        return made.build.key

    return post


def limit(services: FakeServices, **limits: Any) -> None:
    """`all=2, per_owner=1, per_project=1, of={"eve": 3}`"""
    names = {"all": "max_running_builds"}
    given = {names.get(name, f"max_running_builds_{name}"): value for name, value in limits.items()}
    services.settings = replace(SETTINGS, eks=services.settings.eks, **given)


def end(services: FakeServices, key: BuildKey, outcome: Outcome = Outcome.FAILED) -> None:
    """The executor ends the build, and its event arrives."""
    run = services.executor(stored(services, key).executor).run_of(key)
    run.outcome, run.reason, run.has_own_reason = outcome, "no", True
    execution.observe(services, stored(services, key).executor, [run.handle])


def handle_messages(services: FakeServices) -> None:
    for key in services.queue.take():
        execution.process(services, key)


def tick(services: FakeServices) -> None:
    schedule.tick(services, lambda seconds: services.clock.forward(seconds=seconds))


def running(services: FakeServices, keys: Sequence[BuildKey]) -> list[bool]:
    found = [stored(services, key) for key in keys]
    return [build.handle is not None and not build.is_done for build in found]


def taken(services: FakeServices) -> set[BuildKey]:
    return {*services.slots.read().builds}


# Who starts and who waits


@pytest.mark.parametrize(
    ("limits", "posts", "started", "why"),
    [
        (
            {"all": 2},
            ["ada", "eve", "bob"],
            [True, True, False],
            "The limit of running builds is reached: 2 of this deployment.",
        ),
        (
            {"per_owner": 1},
            ["ada", "eve", "ada"],
            [True, True, False],
            "The limit of running builds is reached: 1 of ada.",
        ),
        (
            {"per_project": 1},
            ["ada", "ada/other", "ada/other"],
            [True, True, False],
            "The limit of running builds is reached: 1 of ada/other.",
        ),
        (
            {"per_owner": 1, "of": {"eve": 2}},
            ["eve", "eve", "eve"],
            [True, True, False],
            "The limit of running builds is reached: 2 of eve.",
        ),
        (
            {"of": {"ada/vision": 1}},
            ["ada", "eve", "ada"],
            [True, True, False],
            "The limit of running builds is reached: 1 of ada/vision.",
        ),
        ({"per_owner": 1, "of": {"ada": 0}}, ["ada", "ada", "ada"], [True, True, True], None),
    ],
)
def test_a_build_beyond_a_limit_waits_and_says_why(
    services: FakeServices, post: Post, limits: Any, posts: Sequence[str], started: Sequence[bool], why: str | None
) -> None:
    limit(services, **limits)
    keys = [post(*place.split("/")) for place in posts]

    assert running(services, keys) == started
    last = stored(services, keys[-1])
    assert (last.is_waiting, last.waiting_reason, last.attempt) == (why is not None, why, 0 if why else 1)
    assert taken(services) == {key for key, is_started in zip(keys, started, strict=True) if is_started}


def test_the_end_of_a_build_starts_the_next(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second, third = (post() for _ in range(3))

    end(services, first)
    assert services.queue.announced == [second]
    assert taken(services) == set()
    handle_messages(services)

    assert running(services, [second, third]) == [True, False]
    assert stored(services, second).waiting_reason is None


def test_with_1000_10_and_1_waiting_builds_the_single_one_has_the_first_slot(
    services: FakeServices, post: Post
) -> None:
    limit(services, all=4)
    for _ in range(1000):
        post("ada")
    for _ in range(10):
        post("eve")
    going = sorted(taken(services))

    def next_owner() -> str:
        """The build that runs longest ends; who gets its slot?"""
        end(services, going.pop(0))
        handle_messages(services)
        (started,) = taken(services) - {*going}
        going.append(started)
        return started.owner

    assert [next_owner() for _ in range(4)] == ["eve", "eve", "ada", "ada"]
    post("bob")
    assert [next_owner() for _ in range(10)] == ["bob", "eve", "ada", "ada", "eve", "eve", "ada", "ada", "eve", "eve"]


def test_the_first_slot_after_a_post_is_for_who_runs_nothing(services: FakeServices, post: Post) -> None:
    """Its message is handled before the slot becomes free; whoever else comes then has to wait."""
    limit(services, all=2)
    first, _, *_ = [post("ada") for _ in range(50)]
    single = post("bob")

    end(services, first)
    late = post("ada")
    handle_messages(services)

    assert running(services, [single, late]) == [True, False]
    assert stored(services, late).waiting_reason == "Other builds come first."


def test_a_newcomer_starts_at_once_if_there_is_room_for_all_before_it(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second = post(), post()
    limit(services, all=3)
    third = post()
    assert running(services, [first, second, third]) == [True, False, True]


def test_behind_many_who_can_start_a_newcomer_waits_for_the_schedule(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    post()
    keys = [post() for _ in range(slots.MAX_AHEAD + 1)]
    limit(services, all=500)
    newcomer = post()

    assert stored(services, newcomer).waiting_reason == "Other builds come first."
    tick(services)
    assert running(services, keys).count(True) == schedule.MAX_WAITING
    tick(services)
    assert running(services, [*keys, newcomer]) == [True] * (slots.MAX_AHEAD + 2)


def test_a_build_that_is_behind_just_as_many_starts(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    post()
    for _ in range(slots.MAX_AHEAD):
        post()
    limit(services, all=500)
    assert running(services, [post()]) == [True]


def test_a_build_in_line_that_is_heard_of_again_is_not_written(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    _, waiting = post(), post()
    before = stored(services, waiting)
    execution.process(services, waiting)
    assert stored(services, waiting) is before


def test_a_leased_build_that_still_waits_has_its_place_again(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    _, waiting = post(), post()
    services.builds.lease(stored(services, waiting), services.now() + timedelta(seconds=30))
    assert slots.next_builds(services, CODEBUILD, 10) == ()

    execution.process(services, waiting)

    assert stored(services, waiting).check_at == stored(services, waiting).created_at


# Races


def test_of_two_functions_one_takes_the_last_slot(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second = post(dispatched=False), post(dispatched=False)
    services.records.before_write.append(lambda: execution.process(services, second))  # before the first takes it

    execution.process(services, first)

    assert running(services, [first, second]) == [False, True]
    assert taken(services) == {second}
    assert stored(services, first).is_waiting


def test_two_messages_of_one_build_take_one_slot(services: FakeServices, post: Post) -> None:
    limit(services, all=2)
    key = post(dispatched=False)
    services.records.before_write.append(lambda: execution.process(services, key))

    execution.process(services, key)

    assert taken(services) == {key}
    assert len(services.codebuild.runs) == 1


# Whatever ends between two calls


def test_a_start_that_ends_at_any_call_keeps_the_limit_and_loses_no_slot(services: FakeServices, post: Post) -> None:
    limit(services, all=1)

    def story(calls: int) -> bool:
        key = post(dispatched=False)
        died = dies(lambda: execution.process(dying(services, calls), key))
        services.clock.forward(minutes=6)
        other = post()
        assert running(services, [key, other]).count(True) <= 1
        for _ in range(3):
            tick(services)
            handle_messages(services)
            services.clock.forward(minutes=6)
        started = [each for each in (key, other) if running(services, [each]) == [True]]
        assert len(started) == 1
        assert taken(services) == {*started}
        end(services, started[0])
        handle_messages(services)
        assert running(services, [key, other]).count(True) == 1
        end(services, other if started == [key] else key)
        assert taken(services) == set()
        return died

    ends_at_every_call(story)


def test_an_end_that_ends_at_any_call_frees_the_slot(services: FakeServices, post: Post) -> None:
    limit(services, all=1)

    def story(calls: int) -> bool:
        first, second = post(), post()
        run = services.codebuild.run_of(first)
        run.outcome, run.reason, run.has_own_reason = Outcome.FAILED, "no", True
        died = dies(lambda: execution.observe(dying(services, calls), CODEBUILD, [run.handle]))
        assert running(services, [first, second]).count(True) <= 1
        services.clock.forward(minutes=6)
        tick(services)
        assert stored(services, first).is_done
        tick(services)
        assert running(services, [second]) == [True]
        assert taken(services) == {second}
        end(services, second)
        return died

    ends_at_every_call(story)


def test_the_schedule_frees_slots_of_builds_that_have_ended_or_are_gone(services: FakeServices, post: Post) -> None:
    limit(services, all=4)
    going, ended, gone = post(), post(), post()
    run = services.codebuild.run_of(ended)
    run.outcome, run.has_own_reason = Outcome.FAILED, True
    execution.observe(services, CODEBUILD, [run.handle])
    services.slots.take(ended, services.slots.read())
    del services.records.builds[gone]

    tick(services)

    assert taken(services) == {going}


def test_where_all_that_run_go_on_no_slot_is_written(services: FakeServices, post: Post) -> None:
    limit(services, all=4)
    tick(services)
    post()
    services.slots.free = not_called  # type: ignore[method-assign]
    tick(services)


def test_a_failure_of_the_slots_does_not_stop_the_schedule(
    services: FakeServices, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    limit(services, all=2)
    key = post()
    services.codebuild.end(services.codebuild.run_of(key), Outcome.FAILED, "no")
    services.clock.forward(minutes=6)

    def fail() -> Any:
        raise Unavailable("The database did not answer.")

    services.slots.read = fail  # type: ignore[method-assign]
    tick(services)
    assert stored(services, key).is_done
    assert "slots of ended builds could not be handled: The database did not answer." in caplog.messages


def test_an_end_is_recorded_though_its_slot_cannot_be_freed(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second = post(), post()

    def fail(_: object) -> None:
        raise Unavailable("The database did not answer.")

    free, services.slots.free = services.slots.free, fail  # type: ignore[assignment, method-assign]
    end(services, first)
    assert stored(services, first).is_done

    services.slots.free = free  # type: ignore[method-assign]
    tick(services)
    assert running(services, [second]) == [True]


# From the start of a build to its end


def test_a_second_attempt_has_the_slot_of_the_first(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second = post(), post()
    end(services, first, Outcome.FAULT)
    assert taken(services) == {first}
    handle_messages(services)

    assert running(services, [first, second]) == [True, False]
    assert len(services.codebuild.runs) == 2


def test_a_slot_is_free_when_a_failed_build_still_waits_for_its_reason(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second = post(), post()
    services.codebuild.end(services.codebuild.run_of(first), Outcome.FAILED, has_own_reason=False)
    services.logs.is_down = True
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(first).handle])

    assert not stored(services, first).is_done
    assert services.queue.announced == [second]
    assert taken(services) == set()


def test_a_build_that_the_executor_has_no_room_for_keeps_its_slot_and_comes_first(
    services: FakeServices, post: Post
) -> None:
    limit(services, all=1)
    services.codebuild.fail_next.append(Busy("CodeBuild asks us to wait."))
    busy, other = post("ada"), post("eve")
    assert stored(services, busy).waiting_reason == "CodeBuild asks us to wait."
    assert stored(services, other).waiting_reason == "The limit of running builds is reached: 1 of this deployment."

    assert execution.serve_waiting(services, CODEBUILD, 10) == 1

    assert running(services, [busy, other]) == [True, False]


@pytest.mark.parametrize("what", ["refused", "exists"])
def test_a_build_that_cannot_start_gives_its_slot_to_the_next(services: FakeServices, post: Post, what: str) -> None:
    limit(services, all=1)
    first, failing, third = post(), post(), post()
    if what == "refused":
        services.codebuild.fail_next.append(ExecutorRefused("This will never run."))
    else:
        services.registry.images[stored(services, failing).image] = "sha256:5e"
    end(services, first)
    handle_messages(services)

    assert stored(services, failing).last_status is Status.FAILED
    assert running(services, [third]) == [True]


def test_a_build_that_is_given_up_leaves_its_slot_to_the_next(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first = post()
    services.clock.forward(minutes=130)
    second = post()
    services.clock.forward(minutes=1)
    tick(services)

    assert stored(services, first).last_status is Status.FAILED
    assert running(services, [second]) == [True]


def test_a_build_that_waits_too_long_fails_though_it_is_not_its_turn(services: FakeServices, post: Post) -> None:
    limit(services, all=1, per_owner=1)
    running_on, late = post(), post()
    services.clock.forward(minutes=1439)
    services.records.builds[running_on] = replace(
        stored(services, running_on), submitting_at=services.now(), check_at=None
    )
    tick(services)
    assert stored(services, late).is_waiting
    services.clock.now = stored(services, late).created_at + timedelta(minutes=1440)
    assert slots.next_builds(services, CODEBUILD, 10) == [], "it may wait for so long"

    services.clock.forward(minutes=2)
    tick(services)

    build = stored(services, late)
    assert build.history[-1].message == "The build's turn did not come within 1440 minutes."
    assert services.slots.read().builds == {running_on}


def test_a_waiting_build_can_be_stopped(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, stopped, third = post(), post(), post()
    builds.stop(services, make_user(), stopped)
    assert stored(services, stopped).last_status is Status.STOPPED

    end(services, first)
    assert services.queue.announced == [third]


def test_a_waiting_build_of_a_hidden_project_is_stopped_and_has_no_slot(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, hidden, third = post(), post("eve"), post()
    projects.archive(services, make_user("eve"), "eve", "vision")
    end(services, first)
    handle_messages(services)

    assert stored(services, hidden).last_status is Status.STOPPED
    assert taken(services) == {third}


def test_builds_of_two_executors_share_the_slots(services: FakeServices, post: Post) -> None:
    services.settings = replace(SETTINGS, eks=EksSettings("lab"))
    limit(services, all=1)
    first, on_eks, third = post(), post("eve", backend="eks"), post("eve")
    assert (stored(services, first).executor, stored(services, on_eks).executor) == (CODEBUILD, EKS)

    end(services, first)
    assert services.queue.announced == [on_eks]
    assert [build.key for build in slots.next_builds(services, CODEBUILD, 10)] == []
    handle_messages(services)
    end(services, on_eks)
    handle_messages(services)

    assert running(services, [on_eks, third]) == [False, True]


def test_a_full_executor_does_not_hold_back_the_builds_of_another(services: FakeServices, post: Post) -> None:
    services.settings = replace(SETTINGS, eks=EksSettings("lab"))
    limit(services, all=2)
    services.codebuild.slots = 0
    busy = post()
    first, second = post("eve", backend="eks"), post("eve", backend="eks")
    end(services, first)
    handle_messages(services)
    assert running(services, [busy, second]) == [False, True]


# Limits that change


def test_when_limits_are_removed_the_line_starts(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    keys = [post() for _ in range(3)]
    limit(services)
    tick(services)
    assert running(services, keys) == [True] * 3


def test_a_slot_that_was_left_while_there_were_no_limits_is_freed(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first = post()
    limit(services)
    end(services, first)
    assert taken(services) == {first}
    limit(services, all=1)
    tick(services)
    assert running(services, [post()]) == [True]


# Without limits


def fail(*_: object) -> NoReturn:
    pytest.fail("it was called")


not_called: Any = fail


def test_without_limits_nothing_asks_for_slots_or_the_line(
    services: FakeServices, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    services.builds.line = services.builds.get_all = not_called  # type: ignore[method-assign]
    services.slots.read = services.slots.take = services.slots.free = not_called  # type: ignore[method-assign]
    services.codebuild.fail_next.append(Busy("wait"))
    key = post()
    builds.detail(services, make_user(), key)
    builds.page(services, make_user(), "ada", "vision", 0, 10)
    tick(services)
    end(services, key)
    builds.stop(services, make_user(), post())
    services.clock.forward(minutes=6)
    tick(services)
    assert stored(services, key).is_done
    assert "could not be handled" not in caplog.text


@pytest.mark.parametrize("kind", ["refused", "ended"])
def test_without_limits_only_a_build_that_its_executor_had_makes_room(
    services: FakeServices, post: Post, kind: str
) -> None:
    services.settings = replace(SETTINGS, eks=EksSettings("lab"))
    asked: list[str] = []

    def waiting(executor: str, *_: object) -> Sequence[Build]:
        asked.append(executor)
        return ()

    services.builds.waiting = waiting  # type: ignore[assignment, method-assign]
    if kind == "refused":
        services.codebuild.fail_next.append(ExecutorRefused("never"))
    key = post()
    if kind == "ended":
        services.codebuild.end(services.codebuild.run_of(key), Outcome.FAILED, has_own_reason=False)
        services.logs.is_down = True
        for _ in range(2):  # the end, and a minute later the last status
            execution.observe(services, CODEBUILD, [services.codebuild.run_of(key).handle])
            services.clock.forward(seconds=61)
    assert stored(services, key).is_done
    assert asked == ([] if kind == "refused" else [CODEBUILD])


# What users see


def test_a_waiting_build_says_why_and_its_place_in_line(services: FakeServices, post: Post) -> None:
    limit(services, all=1)
    first, second, third, other = post(), post(), post(), post("eve")
    why = "The limit of running builds is reached: 1 of this deployment."

    def reason(key: BuildKey) -> str | None:
        return builds.detail(services, make_user(key.owner), key).build.waiting_reason

    assert [reason(key) for key in (first, second, third, other)] == [
        None,
        f"{why} Place 2 of 3 in line.",
        f"{why} Place 3 of 3 in line.",
        f"{why} Place 1 of 3 in line.",
    ]
    page = builds.page(services, make_user(), "ada", "vision", 0, 10)
    assert {build.key: build.waiting_reason for build in page.records} == {
        first: None,
        second: f"{why} Place 2 of 3 in line.",
        third: f"{why} Place 3 of 3 in line.",
    }
    assert stored(services, second).waiting_reason == why, "the place is not stored: it changes with every start"


def test_a_page_without_waiting_builds_does_not_ask_for_the_line(services: FakeServices, post: Post) -> None:
    limit(services, all=2)
    post()
    services.builds.line = not_called  # type: ignore[method-assign]
    assert len(builds.page(services, make_user(), "ada", "vision", 0, 10).records) == 1


def test_a_leased_build_has_no_place(services: FakeServices, post: Post) -> None:
    """A function is about to start it."""
    limit(services, all=1)
    _, waiting = post(), post()
    services.builds.lease(stored(services, waiting), services.now() + timedelta(seconds=30))
    shown = builds.detail(services, make_user(), waiting).build
    assert shown.waiting_reason == "The limit of running builds is reached: 1 of this deployment."


def test_a_build_that_the_index_still_shows_in_line_has_no_place(services: FakeServices, post: Post) -> None:
    """It was started or stopped a moment ago."""
    limit(services, all=1)
    _, waiting, other = post(), post(), post()
    started = replace(stored(services, waiting), waiting_reason=None)
    shown = slots.with_places(services, [started, stored(services, other)])
    assert [build.waiting_reason for build in shown] == [
        None,
        "The limit of running builds is reached: 1 of this deployment. Place 2 of 2 in line.",
    ]
