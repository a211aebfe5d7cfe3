"""Starts recorded builds with their executor, and records what the executor shows of them.

A message or an event only names a build; its record says what must be done. So every function here may run
twice, late, or stop between any two calls, and the next call completes its work.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Image, Status
from chalicelib.domain.failure import TAIL_LINES, failure_reason
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.domain.log_lines import Lines
from chalicelib.domain.project import ProjectKey
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.ports import Services
from chalicelib.usecases import logs, slots
from chalicelib.usecases.builds import request_stop
from chalicelib.usecases.conflicts import isolated, log_change, retry_on_conflict

log = logging.getLogger(__name__)
WAIT_WHEN_BUSY = timedelta(seconds=30)  # until the schedule asks the executor again
MAX_SERVED = 10  # waiting builds that one message starts, so that its function has the time
GRACE_WITHOUT_ANSWER = timedelta(minutes=70)  # past its deadline, while the executor does not answer
MAX_NEWER = 50  # newer builds that are searched for one with the same tag
START_WITHIN = timedelta(seconds=20)  # of the claim; meanwhile others may start the build, and it may end
REASON_WITHIN = timedelta(hours=2)  # after a failure; a log that ends each function that reads it is not read later
UNTIL_REASON_SECONDS = (5, 15, 30, 60)  # after a failure the log is read then, for its reason; later by the schedule
UNTIL_WATCHED_SECONDS = (10, 20, 30, 40, 50)  # after a start the build is checked then; later by the schedule


def process(services: Services, key: BuildKey) -> None:
    """Does what the build needs now: starts it, stops it, or asks its executor about it. If it waited for its
    turn and does not any more, the next waiting builds are started."""
    build = services.builds.get(key)
    if build is not None:
        processed = _processed(services, build)
        if build.is_waiting and processed is not None and not processed.is_waiting:
            serve_waiting(services, build.executor, MAX_SERVED)


def serve_waiting(services: Services, executor: str, limit: int) -> int:
    """Starts waiting builds, in the order of their turns, until the executor takes no more. Returns how many it tried.
    Each is leased first, so that a build which crashes this function does not stay at the head of the line."""
    served = 0
    for build in slots.next_builds(services, executor, limit):
        with isolated(build):
            served += 1
            leased = services.builds.lease(build, services.now() + WAIT_WHEN_BUSY)
            processed = _processed(services, leased)
            if processed is not None and processed.is_waiting:
                break
    return served


def _processed(services: Services, known: Build) -> Build | None:
    """The build after everything was done that it needs now."""
    key = known.key
    if known.is_done or not known.is_managed:
        return known
    if known.finished_at is not None:
        record(services, lifecycle.as_it_ended(known, Outcome.FAILED), known)
        return services.builds.get(key)
    if is_hidden(services, key.project_key):
        request_stop(services, key)
    if known.handle is None and _why_overdue(services, known) is not None:
        give_up_if_overdue(services, known)
        build = services.builds.get(key)
    else:
        build = _submitted(services, key)
    if build is None or build.is_done or build.handle is None:
        return build
    if build.stop_requested_at is not None:
        services.executor(build.executor).stop(build.handle)
    observe(services, build.executor, [build.handle])
    return build


def is_hidden(services: Services, key: ProjectKey) -> bool:
    """Whether a project was archived or is gone. Then its builds are stopped."""
    project = services.projects.get(key.owner, key.name)
    return project is None or project.archived_at is not None


def observe(services: Services, executor: str, handles: Sequence[str]) -> Sequence[BuildKey]:
    """Asks an executor about its builds and records what is new; returns the builds that the executor knows."""
    return [record(services, seen) for seen in services.executor(executor).observe(handles).values()]


def record(services: Services, seen: Observation, known: Build | None = None) -> BuildKey:
    """Updates the record of a build by an observation. Repeated and late observations change nothing. `known` is the
    record if the caller has just read it."""
    key = BuildKey.parse(seen.key)

    def write() -> Build | None:
        nonlocal known
        build, known = known or services.builds.get(key), None
        if build is None or build.is_done:
            return None
        image = reason = None
        may_change = False
        effective = seen if build.finished_at is None else lifecycle.as_it_ended(build, Outcome.FAILED)
        is_unclear = effective.outcome in (Outcome.SUCCEEDED, Outcome.GONE, Outcome.FAULT)
        if is_unclear or (effective.outcome is not None and build.pushes):
            image = _image(services, build)
        if effective.outcome is Outcome.FAILED and image is None and not effective.has_own_reason:
            reason, may_change = _reason(services, effective, build.nonce)
        new = lifecycle.follow(build, effective, services.now(), image=image, reason=reason, may_change=may_change)
        return new and _saved(services, build, new)

    new = retry_on_conflict(write)()
    if new is None:
        return key
    if new.handle is None:  # a fault: one more attempt
        services.queue.announce(key)
    if new.finished_at is not None:
        for seconds in () if new.is_done else UNTIL_REASON_SECONDS:
            services.queue.announce(key, after_seconds=seconds)
    if new.has_tags_to_move(services.now()):
        with isolated(new):  # else the schedule does it
            move_tags(services, new)
    if new.nocache and new.image_digest is not None:
        _note_fresh(services, new)
    return key


def _image(services: Services, build: Build) -> Image | None:
    """The build's image, if it has one. The registry is not asked before the build has reported a push."""
    if build.tag_was_free and not build.pushes:
        return None
    return lifecycle.image_of(build, services.registry.find(build.image))


