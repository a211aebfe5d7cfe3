"""Which statuses may follow which, and what an executor's view of a build means for its record.

Late, repeated and disordered observations are handled here, by one table.
"""

import json
import uuid
from bisect import bisect_right
from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from msgspec import Struct

from chalicelib.domain.build import DONE, Build, Image, Status, StatusEntry
from chalicelib.domain.record import replace
from chalicelib.errors import require

MAX_HISTORY = 100  # statuses
MAX_HISTORY_BYTES = 32 * 1024  # as JSON: a record is read and written whole
MAX_MESSAGE = 256  # the API's column; longer is refused from outside and cut inside
MAX_TEXT_BYTES = 4096  # traceback, and details as JSON
LAST_ENTRY_RESERVED = 1  # of the history, so that a build can always end
# What the texts of all statuses may have together, as JSON; a status without its texts has less than 224.
_ALL_TEXTS_BYTES = MAX_HISTORY_BYTES - MAX_HISTORY * 224
# Of that, for the last status: the longest message (JSON has up to 6 bytes for a character) and a traceback.
_LAST_TEXTS_BYTES = MAX_MESSAGE * 6 + MAX_TEXT_BYTES
_CUT, _DETAILS_CUT = "… (cut)", {"cut": True}
GRACE = timedelta(minutes=10)
LOG_SETTLES = timedelta(seconds=5)  # a log's last lines arrive after the last event
WORDS_WITHIN = timedelta(seconds=60)  # after a failure, the log has time to say why; then the executor's words count
HEARTBEAT = timedelta(minutes=30)  # without one for so long, a build that runs elsewhere is given up
MAX_FAULTS = 1  # of an executor that a build gets another attempt for
ZOMBIE = "BuildJob is in zombie state (no heartbeat was reported)."

S = Status
_ACTIVE = (S.UNSCHEDULABLE, S.WARNING, S.UNKNOWN, *sorted(DONE))
_NEXT: dict[Status, frozenset[Status]] = {
    S.CREATED: frozenset({S.RESUMING, S.BUILDING, S.SCHEDULED, S.RUNNING, *_ACTIVE}),
    S.RESUMING: frozenset({S.BUILDING, S.SCHEDULED, S.RUNNING, *_ACTIVE}),
    S.BUILDING: frozenset({S.SCHEDULED, S.RUNNING, *_ACTIVE}),
    S.SCHEDULED: frozenset({S.BUILDING, S.RUNNING, *_ACTIVE}),
    S.RUNNING: frozenset(_ACTIVE),
    S.UNSCHEDULABLE: frozenset({S.BUILDING, S.SCHEDULED, S.RUNNING, *_ACTIVE}),
    S.WARNING: frozenset({S.RESUMING, S.BUILDING, S.SCHEDULED, S.RUNNING, *_ACTIVE} - {S.WARNING}),
    S.UNKNOWN: frozenset({S.BUILDING, S.SCHEDULED, S.RUNNING, *_ACTIVE} - {S.UNKNOWN}),
}
_STARTED = frozenset({S.BUILDING, S.SCHEDULED, S.RUNNING})
# How far a build has come within one attempt; an executor's view never leads backwards.
_RANK = {S.SCHEDULED: 1, S.BUILDING: 2, S.RUNNING: 3}
_TROUBLES = frozenset({S.UNSCHEDULABLE, S.WARNING, S.UNKNOWN})
_RESERVED_FOR_STEPS = 10  # places of the history that no status of trouble takes


