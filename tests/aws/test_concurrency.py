"""Ten functions at once, as a new account has them, and 500 builds in the queue: a simulation with figures of
the template. Lambda and SQS do what their documents say: pollers begin with five batches and add sixty a
minute, `MaximumConcurrency` bounds them, and a throttled batch comes again when its visibility ends."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.aws.package import ROOT

SLOTS = 10  # functions of a new account, all together
CODEBUILD_SLOTS = 5
BATCH = 10
BUILD_SECONDS = 120
LONG_ENOUGH = BUILD_SECONDS * 500 / CODEBUILD_SLOTS + 3600
EVENTS = (1, 30, 50, BUILD_SECONDS)  # IN_PROGRESS, two phases, the end: what the rule lets through
# How long handlers take, on the slow side.
STARTING, REFUSED, EVENT, KEEPING, TICK, CLEANING = 3.0, 3.0, 0.5, 10.0, 20.0, 20.0


@dataclass
class Source:
    """A queue and what polls it for a function."""

    visibility: int
    max_receives: int
    most: int | None  # batches at once
    visible: list[int] = field(default_factory=list)
    receives: dict[int, int] = field(default_factory=dict)
    dead: list[int] = field(default_factory=list)
    lanes: int = 0

    def allowed(self, now: float) -> int:
        grown = 5 + 60 * int(now // 60)
        return grown if self.most is None else min(grown, self.most)


class Account:
    """Runs functions in ten slots; notes for how many seconds how many were free."""

    def __init__(self) -> None:
        self.now, self.busy, self.throttled = 0.0, 0, 0
        self.free_for = [0.0] * (SLOTS + 1)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._later, (self.now + seconds, self._order, action))

    def invoke(self, seconds: float, then: Callable[[], None]) -> bool:
        if self.busy == SLOTS:
            self.throttled += 1
            return False
        self.busy += 1

        def end() -> None:
            self.busy -= 1
            then()

        self.at(seconds, end)
        return True

    def run(self, seconds: float) -> None:
        while self._later and self._later[0][0] <= seconds:
            before = self.now
            self.now, _, action = heapq.heappop(self._later)
            self.free_for[SLOTS - self.busy] += self.now - before
            action()

    def share(self, free: int) -> float:
        """Of the time, the part with so many free functions, or more."""
        return sum(self.free_for[free:]) / sum(self.free_for)


class Service:
    """Slipway under that load."""

    def __init__(self, dispatch: Source, logs: Source, builds: int) -> None:
        self.account, self.dispatch, self.logs = Account(), dispatch, logs
        self.waiting, self.running, self.kept = 0, 0, set[int]()
        self.dispatch.visible = [*range(builds)]
        self.started = 0
        self.account.at(0, self._poll)
        self.account.at(0, self._tick)
        self.account.at(0, self._clean_up)

    def _poll(self) -> None:
        for source in (self.dispatch, self.logs):
            while source.visible and source.lanes < source.allowed(self.account.now):
                self._batch(source)
        self.account.at(1, self._poll)

    def _batch(self, source: Source) -> None:
        size = BATCH if source is self.dispatch else 1
        batch, source.visible = source.visible[:size], source.visible[size:]
        for message in [*batch]:
            source.receives[message] = source.receives.get(message, 0) + 1
            if source.receives[message] > source.max_receives:
                source.dead.append(message)
                batch.remove(message)
        seconds = 0.0 if source is self.dispatch else KEEPING
        for _ in batch if source is self.dispatch else ():
            seconds += self._handled(seconds)

        def done() -> None:
            source.lanes -= 1
            if source is self.logs:
                self.kept.update(batch)

        if self.account.invoke(seconds, done):
            source.lanes += 1
        else:
            self.account.at(source.visibility, lambda: source.visible.extend(batch))

    def _handled(self, after: float) -> float:
        """How long one message takes: a build starts, or waits for its turn in the table."""
        if self.running == CODEBUILD_SLOTS:
            self.waiting += 1
            return REFUSED
        self._start(after)
        return STARTING

    def _start(self, after: float) -> None:
        number, self.started, self.running = self.started, self.started + 1, self.running + 1
        for seconds in EVENTS:
            self.account.at(after + seconds, self._event)

        def end() -> None:
            self.running -= 1
            self.logs.visible.append(number)
            if self.waiting:  # the end of one announces the next
                self.waiting -= 1
                self.dispatch.visible.append(-number - 1)

        self.account.at(after + BUILD_SECONDS, end)

    def _event(self) -> None:
        if not self.account.invoke(EVENT, lambda: None):
            self.account.at(60, self._event)  # Lambda tries asynchronous ones again

    def _tick(self) -> None:
        self.account.invoke(TICK, lambda: None)
        self.account.at(60, self._tick)

    def _clean_up(self) -> None:
        self.account.invoke(CLEANING, lambda: None)
        self.account.at(300, self._clean_up)


def sources(written: Any, *, bounded: bool = True) -> tuple[Source, Source]:
    """The queues of builds and of logs, with the template's figures."""

    def source(queue: str, function: str, event: str) -> Source:
        properties = written["Resources"][queue]["Properties"]
        mapping = written["Resources"][function]["Properties"]["Events"][event]["Properties"]
        most = mapping["ScalingConfig"]["MaximumConcurrency"] if bounded else None
        return Source(properties["VisibilityTimeout"], properties["RedrivePolicy"]["maxReceiveCount"], most)

    return (
        source("DispatchQueue", "Dispatch", "DispatchSqsEventSource"),
        source("LogQueue", "KeepLog", "KeepLogSqsEventSource"),
    )


def test_500_queued_builds_leave_four_functions_for_requests(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues and schedules always do. CodeBuild's events, half a second each, come on top for moments."""
    service = Service(*sources(written), builds=500)
    service.account.run(LONG_ENOUGH)
    assert len(service.kept) == 500
    assert service.dispatch.dead == service.logs.dead == []
    assert service.account.throttled == 0
    assert service.account.share(4) > 0.999
    assert service.account.share(3) == 1

    monkeypatch.setitem(globals(), "EVENTS", ())
    service = Service(*sources(written), builds=500)
    service.account.run(LONG_ENOUGH)
    assert service.account.share(4) == 1


def test_without_a_bound_queues_take_all_functions(written: Any) -> None:
    """So the simulation sees what it is there for."""
    service = Service(*sources(written, bounded=False), builds=500)
    service.account.run(600)
    assert service.account.share(1) < 1
    assert service.account.throttled > 0


def test_the_queues_together_leave_two(written: Any) -> None:
    """Whatever lies in all four of them."""
    mappings = [
        event["Properties"]["ScalingConfig"]["MaximumConcurrency"]
        for each in written["Resources"].values()
        for event in each.get("Properties", {}).get("Events", {}).values()
        if "Queue" in event["Properties"]
    ]
    functions = json.loads((ROOT / ".chalice/config.json").read_text())["stages"]["aws"]["lambda_functions"]
    assert mappings == [2, 2, 2, 2]  # Lambda takes no less
    assert SLOTS - sum(mappings) == 2
    assert not [name for name, each in functions.items() if "reserved_concurrency" in each]
