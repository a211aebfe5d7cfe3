"""What must hold after any story, once everything has healed. Each check says what it found in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from chalicelib.domain.build import EKS, Build, Status
from chalicelib.domain.lifecycle import GRACE, Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import SlipwayError
from chalicelib.usecases import logs
from tests.factories import make_user
from tests.fakes import Run
from tests.simulation.story import Story, made_by
from tests.simulation.world import QUEUE_MINUTES, RUN_MINUTES, STRANGERS_DIGEST, WAIT_MINUTES, Known, World

ADA = make_user()
DEADLINE_SECONDS = 2 * 60 * (WAIT_MINUTES + QUEUE_MINUTES + RUN_MINUTES) + 2 * GRACE.total_seconds()
SLACK_SECONDS = 600  # two looks of the schedule
AT_ONCE_SECONDS = 60


@dataclass(frozen=True)
class Broken:
    promise: str
    words: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.words}"


def settled(world: World, story: Story) -> Iterator[Broken]:
    """Hours after everything healed."""
    for promise, words in world.broken:
        yield Broken(promise, words)
    yield from _accepted(world, story)
    for known in world.known.values():
        yield from _ended(world, known)
        if world.is_fatal(known.build):
            continue
        if known.build.is_managed:
            yield from _runs(world, known)
            yield from _right(world, known)
        if known.gone_at is None:
            yield from _log(world, story, known)
    for key in world.taken():
        yield Broken("a slot becomes free again", f"{key} has one")
    yield from _tags(world)
    yield from _reused(world, story)
    if story.announces:
        yield from _announced(world)
    yield from _dead_letters(world)
    yield from _whole(world)


def cleaned(world: World) -> Iterator[Broken]:
    """Days later, when all that is to be purged was purged."""
    store = world.services.records
    live = {build.uuid for build in store.builds.values()}
    for build in store.builds.values():
        if build.archived_at is not None and not world.is_fatal(build):
            yield Broken("what was deleted is purged", f"{build.key} is still there")
        if build.check_at is not None and not world.is_fatal(build):
            yield Broken("nothing is looked at for ever", f"{build.key} at {build.check_at}")
        if (build.key.owner, build.key.project) not in store.projects:
            yield Broken("a project's builds go with it", f"{build.key} is left")
    for project in store.projects.values():
        if project.archived_at is not None:
            yield Broken("what was deleted is purged", f"project {project.key} is still there")
    for uuid in world.services.log_archive.texts:
        if uuid not in live:
            yield Broken("what was deleted is purged", f"the log of {world.known[uuid].build.key}")
    for project in store.projects.values():
        if project.code and project.code.sha256 not in world.services.sources.archives:
            yield Broken("code in use is kept", f"{project.key} has lost {project.code.sha256[:8]}")
    for sha256 in world.services.sources.archives:
        if not world.services.code_references.is_referenced(sha256, world.services.now()):
            yield Broken("unused code is dropped", sha256[:8])
    names = {(build.key.owner, build.key.project, build.name) for build in store.builds.values() if build.name}
    if set(store.names) != names:
        yield Broken("names are freed", f"{sorted(set(store.names) ^ names)}")
    yield from _whole(world)
    yield from _counted(world)


WAITING = ("every build ends", "every build ends by its deadline", "nothing is looked at for ever")


def of_fatal_log(broken: Broken) -> Broken:
    """Where one build ends every function that looks at it, others that wait do so because of that one."""
    if broken.promise in WAITING or broken.promise == "what was deleted is purged":
        return Broken("no build keeps others waiting", str(broken))
    return broken


def _accepted(world: World, story: Story) -> Iterator[Broken]:
    """What clients were answered."""
    for request in story.requests:
        if request.kind not in ("post", "message", "rebuild", "rebuild message"):
            continue
        made = made_by(world, request)
        answers = world.answers.get(request.name, [])
        uuids = {answer.uuid for answer in answers if answer.uuid}
        if uuids - {known.build.uuid for known in made}:
            yield Broken("an accepted build is not lost", request.name)
        if request.kind.endswith("message") and not made:
            for message in world.requests.messages:
                if message.is_done and message.id == request.name:
                    letters = [body for body, _ in world.services.dead_letters.letters]
                    if message.body not in letters:
                        yield Broken("an accepted build is not lost", request.name)
        if request.key is None and request.kind == "post":
            continue
        copies = 1 + len(request.again) if request.key is None else 1
        if len({known.project_uuid for known in made}) <= 1 and len(made) > copies:
            yield Broken("one build for a key", f"{request.name} made {len(made)}")
        for answer in answers:
            is_refused = isinstance(answer.error, SlipwayError) and type(answer.error).__name__ == "NotFound"
            is_there = bool(made) and all(known.gone_at is None for known in made)
            if is_refused and answer.was_made and answer.is_alive and is_there:
                yield Broken("a repeated request has the same answer", f"{request.name} was not found")


def _ended(world: World, known: Known) -> Iterator[Broken]:
    build = known.build
    if known.gone_at is not None:
        return
    if not build.is_done:
        yield Broken("every build ends", f"{build.key} is {build.last_status}")
    elif known.final_at is not None and build.is_managed:
        created = (build.created_at - world.scheduler.start).total_seconds()
        if known.final_at > max(created + DEADLINE_SECONDS, world.healed_at + SLACK_SECONDS) + SLACK_SECONDS:
            yield Broken("every build ends by its deadline", f"{build.key} at {known.final_at:.0f}")
    if build.check_at is not None and not build.has_tags_to_move(world.services.now()) and not world.is_fatal(build):
        yield Broken("nothing is looked at for ever", f"{build.key} at {build.check_at}")


def _runs(world: World, known: Known) -> Iterator[Broken]:
    build, runs = known.build, world.runs(known.build.uuid)
    for earlier, later in pairwise(runs):
        if earlier.ended_at is None or earlier.ended_at > later.started_at:
            yield Broken("a build is started once", f"{build.key}: {earlier.name} and {later.name} run at once")
        elif earlier.outcome is Outcome.SUCCEEDED:
            yield Broken("a build is started once", f"{build.key}: {later.name} after {earlier.name} succeeded")
    for run in runs:
        if known.final_at is not None:
            final_at = world.scheduler.time(known.final_at)
            # A start that was under way at the end cannot be taken back. Such a run gets no code.
            was_under_way = run.asked_at <= final_at and not run.has_materials
            if run.started_at > final_at and not was_under_way:
                yield Broken("no compute after the end", f"{build.key} ended, then {run.name} started")
            elif run.started_at <= final_at and _runs_after(run, final_at + timedelta(seconds=AT_ONCE_SECONDS)):
                yield Broken("no compute after the end", f"{build.key} ended, and {run.name} goes on")
        if known.stop_at is not None:
            stopped_at = world.scheduler.time(max(known.stop_at, world.healed_at) + SLACK_SECONDS)
            if _runs_after(run, stopped_at):
                yield Broken("a stopped build stops", f"{build.key}: {run.name} goes on")


def _runs_after(run: Run, time: object) -> bool:
    return run.ended_at is None or run.ended_at > time  # type: ignore[operator]


def _right(world: World, known: Known) -> Iterator[Broken]:
    """A final status that says what has happened."""
    build, runs = known.build, world.runs(known.build.uuid)
    digest = world.services.registry.images.get(build.image)
    hidden_at = world.hidden_at.get(known.project_uuid)
    is_wanted = known.stop_at is None and hidden_at is None
    match build.last_status:
        case Status.SUCCEEDED if digest is None or build.image_digest != digest or digest == STRANGERS_DIGEST:
            yield Broken("a final status is right", f"{build.key} succeeded with {build.image_digest}, not {digest}")
        case Status.FAILED if digest in {push.digest for push in build.pushes} and is_wanted:
            yield Broken("an image means success", f"{build.key} failed: {build.history[-1].message}")
        case Status.FAILED if is_wanted and not _may_fail(world, known, runs):
            outcomes = [str(run.outcome) for run in runs]
            yield Broken("a final status is right", f"{build.key} failed: {build.history[-1].message} ({outcomes})")
        case Status.STOPPED if is_wanted:
            yield Broken("a final status is right", f"{build.key} was stopped though nobody wanted it")
    if build.last_status is not Status.SUCCEEDED and build.image_digest is not None:
        yield Broken("a final status is right", f"{build.key} is {build.last_status} and names an image")


def _may_fail(world: World, known: Known, runs: Sequence[Run]) -> bool:
    build = known.build
    message = build.history[-1].message or ""
    assert build.finished_at is not None
    assert known.final_at is not None
    if "turn did not come" in message:
        waited = build.finished_at - (build.queued_at or build.created_at)
        return waited > timedelta(minutes=WAIT_MINUTES)
    if "could not be started" in message:
        return known.final_at - known.turn_at > 60 * QUEUE_MINUTES
    last = runs[-1].outcome if runs else None
    if "did not end within" in message and last is Outcome.STOPPED:
        worked = world.scheduler.time(known.final_at) - runs[-1].started_at
        return worked > timedelta(minutes=QUEUE_MINUTES + RUN_MINUTES)
    is_second_fault = last is Outcome.FAULT and (len(runs) > 1 or "started within" in message)
    return (
        last in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.GONE)
        or is_second_fault
        or "never run" in message
        or "disappeared" in message  # after a fault that nobody saw, where the executor forgot it
    )


def _log(world: World, story: Story, known: Known) -> Iterator[Broken]:
    """The log that is answered in the end: of the last run that counts, whole and in order."""
    build = known.build
    project = world.services.records.projects.get((build.key.owner, build.key.project))
    if build.archived_at is not None or project is None or project.archived_at is not None:
        return
    messages = [each for each in world.logs.messages if each.body == str(build.key)]
    had_last_try = any(each.receives >= logs.TRIES for each in messages)
    if had_last_try and (build.stored_log_bytes is None or _is_cut(world, build)):
        return
    got = _read(world, build)
    if not build.is_managed:
        for request in story.requests:
            if request.kind == "lines" and request.about == build.description and _was_answered(world, request.name):
                for line in request.fields["lines"]:
                    if line not in got:
                        yield Broken("no line of a log is lost", f"{build.key} lost {line!r}")
        return
    if build.last_status not in (Status.SUCCEEDED, Status.FAILED):
        return
    runs = [run for run in world.runs(build.uuid) if run.steps]
    whole = [world.lines[run.log] for run in runs]
    if not whole or not whole[-1]:
        return
    is_removed = runs[-1] not in world.services.executor(build.executor).runs.values()
    has_no_pod = build.executor == EKS and runs[-1].outcome in (Outcome.GONE, Outcome.TIMED_OUT)
    is_unseen = build.log is None or world.log_name(build.log) != runs[-1].log
    if not got and is_unseen and (is_removed or has_no_pod):
        return  # it was removed before anybody saw its log's name
    if not got:
        lines = [*map(len, whole)]
        yield Broken("a log is kept", f"{build.key} {build.last_status} has no log, its runs had {lines} lines")
    elif got not in whole:
        yield Broken("no line of a log is lost", f"{build.key} has {got}, its runs had {whole}")
    elif build.stored_log_bytes is None:
        yield Broken("a log is kept", f"{build.key}'s was not")


def _tags(world: World) -> Iterator[Broken]:
    """Each tag names the newest build that has succeeded and asked for it, or a newer one that was deleted since."""
    asked: dict[str, list[Known]] = {}
    for known in sorted(world.known.values(), key=lambda known: known.build.key, reverse=True):
        for tag in known.build.image_tags if known.build.image_digest else ():
            asked.setdefault(f"{known.build.image.rpartition(':')[0]}:{tag}", []).append(known)
    registry = world.services.registry
    for name, newest_first in asked.items():
        allowed: list[str | None] = []
        for known in newest_first:
            allowed.append(known.build.image_digest)
            if known.gone_at is None and known.build.deleted_at is None:
                break
        else:
            allowed.append(None)
        if registry.refuses_tags:
            allowed = [None]
        if registry.images.get(name) not in allowed:
            yield Broken("a tag names the newest build", f"{name} names {registry.images.get(name)}, not {allowed}")


def _announced(world: World) -> Iterator[Broken]:
    """Each status on the bus, at first in their order, and each end to the project's webhook: at least once."""
    first = {uuid: place for place, uuid in reversed([*enumerate(each.id for each in world.services.event_bus.told)])}
    called = {each.announcement.id for each in world.services.hook_queue.sent}
    with_hook = {project.uuid for project in world.services.records.projects.values() if project.hooks}
    for known in world.known.values():
        build, uuids = known.build, [entry.uuid for entry in known.build.history]
        if missing := [entry.status for entry in build.history if entry.uuid not in first]:
            yield Broken("each status is announced", f"{build.key}: {', '.join(missing)}")
        elif (places := [first[uuid] for uuid in uuids]) != sorted(places):
            yield Broken("statuses are announced in their order", f"{build.key}: {places}")
        if build.is_done and uuids[-1] not in called and known.project_uuid in with_hook:
            yield Broken("each end is announced to webhooks", f"{build.key} is {build.last_status}")


