"""One seed: its story is made up, happens, heals, and is checked."""

from __future__ import annotations

import logging
import random
import secrets
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from chalicelib import wiring
from chalicelib.usecases import throttle
from tests.simulation import promises, story
from tests.simulation.adapters import AdaptersWorld
from tests.simulation.faults import Chance, Faults
from tests.simulation.promises import Broken
from tests.simulation.scheduler import current
from tests.simulation.world import DAY, World

HEALING_MINUTES = 240  # at most: then nothing may be left to look at
SWEEP_SECONDS = 300


@dataclass
class Result:
    seed: int
    broken: list[Broken]
    fired: list[str]  # the faults that happened, by their keys
    requests: list[str]
    calls: int
    lines: list[str] = field(default_factory=list)  # the story, when it was asked for


def simulate(
    seed: int,
    *,
    only: Collection[str] | None = None,
    left_out: frozenset[str] = frozenset(),
    traced: bool = False,
    adapters: bool = False,
) -> Result:
    """Runs a seed, on the fakes or on the real adapters: with all its faults or `only` these, without the
    requests that are `left_out`."""
    plan = story.without(story.make(seed), left_out)
    chance = Chance(seed)
    lines: list[str] = []
    world: World

    def trace(who: str, what: str) -> None:
        if traced:
            lines.append(f"{world.scheduler.seconds:10.3f}  {who}: {what}")

    faults = Faults(chance, plan.fault_rates, only, trace=trace)
    kind = AdaptersWorld if adapters else World
    world = kind(chance, faults, trace, traced, plan.start_at, plan.on_eks, plan.slots, plan.limits)
    with _in_place(world, seed):
        story.prepare(world, plan)
        _with_faults(world, plan.heals_at_minute)
        _heal(world, plan.heals_at_minute)
        broken = [*promises.settled(world, plan)]
        seen = len(world.broken)
        _days_pass(world)
        broken += [Broken(*each) for each in world.broken[seen:]]
        broken += promises.cleaned(world)
        world.scheduler.close()
    if plan.has_fatal_log:
        broken = [promises.of_fatal_log(each) for each in broken]
    names = [request.name for request in plan.requests]
    return Result(seed, broken, world.faults.fired, names, world.calls.count, lines)


def _with_faults(world: World, minutes: int) -> None:
    out = 0, 0
    if world.faults.happens("tick", "the schedule is out", 4):
        first = int(world.chance.between("the schedule is out from", 0, 10))
        out = first, first + int(world.chance.pick("the schedule is out for", 10, 30, 70, 140))
    world.ticks(0, min(out[0], minutes))
    world.ticks(min(out[1], minutes), minutes)
    world.scheduler.run(minutes * 60)


def _heal(world: World, minute: int) -> None:
    """Nothing fails from now on, and the schedule comes every minute."""
    world.trace("world", "EVERYTHING HEALS")
    world.faults.is_over, world.healed_at = True, world.scheduler.seconds
    for later in range(minute, minute + HEALING_MINUTES):
        world.ticks(later, later + 1)
        world.scheduler.run((later + 1) * 60)
        if later > minute + 15 and world.is_quiet():
            break


def _days_pass(world: World) -> None:
    """Days pass, and the cleanup finds all that it has to find."""
    world.scheduler.run(world.scheduler.seconds + 8 * DAY)
    if world.services.registry.refuses_tags:
        world.start("reconcile days later", "reconcile", world.schedule, lambda function: None)
        world.scheduler.run(world.scheduler.seconds + 3_600)
    for number in range(4):
        world.start(f"clean_up {number} days later", "clean_up", world.schedule, lambda function: None)
        world.scheduler.run(world.scheduler.seconds + 3_700)
    twice = [*sorted(world.services.sources.archives)] * 2  # the first sweep may only forget former references
    for sha256 in twice:
        now = world.services.now().timestamp()
        turns = (int(sha256[:2], 16) - int(now) // SWEEP_SECONDS) % 256
        world.scheduler.run(world.scheduler.seconds + turns * SWEEP_SECONDS)
        world.start(f"clean_up for {sha256[:2]}", "clean_up", world.schedule, lambda function: None)
        world.scheduler.run(world.scheduler.seconds + 60)


@contextmanager
def _in_place(world: World, seed: int) -> Iterator[None]:
    """The world in the place of AWS, of the clock and of chance."""
    former, state, log = wiring.replace_services(world.seen), random.getstate(), logging.getLogger("chalicelib")
    watch = _Watch(world)
    random.seed(seed)
    throttle._taken.clear()
    propagates, log.propagate = log.propagate, False
    log.addHandler(watch)
    try:
        with (
            world.in_place(),
            mock.patch.object(time, "sleep", _sleep),
            mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(hex=world.draw())),
            mock.patch.object(secrets, "token_hex", lambda count=32: (world.draw() * count)[: 2 * count]),
        ):
            yield
    finally:
        log.removeHandler(watch)
        log.propagate = propagates
        random.setstate(state)
        wiring.replace_services(former)


def _sleep(seconds: float) -> None:
    function = current()
    assert function is not None, "only functions sleep"
    function.pause(seconds)


class _Watch(logging.Handler):
    """Sees the exceptions that handlers log and answer with "again"."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._world.logged(error)