def move_tags(services: Services, build: Build) -> Build:
    """Moves the tags that a build asked for to the newest successful build that asked for them, and records that.

    The result does not depend on the order in which handlers move tags: each searches for a newer build afterwards,
    too. Raises Unavailable, and Conflict."""
    moved: dict[str, str] = {}
    while (wanted := _newest_by_tag(services, build)) != moved:
        for tag, image in wanted.items():
            services.registry.tag(image, tag)
        moved = wanted
    return services.builds.save(replace(build, image_tags_moved=True))


def _newest_by_tag(services: Services, build: Build) -> dict[str, str]:
    """For each tag of the build, the image of the newest build with it: this one, or one of the last `MAX_NEWER`."""
    newest = dict.fromkeys(build.image_tags, build.image)
    project = services.projects.get(build.key.owner, build.key.project)
    for number in range(build.key.id + 1, (project.last_build_id if project else 0) + 1)[-MAX_NEWER:]:
        other = services.builds.get(replace(build.key, id=number))
        if other is not None and other.image_digest is not None and other.deleted_at is None:
            newest |= {tag: other.image for tag in other.image_tags if tag in newest}
    return newest


def _note_fresh(services: Services, build: Build) -> None:
    """Records that the build has replaced the cached layers. Without that record, the next build replaces them."""

    def write() -> None:
        project = services.projects.get(build.key.owner, build.key.project)
        if project is not None and project.must_build_afresh:
            services.projects.save(replace(project, fresh_build=build.key.id))

    with isolated(build):
        retry_on_conflict(write)()


def _announce_next(services: Services, ended: Build) -> None:
    """After the end of a build, frees its slot and announces the builds whose turn it is. If that fails, the schedule
    does it."""
    settings = services.settings
    with isolated(f"the next build after {ended.key}"):
        slots.free(services, ended)
        for executor in settings.executors if settings.limits_builds else (ended.executor,):
            for build in slots.next_builds(services, executor, 1):
                services.queue.announce(build.key)


def give_up_if_overdue(services: Services, known: Build) -> None:
    """Ends a build whose deadline has passed, after asking its executor once more. Raises Conflict, and Busy or
    Unavailable without an answer. An hour after the deadline, only the registry must answer, for a reported image."""
    if _why_overdue(services, known) is None:
        return
    key, build = known.key, services.builds.get(known.key)
    if build is None or build.is_done:
        return
    if build.handle is None and build.submitting_at is not None and _may_repeat(services, build):
        _wait_for_replay(services, build)  # another handler may be starting it just now
        return
    try:
        build = _asked_once_more(services, build)
    except (Busy, Unavailable):
        if _why_overdue(services, known, GRACE_WITHOUT_ANSWER) is None:
            raise
    image = _image(services, build) if build is not None and build.attempt > 0 else None
    if build is None or build.is_done or (reason := _why_overdue(services, build)) is None:
        return
    if image is not None:
        _finished_before(services, build, image)
        return
    if build.handle is not None:
        with isolated(build):  # the executor has its own deadline; the record does not wait for its answer
            services.executor(build.executor).stop(build.handle)
    end(services, build, Status.FAILED if build.stop_requested_at is None else Status.STOPPED, reason)
    given_up = {"build": str(key), "measures": {"GivenUp": 1}}  # an alarm counts them
    log.warning("Build %s was given up: %s", key, reason, extra=given_up)


def next_check(services: Services, build: Build) -> datetime:
    """When the schedule must check a running build again: soon if its executor sends no events."""
    settings = services.settings
    is_watched = build.executor in settings.executors and not services.executor(build.executor).emits_events
    seconds = settings.watch_every_seconds if is_watched else settings.look_again_seconds
    return services.now() + timedelta(seconds=seconds)


