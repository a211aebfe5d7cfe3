"""What clients do in a story, made up from its seed: requests over REST and through the queue, when, and how
they repeat what was not answered."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from chalicelib.domain import archive
from chalicelib.domain.build import BuildKey
from chalicelib.domain.project import Hook
from chalicelib.domain.user import Token
from chalicelib.errors import Busy, Conflict, Forbidden, Invalid, NoLog, NotFound, Unavailable
from chalicelib.usecases import builds, logs, projects, reports, sources
from tests.factories import NOW, SPEC, after, make_archive, make_project, make_user
from tests.simulation.faults import Fault, FaultRates
from tests.simulation.scheduler import Ended, Function
from tests.simulation.world import API_LIMIT_SECONDS, DAY, Known, World

ADA = make_user()
CONTENT = json.dumps(SPEC)
CODE = {name: make_archive({"app.py": f"print('{name}')\n"}) for name in ("first", "second", "old")}
HOOK = Hook("deploy", "https://receiver.test/builds", "hook-1")
BASE_DIGESTS = [f"sha256:{number * 32}" for number in ("0b", "1b")]
OLD = hashlib.sha256(CODE["old"]).hexdigest()
TRANSIENT = (Unavailable, Busy, Conflict, Ended)
REFUSALS = (NotFound, Invalid, Forbidden, NoLog)  # a client may meet these when others change things
LIMITS: tuple[dict[str, Any], ...] = (
    {"max_running_builds": 1},
    {"max_running_builds": 2},
    {"max_running_builds_per_owner": 2, "max_running_builds_of": {"ada/vision": 1}},
    {"max_running_builds_per_project": 1},
)


@dataclass(frozen=True)
class Request:
    """Something that a client wants, and asks for at these times until it is answered."""

    name: str
    kind: str
    at: float  # seconds since the start
    about: str = ""  # the name of the request that made the build, or of the project
    project: str = "vision"
    key: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    again: tuple[float, ...] = ()  # seconds after the first when it is sent once more, answered or not
    patience: int = 4  # how often it is repeated when it was not answered


@dataclass(frozen=True)
class Story:
    requests: tuple[Request, ...]
    start_at: datetime
    on_eks: bool
    slots: int  # builds that an executor runs at once
    limits: Mapping[str, Any]  # settings: how many builds may run
    fault_rates: FaultRates
    heals_at_minute: int
    has_fatal_log: bool  # whoever reads the log of the first run runs out of memory
    refuses_tags: bool  # the registry moves none, ever
    base_moves_at: float | None  # in stories whose builds may reuse images: when the tag of their base image is moved
    announces: bool  # on a bus, and to a webhook of each project


def make(seed: int) -> Story:
    rng = random.Random(seed)
    requests: list[Request] = []
    at, has_old_code, has_fatal_log = 1.0, rng.random() < 0.06, rng.random() < 0.03
    made = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    for number in range(1, made + 1):
        requests += _life(rng, number, at)
        at += rng.choice((0, 0.02, 0.2, 3, 45, 300))
    if rng.random() < 0.2:
        requests += _upload(rng, "first" if rng.random() < 0.7 else "second", rng.choice((0.5, 2, 20)))
    if has_old_code:
        requests += _upload(rng, "old", rng.choice((0, 300)) + 7 + rng.random() * 0.3)
    if rng.random() < 0.2 and not has_fatal_log:
        requests += _project(rng, rng.choice((2, 20, 60, 120, 300)) + rng.random())
    deletes_project = any(each.kind == "delete project" for each in requests)
    tagging = random.Random(f"tags of {seed}")  # of its own: other stories stay as they are
    if has_tags := tagging.random() < 0.25:
        requests = [_with_tags(tagging, each) for each in requests]
    automation = random.Random(f"automation of {seed}")
    if automation.random() < 0.25:
        requests += [each for post in requests for each in _rebuild(automation, post)]
        requests = [_by_queue(automation, each) for each in requests]
    reusing = random.Random(f"reuse in {seed}")
    if reuses := reusing.random() < 0.15:
        requests = [_with_reuse(each) for each in (*requests, *_posts_later(reusing))]
    limiting = random.Random(f"limits of {seed}")
    start_at = NOW
    while has_old_code and int(start_at.timestamp()) // 300 % 256 != int(OLD[:2], 16):
        start_at += timedelta(seconds=300)
    story = Story(
        requests=tuple(requests),
        start_at=start_at,
        on_eks=rng.random() < 0.2,
        slots=rng.choice((1, 2, 100)),
        limits=limiting.choice(LIMITS) if limiting.random() < 0.4 else {},
        fault_rates=_fault_rates(rng, deletes_project),
        heals_at_minute=rng.choice((90, 150) if deletes_project else (20, 40, 90, 150)),
        has_fatal_log=has_fatal_log,
        refuses_tags=has_tags and tagging.random() < 0.15,
        base_moves_at=reusing.choice((100, 1500, 4000)) if reuses else None,
        announces=random.Random(f"announcements of {seed}").random() < 0.3,
    )
    starting = random.Random(f"starts in {seed}")
    return replace(story, fault_rates=_rates_of_starts(starting)) if starting.random() < 0.2 else story


def _rates_of_starts(rng: random.Random) -> FaultRates:
    """The answer to a start is lost, and its repetition is answered Busy, or comes late."""
    rates = {"call": 0.003, "message": 0.1, "event": 0.01, "tick": 0.01, "run": 0.1}
    lost = rng.choice((Fault.LOST, Fault.SLOW_LOST, Fault.ENDS_AFTER))
    kinds = frozenset({lost, rng.choice((Fault.BUSY, Fault.SLOW))})
    return FaultRates({**rates, "executor.submit": 0.7, "registry.prepare": 0.4}, kinds, False, None)


def _fault_rates(rng: random.Random, deletes_project: bool) -> FaultRates:
    rates = {where: rng.choice((0, 0.003, 0.01, 0.03, 0.08)) for where in ("call", "message", "event", "tick", "run")}
    for where in ("message", "event", "tick"):
        if rng.random() < 0.1:
            rates[where] = 0.4
    if deletes_project and rng.random() < 0.3:  # two cleanups and a client who is faster than one of them
        return FaultRates({**rates, "tick": 0.4}, frozenset({Fault.SLOW}), rng.random() < 0.5, Fault.SLOW)
    kinds = frozenset(kind for kind in Fault if rng.random() < 0.4) or frozenset(Fault)
    frequent = rng.choice((*Fault, Fault.BUSY, Fault.SLOW)) if rng.random() < 0.35 else None
    if frequent in (Fault.SLOW, Fault.SLOW_LOST):  # messages that come late to functions that end early
        rates["message"] = 0.4
    return FaultRates(rates, kinds, rng.random() < 0.2, frequent)


def _life(rng: random.Random, number: int, at: float) -> list[Request]:
    """A build, and what is done with it."""
    name = f"post {number}"
    project = rng.choice(("vision", "vision", "vision", "other"))
    fields: dict[str, Any] = {"content": CONTENT, "description": name}
    if rng.random() < 0.3:
        fields["name"] = "nice"
    if rng.random() < 0.15:
        return _unmanaged(rng, name, at, project, {**fields, "is_managed": False})
    kind = rng.choice(("post", "post", "message"))
    key = f"key {number}" if rng.random() < 0.7 else None
    again: tuple[float, ...] = ()
    if key and rng.random() < 0.6:
        again = tuple(rng.choice((0, 0.05, 0.1, 0.1, 0.3, 5, 60, 200, 900, 3600)) for _ in range(rng.choice((1, 1, 2))))
    requests = [Request(name, kind, at, name, project, key, fields, again)]
    for step in range(rng.choice((0, 0, 1, 1, 2, 3))):
        at += rng.choice((0, 0.05, 0.3, 1, 5, 30, 120, 600))
        kind = rng.choice(
            (
                "stop",
                "stop",
                "stop message",
                "delete",
                "archive",
                "restore",
                "patch",
                "bookmark",
                "log",
                "list",
            )
        )
        requests.append(Request(f"{kind} {number}.{step}", kind, at, name, project))
    return requests


def _with_tags(rng: random.Random, request: Request) -> Request:
    """A build's image shall have tags beside its number."""
    if request.kind not in ("post", "message") or not request.fields.get("is_managed", True):
        return request
    tags = rng.choice(((), ("latest",), ("latest",), ("latest", "v1")))
    content = json.dumps({**SPEC, "image_tags": tags})
    return replace(request, fields={**request.fields, "content": content})