class Outcome(StrEnum):
    """How an attempt ended, according to the executor."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    FAULT = "fault"  # the executor's own trouble, worth one more attempt
    GONE = "gone"  # the executor does not know the build any more


class Step(Struct, frozen=True):
    """The executor entered the stage that we call `status` at `at`."""

    status: Status
    at: datetime


class Trouble(Struct, frozen=True):
    """A problem that delays an attempt and may pass: unschedulable, warning or unknown."""

    status: Status
    message: str


class Observation(Struct, frozen=True):
    """All that an executor knows about one attempt, from the attempt's start on, so an observation may get lost.
    `key` is the text of a BuildKey; `outcome` is None until the attempt has ended."""

    key: str
    uuid: str  # of the build, whose key may be given again; empty where the executor was not given it
    attempt: int
    handle: str
    log: str | None
    steps: tuple[Step, ...]
    outcome: Outcome | None = None
    ended_at: datetime | None = None
    reason: str | None = None  # the executor's own words about the end
    has_own_reason: bool = False  # and it says more than the log
    trouble: Trouble | None = None  # at the time of asking


def may_follow(last: Status, status: Status) -> bool:
    """Whether the API's table allows the step; nothing follows a final status."""
    return status in _NEXT.get(last, frozenset())


def first_entry(now: datetime) -> StatusEntry:
    return StatusEntry(id=1, uuid=uuid.uuid4().hex, status=Status.CREATED, created_at=now)


def advance(
    build: Build,
    status: Status,
    now: datetime,
    *,
    at: datetime | None = None,
    message: str | None = None,
    traceback: str | None = None,
    details: dict[str, Any] | None = None,
) -> Build:
    """The build with one more row of history. Raises Invalid when the table does not allow it.

    Its texts are cut where the history would exceed `MAX_HISTORY_BYTES`. `at` is when the executor says it happened
    (default: `now`); rows stay in the order of time. started_at is set by the first of building, scheduled, running and
    never overwritten, finished_at by the first final status; a build that never started takes its creation as start.
    """
    last = build.history[-1]
    require(may_follow(last.status, status), f"A build that is {last.status} cannot become {status}.")
    room = MAX_HISTORY if status in DONE else MAX_HISTORY - LAST_ENTRY_RESERVED
    require(len(build.history) < room, f"The history of a build is limited to {MAX_HISTORY} statuses.")
    happened = min(max(at or now, last.created_at), now)
    message = message and _cut(message, MAX_MESSAGE)
    entry = StatusEntry(last.id + 1, uuid.uuid4().hex, status, happened, message, traceback, details)
    started_at, finished_at = build.started_at, build.finished_at
    if status in _STARTED:
        started_at = started_at or happened
    if status in DONE:
        finished_at = finished_at or now
        started_at = started_at or build.created_at
    return replace(
        build,
        history=bounded((*build.history, entry)),
        updated_at=max(now, build.updated_at),
        started_at=started_at,
        finished_at=finished_at,
        check_at=_end_of(build, now) if status in DONE else build.check_at,
    )


def bounded(history: tuple[StatusEntry, ...]) -> tuple[StatusEntry, ...]:
    """A history of at most `MAX_HISTORY_BYTES` as JSON in UTF-8: if it is too large, texts are cut from the first on
    that has no room. All statuses stay; room for the texts of a final one is reserved."""
    rows, left = [], _ALL_TEXTS_BYTES - _LAST_TEXTS_BYTES
    for row in history:
        if row.status in DONE:
            left += _LAST_TEXTS_BYTES
        message, left = _fitted(row.message, left)
        traceback, left = _fitted(row.traceback, left)
        details = row.details
        if details is not None:
            details = details if _json_bytes(details) <= left else _DETAILS_CUT
            left = max(0, left - _json_bytes(details))
        rows.append(replace(row, message=message, traceback=traceback, details=details))
    return tuple(rows)


def _fitted(text: str | None, room: int) -> tuple[str | None, int]:
    """As much of a text as there is room for, and the room after it."""
    if text is None:
        return None, room
    fitted = text
    if _json_bytes(text) > room:
        fitting = bisect_right(range(1, len(text)), room, key=lambda end: _json_bytes(text[:end] + _CUT))
        fitted = text[:fitting] + _CUT
    return fitted, max(0, room - _json_bytes(fitted))


def _json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass"))


def _end_of(build: Build, now: datetime) -> datetime | None:
    """When to check a build after its end: once more if its log must be stored or its tags moved. For a managed build a
    message asks for that as well, so its `check_at` stays as it is: a change costs two write units."""
    if build.deleted_at is not None or not (build.log or build.image_tags):
        return None
    return (build.is_managed and build.check_at) or now + LOG_SETTLES


