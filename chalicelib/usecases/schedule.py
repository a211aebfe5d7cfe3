"""What the schedule does: repairs what lost messages and events left undone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, Status
from chalicelib.domain.project import ProjectKey
from chalicelib.errors import SlipwayError
from chalicelib.ports import Services
from chalicelib.usecases import execution, logs
from chalicelib.usecases.conflicts import isolated

log = logging.getLogger(__name__)
MAX_BUILDS = 500  # of one tick; the next one continues
MAX_WAITING = 50  # builds that one tick has started when their executor takes builds again
CHUNK = 100  # builds that one call to an executor asks about: BatchGetBuilds takes no more
LOG_KEPT_WITHIN = timedelta(minutes=15)  # a log that is not kept by then is sent to be kept again


def tick(services: Services, sleep: Callable[[float], None]) -> None:
    """Runs `reconcile`; where a cluster is configured, again every few seconds until the next tick begins
    or nothing is due soon, because Jobs send no events."""
    every = timedelta(seconds=services.settings.watch_every_seconds)
    until = services.now() + timedelta(seconds=services.settings.watch_seconds)
    looked_at = reconcile(services)
    while services.settings.eks and (now := services.now()) + every <= until:
        if not services.builds.due(now + every, limit=1):
            break
        sleep(every.total_seconds())
        looked_at += reconcile(services)
    log.info("Looked at %d builds.", looked_at, extra={"measures": {"Reconciled": looked_at}})


def reconcile(services: Services) -> int:
    """Looks at every build that is due, and returns how many there were.

    A build that was never started is started, one that runs is compared with its executor, one past its
    deadline is given up, and the log of one that has ended is sent to be kept. The next look is moved forward
    before anything is done, so that a tick which ends half way is followed by one that begins with other
    builds. What goes wrong with one build stays with it.
    """
    due = services.builds.due(services.now(), MAX_BUILDS)
    is_hidden = cache(partial(execution.is_hidden, services))
    for start in range(0, len(due), CHUNK):
        running: list[Build] = []
        for build in due[start : start + CHUNK]:
            with isolated(build):
                until = services.now() + LOG_KEPT_WITHIN if build.is_done else execution.next_look(services, build)
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
    """Does what a due build needs. False: it must still be compared with its executor."""
    if build.is_done:
        if build.has_tags_to_move(services.now()):
            with isolated(build):  # a registry that refuses them does not keep the log waiting
                build = execution.move_tags(services, build)
        if not logs.ask_to_keep(services, build) and not build.has_tags_to_move(services.now()):
            services.builds.save(replace(build, look_at=None))
    elif not build.is_managed:  # it is due because no heartbeat came
        execution.end(services, build, Status.FAILED, lifecycle.ZOMBIE)
    elif build.handle is None or build.finished_at is not None:
        execution.attend(services, build.key)
    elif build.stop_requested_at is None and is_hidden(build.key.project_key):
        execution.attend(services, build.key)  # which stops it
    else:
        if build.stop_requested_at is not None:
            with isolated(build):  # one that cannot be stopped is still given up at its deadline
                services.executor(build.executor).stop(build.handle)
        return False
    return True


def _compare(services: Services, builds: Sequence[Build]) -> None:
    """Records what the executor of all these builds says of each, and gives up those past their deadline."""
    try:
        seen = execution.observed(services, builds)
    except SlipwayError:
        seen = {}  # only deadlines count then
        log.warning("%s did not answer about %d builds.", builds[0].executor, len(builds), exc_info=True)
    except Exception:
        if len(builds) == 1:
            raise
        for build in builds:  # one of them cannot be understood: each alone
            with isolated(build):
                _compare(services, [build])
        return
    for build in builds:
        with isolated(build):
            if build.key in seen:
                execution.record(services, seen[build.key], build)
            execution.give_up_if_overdue(services, build)