def _with_reuse(request: Request) -> Request:
    """A build may take the image of an equal one."""
    if request.kind not in ("post", "message") or not request.fields.get("is_managed", True):
        return request
    return replace(request, fields={**request.fields, "reuse": True})


def _posts_later(rng: random.Random) -> list[Request]:
    """When earlier builds have their images."""
    names = [f"post later {number}" for number in range(rng.choice((1, 2, 3)))]
    fields = {"content": CONTENT}
    return [
        Request(
            name,
            "post",
            rng.choice((1_000, 2_000, 5_000)) + 10.0 * number,
            name,
            key=name,
            fields=fields | {"description": name},
        )
        for number, name in enumerate(names)
    ]


def _rebuild(rng: random.Random, post: Request) -> list[Request]:
    """Some builds are requested once more by their numbers."""
    if post.kind not in ("post", "message") or rng.random() < 0.6:
        return []
    at = post.at + rng.choice((0.05, 1, 30, 600))
    kind = rng.choice(("rebuild", "rebuild message"))
    again = rng.choice(((), (), (0.1,), (5, 400)))
    return [Request(f"again {post.name}", kind, at, post.name, post.project, f"again {post.name}", again=again)]


def _by_queue(rng: random.Random, request: Request) -> Request:
    """What REST and the queue can do is done by the queue, perhaps twice."""
    if request.kind not in ("stop", "archive", "restore", "delete") or rng.random() < 0.4:
        return request
    again = rng.choice(((), (), (0.1,), (60,)))
    return replace(request, kind=f"{request.kind} message", key=f"key of {request.name}", again=again)