def claim(build: Build, now: datetime) -> Build:
    """The build with a new attempt to start it, to be saved before the executor is asked. The log of the last
    attempt stays until the new one has a log."""
    unsure = (build.attempt,) if build.submitting_at is not None else ()
    return replace(
        build,
        attempt=build.attempt + 1,
        unsure_attempts=(*build.unsure_attempts, *unsure),
        submitting_at=now,
        handle=None,
        turn_at=now if build.is_waiting else build.turn_at,
        waiting_reason=None,
    )


def release(build: Build, reason: str) -> Build:
    """The build after the executor said that it has not started it, or when it has no slot: it waits for its turn, for
    this reason. Its place in the line follows from the time since when it waits."""
    reason = _cut(reason, MAX_MESSAGE)
    return replace(build, submitting_at=None, check_at=build.waits_since, waiting_reason=reason)


def submitted(build: Build, handle: str, now: datetime, check_at: datetime) -> Build:
    """The build after its executor took it and named it `handle`."""
    build = replace(build, handle=handle, check_at=check_at)
    if build.last_status in _RANK:  # an event was faster than this note
        return build
    return advance(build, Status.SCHEDULED, now)


def request_stop(build: Build, now: datetime) -> Build | None:
    """The build with a request to stop it; None if it has ended or already has this request. If no executor was asked
    to start the build, it gets the status "stopped" at once and never starts."""
    if build.is_done:
        return None
    if build.submitting_at is None:  # as always of builds that run elsewhere
        return advance(replace(build, stop_requested_at=now), Status.STOPPED, now, message=_why_stopped(build))
    if build.stop_requested_at is not None:
        return None
    return replace(build, stop_requested_at=now, check_at=now)


def _why_stopped(build: Build) -> str:
    return "Build is scheduled for deletion." if build.archived_at else "BuildJob was stopped."


def as_it_ended(build: Build, outcome: Outcome) -> Observation:
    """The end of the build's attempt as an observation, made from its record."""
    key, ended_at = str(build.key), build.finished_at
    handle = build.handle or ""
    return Observation(key, build.uuid, build.attempt, handle, build.log, (), outcome, ended_at, build.end_reason)


def follow(
    build: Build, seen: Observation, now: datetime, *, image: Image | None, reason: str | None, may_change: bool = False
) -> Build | None:
    """The build after an observation; None if the observation says nothing new.

    `image` is the image that the build made (`image_of`). An attempt that ended has succeeded if there is an image,
    unless a user had it stopped. `reason` says why it failed. `may_change`: lines of the log are still missing, and the
    reason may change with them. Then the build has ended now, but gets its last status later.
    """
    if build.is_done or not build.is_managed or seen.attempt != build.attempt or build.submitting_at is None:
        return None  # without a claim, the attempt is over: the next one counts
    if seen.uuid not in ("", build.uuid):
        return None  # of a purged build of an earlier project of this name
    new = replace(build, handle=build.handle or seen.handle, log=seen.log or build.log)
    for step in seen.steps:
        if _RANK[step.status] > _reached(new, build.handle is not None):
            new = advance(new, step.status, now, at=step.at)
    if may_change and now - (new.finished_at or now) < WORDS_WITHIN:
        if new.finished_at is None:
            why = seen.reason and _cut(seen.reason, MAX_MESSAGE)
            new = replace(new, finished_at=now, end_reason=why, check_at=now + WORDS_WITHIN)
    elif seen.outcome is not None:
        new = _end(new, seen, now, image, reason)
    elif seen.trouble is not None:
        new = _troubled(new, seen.trouble, now)
    return None if new == build else new


def _reached(build: Build, is_noted: bool) -> int:
    """How far the attempt has come; WARNING and UNKNOWN do not set it back. Until the attempt's handle is stored,
    a warning is about the attempt before it."""
    if not is_noted:
        return _RANK.get(build.last_status, 0)
    before = [entry.status for entry in build.history if entry.status not in _TROUBLES]
    return _RANK.get(before[-1], 0)


