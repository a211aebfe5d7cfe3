"""The fakes as the use cases see them: each call takes its time, and may go wrong.

Which special faults a method may have is read from the docstrings of `chalicelib.ports`: they are the
promises that callers rely on. `test_simulation.py` lists what is found there.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from io import IOBase
from typing import Any, get_type_hints

from chalicelib import ports
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.project import Project
from chalicelib.errors import AlreadyExists, Busy, Conflict, ExecutorRefused, Unavailable
from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Ended, Function, Scheduler, current

MAX_LAG_SECONDS = 10
SLOW_SECONDS = 60  # at most: longer than most functions may take
Trace = Callable[[str, str], None]
Call = Callable[..., Any]


class SeenThroughFaults:
    """`Services` whose every call passes `Calls`."""

    def __init__(self, services: Any, calls: Calls) -> None:
        self._services, self._calls = services, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._services, name)
        if name in NO_PORTS:
            return found
        port = vars(self)[name] = Port(name, found, self._calls)
        return port

    def executor(self, name: str) -> Any:
        return Port("executor", self._services.executor(name), self._calls)


class Port:
    def __init__(self, name: str, real: Any, calls: Calls) -> None:
        self._name, self._real, self._calls = name, real, calls

    def __getattr__(self, method: str) -> Any:
        if not callable(getattr(self._real, method)):
            return getattr(self._real, method)

        def call(*args: Any, **more: Any) -> Any:
            return self._calls.make(self._name, self._real, method, args, more)

        vars(self)[method] = call
        return call


class Calls:
    """Makes calls to the fakes, with the faults that are due."""

    def __init__(
        self, scheduler: Scheduler, faults: Faults, records: Any, fatal: Set[str], trace: Trace | None
    ) -> None:
        """A function that reads something `fatal` is ended."""
        self.count = 0
        self.sent_at = 0.0  # when the call was sent whose effect happens
        self.after_change: Callable[[], None] = lambda: None  # called after each change of the records
        self._scheduler, self._faults, self._fatal, self._trace = scheduler, faults, fatal, trace
        self._past = Past(records)

    def make(self, port: str, real: Any, method: str, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        """One call of the current function; outside of any, a plain one."""
        caller = current()
        if caller is None:
            return getattr(real, method)(*args, **more)
        self.count += 1
        caller.calls += 1
        sent_at = self._scheduler.seconds
        special = special_faults(port, method)
        if more.get("may_lag"):
            special += (Fault.LAG,)
        key = f"{caller.name} call {caller.calls}"
        fault, seconds, number = self._faults.of_call(f"{port}.{method}", key, special, caller.is_spared)
        if fault is Fault.LAG:
            real = self._past.at(real, self._scheduler.seconds - number * MAX_LAG_SECONDS)
        result = None
        try:
            self._before(caller, fault, seconds, number, args)
            self.sent_at = sent_at
            with self._after(caller, fault, seconds, number):
                result = getattr(real, method)(*args, **more)
            if fault is Fault.OWN_CONFLICT:
                is_new = "AlreadyExists" in documented(port, method)
                raise (AlreadyExists if is_new else Conflict)("It was this call's own.")
            return result
        except BaseException as error:
            result = f"{type(error).__name__} {error}".rstrip()
            raise
        finally:
            if self._trace is not None:
                given = [*map(shown, args), *(f"{name}={shown(each)}" for name, each in more.items())]
                went_wrong = "" if fault is None else f" !! {fault}"
                words = f"{port}.{method}({', '.join(given)}){went_wrong} -> {shown(result)}"
                self._trace(caller.name, words)

    def _before(
        self, caller: Function, fault: Fault | None, seconds: float, number: float, args: tuple[Any, ...]
    ) -> None:
        caller.pause(seconds / 2 + (number * SLOW_SECONDS if fault is Fault.SLOW and number < 0.5 else 0))
        if self._fatal and any(isinstance(given, str) and given in self._fatal for given in args):
            raise Ended
        match fault:
            case Fault.REFUSED:
                raise Unavailable("The call failed.")
            case Fault.ENDS_BEFORE:
                raise Ended
            case Fault.BUSY:
                raise Busy("Wait.")
            case Fault.NEVER:
                raise ExecutorRefused("This will never run.")

    @contextmanager
    def _after(self, caller: Function, fault: Fault | None, seconds: float, number: float) -> Iterator[None]:
        try:
            yield
        finally:
            if self._past.note(self._scheduler.seconds):
                self.after_change()
            is_late = fault in (Fault.SLOW, Fault.SLOW_LOST)
            caller.pause(seconds / 2 + (number * SLOW_SECONDS if is_late else 0))
            if fault is Fault.ENDS_AFTER:
                raise Ended
            if fault in (Fault.LOST, Fault.SLOW_LOST):
                raise Unavailable("The answer did not come.")


class Past:
    """What the records were at former times, for reads that lag behind."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self._states: deque[tuple[float, dict[str, Any]]] = deque([(0.0, self._state())])

    def note(self, seconds: float) -> bool:
        """Remembers the state from now on; whether it has changed."""
        state = self._state()
        if state == self._states[-1][1]:
            return False
        self._states.append((seconds, state))
        while len(self._states) > 1 and self._states[1][0] < seconds - MAX_LAG_SECONDS:
            self._states.popleft()
        return True

    def at(self, port: Any, seconds: float) -> Any:
        """A port of the table as it was then."""
        former_port, former = copy.copy(port), copy.copy(self._records)
        vars(former).update(self.state(seconds))
        former_port._records = former
        return former_port

    def state(self, seconds: float) -> dict[str, Any]:
        """The records of then, by the names of their dictionaries."""
        return next((each for since, each in reversed(self._states) if since <= seconds), {})

    def _state(self) -> dict[str, Any]:
        return {name: each.copy() for name, each in vars(self._records).items() if isinstance(each, dict)}


