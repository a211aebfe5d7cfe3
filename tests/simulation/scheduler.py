"""One simulated clock, and functions that run side by side on it and change places at every call."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from greenlet import getcurrent, greenlet

from tests.fakes import Clock


class Ended(BaseException):
    """Lambda ended the function at this point. No `except Exception` sees it."""


class Function(greenlet):  # type: ignore[misc] # greenlet ships no types
    """One invocation: of a Lambda function, or of the API by a client."""

    def __init__(self, scheduler: Scheduler, name: str, work: Callable[[], Any], limit_seconds: float) -> None:
        super().__init__(parent=scheduler.hub)
        self.scheduler, self.name, self.work = scheduler, name, work
        self.started_at = scheduler.seconds
        self.ends_at = scheduler.seconds + limit_seconds
        self.calls = 0  # to ports, or over HTTP
        self.failing: tuple[object, Any] | None = None  # its last HTTP call, if that went wrong, and how
        self.drawn = 0  # random identifiers
        self.is_spared = False  # nothing goes wrong in it
        self.answer: Any = None
        self.error: BaseException | None = None
        self.after: Callable[[Function], None] = lambda function: None  # when it has come to its end

    def run(self) -> None:
        try:
            self.answer = self.work()
        except BaseException as error:
            self.error = error
        self.after(self)

    def pause(self, seconds: float) -> None:
        """Lets others go on for so long. Raises Ended at the function's time limit."""
        wakes_at = self.scheduler.seconds + max(seconds, 0.001)
        self.scheduler.at(min(wakes_at, self.ends_at), self.switch)
        self.parent.switch()
        if wakes_at > self.ends_at:
            raise Ended


class Scheduler:
    """What happens when, in seconds since the start; at equal times in the order of asking."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.start = clock, clock.now
        self.hub = getcurrent()
        self.seconds = 0.0
        self._order = 0
        self._waiting: list[tuple[float, int, Callable[[], object]]] = []

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        self._order += 1
        heapq.heappush(self._waiting, (max(seconds, self.seconds), self._order, do))

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        self.at(self.seconds + seconds, do)

    def run(self, until: float) -> None:
        """Goes on to that time."""
        while self._waiting and self._waiting[0][0] <= until:
            seconds, _, do = heapq.heappop(self._waiting)
            self._move(seconds)
            do()
        self._move(until)

    def close(self) -> None:
        """Ends the functions that still wait. Else Python does when it collects garbage: perhaps while the same lock is
        held, of a pool of connections, that they need to end."""
        while self._waiting:
            function = getattr(self._waiting.pop()[2], "__self__", None)
            if isinstance(function, Function) and function:
                function.throw()

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def time(self, seconds: float) -> datetime:
        return self.start + timedelta(milliseconds=int(seconds * 1000))

    def _move(self, seconds: float) -> None:
        self.seconds = seconds
        self.clock.now = self.time(seconds)


def current() -> Function | None:
    """The function that runs now; None while the simulation itself is at work."""
    me = getcurrent()
    return me if isinstance(me, Function) else None