def _troubled(build: Build, trouble: Trouble, now: datetime) -> Build:
    """Appends a status for trouble only when it starts or its kind changes, not when only its message does."""
    room = len(build.history) < MAX_HISTORY - LAST_ENTRY_RESERVED - _RESERVED_FOR_STEPS
    if build.last_status is trouble.status or not room:
        return build
    return advance(build, trouble.status, now, message=trouble.message)


def _end(build: Build, seen: Observation, now: datetime, image: Image | None, reason: str | None) -> Build:
    def end(status: Status, message: str | None) -> Build:
        return advance(build, status, now, at=seen.ended_at, message=message)

    match seen.outcome:
        case outcome if image is not None and not (outcome is Outcome.STOPPED and build.stop_requested_at):
            done = end(Status.SUCCEEDED, "Completed")
            return replace(done, image_digest=image.digest, layer_bytes=image.layer_bytes)
        case Outcome.SUCCEEDED:
            return end(Status.FAILED, "The build ended without an error, but the registry has no image of it.")
        case Outcome.FAILED | Outcome.STOPPED | Outcome.GONE if build.stop_requested_at:  # on request
            return end(Status.STOPPED, _why_stopped(build))
        case Outcome.STOPPED:
            return end(Status.STOPPED, "Stopped from outside.")
        case Outcome.GONE:
            return end(Status.FAILED, seen.reason or "The build disappeared from where it was running.")
        case Outcome.FAULT if not build.stop_requested_at and build.faults < MAX_FAULTS:
            words = seen.reason or "The build service had a fault; trying once more."
            is_new = may_follow(build.last_status, Status.WARNING)  # a warning may have come before the fault
            warned = end(Status.WARNING, words) if is_new else build
            return replace(
                warned,
                submitting_at=None,
                handle=None,
                faults=build.faults + 1,
                unsure_attempts=(*build.unsure_attempts, build.attempt),
                queued_at=now,
                check_at=now,
            )
        case _:
            return end(Status.FAILED, reason or seen.reason or "The build failed; its log may tell why.")


def image_of(build: Build, answered: Image | None) -> Image | None:
    """The build's image: what the registry answers for its tag, if an attempt reported its digest.

    Everyone who may push to the project's repository can use the tag before the build does. Builds that an
    older version started report nothing; for them, any answer counts.
    """
    if answered is None:
        return None
    is_reported = answered.digest in {push.digest for push in build.pushes}
    return answered if is_reported or (build.attempt > 0 and not build.tag_was_free) else None


def overdue(
    build: Build, now: datetime, *, wait_minutes: int, queue_minutes: int, run_minutes: int, grace: timedelta = GRACE
) -> str | None:
    """Why a managed build that has not ended must be given up, in words; None while it may go on.

    It waits for its turn, then for the executor to start it, then it works; each has a limit. The executor has
    the last two limits as well and acts first; `grace` is its time to do so. A second attempt has its own time.
    """
    if build.is_waiting:
        since, grace, minutes = build.waits_since, timedelta(), wait_minutes
        words = f"The build's turn did not come within {minutes} minutes."
    elif build.handle is None:
        since, minutes = max(build.waits_since, build.turn_at or build.waits_since), queue_minutes
        words = f"The build could not be started within {minutes} minutes."
    else:
        since, minutes = build.submitting_at or build.created_at, queue_minutes + run_minutes
        words = f"The build did not end within {minutes} minutes of being started."
    return words if now - since > timedelta(minutes=minutes) + grace else None


def steps_of(stages: Iterable[tuple[Status, datetime]]) -> tuple[Step, ...]:
    """Each status of `stages` once, with its first time, in the order of `stages`."""
    seen: dict[Status, datetime] = {}
    for status, at in stages:
        seen.setdefault(status, at)
    return tuple(Step(status, at) for status, at in seen.items())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
