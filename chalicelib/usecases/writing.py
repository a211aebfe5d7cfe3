"""Writing on top of what somebody else has just written, and telling the log what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from chalicelib.domain.build import Build
from chalicelib.domain.measures import of_change
from chalicelib.errors import Conflict

log = logging.getLogger(__name__)
Result = TypeVar("Result")
ATTEMPTS = 8


def until_written(write: Callable[[], Result]) -> Result:
    """Reads, decides and writes by `write`, and again as long as others write in between. Raises Conflict
    after some attempts, and whatever else `write` raises."""
    for _ in range(ATTEMPTS):
        try:
            return write()
        except Conflict as exc:
            conflict = exc
            log.info("Somebody else wrote first; deciding again.", extra={"measures": {"Conflicts": 1}})
    raise Conflict("Others are changing the same thing at this moment; try again.") from conflict


def told(before: Build, after: Build) -> Build:
    """Tells the log what a write has changed of a build's life, with what there is to measure of it, and
    returns what was written."""
    measures = of_change(before, after)
    if measures or after.last_status != before.last_status:
        fields = {
            "build": str(after.key),
            "status": after.last_status.value,
            "executor": after.executor,
            "attempt": after.attempt,
            "duration_seconds": after.duration_seconds,
            "measures": measures,
        }
        log.info("Build %s is %s, attempt %d", after.key, after.last_status, after.attempt, extra=fields)
    return after