def _unmanaged(rng: random.Random, name: str, at: float, project: str, fields: dict[str, Any]) -> list[Request]:
    """A build that runs elsewhere, whose statuses and lines are reported."""
    number = name.removeprefix("post ")
    requests = [Request(name, "post", at, name, project, f"key {number}", fields)]
    final = rng.choice(("succeeded", "failed", "stopped", None))
    for step, status in enumerate(("scheduled", "running", "lines", "lines", final)):
        at += rng.choice((0.3, 5, 60))
        if status == "lines":
            lines = [f"{name} line {step}.{line}" for line in range(3)]
            requests.append(Request(f"lines {number}.{step}", "lines", at, name, project, fields={"lines": lines}))
        elif status:
            report = {"status": status}
            requests.append(Request(f"report {number}.{step}", "report", at, name, project, fields=report))
    return requests


def _upload(rng: random.Random, which: str, at: float) -> list[Request]:
    kind = rng.choice(("upload", "offer"))
    return [Request(f"upload {which}", kind, at, project=rng.choice(("vision", "other")), about=which)]


def _project(rng: random.Random, at: float) -> list[Request]:
    """A project is deleted and made anew, or archived and restored."""
    if rng.random() < 0.3:
        later = at + rng.choice((0.1, 30, 400))
        return [
            Request("archive project", "archive project", at),
            Request("restore project", "restore project", later),
        ]
    requests = [
        Request("delete project", "delete project", at),
        Request("make project", "make project", at + 5, patience=90),
    ]
    if rng.random() < 0.7:
        fields = {"content": CONTENT, "description": "post anew"}
        requests.append(Request("post anew", "post", at + 10, "post anew", key="key anew", fields=fields, patience=90))
    return requests


def prepare(world: World, story: Story) -> None:
    """What was there before, and all requests, to be sent at their time."""
    for name in ("ada", "robot", "bob"):
        user = make_user(name, is_superuser=name == "robot", created_at=story.start_at)
        world.seen.accounts.add_user(user, Token(name, name, story.start_at, after(10**9)))
    for name in ("vision", "other"):
        world.seen.projects.add(make_project(name=name, created_at=story.start_at, hooks=(HOOK,)))
    world.stream.is_on = story.announces
    if any(request.about == "old" for request in story.requests):
        listing = archive.listing(io.BytesIO(CODE["old"]), len(CODE["old"]))
        world.seen.sources.keep(io.BytesIO(CODE["old"]), OLD, listing)
        world.services.sources.kept_at[OLD] -= timedelta(seconds=2 * DAY)
    world.look()
    world.has_fatal_log = story.has_fatal_log
    world.services.registry.refuses_tags = story.refuses_tags
    if story.base_moves_at is not None:
        bases = world.services.registry.bases
        bases[SPEC["image"]] = BASE_DIGESTS[0]
        world.scheduler.at(story.base_moves_at, lambda: bases.update({SPEC["image"]: BASE_DIGESTS[1]}))
    for request in story.requests:
        for count, later in enumerate((0.0, *request.again)):
            name = request.name if count == 0 else f"{request.name} again {count}"
            world.scheduler.at(request.at + later, partial(send, world, request, name, 0))


@dataclass(frozen=True)
class Answer:
    """What a client heard, and what was so before it asked."""

    started_at: float
    error: BaseException | None
    uuid: str | None
    was_made: bool
    is_alive: bool  # its project was neither archived nor deleted at the end


def send(world: World, request: Request, name: str, repeated: int) -> None:
    """One request of a client, which repeats it when it is not answered."""
    if request.kind.endswith("message"):
        _send_message(world, request, name)
        return
    called = f"{name} try {repeated + 1}" if repeated else name
    was_made = bool(made_by(world, request))

    def settle(function: Function) -> None:
        error = function.error
        uuid = function.answer.build.uuid if request.kind in ("post", "rebuild") and error is None else None
        place = world.services.records.projects.get(("ada", request.project))
        is_alive = place is not None and place.archived_at is None
        answer = Answer(function.started_at, error, uuid, was_made, is_alive)
        world.answers.setdefault(request.name, []).append(answer)
        waits_for_name = request.kind == "make project" and isinstance(error, Invalid)
        waits_for_project = request.name == "post anew" and isinstance(error, NotFound)
        again = isinstance(error, TRANSIENT) or waits_for_name or waits_for_project
        if error is not None and not isinstance(error, (*TRANSIENT, *REFUSALS)):
            world.unexpected(called, error)
        if again and repeated < request.patience:
            seconds = world.chance.pick(f"{called} waits", 0.5, 2, 10, 30)
            seconds *= 10 if (waits_for_name or waits_for_project) and repeated >= 40 else 1
            world.scheduler.after(seconds, lambda: send(world, request, name, repeated + 1))

    world.go(called, lambda: DO[request.kind](world, request), API_LIMIT_SECONDS, settle)