def _reused(world: World, story: Story) -> Iterator[Broken]:
    """A build that has the image of another is made of the same, and the other had succeeded and was not archived."""
    by_id = {(known.project_uuid, known.build.key.id): known.build for known in world.known.values()}
    for known in world.known.values():
        build = known.build
        if build.reused_from is None:
            continue
        other = by_id.get((known.project_uuid, build.reused_from))
        if other is None or other.image_digest is None or build.image_digest != other.image_digest:
            yield Broken("a reused image is that of an equal build", f"{build.key} has not the image of {other}")
        elif _made_of(build) != _made_of(other):
            yield Broken("a reused image is that of an equal build", f"{build.key} is not made as {other.key}")
        elif story.base_moves_at is not None:
            moved_at = world.scheduler.time(story.base_moves_at)
            if other.created_at + timedelta(seconds=60) < moved_at < build.created_at:
                yield Broken("a reused image is that of an equal build", f"the base of {build.key} was moved")


def _made_of(build: Build) -> object:
    return build.source and replace(build.source, uploaded_at=None)


def _is_cut(world: World, build: Build) -> bool:
    return "… cut here" in world.services.log_archive.texts.get(build.uuid, "")


def _was_answered(world: World, name: str) -> bool:
    return any(answer.error is None for answer in world.answers.get(name, []))