def _why_overdue(services: Services, build: Build, grace: timedelta = lifecycle.GRACE) -> str | None:
    of, now = services.settings, services.now()
    wait, queue, run = of.wait_timeout_minutes, of.queue_timeout_minutes, of.build_timeout_minutes
    return lifecycle.overdue(build, now, wait_minutes=wait, queue_minutes=queue, run_minutes=run, grace=grace)


def _asked_once_more(services: Services, build: Build) -> Build | None:
    """The build as its executor shows it now."""
    executor = services.executor(build.executor)
    handle = build.handle
    if handle is None and build.submitting_at is not None:
        handle = executor.find_handle(build)
        if handle is not None:
            _note(services, build, handle)
    if handle is not None:
        record(services, observed(services, [replace(build, handle=handle)])[build.key])
    return services.builds.get(build.key)


def observed(services: Services, builds: Sequence[Build]) -> Mapping[BuildKey, Observation]:
    """What the executor of all these builds, which have handles, shows of each; builds unknown to it are gone."""
    executor = services.executor(builds[0].executor)
    seen = executor.observe([build.handle for build in builds if build.handle])
    return {build.key: seen.get(build.handle or "") or lifecycle.as_it_ended(build, Outcome.GONE) for build in builds}


def _submitted(services: Services, key: BuildKey) -> Build | None:
    """Takes a slot, claims the build and asks its executor to start it. Returns the build, which may wait for a slot;
    None if it does not exist. If a handler dies after the claim, the next handler continues from the claim."""

    def write() -> Build | None:
        build = services.builds.get(key)
        if build is None or build.is_done or build.handle is not None:
            return build
        if build.submitting_at is None:
            if reason := slots.take(services, build):
                waiting = lifecycle.release(build, reason)
                return build if waiting == build else services.builds.save(waiting)
            if build.attempt == 0:
                if services.registry.find(build.image) is not None:  # tags cannot be overwritten
                    words = f"The registry has an image {build.image} already, which this build did not make."
                    return end(services, build, Status.FAILED, words)
                build = replace(build, tag_was_free=True)
            return _start_next(services, build)
        return _complete(services, build)

    return retry_on_conflict(write)()


def end(services: Services, build: Build, status: Status, message: str | None = None) -> Build:
    """Saves the build with its last status. Raises Conflict."""
    return _saved(services, build, lifecycle.advance(build, status, services.now(), message=message))


def _saved(services: Services, before: Build, new: Build) -> Build:
    """Saves the build. If the build has ended, announces the next builds, and asks to store the log a little later."""
    saved = log_change(before, services.builds.save(new))
    has_left_room = saved.handle is not None or services.settings.limits_builds
    if saved.finished_at is not None and before.finished_at is None and has_left_room:
        _announce_next(services, saved)
    if saved.is_done:
        with isolated(saved):  # else the schedule does it
            logs.ask_to_keep(services, saved)
    return saved


def _complete(services: Services, build: Build) -> Build | None:
    """Completes a claim whose handler may have ended before, during or after the call that starts the build."""
    executor = services.executor(build.executor)
    is_wanted, may_repeat = build.stop_requested_at is None, _may_repeat(services, build)
    # An attempt that has its code was started: if its Job is gone, another one would be given no code.
    if is_wanted and may_repeat and build.fetched_attempt < build.attempt:
        if build.attempt > 1 and (image := _image(services, build)):
            return _finished_before(services, build, image)
        # After this write, what the claim's handler decides about a failed start is a conflict.
        leased = replace(build, check_at=services.now() + WAIT_WHEN_BUSY)
        return _start(services, _saved_in_time(services, build, leased), is_repeat=True)
    if handle := executor.find_handle(build):
        return _note(services, build, handle)
    if may_repeat:  # the claim's handler may still start it, and will see the stop request
        return _wait_for_replay(services, build)
    if is_wanted:
        return _start_next(services, build)
    return end(services, build, Status.STOPPED)


def _may_repeat(services: Services, build: Build) -> bool:
    return services.now() < _repeated_until(services, build)


def _wait_for_replay(services: Services, build: Build) -> Build:
    """Has the build checked again when no repetition of its attempt can start it any more."""
    return services.builds.save(replace(build, check_at=_repeated_until(services, build)))


def _repeated_until(services: Services, build: Build) -> datetime:
    assert build.submitting_at is not None
    return build.submitting_at + timedelta(seconds=services.executor(build.executor).replay_seconds)


