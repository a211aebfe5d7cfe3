"""Retries on conflicts, logs changes, and keeps an error in one build from stopping work on others."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from chalicelib.domain.build import Build
from chalicelib.errors import Conflict, SlipwayError

log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
ATTEMPTS = 8
SLOT_SECONDS = 0.005  # the longest pause is 0.64 s


def retry_on_conflict(write: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Repeats `write`, which reads, decides and saves, on a Conflict: first at once, then after growing pauses. Raises
    Conflict after `ATTEMPTS`, and every other error of `write`."""

    @wraps(write)
    def repeat(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        for attempt in range(ATTEMPTS):
            if attempt > 1:
                time.sleep(random.uniform(0, SLOT_SECONDS * 2**attempt))  # noqa: S311 - only spreads writers
            try:
                return write(*args, **kwargs)
            except Conflict as exc:
                conflict = exc
                log.info("Another handler changed the record; it is read again", extra={"measures": {"Conflicts": 1}})
        raise Conflict("Too many concurrent changes; try again.") from conflict

    return repeat


def log_change(before: Build, after: Build) -> Build:
    """Logs a status change with its metrics; returns the saved build."""
    measures = measures_of(before, after)
    if measures or after.last_status != before.last_status:
        fields = {
            "build": str(after.key),
            "status": after.last_status.value,
            "executor": after.executor,
            "attempt": after.attempt,
            "duration_seconds": after.duration_seconds,
            "measures": measures,
        }
        log.info("Build %s is %s in its attempt %d", after.key, after.last_status, after.attempt, extra=fields)
    return after


def measures_of(before: Build, after: Build) -> dict[str, float]:
    """Metrics by name: `…Seconds` are durations, others are counts. Empty if nothing relevant has changed."""
    measures: dict[str, float] = {}
    if after.handle is not None and before.handle is None:
        measures["Submissions"] = 1
    if after.attempt > max(before.attempt, 1):
        measures["Retries"] = 1
    if after.is_done and not before.is_done:
        assert after.finished_at is not None
        measures[after.last_status.value.title().replace("_", "")] = 1
        if after.worked_since is not None:  # the end of waiting; a build that never ran has neither time
            measures["QueuedSeconds"] = (after.worked_since - after.created_at).total_seconds()
            measures["BuildingSeconds"] = (after.finished_at - after.worked_since).total_seconds()
        if after.stop_requested_at is not None:
            measures["StoppingSeconds"] = (after.finished_at - after.stop_requested_at).total_seconds()
    return measures


@contextmanager
def isolated(one: Build | str) -> Iterator[None]:
    """Logs errors in the block, which is about one build or executor, so that the others are not affected."""
    try:
        yield
    except Conflict:
        pass  # another handler works on it
    except Exception as error:
        name = one if isinstance(one, str) else f"build {one.key}"
        fields = {} if isinstance(one, str) else {"build": str(one.key)}
        is_bug = not isinstance(error, SlipwayError)
        level = logging.ERROR if is_bug else logging.WARNING
        why = error or type(error).__name__
        log.log(level, "%s could not be handled: %s", name, why, extra=fields, exc_info=is_bug)
