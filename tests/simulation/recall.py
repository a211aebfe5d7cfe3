"""Known faults, put back one by one: a simulation that does not find them proves nothing.

    python -m tests.simulation.recall [NAME…]

Each fault is a few functions as they were (or could have been) written, which replace those of the same name.
A fault counts as found at the first seed that breaks its promise with it, and does not without it. Exits with
1 when one is not found in `SEEDS` seeds.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Project, Status
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.errors import Busy, ExecutorRefused
from chalicelib.usecases import builds, cleanup, execution, logs, upkeep
from chalicelib.usecases.writing import told
from tests.fakes import FakeBuildStore
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
    functions: Mapping[str, Callable[..., Any]]  # by dotted name
    needs: Callable[[Story], bool] = lambda story: True  # other stories cannot find it, and are not run


# As they were: a repeated submit that is told to wait gives away the claim of the first


def start_and_release(services: Any, build: Build) -> None:
    if build.attempt > 1 and (digest := services.registry.digest(build.image)):
        seen = Observation(str(build.key), build.attempt, "", None, (), Outcome.SUCCEEDED)
        if done := lifecycle.follow(build, seen, services.now(), digest=digest, reason=None):
            told(build, services.store.save(done))
        return
    body = services.store.body(build.key)
    if body is None:
        return
    try:
        services.registry.prepare(build.image)
        services.sources.stage(build, body.dockerfile)
        handle = services.executors[build.executor].submit(build)
    except Busy:
        later = services.now() + timedelta(seconds=30)
        services.store.save(replace(build, submitting_at=None, look_at=later))
    except ExecutorRefused as refusal:
        failed = lifecycle.advance(build, Status.FAILED, services.now(), message=str(refusal))
        told(build, services.store.save(failed))
    else:
        execution._note(services, build, handle)


def claim_without_log(build: Build, now: Any) -> Build:
    return replace(build, attempt=build.attempt + 1, submitting_at=now, handle=None, log=None)


# The executor says that nothing was started, though it was

_submit = SimulatedExecutor.submit


def submit_then_busy(self: SimulatedExecutor, build: Build) -> str:
    handle = _submit(self, build)
    if self._world.faults.happens("call", f"{handle} {len(self.runs)} is said to be refused", 10):
        raise Busy("The cluster asks us to wait.")
    return handle


# Given up by the clock alone


def give_up_unseen(services: Any, build: Build) -> bool:
    queue = timedelta(minutes=services.settings.queue_timeout_minutes)
    run = timedelta(minutes=services.settings.build_timeout_minutes)
    reason = lifecycle.overdue(build, services.now(), queue, run)
    if reason is None:
        return False
    if build.handle is not None:
        with upkeep._apart(build):
            services.executors[build.executor].stop(build.handle)
    told(build, services.store.save(lifecycle.advance(build, Status.FAILED, services.now(), message=reason)))
    return True


# Decided long before it is done: whether the executor still knows what it was asked


def complete_by_old_age(services: Any, build: Build, claimed_at: Any) -> None:
    executor = services.executors[build.executor]
    replayable = services.now() - claimed_at < timedelta(seconds=executor.replay_seconds)
    wanted = build.stop_requested_at is None
    if replayable and wanted:
        execution._start(services, build)
    elif handle := executor.find(build):
        execution._note(services, build, handle)
    elif wanted:
        execution._start(services, execution._claimed(services, build))
    elif replayable:
        look_at = claimed_at + timedelta(seconds=executor.replay_seconds)
        services.store.save(replace(build, look_at=look_at))
    else:
        told(build, services.store.save(lifecycle.advance(build, Status.STOPPED, services.now())))


# A request that was done is answered by what became of its build


def announce_what_is_shown(services: Any, caller: Any, key: BuildKey) -> Any:
    opened = builds.get(services, caller, key)
    if opened.build.is_managed and opened.build.attempt == 0 and not opened.build.is_done:
        services.queue.announce(key)
    return opened


# Purged by name, whatever is there by now


def purge_by_name(self: FakeBuildStore, doomed: Build | Project, *_: Any, **__: Any) -> None:
    self.marks = {mark: at for mark, at in self.marks.items() if mark[1] != doomed.key}
    if isinstance(doomed, Project):
        self.places.pop((doomed.owner, doomed.name), None)
        return
    if doomed.name is not None and doomed.key in self.builds:
        self.names.pop((doomed.key.owner, doomed.key.project, doomed.name), None)
    self.bodies.pop(doomed.key, None)
    self.builds.pop(doomed.key, None)


def purge_project_seen_before(
    services: Any, project: Project, before: Any, dry_run: bool, done: cleanup.Cleaned
) -> None:
    if project.deleted_at is None and (project.archived_at is None or project.archived_at > before):
        return
    if project.deleted_at is None:
        project = services.store.save_project(replace(project, deleted_at=services.now()))
    remaining = False
    for key in services.store.builds_of(project.key, 200):
        build = services.store.get(key)
        if build is None:
            continue
        if not build.is_done or build.look_at is not None:
            remaining = True
            builds.request_stop(services, key)
            continue
        services.sources.discard(build)
        services.store.purge(build)
    if not remaining:
        services.store.purge(project)


# The schedule does its work before it says when to look again


def reconcile_without_lease(services: Any) -> int:
    due = [build for key in services.store.due(services.now(), 500) if (build := services.store.get(key))]
    for build in due:
        with upkeep._apart(build):
            if build.look_at is None or build.look_at > services.now():
                continue
            if build.is_done:
                logs.keep(services, build)
            elif not give_up_unseen(services, build):
                execution.attend(services, build.key)
    for build in due:
        with upkeep._apart(build):
            now = services.store.get(build.key)
            if now is not None and now.look_at is not None and now.look_at <= services.now():
                services.store.save(replace(now, look_at=execution.next_look(services, now)))
    return len(due)


# For the test of the simulation itself


def announce_nothing(*_: Any, **__: Any) -> None: ...


def reconcile_nothing(services: Any) -> int:
    return 0


UNANNOUNCED = KnownFault(
    "nobody hears of new builds",
    ("every build ends",),
    {
        "tests.simulation.world.SimulatedQueue.announce": announce_nothing,
        "chalicelib.usecases.upkeep.reconcile": reconcile_nothing,
    },
)
_STARTED_TWICE = ("a build is started once", "no compute after the end")
_OLD_START = {
    "chalicelib.usecases.execution._start": start_and_release,
    "chalicelib.domain.lifecycle.claim": claim_without_log,
}
FAULTS = (
    KnownFault("busy releases the claim", _STARTED_TWICE, _OLD_START),
    KnownFault(
        "busy after the start",
        _STARTED_TWICE,
        {**_OLD_START, "tests.simulation.world.SimulatedExecutor.submit": submit_then_busy},
    ),
    KnownFault(
        "given up unseen",
        ("an image means success",),
        {"chalicelib.usecases.upkeep._given_up": give_up_unseen},
    ),
    KnownFault(
        "replay decided early",
        _STARTED_TWICE,
        {"chalicelib.usecases.execution._complete": complete_by_old_age},
    ),
    KnownFault("success without a log", ("a log is kept",), _OLD_START),
    KnownFault(
        "repeats are not found",
        ("a repeated request has the same answer", "what was done is no dead letter"),
        {"chalicelib.usecases.builds._announced": announce_what_is_shown},
    ),
    KnownFault(
        "purge by name",
        ("only what was deleted is purged", "a project's builds go with it"),
        {
            "tests.fakes.FakeBuildStore.purge": purge_by_name,
            "chalicelib.usecases.cleanup._purge_project": purge_project_seen_before,
        },
        lambda story: any(request.kind == "delete project" for request in story.requests),
    ),
    KnownFault(
        "no lease",
        ("no build keeps others waiting",),
        {"chalicelib.usecases.upkeep.reconcile": reconcile_without_lease},
        lambda story: story.has_fatal_log,
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
    return any(each.promise in fault.promises for each in simulate(seed).broken)


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
            parts = (range(first, first + 100) for first in range(1, SEEDS, 100))
            results = (
                each for part in parts for each in pool.map(partial(_breaks, index), part, chunksize=10)
            )
            said = search(fault, results)
            print(f"{fault.name}: {said}", flush=True)
            is_lost |= said == LOST
    return 1 if is_lost else 0


def _breaks(index: int, seed: int) -> tuple[bool, bool]:
    return breaks(FAULTS[index], seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
