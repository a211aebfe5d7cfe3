"""What schedules do: the safety net under messages and events that got lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, Status
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.errors import Conflict, SlipwayError
from chalicelib.ports import Services
from chalicelib.usecases import execution, logs
from chalicelib.usecases.writing import told

log = logging.getLogger(__name__)
MAX_BUILDS = 500  # of one tick; the next one continues


def tick(services: Services, sleep: Callable[[float], None]) -> None:
    """`reconcile`, and where builds run of which no events tell, again every few seconds for as long as
    any is due soon, until the next tick takes over."""
    every = timedelta(seconds=services.settings.watch_every_seconds)
    until = services.now() + timedelta(seconds=services.settings.watch_seconds)
    looked_at = reconcile(services)
    while services.settings.eks and (now := services.now()) + every <= until:
        if not services.store.due(now + every, limit=1):
            break
        sleep(every.total_seconds())
        looked_at += reconcile(services)
    log.info("Looked at %d builds.", looked_at, extra={"measures": {"Reconciled": looked_at}})


def reconcile(services: Services) -> int:
    """Looks at every build whose time to be looked at has come, and returns how many there were.

    One that was never started is started, one that runs is compared with its executor, one past its
    deadline is given up, of one that has ended the log is kept. Trouble with one build does not keep
    others waiting.
    """
    due = [
        build for key in services.store.due(services.now(), MAX_BUILDS) if (build := services.store.get(key))
    ]
    running: list[Build] = []
    for build in due:
        with _apart(build):
            if build.look_at is None or build.look_at > services.now():
                continue  # the index was behind
            if build.is_done:
                logs.keep(services, build)
                continue
            if _given_up(services, build):
                continue
            is_wanted = build.stop_requested_at is None
            if build.handle is None or (is_wanted and _is_hidden(services, build)):
                execution.attend(services, build.key)
                continue
            if not is_wanted:
                services.executors[build.executor].stop(build.handle)
            running.append(build)
    for executor, group in _by_executor(running).items():
        with _apart(executor):
            _compare(services, executor, group)
    for build in due:
        with _apart(build):
            _look_again(services, build)
    return len(due)


def _given_up(services: Services, build: Build) -> bool:
    queue = timedelta(minutes=services.settings.queue_timeout_minutes)
    run = timedelta(minutes=services.settings.build_timeout_minutes)
    reason = lifecycle.overdue(build, services.now(), queue, run)
    if reason is None:
        return False
    if build.handle is not None:
        with _apart(build):  # where it runs has its own deadline; the record must not wait for an answer
            services.executors[build.executor].stop(build.handle)
    told(build, services.store.save(lifecycle.advance(build, Status.FAILED, services.now(), message=reason)))
    given_up = {"build": str(build.key), "measures": {"GivenUp": 1}}  # an alarm counts them
    log.warning("Build %s was given up: %s", build.key, reason, extra=given_up)
    return True


def _by_executor(builds: Sequence[Build]) -> Mapping[str, Sequence[Build]]:
    return {name: [each for each in builds if each.executor == name] for name in {b.executor for b in builds}}


def _compare(services: Services, executor: str, builds: Sequence[Build]) -> None:
    observed = services.executors[executor].observe([build.handle for build in builds if build.handle])
    for build in builds:
        assert build.handle is not None
        gone = Observation(str(build.key), build.attempt, build.handle, None, (), Outcome.GONE)
        with _apart(build):
            execution.record(services, observed.get(build.handle, gone))


def _look_again(services: Services, seen: Build) -> None:
    build = services.store.get(seen.key)
    now = services.now()
    if build is None or build.look_at is None or build.look_at > now:
        return
    services.store.save(replace(build, look_at=execution.next_look(services, build)))


def _is_hidden(services: Services, build: Build) -> bool:
    """Whether the build's project was archived: then it shall stop."""
    project = services.store.project(build.key.owner, build.key.project)
    return project is None or project.archived_at is not None


@contextmanager
def _apart(one: Build | str) -> Iterator[None]:
    """Trouble with one build, or one executor, is logged and does not reach the others; the next tick
    tries again."""
    try:
        yield
    except Conflict:
        pass  # somebody else is at it
    except SlipwayError as error:
        name = one if isinstance(one, str) else f"build {one.key}"
        fields = {} if isinstance(one, str) else {"build": str(one.key)}
        log.warning("Could not look at %s: %s", name, error or type(error).__name__, extra=fields)