def _start_next(services: Services, build: Build) -> Build | None:
    """Claims the build's next attempt and starts it, unless an earlier attempt has an image. Raises Conflict when
    another handler was faster. A start follows its claim at once, so the registry is asked before the claim."""
    if image := _image(services, build):
        return _finished_before(services, build, image)
    services.registry.prepare(build.image)
    claimed = lifecycle.claim(build, services.now())
    return _start(services, _saved_in_time(services, build, claimed), is_repeat=False)


def _saved_in_time(services: Services, before: Build, new: Build) -> Build:
    """Saves a claim or its lease. Raises Conflict, and Unavailable if others may have ended the build meanwhile."""
    asked_at = services.now()
    saved = log_change(before, services.builds.save(new))
    if services.now() - asked_at > START_WITHIN:
        raise Unavailable(f"To claim build {new.key} took long; it is started next, unless it has ended.")
    return saved


def _start(services: Services, build: Build, *, is_repeat: bool) -> Build | None:
    """Starts the claimed attempt and stores the handle. Raises Conflict. If the executor refuses a repeated start, the
    first one may have succeeded all the same, so the claim stays."""
    executor = services.executor(build.executor)
    if not _may_repeat(services, build):  # the claim took so long that the executor may forget the attempt
        raise Unavailable(f"Build {build.key} could not be submitted in time; it is searched for next.")
    try:
        handle = executor.submit(build)
    except Busy as busy:
        if is_repeat:  # it is leased
            return build
        return services.builds.save(lifecycle.release(build, str(busy)))
    except ExecutorRefused as refusal:
        if is_repeat:
            found = executor.find_handle(build)
            return _note(services, build, found) if found else _wait_for_replay(services, build)
        return end(services, build, Status.FAILED, str(refusal))
    return _note(services, build, handle)


def _finished_before(services: Services, build: Build, image: Image) -> Build | None:
    """Records the success of an earlier attempt whose image is in the registry (nothing can overwrite its tag there).
    Its handle, log and times are recorded if the executor still knows it; attempts that still run are stopped."""
    executor = services.executor(build.executor)
    makers = [push.attempt for push in build.pushes if push.digest == image.digest]
    made, seen = replace(build, submitting_at=build.submitting_at or build.created_at), None
    for attempt in dict.fromkeys((*makers, build.attempt, *reversed(build.unsure_attempts))):
        handle = executor.find_handle(replace(build, attempt=attempt, submitting_at=build.created_at))
        found = executor.observe([handle]).get(handle) if handle else None
        if handle is None or found is None:
            continue
        if found.outcome is None:
            with isolated(build):  # what cannot be stopped has a deadline of its own
                executor.stop(handle)
        if seen is None:
            steps = () if build.worked_since else found.steps  # else they were recorded while it ran
            seen = replace(found, steps=steps, outcome=Outcome.SUCCEEDED)
            made = replace(made, attempt=attempt)
    seen = seen or lifecycle.as_it_ended(build, Outcome.SUCCEEDED)
    done = lifecycle.follow(made, seen, services.now(), image=image, reason=None)
    return done and _saved(services, build, done)


def _note(services: Services, claimed: Build, handle: str) -> Build | None:
    """Stores the handle in the newest record, whatever has changed since the claim: the run must be found again."""
    is_new = False

    def write() -> Build | None:
        nonlocal is_new
        build = services.builds.get(claimed.key)
        is_claimed = build is not None and build.submitting_at is not None and not build.is_done
        is_unwanted = build is None or not is_claimed or build.attempt != claimed.attempt
        if is_unwanted and (build is None or build.handle != handle):
            services.executor(claimed.executor).stop(handle)  # no record names it
        if build is None or is_unwanted or build.handle is not None:
            return build
        submitted = lifecycle.submitted(build, handle, services.now(), next_check(services, build))
        saved = log_change(build, services.builds.save(submitted))
        is_new = True
        return saved

    build = retry_on_conflict(write)()
    if is_new and not services.executor(claimed.executor).emits_events:
        for seconds in UNTIL_WATCHED_SECONDS:
            services.queue.announce(claimed.key, after_seconds=seconds)
    return build


def _reason(services: Services, seen: Observation, nonce: str) -> tuple[str | None, bool]:
    """Why a build failed, according to its log so far, and whether lines that say more may still arrive."""
    if seen.log is None or services.now() - (seen.ended_at or services.now()) > REASON_WITHIN:
        return None, False
    lines = Lines(nonce)
    try:
        tail = services.logs.tail(seen.log, TAIL_LINES)
    except Unavailable:
        return None, True
    return failure_reason([line for piece in tail for line in lines.add(piece)]), not lines.has_ended
