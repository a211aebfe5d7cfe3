"""Reports of clients: statuses, log lines and heartbeats of builds that run elsewhere; the code of all builds."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.lifecycle import HEARTBEAT, MAX_MESSAGE, MAX_TEXT_BYTES
from chalicelib.domain.log_lines import LogLine
from chalicelib.domain.record import replace
from chalicelib.domain.spec import has_control_characters
from chalicelib.domain.user import User
from chalicelib.errors import Invalid, require
from chalicelib.ports import Services
from chalicelib.usecases import builds
from chalicelib.usecases.conflicts import log_change, retry_on_conflict
from chalicelib.usecases.logs import LOOK_AGAIN

LINE_OVERHEAD_BYTES = 28  # the time of a stored line
REFERENCE_FIELDS = {"branch": 124, "commit": 40, "head": 40, "git_url": 256}  # characters


def report_status(services: Services, caller: User, key: BuildKey, fields: dict[str, Any]) -> Build:
    """Adds a status. Raises NotFound, Forbidden, Invalid, also if the table of statuses does not allow it."""
    status = _status(fields.get("status") or "created")
    message, traceback, details = fields.get("message"), fields.get("traceback"), fields.get("details")
    faults: dict[str, list[str]] = {}
    if message is not None and (not isinstance(message, str) or len(message) > MAX_MESSAGE):
        faults["message"] = [f"Must be a text of at most {MAX_MESSAGE} characters."]
    if traceback is not None and (not isinstance(traceback, str) or len(traceback.encode()) > MAX_TEXT_BYTES):
        faults["traceback"] = [f"Must be a text of at most {MAX_TEXT_BYTES} bytes."]
    if details is not None and (not isinstance(details, dict) or len(json.dumps(details)) > MAX_TEXT_BYTES):
        faults["details"] = [f"Must be an object of at most {MAX_TEXT_BYTES} bytes."]
    at = _time(fields.get("created_at"), faults)
    if faults:
        raise Invalid(faults)

    def add(build: Build, now: datetime) -> Build:
        new = lifecycle.advance(build, status, now, at=at, message=message, traceback=traceback, details=details)
        return new if new.is_done else replace(new, check_at=now + HEARTBEAT)

    return _change(services, caller, key, add)


def heartbeat(services: Services, caller: User, key: BuildKey) -> None:
    """Extends the life of a build by half an hour; ignored for managed builds. Raises NotFound, Forbidden."""
    if builds.writable(services, caller, key).build.is_managed:
        return
    _change(
        services, caller, key, lambda build, now: build if build.is_done else replace(build, check_at=now + HEARTBEAT)
    )


def report_reconciled(services: Services, caller: User, key: BuildKey, fields: dict[str, Any]) -> None:
    """Adds a status, unless the table of statuses does not allow it. Raises NotFound, Forbidden, Invalid."""
    status = _status(fields.get("status"))

    def add(build: Build, now: datetime) -> Build:
        if not lifecycle.may_follow(build.last_status, status):
            return build
        return lifecycle.advance(build, status, now, message="Status was reconciled.")

    _change(services, caller, key, add)


def report_lines(services: Services, caller: User, key: BuildKey, lines: Any) -> None:
    """Adds lines, a text or a list of texts, to a log that is not stored yet, and at most as many as a stored log can
    have. Raises NotFound, Forbidden, Invalid."""
    texts = [lines] if isinstance(lines, str) else lines
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Invalid(["Send lines of the log: a JSON text, or a list of texts."])
    added = [line for text in texts for line in text.splitlines()]
    size = sum(len(line.encode()) + LINE_OVERHEAD_BYTES for line in added)

    def point(build: Build, now: datetime) -> Build:
        require(build.stored_log_bytes is None, "The build has ended and its log is stored: it accepts no more lines.")
        reported, most = (build.reported_log_bytes or 0) + size, services.settings.max_stored_log_bytes
        require(reported <= most, f"A build can report {most} bytes of lines, {LINE_OVERHEAD_BYTES} for each included.")
        # After the end, the log is stored only after these lines have arrived.
        check_at = now + (LOOK_AGAIN if build.is_done else HEARTBEAT)
        log = build.log or services.logs.reported(build)
        return replace(build, log=log, check_at=check_at, reported_log_bytes=reported)

    build, now = _change(services, caller, key, point), services.now()
    services.logs.append(build.log or "", [LogLine(now, line) for line in added])


@retry_on_conflict
def reference(services: Services, caller: User, key: BuildKey, fields: dict[str, Any]) -> Build:
    """Replaces the reported code; also the commit, if the build runs elsewhere. Raises NotFound, Forbidden, Invalid."""
    faults = {
        name: [f"Must be a line of at most {limit} characters."]
        for name, limit in REFERENCE_FIELDS.items()
        if (text := fields.get(name)) is not None
        and not (isinstance(text, str) and len(text) <= limit and not has_control_characters(text))
    }
    if not isinstance(fields.get("is_dirty"), bool | None):
        faults["is_dirty"] = ["Must be true or false."]
    if faults:
        raise Invalid(faults)
    given = {name: fields[name] for name in (*REFERENCE_FIELDS, "is_dirty") if fields.get(name) is not None}
    build = builds.writable(services, caller, key).build
    commit = build.commit if build.is_managed else given.get("commit")
    return services.builds.save(replace(build, code_reference={"branch": "master", **given}, commit=commit))


@retry_on_conflict
def _change(services: Services, caller: User, key: BuildKey, change: Callable[[Build, datetime], Build]) -> Build:
    """Writes a change of a build that runs elsewhere. Raises Invalid for a managed one."""
    build = builds.writable(services, caller, key).build
    require(not build.is_managed, "This build is run here, and only what happens to it changes its status and log.")
    changed = change(build, services.now())
    return build if changed == build else log_change(build, services.builds.save(changed))


def _status(name: Any) -> Status:
    if name is None:
        raise Invalid({"status": ["This field is required."]})
    try:
        return Status(name)
    except ValueError as exc:
        raise Invalid({"status": [f'"{str(name)[:64]}" is not a valid choice.']}) from exc


def _time(text: Any, faults: dict[str, list[str]]) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        faults["created_at"] = ["Must be a time such as 2024-03-01T12:00:00Z."]
        return None
