"""The fakes as the use cases see them: each call takes its time, and may go wrong.

What a method may raise, and whether it may lag behind, is read from the docstrings of `chalicelib.ports`:
they are the promises that callers rely on, and nothing here has to know a port or a method by name.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections import deque
from collections.abc import Callable, Mapping, Set
from datetime import timedelta
from functools import cache
from io import IOBase
from typing import Any

from chalicelib import ports
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildKey, Project
from chalicelib.errors import AlreadyExists, Busy, Conflict, ExecutorRefused, Unavailable
from tests.simulation.faults import Fault, Faults
from tests.simulation.scheduler import Ended, Function, Scheduler, current

MAX_LAG_SECONDS = 10
SLOW_SECONDS = 60  # at most: longer than most functions may take
Trace = Callable[[str, str], None]


class SeenThroughFaults:
    """`Services` whose every call passes `Calls`."""

    def __init__(self, services: Any, calls: Calls) -> None:
        self._services, self._calls = services, calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._services, name)
        if name in ("settings", "now"):
            return found
        if isinstance(found, Mapping):
            return {key: Port(f"{name}[{key}]", each, self._calls) for key, each in found.items()}
        port = vars(self)[name] = Port(name, found, self._calls)
        return port


class Port:
    def __init__(self, name: str, real: Any, calls: Calls) -> None:
        self._name, self._real, self._calls = name, real, calls

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._real, method)
        if not callable(found):
            return found

        def call(*args: Any, **more: Any) -> Any:
            return self._calls.make(self._name, self._real, method, args, more)

        vars(self)[method] = call
        return call


class Calls:
    """Makes calls to the fakes, with the faults that are due."""

    def __init__(
        self,
        scheduler: Scheduler,
        faults: Faults,
        fatal: Set[str],
        look: Callable[[], None],
        trace: Trace | None,
    ) -> None:
        """Who reads something `fatal` is ended. `look` is called after each change of a store."""
        self.count, self._fatal = 0, fatal
        self._scheduler, self._faults, self._look, self._trace = scheduler, faults, look, trace
        self._past: dict[int, Past] = {}

    def make(self, port: str, real: Any, method: str, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        """One call of the current function; outside of any, a plain one."""
        caller = current()
        if caller is None:
            return getattr(real, method)(*args, **more)
        self.count += 1
        caller.calls += 1
        promised = promises(method)
        key = f"{caller.name} call {caller.calls}"
        fault, seconds, number = self._faults.of_call(f"{port}.{method}", key, promised, caller.is_spared)
        if self._trace is None:
            return self._make(caller, fault, seconds, number, real, method, args, more)
        given = ", ".join([*map(shown, args), *(f"{name}={shown(each)}" for name, each in more.items())])
        words = f"{port}.{method}({given})" + ("" if fault is None else f" !! {fault}")
        try:
            result = self._make(caller, fault, seconds, number, real, method, args, more)
        except BaseException as error:
            self._trace(caller.name, f"{words} -> {type(error).__name__} {error}".rstrip())
            raise
        self._trace(caller.name, f"{words} -> {shown(result)}")
        return result

    def _make(
        self,
        caller: Function,
        fault: Fault | None,
        seconds: float,
        number: float,
        real: Any,
        method: str,
        args: tuple[Any, ...],
        more: dict[str, Any],
    ) -> Any:
        late = number * SLOW_SECONDS
        caller.pause(seconds / 2 + (late if fault is Fault.SLOW and number < 0.5 else 0))
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
        past = self._past.get(id(real)) or self._past.setdefault(id(real), Past(real))
        try:
            if fault is Fault.LAG:
                since = self._scheduler.seconds - number * MAX_LAG_SECONDS
                return getattr(past.at(since), method)(*args, **more)
            result = getattr(real, method)(*args, **more)
        finally:
            if past.is_read_late and past.note(self._scheduler.seconds):
                self._look()
            caller.pause(seconds / 2 + (late if fault in (Fault.SLOW, Fault.SLOW_LOST) else 0))
            if fault is Fault.ENDS_AFTER:
                raise Ended
            if fault in (Fault.LOST, Fault.SLOW_LOST):
                raise Unavailable("The answer did not come.")
        if fault is Fault.OWN_CONFLICT:
            raise (AlreadyExists if "AlreadyExists" in documented(method) else Conflict)(
                "It was this call's own."
            )
        return result


class Past:
    """What a fake had in its collections at former times, for reads that lag behind."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.is_read_late = any(Fault.LAG in promises(method) for method in vars(type(real)))
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

    def at(self, seconds: float) -> Any:
        """The fake as it was then."""
        state = self._states[0][1]
        for since, each in self._states:
            if since <= seconds:
                state = each
        former = copy.copy(self._real)
        vars(former).update(state)
        return former

    def _state(self) -> dict[str, Any]:
        return {name: each.copy() for name, each in vars(self._real).items() if isinstance(each, dict)}


@cache
def documented(method: str) -> str:
    """What the ports promise of a method, with what it refers to by "Like `other`"."""
    texts = [
        inspect.getdoc(vars(protocol)[method]) or ""
        for protocol in vars(ports).values()
        if isinstance(protocol, type) and protocol.__module__ == ports.__name__ and method in vars(protocol)
    ]
    text = "\n".join(texts)
    return "\n".join([text, *(documented(other) for other in re.findall(r"(?:Like|As) `(\w+)`", text))])


@cache
def promises(method: str) -> tuple[Fault, ...]:
    """What may go wrong with a method beside what may go wrong with every call."""
    text = documented(method)
    special = [
        (Fault.OWN_CONFLICT, r"Conflict|AlreadyExists"),
        (Fault.LAG, r"\blags?\b"),
        (Fault.NEVER, r"ExecutorRefused"),
    ]
    found = [fault for fault, pattern in special if re.search(pattern, text)]
    return (*found, Fault.BUSY) if method in throttled() else tuple(found)


@cache
def throttled() -> frozenset[str]:
    """Methods of the ports that may say Busy: of all methods of a port of which one is said to."""
    found: set[str] = set()
    for protocol in vars(ports).values():
        if isinstance(protocol, type) and protocol.__module__ == ports.__name__:
            methods = [name for name, each in vars(protocol).items() if inspect.isfunction(each)]
            if any("Busy" in (inspect.getdoc(vars(protocol)[name]) or "") for name in methods):
                found.update(methods)
    return frozenset(found)


def shown(value: Any) -> str:
    """A value in the words of a story: short."""
    if isinstance(value, Build):
        claimed = (
            f" attempt {value.attempt}" + ("" if value.submitting_at else " (no claim)")
            if value.attempt
            else ""
        )
        handle = f" {value.handle}" if value.handle else ""
        stop = " to be stopped" if value.stop_requested_at else ""
        return f"<{value.key} v{value.version} {value.last_status}{claimed}{handle}{stop}>"
    if isinstance(value, Project):
        deleted = " deleted" if value.deleted_at else ""
        return f"<{value.key} {value.uuid[:4]} v{value.version} last {value.last_build_id}{deleted}>"
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g} s"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) + "}"
    if isinstance(value, BuildKey):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, (IOBase, Listing, frozenset)):
        return type(value).__name__  # their texts differ from process to process
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
