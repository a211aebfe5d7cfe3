"""The schedule: continues builds whose message or event was lost."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache, partial

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, Status
from chalicelib.domain.project import ProjectKey
from chalicelib.domain.record import replace
from chalicelib.errors import SlipwayError
from chalicelib.ports import Services
from chalicelib.usecases import execution, logs, slots
from chalicelib.usecases.conflicts import isolated

log = logging.getLogger(__name__)
MAX_BUILDS = 500  # that one tick checks; the next one continues
MAX_WAITING = 50  # builds that one tick starts when their executor takes builds again
CHUNK = 100  # builds in one question to an executor: BatchGetBuilds takes no more
LOG_STORED_WITHIN = timedelta(minutes=15)  # a log that is not stored by then is announced again


def tick(services: Services, sleep: Callable[[float], None]) -> None:
    """Frees the slots of ended builds and runs `reconcile`. Where a cluster is configured, whose Jobs send no events,
    runs it again every few seconds until the next tick begins or no build is due before it."""
    every = timedelta(seconds=services.settings.watch_every_seconds)
    until = services.now() + timedelta(seconds=services.settings.watch_seconds)
    with isolated("slots of ended builds"):
        slots.free_ended(services)
    checked = reconcile(services)
    while services.settings.eks and (now := services.now()) + every <= until:
        if not services.builds.due(now + every, limit=1):
            break
        sleep(every.total_seconds())
        checked += reconcile(services)
    log.info("Checked %d builds.", checked, extra={"measures": {"Reconciled": checked}})


def reconcile(services: Services) -> int:
    """Checks every build that is due, and returns the number of these builds.

    A build that was never started is started, a running one is compared with its executor, one past its deadline
    is given up, and the log of one that has ended is announced, to be stored. The time of the next check is
    moved forward first, so that after a tick which ends half way the next one begins with other builds. An
    error with one build does not affect the others.
    """
    due = services.builds.due(services.now(), MAX_BUILDS)
    is_hidden = cache(partial(execution.is_hidden, services))
    for start in range(0, len(due), CHUNK):
        running: list[Build] = []
        for build in due[start : start + CHUNK]:
            with isolated(build):
                until = services.now() + LOG_STORED_WITHIN if build.is_done else execution.next_check(services, build)
                leased = services.builds.lease(build, until)
                if not _did_all(services, leased, is_hidden):
                    running.append(leased)
        for executor in sorted({build.executor for build in running}):
            with isolated(executor):
                _compare(services, [build for build in running if build.executor == executor])
    waiting = 0
    for executor in services.settings.executors:
        with isolated(executor):
            waiting += execution.serve_waiting(services, executor, MAX_WAITING)
    return len(due) + waiting


def _did_all(services: Services, build: Build, is_hidden: Callable[[ProjectKey], bool]) -> bool:
    """Does what a due build needs. Returns False if it must still be compared with its executor."""
    if build.is_done:
        if build.has_tags_to_move(services.now()):
            with isolated(build):  # the log is stored even if the registry refuses them
                build = execution.move_tags(services, build)
        if not logs.ask_to_keep(services, build) and not build.has_tags_to_move(services.now()):
            services.builds.save(replace(build, check_at=None))
    elif not build.is_managed:  # it is due because no heartbeat came
        execution.end(services, build, Status.FAILED, lifecycle.ZOMBIE)
    elif build.handle is None or build.finished_at is not None:
        execution.process(services, build.key)
    elif build.stop_requested_at is None and is_hidden(build.key.project_key):
        execution.process(services, build.key)  # which stops it
    else:
        if build.stop_requested_at is not None:
            with isolated(build):  # if it cannot be stopped, it is given up at its deadline
                services.executor(build.executor).stop(build.handle)
        return False
    return True


def _compare(services: Services, builds: Sequence[Build]) -> None:
    """Records what the executor of all these builds shows of each, and gives up those past their deadline."""
    try:
        seen = execution.observed(services, builds)
    except SlipwayError:
        seen = {}  # then only the deadlines are checked
        log.warning("%s did not answer a question about %d builds", builds[0].executor, len(builds), exc_info=True)
    except Exception:
        if len(builds) == 1:
            raise
        for build in builds:  # one of the answers cannot be read: ask about each alone
            with isolated(build):
                _compare(services, [build])
        return
    for build in builds:
        with isolated(build):
            if build.key in seen:
                execution.record(services, seen[build.key], build)
            execution.give_up_if_overdue(services, build)