@cache
def _protocol(port: str) -> type:
    """The class in `chalicelib.ports` of an attribute of Services."""
    hints = get_type_hints(ports.Services) | get_type_hints(ports.Services.executor)
    found: type = hints["return" if port == "executor" else port]
    return found


NO_PORTS = ("settings", "scripts", "aside", "now")
PORTS = [name for name in (*get_type_hints(ports.Services), "executor") if name not in NO_PORTS]


def methods_of(port: str) -> list[str]:
    """Those that make a call: properties do not."""
    return [name for name, each in vars(_protocol(port)).items() if inspect.isfunction(each) and name[0] != "_"]


@cache
def documented(port: str | type, method: str) -> str:
    """What a port promises of a method, with what it refers to by "Like `other`"."""
    protocol = _protocol(port) if isinstance(port, str) else port
    text = inspect.getdoc(vars(protocol)[method]) or ""
    for other, name in re.findall(r"(?:[Ll]ike|[Aa]s) `(?:(\w+)\.)?(\w+)`", text):
        text += "\n" + documented(getattr(ports, other) if other else protocol, name)
    return text


@cache
def special_faults(port: str, method: str) -> tuple[Fault, ...]:
    """What may go wrong with a method beside what may go wrong with every call. If one method of a port may
    say Busy, all of them may."""
    text = documented(port, method)
    is_throttled = any("Busy" in documented(port, each) for each in methods_of(port))
    return tuple(
        fault
        for fault, is_due in (
            (Fault.OWN_CONFLICT, re.search(r"Conflict|AlreadyExists", text)),
            (Fault.LAG, re.search(r"\blags?\b", text)),
            (Fault.NEVER, "ExecutorRefused" in text),
            (Fault.BUSY, is_throttled),
        )
        if is_due
    )


def shown(value: Any) -> str:
    """A value in the words of a story: short."""
    match value:
        case Build():
            attempt = f" attempt {value.attempt}" if value.attempt else ""
            claim = " (no claim)" if value.attempt and value.submitting_at is None else ""
            handle = f" {value.handle}" if value.handle else ""
            flags = (" waits" if value.is_waiting else "") + (" to be stopped" if value.stop_requested_at else "")
            return f"<{value.key} v{value.version} {value.last_status}{attempt}{claim}{handle}{flags}>"
        case Project():
            deleted = " deleted" if value.deleted_at else ""
            return f"<{value.key} {value.uuid[:4]} v{value.version} last {value.last_build_id}{deleted}>"
        case timedelta():
            return f"{value.total_seconds():g} s"
        case Mapping():
            return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
        case BuildKey():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(shown, value))}]"
        case IOBase() | Listing() | frozenset() | Iterator():
            return type(value).__name__  # their texts differ from process to process
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
