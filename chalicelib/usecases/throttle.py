"""How many requests a user or a build may make in a minute, roughly: processes take them from a shared count by tens.

So up to nine more per process may pass, or be refused although nobody used them. The gateway's own throttling
is the hard limit.
"""

from dataclasses import dataclass
from datetime import datetime

from chalicelib.errors import Throttled
from chalicelib.ports import Services

TAKEN_AT_ONCE = 10
MAX_NAMES = 1_000  # that a process keeps in mind


@dataclass(slots=True)
class _Taken:
    """What a process took from a count of one minute."""

    minute: datetime
    left: int = 0
    is_exhausted: bool = False


_taken: dict[str, _Taken] = {}


def admit(services: Services, name: str, limit: int) -> None:
    """Lets a request of this name pass, `limit` in a minute. Raises Throttled; without a limit (0), never."""
    if limit <= 0:
        return
    now = services.now()
    minute = now.replace(second=0, microsecond=0)
    taken = _taken.get(name)
    if taken is None or taken.minute != minute:
        if len(_taken) >= MAX_NAMES:
            _taken.clear()
        taken = _taken[name] = _Taken(minute)
    if taken.left == 0 and not taken.is_exhausted:
        before = services.accounts.count_requests(name, minute, TAKEN_AT_ONCE) - TAKEN_AT_ONCE
        taken.left = max(min(TAKEN_AT_ONCE, limit - before), 0)
        taken.is_exhausted = taken.left == 0
    if taken.left == 0:
        raise Throttled(60 - now.second)
    taken.left -= 1
