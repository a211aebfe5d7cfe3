"""From a recorded build to a running one, and back from what the executor shows to the record.

Messages and events are doorbells: they name a build, and the record says what it needs. So every
function here may run twice, late, or stop between any two calls, and the next ring completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.failure import TAIL_LINES, failure_reason
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.ports import Services
from chalicelib.usecases.builds import request_stop
from chalicelib.usecases.writing import told, until_written

WAIT_WHEN_BUSY_SECONDS = 30  # until a schedule asks the executor again
UNTIL_WATCHED_SECONDS = (10, 20, 30, 40, 50)  # from a start until the next tick, which then watches


def attend(services: Services, key: BuildKey) -> None:
    """Does what the build needs now: have it started, or stopped, or its executor asked about it."""
    build = services.store.get(key)
    if build is None or build.is_done or not build.is_managed:
        return
    project = services.store.project(key.owner, key.project)
    if project is None or project.archived_at is not None:
        request_stop(services, key)
        build = services.store.get(key)
        if build is None or build.is_done:
            return
    if build.handle is None:
        _submit(services, key)
        build = services.store.get(key)
    if build is None or build.is_done or build.handle is None:
        return
    if build.stop_requested_at is not None:
        services.executors[build.executor].stop(build.handle)
    observe(services, build.executor, [build.handle])


def observe(services: Services, executor: str, handles: Sequence[str]) -> Sequence[BuildKey]:
    """Asks an executor about its builds and records what is new; which ones it knows."""
    return [record(services, seen) for seen in services.executors[executor].observe(handles).values()]


def record(services: Services, seen: Observation) -> BuildKey:
    """Brings the record of a build up to an observation. Idempotent; late ones change nothing."""
    key = BuildKey.parse(seen.key)

    def write() -> Build | None:
        build = services.store.get(key)
        if build is None or build.is_done:
            return None
        digest = reason = None
        if seen.attempt == build.attempt:
            if seen.outcome in (Outcome.SUCCEEDED, Outcome.GONE):
                digest = services.registry.digest(build.image)
            elif seen.outcome is Outcome.FAILED and not seen.says_why:
                reason = _reason(services, seen)
        new = lifecycle.follow(build, seen, services.now(), digest=digest, reason=reason)
        return new and told(build, services.store.save(new))

    new = until_written(write)
    if new is not None and not new.is_done and new.handle is None:  # a fault: one more attempt
        services.queue.announce(key)
    return key


def next_look(services: Services, build: Build) -> datetime:
    """When somebody must look at a build that runs: at the next tick where no events tell of changes."""
    settings = services.settings
    tells = services.executors[build.executor].tells
    return services.now() + timedelta(
        seconds=settings.look_again_seconds if tells else settings.watch_every_seconds
    )


def _submit(services: Services, key: BuildKey) -> None:
    """Claims the build, then has it started: a claim that nobody completed is completed by the next."""

    def write() -> None:
        build = services.store.get(key)
        if build is None or build.is_done or build.handle is not None:
            return
        if build.submitting_at is None:
            _start(services, _claimed(services, build))
        else:
            _complete(services, build, build.submitting_at)

    until_written(write)


def _complete(services: Services, build: Build, claimed_at: datetime) -> None:
    """Continues where whoever claimed the build may have died: before, in or after the executor's start."""
    executor = services.executors[build.executor]
    replayable = services.now() - claimed_at < timedelta(seconds=executor.replay_seconds)
    wanted = build.stop_requested_at is None
    if replayable and wanted:
        _start(services, build)
    elif handle := executor.find(build):
        _note(services, build, handle)
    elif wanted:
        _start(services, _claimed(services, build))
    elif replayable:  # the claimer may still be at it, and will see the wish to stop
        look_at = claimed_at + timedelta(seconds=executor.replay_seconds)
        services.store.save(replace(build, look_at=look_at))
    else:
        told(build, services.store.save(lifecycle.advance(build, Status.STOPPED, services.now())))


def _claimed(services: Services, build: Build) -> Build:
    """The build, its next attempt claimed. Raises Conflict when somebody else was faster."""
    return told(build, services.store.save(lifecycle.claim(build, services.now())))


def _start(services: Services, build: Build) -> None:
    """Has the claimed attempt started and stores the handle. Raises Conflict."""
    if build.attempt > 1 and (digest := services.registry.digest(build.image)):
        # An earlier attempt had finished after all; tags cannot be overwritten, nor need they be.
        seen = Observation(str(build.key), build.attempt, "", None, (), Outcome.SUCCEEDED)
        if done := lifecycle.follow(build, seen, services.now(), digest=digest, reason=None):
            told(build, services.store.save(done))
        return
    body = services.store.body(build.key)
    if body is None:
        return
    try:
        services.registry.prepare(build.image)
        services.sources.stage(build, body.dockerfile)
        handle = services.executors[build.executor].submit(build)
    except Busy:
        later = services.now() + timedelta(seconds=WAIT_WHEN_BUSY_SECONDS)
        services.store.save(lifecycle.release(build, later))
    except ExecutorRefused as refusal:
        failed = lifecycle.advance(build, Status.FAILED, services.now(), message=str(refusal))
        told(build, services.store.save(failed))
    else:
        _note(services, build, handle)


def _note(services: Services, claimed: Build, handle: str) -> None:
    """Stores the handle, on top of whatever was written since the claim: it must not get lost."""

    def write() -> bool:
        build = services.store.get(claimed.key)
        if build is None or build.is_done or build.handle is not None or build.attempt != claimed.attempt:
            return False
        submitted = lifecycle.submitted(build, handle, services.now(), next_look(services, build))
        told(build, services.store.save(submitted))
        return True

    if until_written(write) and not services.executors[claimed.executor].tells:
        for seconds in UNTIL_WATCHED_SECONDS:
            services.queue.announce(claimed.key, after_seconds=seconds)


def _reason(services: Services, seen: Observation) -> str | None:
    if seen.log is None:
        return None
    try:
        return failure_reason([line.text for line in services.logs.tail(seen.log, TAIL_LINES)])
    except Unavailable:
        return None  # the build did fail; only the words are missing