def _send_message(world: World, request: Request, name: str) -> None:
    body: dict[str, Any] = {"version": 1, "owner": "ada", "project": request.project}
    if request.kind == "message":
        body |= {"action": "create", **request.fields}
    else:
        key = made(world, request.about)
        if key is None:
            return
        body |= {"action": request.kind.partition(" ")[0], "build": key.id}
    if request.key:
        body["idempotency_key"] = request.key
    world.requests.send(json.dumps(body), name)


def made_by(world: World, request: Request) -> list[Known]:
    """The builds that a request has made."""
    is_rebuild = request.kind.startswith("rebuild")
    return [
        known
        for known in world.known.values()
        if known.build.description == request.about and (known.build.rebuild_of is not None) == is_rebuild
    ]


def made(world: World, about: str) -> BuildKey | None:
    """The build that the request of this name has made."""
    for known in world.known.values():
        if known.build.description == about and known.build.rebuild_of is None:
            return known.build.key
    return None


def _of_build(do: Callable[[World, Request, BuildKey], Any]) -> Callable[[World, Request], Any]:
    def work(world: World, request: Request) -> Any:
        key = made(world, request.about)
        if key is None:
            raise NotFound
        return do(world, request, key)

    return work


def _post(world: World, request: Request) -> Any:
    return builds.create(world.seen, ADA, "ada", request.project, dict(request.fields), once=request.key)


def _rebuilt(world: World, request: Request, key: BuildKey) -> Any:
    of, fields = key.id, dict(request.fields)
    return builds.create(world.seen, ADA, key.owner, key.project, fields, once=request.key, rebuild_of=of)


def _change_fields(world: World, request: Request, key: BuildKey) -> Any:
    fields = {"name": f"renamed-{key.id}", "tags": ["changed"]}
    return builds.update(world.seen, ADA, key, fields)


def _read_log(world: World, request: Request, key: BuildKey) -> Any:
    builds.look(world.seen, ADA, key)
    return logs.read(world.seen, ADA, key)


def _use_offer(world: World, request: Request) -> Any:
    """Asks for leave to upload, uploads, and says so."""
    offer = sources.offer(world.seen, ADA, "ada", request.project)
    world.services.sources.upload(offer, CODE[request.about])
    return sources.complete(world.seen, ADA, "ada", request.project, offer.id)


DO: dict[str, Callable[[World, Request], Any]] = {
    "post": _post,
    "rebuild": _of_build(_rebuilt),
    "stop": _of_build(lambda world, request, key: builds.stop(world.seen, ADA, key)),
    "delete": _of_build(lambda world, request, key: builds.archive(world.seen, ADA, key, delete=True)),
    "archive": _of_build(lambda world, request, key: builds.archive(world.seen, ADA, key)),
    "restore": _of_build(lambda world, request, key: builds.restore(world.seen, ADA, key)),
    "patch": _of_build(_change_fields),
    "bookmark": _of_build(lambda world, request, key: builds.bookmark(world.seen, ADA, key)),
    "log": _of_build(_read_log),
    "list": lambda world, request: builds.page(world.seen, ADA, "ada", request.project, 0, 20),
    "report": _of_build(lambda world, request, key: reports.report_status(world.seen, ADA, key, dict(request.fields))),
    "lines": _of_build(lambda world, request, key: reports.report_lines(world.seen, ADA, key, request.fields["lines"])),
    "upload": lambda world, request: sources.upload(world.seen, ADA, "ada", request.project, CODE[request.about]),
    "offer": _use_offer,
    "delete project": lambda world, request: projects.archive(world.seen, ADA, "ada", "vision", delete=True),
    "archive project": lambda world, request: projects.archive(world.seen, ADA, "ada", "vision"),
    "restore project": lambda world, request: projects.restore(world.seen, ADA, "ada", "vision"),
    "make project": lambda world, request: projects.create(world.seen, ADA, {"name": "vision"}),
}


def without(story: Story, names: frozenset[str]) -> Story:
    """The story without these requests."""
    return replace(story, requests=tuple(each for each in story.requests if each.name not in names))
