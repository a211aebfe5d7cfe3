"""Writing on top of what somebody else has just written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from chalicelib.errors import Conflict

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
    raise Conflict("Others are changing the same thing at this moment; try again.") from conflict
