"""Known faults, put back one by one: a simulation that does not find them proves nothing.

    python -m tests.simulation.recall [NAME…]

Each fault is a few functions as they were (or could have been) written, which replace those of the same name.
A fault counts as found at the first seed that breaks its promise with it, and does not without it. Exits with
1 when one is not found in `SEEDS` seeds, or is in the code today.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Image, Status
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.domain.project import Project
from chalicelib.domain.slots import Running
from chalicelib.errors import Busy, Gone, Unavailable
from chalicelib.usecases import announcements, automation, builds, execution, logs, materials, schedule
from chalicelib.usecases.conflicts import isolated, log_change
from tests.fakes import FakeArchive, FakeSlots
from tests.simulation.faults import Fault
from tests.simulation.run import simulate
from tests.simulation.story import Story, make
from tests.simulation.world import SimulatedExecutor

SEEDS = 5_000
IN_VAIN = 5  # so many seeds that break without the fault as well: then it is in the code
LOST = "NOT FOUND"


@dataclass(frozen=True)
class KnownFault:
    name: str
    promises: tuple[str, ...]  # of which it must break one
    seed: int  # that finds it, as `make simulate-recall` says
    functions: Mapping[str, Any]  # by dotted name; or a constant
    needs: Callable[[Story], bool] = lambda story: True  # other stories cannot find it, and are not run
    adapters: bool = False  # only the real adapters have it, or show it


# What the executor answers to a repeated submit gives the claim of the first one away

_start = execution._start


def start_and_release(services: Any, build: Build, *, is_repeat: bool) -> Build | None:
    return _start(services, build, is_repeat=False)


# The executor says that this call made nothing, though it did

_submit = SimulatedExecutor.submit


def submit_then_busy(self: SimulatedExecutor, build: Build) -> str:
    handle = _submit(self, build)
    if self._world.faults.happens("call", f"{handle} {len(self.runs)} is said to be refused", 10):
        raise Busy("The cluster asks us to wait.")
    return handle


# Given up by the clock alone


def give_up_unasked(services: Any, build: Build) -> None:
    reason = execution._why_overdue(services, build)
    if reason is None or build.is_done:
        return
    if build.handle is not None:
        with isolated(build):
            services.executor(build.executor).stop(build.handle)
    execution.end(services, build, Status.FAILED, reason)


# Decided long before it is done: whether the executor still knows what it was asked

_may_repeat, _start = execution._may_repeat, execution._start


def may_repeat_once_decided(services: Any, build: Build) -> bool:
    return sys._getframe(1).f_code.co_name == "_start" or _may_repeat(services, build)


def start_after_preparing(services: Any, build: Build, *, is_repeat: bool) -> Build | None:
    services.registry.prepare(build.image)
    return _start(services, build, is_repeat=is_repeat)


# An image in the registry ends a build without the log and the handle of the attempt that made it


def finish_without_evidence(services: Any, build: Build, image: Image, *_: Any) -> Build | None:
    seen = Observation(str(build.key), build.uuid, build.attempt, "", None, (), Outcome.SUCCEEDED)
    done = lifecycle.follow(build, seen, services.now(), image=image, reason=None)
    return done and log_change(build, services.builds.save(done))


# A request that was done is answered by what became of its build


_replayed = builds._replayed


def replay_what_is_shown(services: Any, caller: Any, project: Project, mark: Any) -> Any:
    if mark is not None and (key := services.builds.replay(project.key, mark)):
        builds.get(services, caller, key)
    return _replayed(services, caller, project, mark)


# A registry that refuses a tag keeps the log waiting


_did_all = schedule._did_all


def tags_before_the_log(services: Any, build: Build, is_hidden: Any) -> bool:
    if build.is_done and build.has_tags_to_move(services.now()):
        build = execution.move_tags(services, build)
    return _did_all(services, build, is_hidden)


# A tag is given to whoever ends last


def newest_is_this(services: Any, build: Build) -> dict[str, str]:
    return dict.fromkeys(build.image_tags, build.image)


# An announcement that was not taken is logged, and not made again

_announce = announcements.announce


def announce_once(*given: Any) -> None:
    with suppress(Unavailable):
        _announce(*given)


# Purged by name, whatever is there by now


def purge_by_name(self: FakeArchive, record: Build | Project, *_: Any, **__: Any) -> None:
    records = self._records
    records.bookmarks = {mark: at for mark, at in records.bookmarks.items() if mark[1] != record.key}
    if isinstance(record, Project):
        records.projects.pop((record.owner, record.name), None)
        return
    if record.name is not None and record.key in records.builds:
        records.names.pop((record.key.owner, record.key.project, record.name), None)
    records.bodies.pop(record.key, None)
    records.builds.pop(record.key, None)


# The schedule does its work, a long one too, before it says when to look again


def reconcile_without_lease(services: Any) -> int:
    due = services.builds.due(services.now(), 500)
    for build in due:
        with isolated(build):
            if build.is_done:
                logs.keep(services, build.key)
            else:
                execution.process(services, build.key)
                execution.give_up_if_overdue(services, services.builds.get(build.key))
    for build in due:
        with isolated(build):
            now = services.builds.get(build.key)
            if now is not None and now.check_at is not None and now.check_at <= services.now():
                services.builds.lease(now, execution.next_check(services, now))
    return len(due)


# Whatever image has the build's tag counts, whoever pushed it


def image_of_anybody(build: Build, answered: Image | None) -> Image | None:
    return answered


def found_image_of_anybody(services: Any, build: Build) -> Image | None:
    found: Image | None = services.registry.find(build.image)
    return found


# An attempt is only answered once its handle is noted


_expect_current = materials._expect_current


def expect_noted(build: Build, attempt: int) -> None:
    _expect_current(build, attempt)
    if build.handle is None:
        raise Gone("Who are you?")


# A request of the queue that was done, but not noted, is refused when it comes again

CHANGES_WITHOUT_A_LOOK = {name: (change, lambda build: False) for name, (change, _) in automation._CHANGES.items()}


# A slot is free only if the function that records the end says so


def free_nothing(services: Any) -> None: ...


# Two functions that see the same free slot both take it


def take_unasked(self: FakeSlots, build: BuildKey, running: Running) -> None:
    now = self.read()
    self._records.slots["all"] = Running(now.builds | {build}, now.version + 1)


# Every build of a project has the same recipe


def recipe_of_any(*_: Any) -> str:
    return "any"


# For the test of the simulation itself


def announce_nothing(*_: Any, **__: Any) -> None: ...


def reconcile_nothing(services: Any) -> int:
    return 0


UNANNOUNCED = KnownFault(
    "nobody hears of new builds",
    ("every build ends",),
    1,
    {
        "tests.simulation.world.SimulatedQueue.announce": announce_nothing,
        "chalicelib.usecases.schedule.reconcile": reconcile_nothing,
    },
)


def _has(story: Story, *kinds: Fault) -> bool:
    rates = story.fault_rates
    return rates.frequent in kinds or not rates.kinds.isdisjoint(kinds)


_STARTED_TWICE = ("a build is started once", "no compute after the end")
FAULTS = (
    KnownFault(
        "busy releases the claim",
        _STARTED_TWICE,
        202,
        {"chalicelib.usecases.execution._start": start_and_release},
        lambda story: _has(story, Fault.BUSY) or story.slots < 100,
    ),
    KnownFault(
        "busy after the start",
        _STARTED_TWICE,
        2,
        {"tests.simulation.world.SimulatedExecutor.submit": submit_then_busy},
    ),
    KnownFault(
        "given up without being asked",
        ("an image means success",),
        421,
        {"chalicelib.usecases.execution.give_up_if_overdue": give_up_unasked},
    ),
    KnownFault(
        "replay decided early",
        _STARTED_TWICE,
        187,
        {
            "chalicelib.usecases.execution._may_repeat": may_repeat_once_decided,
            "chalicelib.usecases.execution._start": start_after_preparing,
            "tests.fakes.FakeExecutor.forgets_after_seconds": 165,
            "tests.simulation.ports.SLOW_SECONDS": 110,  # one slow call is enough then
        },
        lambda story: not story.on_eks and _has(story, Fault.SLOW, Fault.SLOW_LOST),
    ),
    KnownFault(
        "success without a log",
        ("a log is kept",),
        64,
        {"chalicelib.usecases.execution._finished_before": finish_without_evidence},
        lambda story: story.fault_rates.rates["run"] > 0,
    ),
    KnownFault(
        "repeats are not found",
        ("a repeated request has the same answer", "what was done is no dead letter"),
        18,
        {"chalicelib.usecases.builds._replayed": replay_what_is_shown},
    ),
    KnownFault(
        "purge by name",
        ("only what was deleted is purged", "a project's builds go with it"),
        122,
        {
            "tests.fakes.FakeArchive.purge": purge_by_name,
            "chalicelib.domain.cleanup.SETTLES": timedelta(0),
            "chalicelib.usecases.cleanup.SETTLES": timedelta(0),
        },
        lambda story: any(request.kind == "delete project" for request in story.requests),
    ),
    KnownFault(
        "no lease",
        ("no build keeps others waiting",),
        247,
        {"chalicelib.usecases.schedule.reconcile": reconcile_without_lease},
        lambda story: story.has_fatal_log,
    ),
    KnownFault(
        "a timeout has no answer",
        ("no unexpected exception",),
        5,
        {"chalicelib.adapters.dynamodb.table.ClientError": Exception},
        lambda story: _has(story, Fault.LOST, Fault.SLOW, Fault.SLOW_LOST),
        adapters=True,
    ),
    KnownFault(
        "a stranger's image",
        ("a final status is right",),
        65,
        {
            "chalicelib.domain.lifecycle.image_of": image_of_anybody,
            "chalicelib.usecases.execution._image": found_image_of_anybody,
        },
        lambda story: story.fault_rates.rates["run"] > 0,
    ),
    KnownFault(
        "refused before its handle is noted",
        ("an attempt gets what is its own",),
        16,
        {"chalicelib.usecases.materials._expect_current": expect_noted},
    ),
    KnownFault(
        "the log waits for tags",
        ("a log is kept",),
        47,
        {"chalicelib.usecases.schedule._did_all": tags_before_the_log},
        lambda story: story.refuses_tags,
    ),
    KnownFault(
        "the last to end has the tag",
        ("a tag names the newest build",),
        58,
        {"chalicelib.usecases.execution._newest_by_tag": newest_is_this},
        lambda story: "image_tags" in str(story.requests) and len(story.requests) > 1,
    ),
    KnownFault(
        "done requests are refused",
        ("what was done is no dead letter",),
        192,
        {"chalicelib.usecases.automation._CHANGES": CHANGES_WITHOUT_A_LOOK},
        lambda story: any(request.kind in ("archive message", "delete message") for request in story.requests),
    ),
    KnownFault(
        "a slot gets lost",
        ("a slot becomes free again",),
        34,
        {"chalicelib.usecases.slots.free_ended": free_nothing},
        lambda story: bool(story.limits),
    ),
    KnownFault(
        "a slot is taken twice",
        ("no more builds run than the limits allow",),
        318,
        {"tests.fakes.FakeSlots.take": take_unasked},
        lambda story: bool(story.limits),
    ),
    KnownFault(
        "announced once, taken or not",
        ("each status is announced", "each end is announced to webhooks"),
        120,
        {"chalicelib.usecases.announcements.announce": announce_once},
        lambda story: story.announces,
    ),
    KnownFault(
        "an image of other code",
        ("a reused image is that of an equal build",),
        11,
        {"chalicelib.usecases.builds.recipe_of": recipe_of_any},
        lambda story: story.base_moves_at is not None,
    ),
    UNANNOUNCED,
)


def put_back(setter: Callable[[Any, str, Any], Any], fault: KnownFault) -> None:
    """Replaces the fault's functions by `setter(owner, name, function)`."""
    for dotted, function in fault.functions.items():
        setter(*_owner(dotted), function)


