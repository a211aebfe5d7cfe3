"""Limits the requests of a user or a build per minute. Processes add to a shared count in batches of ten.

So up to nine requests more per process may pass, or be refused although the limit is not reached. The gateway's own
throttling is the hard limit.
"""

from datetime import datetime

from chalicelib.errors import Throttled
from chalicelib.ports import Services

TAKEN_AT_ONCE = 10
MAX_NAMES = 1_000  # in the memory of a process
# For each name: the minute of the last batch, and how many of its requests are left; None: the limit is reached.
_taken: dict[str, tuple[datetime, int | None]] = {}


def admit(services: Services, name: str, limit: int) -> None:
    """Counts a request of this name. Raises Throttled beyond `limit` per minute; 0 is no limit."""
    if limit <= 0:
        return
    now = services.now()
    minute = now.replace(second=0, microsecond=0)
    taken_in, left = _taken.get(name, (None, 0))
    if taken_in != minute:
        left = 0
        if len(_taken) >= MAX_NAMES:
            _taken.clear()
    if left == 0:
        before = services.accounts.count_requests(name, minute, TAKEN_AT_ONCE) - TAKEN_AT_ONCE
        left = max(min(TAKEN_AT_ONCE, limit - before), 0) or None
    _taken[name] = minute, left and left - 1
    if left is None:
        raise Throttled(60 - now.second)
