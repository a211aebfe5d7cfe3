"""Which executor a build gets, and that each build is only ever taken to its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from chalicelib.domain.build import BuildKey, Status
from chalicelib.domain.lifecycle import Outcome, Trouble
from chalicelib.domain.record import replace
from chalicelib.errors import Invalid
from chalicelib.settings import EksSettings
from chalicelib.usecases import builds, execution, schedule
from tests.factories import SETTINGS, SPEC, make_project, make_user
from tests.fakes import FakeServices

WITH_EKS = replace(SETTINGS, eks=EksSettings("lab"))


def serving(**changes: Any) -> FakeServices:
    services = FakeServices(replace(WITH_EKS, **changes))
    services.projects.add(make_project())
    return services


def create(
    services: FakeServices, backend: str | None, *, platforms: list[str] | None = None, **fields: Any
) -> BuildKey:
    config = {"build": {"image": SPEC["image"], "platforms": platforms}, "version": 1, "kind": "build"}
    fields = {"config": config, "backend": backend, **fields}
    return builds.create(services, make_user(), "ada", "vision", fields).build.key


@pytest.mark.parametrize(
    ("default", "backend", "executor", "shown"),
    [
        ("codebuild", None, "codebuild", "native"),
        ("codebuild", "eks", "eks", "eks"),
        ("eks", None, "eks", "native"),
        ("eks", "kaniko", "eks", "kaniko"),
        ("eks", "other", "eks", "other"),
        ("eks", "codebuild", "codebuild", "codebuild"),
    ],
)
def test_a_build_runs_where_its_backend_says_else_where_all_do(
    default: str, backend: str | None, executor: str, shown: str
) -> None:
    services = serving(backend=default)
    build = services.records.builds[create(services, backend)]
    assert (build.executor, build.backend) == (executor, shown)


def test_a_backend_that_is_not_offered_is_refused() -> None:
    services = serving(eks=None)
    with pytest.raises(Invalid) as refusal:
        create(services, "eks")
    assert refusal.value.sentences() == ["Nothing runs on `eks` here; `backend` may be codebuild."]
    assert services.records.builds == {}


ON_BOTH = EksSettings("lab", architecture="arm64")


@pytest.mark.parametrize(
    ("eks", "backend", "platform", "executor"),
    [
        (ON_BOTH, None, "linux/arm64", "eks"),
        (ON_BOTH, None, "linux/amd64", "codebuild"),
        (ON_BOTH, "eks", "linux/arm64", "eks"),
        (EksSettings("lab"), None, "linux/amd64", "codebuild"),  # the default comes first
    ],
)
def test_a_platform_chooses_where_a_build_runs(
    eks: EksSettings, backend: str | None, platform: str, executor: str
) -> None:
    services = serving(eks=eks)
    assert services.records.builds[create(services, backend, platforms=[platform])].executor == executor


@pytest.mark.parametrize(("eks", "backend"), [(ON_BOTH, "codebuild"), (EksSettings("lab"), None), (None, None)])
def test_a_platform_that_nothing_here_has_is_refused(eks: EksSettings | None, backend: str | None) -> None:
    services = serving(eks=eks)
    with pytest.raises(Invalid) as refusal:
        create(services, backend, platforms=["linux/arm64"])
    words = "`platforms`: this build would be made for linux/amd64 here, not for linux/arm64."
    assert refusal.value.sentences() == [words]
    assert services.records.builds == {}


def test_codebuild_may_have_the_other_architecture() -> None:
    services = serving(build_architecture="arm64", backend="eks")
    assert services.records.builds[create(services, None, platforms=["linux/arm64"])].executor == "codebuild"


def test_a_build_that_runs_elsewhere_may_say_anything() -> None:
    services = serving(eks=None)
    assert services.records.builds[create(services, "eks", is_managed=False)].backend == "eks"


def test_changing_the_backend_later_moves_nothing() -> None:
    services = serving()
    key = create(services, "eks")
    builds.update(services, make_user(), key, {"backend": "codebuild"})
    execution.process(services, key)
    assert (len(services.eks.runs), len(services.codebuild.runs)) == (1, 0)


def test_the_schedule_asks_each_executor_about_its_own_builds() -> None:
    services = serving()
    keys = [create(services, backend) for backend in ("eks", "codebuild", "eks")]
    for key in keys:
        execution.process(services, key)
    for run in [*services.eks.runs.values(), *services.codebuild.runs.values()]:
        (services.codebuild if run.build.executor == "codebuild" else services.eks).end(run, Outcome.FAILED)
    services.clock.forward(minutes=6)

    schedule.reconcile(services)

    assert [services.records.builds[key].last_status for key in keys] == ["failed"] * 3


def test_a_tick_counts_what_is_due_and_what_waits_for_each_executor() -> None:
    services = serving()
    running, *waiting = (create(services, backend) for backend in ("codebuild", "codebuild", "eks"))
    execution.process(services, running)
    services.codebuild.slots = services.eks.slots = 0
    for key in waiting:
        execution.process(services, key)
    services.clock.forward(minutes=6)
    assert schedule.reconcile(services) == 3


def test_a_default_that_is_not_offered_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(ValueError, match="SLIPWAY_BACKEND is eks; offered: codebuild"):
        replace(SETTINGS, backend="eks")


@pytest.mark.parametrize(("executor", "name"), [("eks", "EKS"), ("codebuild", "CodeBuild")])
def test_what_an_executor_cannot_honour_is_refused_before_anything_is_stored(executor: str, name: str) -> None:
    services = serving()
    build = {"image": SPEC["image"]}
    config = {"build": build, "version": 1, "kind": "build", "environment": {"service_account": "a"}}
    with pytest.raises(Invalid) as refusal:
        create(services, executor, config=config)
    assert refusal.value.sentences() == [f"`environment.service_account` is refused for builds on {name}."]
    assert services.records.builds == {}

    config["environment"] = {"labels": {"team": "vision"}}
    placed = services.records.builds[create(services, executor, config=config)].placement
    assert (placed is not None) == (executor == "eks")


# Watching builds of which no events tell


class Minute:
    """A tick's sleep: the fakes' clock goes on, and things happen at their second."""

    def __init__(self, services: FakeServices) -> None:
        self.services, self.began_at = services, services.clock.now
        self.slept = 0.0
        self.happens: dict[int, Callable[[], object]] = {}

    def sleep(self, seconds: float) -> None:
        self.services.clock.forward(seconds=seconds)
        self.slept += seconds
        for second in [each for each in self.happens if each <= self.slept]:
            self.happens.pop(second)()


def started(services: FakeServices, backend: str) -> BuildKey:
    key = create(services, backend)
    execution.process(services, key)
    services.clock.forward(seconds=10)
    return key


def test_a_tick_watches_for_its_minute_so_that_an_end_shows_within_seconds() -> None:
    services = serving()
    key = started(services, "eks")
    services.push(services.records.builds[key])
    minute = Minute(services)
    minute.happens[20] = lambda: services.eks.end(services.eks.run_of(key), Outcome.SUCCEEDED)

    schedule.tick(services, minute.sleep)

    build = services.records.builds[key]
    assert build.last_status == "succeeded"
    assert build.finished_at is not None
    assert (build.finished_at - minute.began_at).total_seconds() <= 30


@pytest.mark.parametrize("watch_seconds", [40, 50])
def test_a_tick_ends_before_the_next_and_hands_over(caplog: pytest.LogCaptureFixture, watch_seconds: int) -> None:
    caplog.set_level("INFO", "chalicelib.usecases.schedule")
    services = serving(watch_seconds=watch_seconds, watch_every_seconds=20)
    key = started(services, "eks")
    services.clock.forward(seconds=10)
    for _ in range(3):
        minute = Minute(services)
        schedule.tick(services, minute.sleep)
        assert minute.slept == 40
        services.clock.forward(seconds=60 - minute.slept)
    assert services.records.builds[key].last_status == "scheduled"
    assert [vars(record)["measures"] for record in caplog.records] == [{"Reconciled": 3}] * 3


def test_a_tick_does_not_wait_where_events_tell_or_nothing_runs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chalicelib.usecases.schedule")
    services = serving()
    minute = Minute(services)
    schedule.tick(services, minute.sleep)
    started(services, "codebuild")
    schedule.tick(services, minute.sleep)
    assert minute.slept == 0
    assert [vars(record)["measures"] for record in caplog.records] == [{"Reconciled": 0}] * 2


def test_a_tick_without_a_cluster_does_not_wait_for_what_is_due_soon() -> None:
    services = serving(eks=None)
    started(services, "codebuild")
    services.clock.forward(seconds=SETTINGS.look_again_seconds - 15)
    minute = Minute(services)
    schedule.tick(services, minute.sleep)
    assert minute.slept == 0


@pytest.mark.parametrize("another", ["claims it", "repeats its start"])
def test_a_build_that_starts_between_two_ticks_is_looked_at_by_messages_until_the_next(another: str) -> None:
    services = serving()
    key = create(services, "eks")

    def two_at_once() -> None:
        services.eks.after_start = lambda: None
        execution.process(services, key)

    if another == "claims it":
        services.records.before_write.append(two_at_once)
    else:
        services.eks.after_start = two_at_once
    execution.process(services, key)
    assert services.queue.later == [key] * 5


@pytest.mark.parametrize(("backend", "seconds"), [("eks", 20), ("codebuild", 300)])
def test_a_running_build_is_looked_at_soon_where_no_events_tell_of_it(backend: str, seconds: int) -> None:
    services = serving(watch_every_seconds=20, look_again_seconds=300)
    key = create(services, backend)
    execution.process(services, key)
    assert services.records.builds[key].check_at == services.now() + timedelta(seconds=seconds)


def test_a_stopped_build_is_stopped_once_its_executor_does_not_know_it_any_more() -> None:
    services = serving()
    key = started(services, "eks")
    builds.stop(services, make_user(), key)
    execution.process(services, key)
    services.eks.forget(services.eks.run_of(key))

    schedule.reconcile(services)

    assert services.records.builds[key].last_status == "stopped"


def test_trouble_shows_while_it_lasts() -> None:
    services = serving()
    key = started(services, "eks")
    services.eks.run_of(key).trouble = Trouble(Status.UNSCHEDULABLE, "No node takes the build: 0/3")
    schedule.reconcile(services)
    last = services.records.builds[key].history[-1]
    assert (last.status, last.message) == ("unschedulable", "No node takes the build: 0/3")


def test_an_executor_that_does_not_answer_keeps_no_other_waiting_and_no_build_past_its_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    services = serving()
    silent, other = create(services, "eks"), create(services, "codebuild")
    for key in (silent, other):
        execution.process(services, key)
    services.eks.is_down = True
    services.codebuild.end(services.codebuild.run_of(other), Outcome.FAILED)
    services.clock.forward(minutes=6)
    schedule.reconcile(services)
    assert services.records.builds[other].last_status == "failed"
    assert services.records.builds[silent].last_status == "scheduled"
    assert "eks did not answer a question about 1 builds" in caplog.text

    services.clock.forward(minutes=130)
    schedule.reconcile(services)
    assert services.records.builds[silent].last_status == "scheduled", "it may still answer"

    services.clock.forward(minutes=60)
    schedule.reconcile(services)
    assert services.records.builds[silent].last_status == "failed"
    assert f"build {silent} could not be handled: The executor did not answer." in caplog.text


def test_an_image_counts_however_late_its_registry_and_its_executor_answer() -> None:
    services = serving()
    key = create(services, "eks")
    execution.process(services, key)
    services.push(services.records.builds[key])
    services.eks.is_down = services.registry.is_down = True

    services.clock.forward(minutes=9 * 60)
    schedule.reconcile(services)
    assert services.records.builds[key].last_status == "scheduled"

    services.eks.is_down = services.registry.is_down = False
    services.clock.forward(minutes=10)
    schedule.reconcile(services)
    assert services.records.builds[key].last_status == "succeeded"


def test_builds_of_an_executor_that_is_no_longer_offered_keep_no_other_waiting_and_end() -> None:
    services = serving()
    orphan, other = create(services, "eks"), create(services, "codebuild")
    execution.process(services, orphan)
    services.settings = replace(services.settings, eks=None)
    del services.executors["eks"]
    services.clock.forward(minutes=6)
    schedule.reconcile(services)
    assert services.records.builds[other].last_status == "scheduled"
    assert not services.records.builds[orphan].is_done

    services.clock.forward(minutes=200)
    schedule.reconcile(services)

    assert services.records.builds[orphan].last_status == "failed"
