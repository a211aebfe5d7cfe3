"""What goes wrong, decided by the seed alone.

Each decision has a key that says where it is made ("reconcile 3 call 7"), and what is drawn there depends on
the seed and that key only. So a story stays the same elsewhere when one fault or one request is left out:
that is what makes it possible to shrink one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """Of one call to a port."""

    REFUSED = "fails, nothing done"
    LOST = "done, but the answer is lost"
    ENDS_BEFORE = "the function ends before the call"
    ENDS_AFTER = "the function ends after the call"
    SLOW = "takes long"
    SLOW_LOST = "done, times out"
    BUSY = "is told to wait"
    NEVER = "is refused for good"
    OWN_CONFLICT = "done, a retry inside the SDK sees a conflict"
    LAG = "reads what was there some seconds ago"


COMMON = (Fault.REFUSED, Fault.LOST, Fault.ENDS_BEFORE, Fault.ENDS_AFTER, Fault.SLOW, Fault.SLOW_LOST)

FREQUENT = 0.25
PERSISTENT = 0.6  # a call that went wrong goes wrong once more


class Chance:
    """Numbers from 0 to 1 by key."""

    def __init__(self, seed: int) -> None:
        self._key = str(seed).encode()

    def numbers(self, key: str) -> tuple[float, float, float, float]:
        digest = hashlib.blake2b(key.encode(), digest_size=16, key=self._key).digest()
        whole = int.from_bytes(digest, "big")
        part = 0xFFFFFFFF
        return (
            (whole >> 96) / (part + 1),
            (whole >> 64 & part) / (part + 1),
            (whole >> 32 & part) / (part + 1),
            (whole & part) / (part + 1),
        )

    def number(self, key: str) -> float:
        return self.numbers(key)[0]

    def between(self, key: str, low: float, high: float) -> float:
        return low + (high - low) * self.number(key)

    def pick(self, key: str, *choices: float) -> float:
        return choices[int(self.number(key) * len(choices))]

    def hexadecimal(self, key: str) -> str:
        return hashlib.blake2b(key.encode(), digest_size=16, key=self._key).hexdigest()


@dataclass(frozen=True)
class FaultRates:
    """How often things go wrong in one story. Each has some kinds of faults only, and often: so two faults
    meet that would hardly ever meet where everything goes wrong a little."""

    rates: Mapping[str, float]  # probability of a fault, by where: call, message, event, tick, run, or a method
    kinds: frozenset[Fault]  # of calls
    has_failing_methods: bool  # a few methods fail very often
    frequent: Fault | None  # happens to every third call or so that it can happen to


@dataclass
class Faults:
    """Which faults happen: each with its probability, or exactly those whose keys are in `only`."""

    chance: Chance
    fault_rates: FaultRates
    only: Collection[str] | None = None
    is_over: bool = False  # everything heals
    trace: Callable[[str, str], None] = lambda who, what: None
    fired: list[str] = field(default_factory=list)
    _call_rates: dict[str, float] = field(default_factory=dict)
    _kinds: dict[Sequence[Fault], Sequence[Fault]] = field(default_factory=dict)

    def happens(self, where: str, key: str, weight: float = 1.0) -> bool:
        """Whether the fault of that key happens. `weight` makes it more or less likely than the others."""
        if self.is_over or not self._fires(key, self.chance.number(key), self.fault_rates.rates[where] * weight):
            return False
        self.trace("FAULT", key)
        return True

    def of_call(
        self, method: str, key: str, special: Sequence[Fault], spared: bool, last: Fault | None = None
    ) -> tuple[Fault | None, float, float]:
        """What goes wrong with a call, how long it takes in seconds, and one more number from 0 to 1.
        `last` is what went wrong with it when it was made before."""
        first, which, latency, more = self.chance.numbers(key)
        seconds = 0.005 + 0.08 * latency * latency
        if self.is_over or spared:
            return None, seconds, more
        if last and self._fires(f"{key}: {last} again", which, PERSISTENT):
            return last, seconds, more
        frequent = self.fault_rates.frequent
        if (
            frequent
            and (frequent in COMMON or frequent in special)
            and self._fires(f"{key}: {frequent}", which, FREQUENT)
        ):
            return frequent, seconds, more
        kinds = self._kinds.get(special)
        if kinds is None:
            possible = (*COMMON, *special, *special)
            kinds = self._kinds[special] = [kind for kind in possible if kind in self.fault_rates.kinds]
        if not kinds or not self._fires(key, first, self._rate(method)):
            return None, seconds, more
        return kinds[int(which * len(kinds))], seconds, more

    def _rate(self, method: str) -> float:
        rate = self._call_rates.get(method)
        if rate is None:
            is_weak = self.fault_rates.has_failing_methods and self.chance.number(f"{method} is weak") < 0.15
            rates = self.fault_rates.rates
            rate = self._call_rates[method] = 0.3 if is_weak else rates.get(method, rates["call"])
        return rate

    def _fires(self, key: str, number: float, probability: float) -> bool:
        fires = number < probability if self.only is None else key in self.only
        if fires:
            self.fired.append(key)
        return fires


NO_FAULTS = Faults(Chance(0), FaultRates({}, frozenset(), False, None), is_over=True)