def _read(world: World, build: Build) -> list[str]:
    """The lines of a log, page after page, as a client reads them."""
    text, cursor = "", "0"
    while True:
        page = logs.read(world.seen, ADA, build.key, cursor)
        text, cursor = text + page.text, page.next_cursor
        if not page.is_cut:
            break
    return [line.partition(" UTC -- ")[2] for line in text.splitlines()]


def _dead_letters(world: World) -> Iterator[Broken]:
    """Requests that were done are not among those that could not be."""
    letters = [body for body, _ in world.services.dead_letters.letters]
    letters += [message.body for message in world.requests.messages if message.is_dead]
    for body in letters:
        fields = json.loads(body)
        hidden = [world.projects[uuid].key.name for uuid in world.hidden_at]
        if fields["project"] in hidden:
            continue
        for known in world.known.values():
            if fields["action"] == "create" and known.build.description == fields["description"]:
                yield Broken("what was done is no dead letter", fields["description"])
    for message in world.requests.messages:
        if message.is_dead and not message.is_done:
            yield Broken("what can be done is no dead letter", message.id)


def _whole(world: World) -> Iterator[Broken]:
    """No half writes."""
    records = world.services.records
    if records.builds.keys() != records.bodies.keys():
        yield Broken("no half write", f"{records.builds.keys() ^ records.bodies.keys()}")


def _counted(world: World) -> Iterator[Broken]:
    """Projects say how many live builds they have, since the last cleanups."""
    records = world.services.records
    for project in records.projects.values():
        of_project = [build for build in records.builds.values() if build.key.project_key == project.key]
        live = sum(build.archived_at is None for build in of_project)
        if project.archived_at is None and project.live_builds != live:
            yield Broken("counts are right", f"{project.key} says {project.live_builds} of {live}")