def _owner(dotted: str) -> tuple[Any, str]:
    """The module or class that has the function, and its name there. Raises AttributeError when the code
    has no such function any more: then the fault has to be written anew."""
    path, _, name = dotted.rpartition(".")
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        path, _, class_name = path.rpartition(".")
        owner = getattr(importlib.import_module(path), class_name)
    getattr(owner, name)
    return owner, name


def breaks(fault: KnownFault, seed: int) -> tuple[bool, bool]:
    """Whether the seed breaks a promise of the fault with it; and whether it does not without it."""
    if not fault.needs(make(seed)):
        return False, False
    with ExitStack() as stack:
        put_back(lambda *each: stack.enter_context(mock.patch.object(*each)), fault)
        is_broken = _breaks_one(fault, seed)
    return is_broken, is_broken and not _breaks_one(fault, seed)


def _breaks_one(fault: KnownFault, seed: int) -> bool:
    return any(each.promise in fault.promises for each in simulate(seed, adapters=fault.adapters).broken)


def search(fault: KnownFault, results: Iterable[tuple[bool, bool]]) -> str:
    """In words, which seed found the fault; `results` are those of the seeds from 1 on."""
    in_vain: list[int] = []
    for seed, (is_broken, is_new) in enumerate(results, 1):
        if is_new:
            return f"found by seed {seed}"
        if is_broken:
            in_vain.append(seed)
        if len(in_vain) >= IN_VAIN:
            break
    return f"in the code today: seeds {in_vain} break it without the fault as well" if in_vain else LOST


def main(names: list[str]) -> int:
    is_lost = False
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for index, fault in enumerate(FAULTS):
            if names and fault.name not in names:
                continue
            parts = (range(first, first + 100) for first in range(1, SEEDS + 1, 100))
            results = (each for part in parts for each in pool.map(partial(_breaks, index), part, chunksize=10))
            said = search(fault, results)
            print(f"{fault.name}: {said}", flush=True)
            is_lost |= not said.startswith("found")
    return 1 if is_lost else 0


def _breaks(index: int, seed: int) -> tuple[bool, bool]:
    return breaks(FAULTS[index], seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
