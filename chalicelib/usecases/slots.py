"""The slots of builds, where limits on running builds are set. Without a limit, nothing here reads or writes slots.

A build takes its slot before its first attempt and has it until its end. If a function ends between the two, the next
message about the build, or the schedule, goes on from there; the schedule frees what an ended build has left.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, islice

from chalicelib.domain.build import Build
from chalicelib.domain.record import replace
from chalicelib.domain.slots import in_order, turns, why_full
from chalicelib.ports import InLine, Services

MAX_AHEAD = 50  # builds that can start before one that asks for a slot; behind more of them it waits


def take(services: Services, build: Build) -> str | None:
    """Takes a slot for the build if it has none and it is its turn. Else returns why it must wait, in words. Raises
    Conflict if another build took one meanwhile."""
    settings = services.settings
    if not settings.limits_builds:
        return None
    running = services.slots.read()
    if build.key in running.builds:
        return None
    if why := why_full(build.key, running.builds, settings.max_running_of):
        return why
    others = [each for each in _line(services) if each.key != build.key]
    line = sorted([*others, InLine(build.waits_since, build.key, build.executor)])
    first = turns([each.key for each in line], running.builds, settings.max_running_of)
    if build.key not in islice(first, MAX_AHEAD + 1):
        return "Other builds come first."
    services.slots.take(build.key, running)
    return None


def next_builds(services: Services, executor: str, limit: int) -> Sequence[Build]:
    """At most `limit` waiting builds of an executor that are to be processed: those that waited too long, then those
    that can start, in the order of their turns. Without limits on running builds, those with the longest wait."""
    settings, now = services.settings, services.now()
    if not settings.limits_builds:
        return services.builds.waiting(executor, now, limit)
    line = _line(services)
    if not line:
        return ()
    latest = now - timedelta(minutes=settings.wait_timeout_minutes)
    too_long, rest = ([each.key for each in line if (each.since < latest) is is_late] for is_late in (True, False))
    first = chain(too_long, turns(rest, services.slots.read().builds, settings.max_running_of))
    here = {each.key for each in line if each.executor == executor}
    chosen = [*islice((key for key in first if key in here), limit)]
    return [build for build in services.builds.get_all(chosen, now) if build.is_waiting]


def free(services: Services, build: Build) -> None:
    """Frees the slot of a build that has ended. Idempotent."""
    if services.settings.limits_builds:
        services.slots.free([build.key])


def free_ended(services: Services) -> None:
    """Frees the slots of builds that have ended or are gone, whose function ended before it did so."""
    if services.settings.limits_builds and (running := services.slots.read().builds):
        found = services.builds.get_all(sorted(running), services.now())
        if ended := running - {build.key for build in found if build.finished_at is None}:
            services.slots.free(ended)


def with_places(services: Services, builds: Sequence[Build]) -> Sequence[Build]:
    """The builds; where limits are set, the reasons of those that wait have their place in line."""
    if not services.settings.limits_builds or not any(build.is_waiting for build in builds):
        return builds
    line = in_order([each.key for each in _line(services)], services.slots.read().builds)
    words = {key: f" Place {place} of {len(line)} in line." for place, key in enumerate(line, 1)}
    return [
        replace(build, waiting_reason=f"{build.waiting_reason}{words[build.key]}")
        if build.is_waiting and build.key in words
        else build
        for build in builds
    ]


def _line(services: Services) -> list[InLine]:
    """The waiting builds of all executors, the longest wait first."""
    executors, now = services.settings.executors, services.now()
    return sorted(each for executor in executors for each in services.builds.line(executor, now))
