"""How many requests a user or a build may make in a minute, roughly: processes take them from a shared count by tens.

So up to nine more per process may pass, or be refused although nobody used them. The gateway's own throttling
is the hard limit.
"""

from datetime import datetime

from chalicelib.errors import Throttled
from chalicelib.ports import Services

TAKEN_AT_ONCE = 10
MAX_NAMES = 1_000  # that a process keeps in mind


# The minute in which a process took requests of a name last, and how many of them are left; None: there are no more.
_taken: dict[str, tuple[datetime, int | None]] = {}


def admit(services: Services, name: str, limit: int) -> None:
    """Lets a request of this name pass, `limit` in a minute. Raises Throttled; without a limit (0), never."""
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
