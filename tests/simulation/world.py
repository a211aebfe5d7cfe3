"""What surrounds Slipway: queues, events and schedules that wake it, and the executor with registry and log.

Everything here behaves as documented by AWS, not better: messages come at least once and events perhaps, the
executor forgets what it was asked after five minutes and has few slots, a tag cannot be pushed twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal

import app as entry
from chalicelib.adapters.dynamodb.records import encode_build
from chalicelib.domain.build import CODEBUILD, EKS, Build, BuildKey, Status
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.domain.log_lines import LogLine
from chalicelib.domain.project import Project
from chalicelib.domain.record import replace
from chalicelib.errors import Forbidden, Gone, Invalid, SlipwayError
from chalicelib.ports import Question
from chalicelib.settings import EksSettings
from chalicelib.usecases.materials import OwnBroker
from infra.local.stream import record
from tests.factories import DIGEST, SETTINGS
from tests.fakes import FakeBuildQueue, FakeExecutor, FakeServices, Run
from tests.simulation.faults import Chance, Faults
from tests.simulation.ports import MAX_LAG_SECONDS, Calls, SeenThroughFaults, Trace
from tests.simulation.scheduler import Ended, Function, Scheduler, current

LIMIT_SECONDS = {
    "announce": 60,
    "dispatch": 60,
    "on_request": 60,
    "on_codebuild_event": 60,
    "keep_log": 300,
    "reconcile": 120,
    "clean_up": 240,
}
API_LIMIT_SECONDS = 28
QUEUE_MINUTES = RUN_MINUTES = 20  # of a build, as the executor and the service have it
WAIT_MINUTES = 60  # for its turn
RECEIVES, SPARED_AFTER = 5, 3
TRIES = 50  # of a batch of the stream; then a record is put aside
RECORDS = 10  # of the stream, in one batch: not a hundred, so that batches end in the middle of a build
ASK_AGAIN_SECONDS, TRIALS = 20, 15  # of a build that asks the API and hears nothing
STILL_TAGS_SECONDS = 150  # after its deletion: a function that has read the build before, and a call that is late
STRANGERS_DIGEST = f"sha256:{'5e' * 32}"
DAY = 24 * 3600
MINUTE = timedelta(minutes=1)
IS_SO: dict[str, Callable[[Build], bool]] = {  # what a request of the queue asks for
    "stop": lambda build: build.is_done or build.stop_requested_at is not None,
    "archive": lambda build: build.archived_at is not None,
    "restore": lambda build: build.archived_at is None,
    "delete": lambda build: build.deleted_at is not None,
}


SCHEDULE: dict[str, Any] = {
    "version": "0",
    "id": "-",
    "detail-type": "Scheduled Event",
    "source": "aws.events",
    "account": "1",
    "time": "2024-03-01T12:00:00Z",
    "region": "eu",
    "resources": [],
    "detail": {},
}


class SimulatedQueue(FakeBuildQueue):
    """Announcements become messages."""

    def __init__(self, send: Callable[[str, float], None]) -> None:
        super().__init__()
        self._send = send

    def announce(self, key: BuildKey, after_seconds: int = 0) -> None:
        super().announce(key, after_seconds)
        self._send(str(key), after_seconds)


@dataclass
class SimulatedRun(Run):
    """Its log has a name only once it has begun to work. A Job that is made again has the handle of the first."""

    name: str = field(kw_only=True)  # of this run alone
    asked_at: datetime = field(kw_only=True)  # when the call was sent that started it
    has_materials: bool = False

    @property
    def log(self) -> str:
        return f"logs:slipway-builds:{self.name}"

    def observation(self) -> Observation:
        seen = super().observation()
        return seen if self.steps else replace(seen, log=None)


class SimulatedExecutor(FakeExecutor):
    """Builds run by themselves here, as the seed says, and push, log and send events."""

    def __init__(self, world: World, services: FakeServices, emits_events: bool) -> None:
        super().__init__(services.clock, emits_events)
        self._world, self._services = world, services
        self.slots = world.slots
        if not emits_events:
            self.forgets_after_seconds = 365 * DAY  # a Job's name is taken as long as there is the Job

    def start(self, build: Build) -> SimulatedRun:
        name = f"run-{len(self._world.every_run) + 1}"
        handle = f"slipway-builds:{name}" if self.emits_events else f"job-{build.uuid[:8]}-{build.attempt}"
        run = self.runs[handle] = SimulatedRun(
            handle, build, self._clock.now, name=name, asked_at=self._world.scheduler.time(self._world.calls.sent_at)
        )
        self._world.every_run.append(run)
        self._world.lines[run.log] = []
        if self._world.has_fatal_log and len(self._world.every_run) == 1:
            self._world.fatal.add(run.log)
        self.begin(run)
        return run

    def begin(self, run: SimulatedRun) -> None:
        """It has what it needs."""
        _Life(self._world, self._services, self, run).begin()

    def stop(self, handle: str) -> None:
        super().stop(handle)
        if handle in self.runs:
            self._world.event(self.runs[handle])


class _Life:
    """One run, from its start to its end."""

    def __init__(self, world: World, services: FakeServices, executor: SimulatedExecutor, run: SimulatedRun) -> None:
        self.world, self.services, self.executor, self.run = world, services, executor, run
        self.asked = 0
        before = len(world.runs(run.build.uuid))
        self.key = f"run {before} of {run.build.key} ({run.build.uuid[:4]})"

    def begin(self) -> None:
        chance, after = self.world.chance, self.world.scheduler.after
        waits = chance.pick(f"{self.key} waits", 1, 1, 2, 5, 30, 60, 300, 900)
        lasts = chance.pick(f"{self.key} lasts", 2, 10, 30, 60, 120, 300, 300, 900)
        for stuck, limit in ((waits > 800, QUEUE_MINUTES), (lasts > 800, RUN_MINUTES)):
            if stuck and chance.number(f"{self.key} sticks") < 0.5:
                after(limit * 60 + (0 if waits > 800 else waits), lambda: self.end(Outcome.TIMED_OUT))
                if waits > 800:
                    return
                lasts = 2 * DAY
        self.world.trace(self.key, f"{self.run.name} starts (waits {waits:g} s, lasts {lasts:g} s)")
        after(waits, lambda: self.fetch(lasts))
        if not self.executor.emits_events and self.world.faults.happens("run", f"{self.key} is removed"):
            after((waits + lasts) * chance.between(f"{self.key} is removed at", 0, 1.2), self.remove)

    def fetch(self, lasts: float) -> None:
        """Its first steps: until they are done, nothing of the user runs."""
        self.enter(Status.BUILDING)

        def begin() -> None:
            self.run.has_materials = True
            self.ask("report", lambda: self.work(lasts), fetched="1")

        self.ask("materials", begin)

    def work(self, lasts: float) -> None:
        chance, after = self.world.chance, self.world.scheduler.after
        after(lasts / 4, lambda: self.enter(Status.RUNNING))
        count = int(chance.between(f"{self.key} lines", 0, 9))
        for number in range(count):
            after(lasts * (number + 1) / (count + 1), partial(self.log, f"line {number}"))
        after(lasts / 2, lambda: self.ask("login", lambda: None))
        after(lasts, self.push)

    def ask(self, about: Literal["materials", "login", "report"], then: Callable[[], None], **told: str) -> None:
        """Asks the API until it answers, for five minutes; a refusal ends the run."""
        self.asked += 1
        self._ask(self.services.question(about, self.run.build, **told), then, self.asked, 1)

    def _ask(self, question: Question, then: Callable[[], None], number: int, trial: int) -> None:
        if self.run.outcome is not None:
            return
        world = self.world
        name = f"{self.key} asks {number}.{trial} for {question.about}"
        is_heard = not world.faults.happens("message", f"{name}: its answer gets lost")

        def settle(function: Function) -> None:
            if self.run.outcome is not None:
                return
            if is_heard and function.error is None:
                then()
            elif is_heard and isinstance(function.error, Gone | Forbidden | Invalid):
                self._expect_over(question)
                self.print(f"{self.run.name} is refused: {function.error}")
                self.end(Outcome.FAILED)
            elif trial == TRIALS:
                self.end(Outcome.FAILED)
            else:
                world.scheduler.after(ASK_AGAIN_SECONDS, lambda: self._ask(question, then, number, trial + 1))

        late = 0.0
        if world.faults.happens("message", f"{name}: it comes late"):
            late = world.chance.pick(f"{name} late by", 1, 5, 20, 60)
        if world.faults.happens("message", f"{name}: it comes twice"):
            again = world.chance.pick(f"{name} again after", 0.01, 1, 30, 300)
            copy = f"{name} (again)"
            world.scheduler.after(again, lambda: world.answer(copy, question, lambda function: None))
        world.scheduler.after(late, lambda: world.answer(name, question, settle))

    def _expect_over(self, question: Question) -> None:
        """Nobody refuses an attempt that is the current one of a build that goes on. Only a Job that is made again is
        not given the code a second time."""
        build = self.services.records.builds.get(self.run.build.key)
        runs = [run for run in self.world.runs(self.run.build.uuid) if run.handle == self.run.handle]
        is_again = question.about == "materials" and self.run is not runs[0]
        if (
            build is not None
            and build.uuid == self.run.build.uuid
            and build.attempt == question.attempt
            and build.submitting_at is not None
            and not build.is_done
            and build.stop_requested_at is None
            and not (is_again and build.fetched_attempt == question.attempt)
        ):
            words = f"{self.run.name} was refused: {question.about}"
            self.world.broken.append(("an attempt gets what is its own", words))

    def remove(self) -> None:
        """A node dies, or somebody deletes the Job: the executor does not know it any more."""
        self.world.trace(self.key, f"{self.run.name} is removed")
        if self.run.outcome is None:
            self.executor.end(self.run, Outcome.GONE)
        self.executor.runs.pop(self.run.handle, None)

    def enter(self, status: Status) -> None:
        if self.run.outcome is None:
            self.executor.enter(self.run, status)
            self.world.event(self.run)

    def log(self, text: str) -> None:
        if self.run.outcome is None:
            self.print(f"{self.run.name} {text}")

    def print(self, text: str) -> None:
        """A line is in the log at once, and can be read some seconds later."""
        log, line = self.run.log, LogLine(self.services.now(), text)
        if not text.startswith("slipway-end"):
            self.world.lines[log].append(text)
        number = len(self.world.lines[log])
        seconds = self.world.chance.between(f"{self.key} line {number} arrives", 0, 4)
        self.world.scheduler.after(seconds, lambda: self.arrive(log, line))

    def arrive(self, log: str, line: LogLine) -> None:
        lines = self.services.logs.logs.setdefault(log, [])
        lines.append(line)
        lines.sort(key=lambda each: each.at)  # as CloudWatch answers them

    def push(self) -> None:
        if self.run.outcome is not None:
            return
        faults, image = self.world.faults, self.run.build.image
        if faults.happens("run", f"a stranger takes the tag of {self.key}"):
            self.services.registry.images.setdefault(image, STRANGERS_DIGEST)
        if self.run.log in self.world.fatal:
            self.services.registry.push(image, DIGEST)
            self.ask("report", lambda: self.end(Outcome.SUCCEEDED), digest=DIGEST)
        elif faults.happens("run", f"{self.key} has a fault before its push", 2):
            self.end(Outcome.FAULT)
        elif self.world.chance.number(f"{self.key} fails") < 0.2:
            self.end(Outcome.FAILED)
        elif image in self.services.registry.images:
            self.print(f"{self.run.name} the tag exists")
            self.end(Outcome.FAILED)
        else:
            digest = f"sha256:{hashlib.sha256(self.run.name.encode()).hexdigest()}"
            self.services.registry.push(image, digest)
            self.world.trace(self.key, f"{self.run.name} pushes {image}")
            if faults.happens("run", f"{self.key} has a fault before its report"):
                self.end(Outcome.FAULT)
                question = self.services.question("report", self.run.build, digest=digest)
                late = self.world.chance.pick(f"{self.key} reports late by", 0.1, 1, 10, 60)
                report = partial(self.world.answer, f"{self.key} reports late", question, lambda function: None)
                self.world.scheduler.after(late, report)
                return
            is_fault = faults.happens("run", f"{self.key} has a fault after its push", 2)
            last = Outcome.FAULT if is_fault else Outcome.SUCCEEDED
            reported = partial(self.world.scheduler.after, 1, lambda: self.end(last))
            self.ask("report", reported, digest=digest)

    def end(self, outcome: Outcome) -> None:
        if self.run.outcome is not None:
            return
        if outcome in (Outcome.SUCCEEDED, Outcome.FAILED):
            self.print(f"slipway-end {self.run.build.nonce}")
        self.executor.end(self.run, outcome)
        self.world.trace(self.key, f"{self.run.name} ends: {outcome}")
        self.world.event(self.run)


@dataclass
class Message:
    body: str
    id: str
    receives: int = 0
    is_done: bool = False  # some delivery was answered well
    is_dead: bool = False


class Queue:
    """One of SQS: a message comes at least once, and again when its function failed."""

    def __init__(
        self, world: World, function: str, *, may_lose: bool, batch: int = 10, visible_after: int = 360
    ) -> None:
        self._world, self._function, self._may_lose = world, function, may_lose
        self._batch, self._visible_after = batch, visible_after
        self.messages: list[Message] = []
        self._ready: list[Message] = []

    def send(self, body: str, name: str, after_seconds: float = 0) -> None:
        world, message = self._world, Message(body, name)
        self.messages.append(message)
        if self._may_lose and world.faults.happens("message", f"{name} gets lost"):
            return
        late = after_seconds + world.chance.between(f"{name} travels", 0.01, 0.5)
        if world.faults.happens("message", f"{name} comes late"):
            late += world.chance.pick(f"{name} late by", 5, 60, 100, 200, 300, 900)
        world.scheduler.after(late, lambda: self._deliver(message))
        if world.faults.happens("message", f"{name} comes twice"):
            again = late + world.chance.pick(f"{name} again after", 0.01, 0.3, 5, 60, 400, 3600)
            world.scheduler.after(again, lambda: self._deliver(message))

    def _deliver(self, message: Message) -> None:
        """Gives the message to a function, perhaps with others that come at about the same time."""
        message.receives += 1
        self._ready.append(message)
        if len(self._ready) == 1:
            waits = self._world.chance.pick(f"batch of {message.id} {message.receives}", 0, 0, 0, 0.5)
            self._world.scheduler.after(waits, self._take)

    def _take(self) -> None:
        batch, self._ready = self._ready[: self._batch], self._ready[self._batch :]
        if self._ready:
            self._world.scheduler.after(0, self._take)
        first = batch[0]
        name = f"{self._function} of {first.id}"
        name += f" #{first.receives}" if first.receives > 1 else ""
        name += f" and {len(batch) - 1} more" if len(batch) > 1 else ""
        records = [
            {
                "messageId": each.id,
                "body": each.body,
                "receiptHandle": "-",
                "attributes": {"ApproximateReceiveCount": str(each.receives)},
            }
            for each in batch
        ]
        function = self._world.start(
            name, self._function, {"Records": records}, lambda function: self._settle(batch, function)
        )
        function.is_spared = max(each.receives for each in batch) > SPARED_AFTER

    def _settle(self, batch: Sequence[Message], function: Function) -> None:
        failed = None  # all
        if function.error is None:
            failed = {each["itemIdentifier"] for each in function.answer["batchItemFailures"]}
        for message in batch:
            if failed is not None and message.id not in failed:
                message.is_done = True
            elif message.receives < RECEIVES:
                seconds = self._visible_after - (self._world.scheduler.seconds - function.started_at)
                self._world.scheduler.after(seconds, partial(self._deliver, message))
            else:
                message.is_dead = True


class Stream:
    """The table's stream, of one shard: changes of builds in their order, which come again from the first that failed,
    and perhaps once more although all went well."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_on = False
        self._records: list[tuple[str, dict[str, Any]]] = []  # with what was changed
        self._made = self._tries = 0

    def add(self, before: Build | None, build: Build) -> None:
        if self.is_on:
            old = encode_build(before).to_dynamodb_dict() if before else None
            self._made += 1
            change = record(self._made, "eu", encode_build(build).to_dynamodb_dict(), old)
            self._records.append((f"{build.key} v{build.version}", change))
            if len(self._records) == 1:
                self._world.scheduler.after(0.2, self._call)

    def _call(self) -> None:
        world, batch = self._world, self._records[:RECORDS]
        self._tries += 1
        name = f"announce {batch[0][0]} #{self._tries}"

        def settle(function: Function) -> None:
            done = 0
            if function.error is None:
                failed = [each["itemIdentifier"] for each in function.answer["batchItemFailures"]]
                numbers = [each["dynamodb"]["SequenceNumber"] for _, each in batch]
                done = numbers.index(failed[0]) if failed else len(batch)
            if self._tries == TRIES:
                done = max(done, 1)
            if done and not world.faults.happens("event", f"{name} comes again"):
                del self._records[:done]
                self._tries = 0
            if self._records:
                world.scheduler.after(0.2 if done else 5, self._call)

        function = world.start(name, "announce", {"Records": [each for _, each in batch]}, settle)
        function.is_spared = self._tries > SPARED_AFTER


@dataclass
class Known:
    """What was ever seen of a build, however short."""

    build: Build  # as it was stored last
    project_uuid: str
    turn_at: float  # when it was made, had a fault, or had its turn, whichever was last
    final_at: float | None = None
    gone_at: float | None = None
    stop_at: float | None = None  # when it was first wished stopped, deleted or hidden with its project


@dataclass
class World:
    chance: Chance
    faults: Faults
    trace: Trace
    is_traced: bool
    start_at: Any
    on_eks: bool
    slots: int  # builds that an executor runs at once
    limits: Mapping[str, Any]  # settings: how many builds may run
    every_run: list[SimulatedRun] = field(default_factory=list)  # also those that the executor has forgotten
    lines: dict[str, list[str]] = field(default_factory=dict)  # what each log has to have in the end
    known: dict[str, Known] = field(default_factory=dict)  # builds by uuid
    projects: dict[str, Project] = field(default_factory=dict)  # by uuid, as they were last
    hidden_at: dict[str, float] = field(default_factory=dict)  # when projects were archived or deleted
    broken: list[tuple[str, str]] = field(default_factory=list)  # promises seen broken on the way
    answers: dict[str, list[Any]] = field(default_factory=dict)  # by request: what clients were answered
    healed_at: float = 0.0
    has_fatal_log: bool = False
    fatal: set[str] = field(default_factory=set)  # logs that end any function that reads them
    schedule: Mapping[str, Any] = field(default_factory=lambda: SCHEDULE)

    def __post_init__(self) -> None:
        settings = replace(
            SETTINGS,
            backend="eks" if self.on_eks else "codebuild",
            build_timeout_minutes=RUN_MINUTES,
            queue_timeout_minutes=QUEUE_MINUTES,
            wait_timeout_minutes=WAIT_MINUTES,
            max_answer_bytes=200,
            event_bus="default",
            eks=EksSettings("lab") if self.on_eks else None,
            **self.limits,
        )
        self.services = FakeServices(settings)
        clock = self.services.clock
        clock.now = self.start_at
        self.scheduler = Scheduler(clock)
        self.dispatch = Queue(self, "dispatch", may_lose=True)
        self.logs = Queue(self, "keep_log", may_lose=True, batch=1, visible_after=1800)
        self.requests = Queue(self, "on_request", may_lose=False)
        self.stream = Stream(self)
        self._sent: dict[str, int] = {}
        self.services.queue = SimulatedQueue(partial(self._send, self.dispatch, "m"))
        self.services.log_queue = SimulatedQueue(partial(self._send, self.logs, "log m"))
        self.services.codebuild = SimulatedExecutor(self, self.services, emits_events=True)
        self.services.eks = SimulatedExecutor(self, self.services, emits_events=False)
        self.services.executors = {CODEBUILD: self.services.codebuild, EKS: self.services.eks}
        self._drop = self.services.sources.drop
        vars(self.services.sources)["drop"] = self._dropped
        self._refuse = self.services.dead_letters.put
        vars(self.services.dead_letters)["put"] = self._refused
        self._tag = self.services.registry.tag
        vars(self.services.registry)["tag"] = self._tagged
        self.wire()
        self._drawn = 0  # random identifiers outside of any function
        self._changed_at = 0.0
        self._builds: dict[BuildKey, Build] = {}
        self._places: dict[tuple[str, str], Project] = {}

    def wire(self) -> None:
        """Puts faults between the use cases and the fakes."""
        trace = self.trace if self.is_traced else None
        self.calls = Calls(self.scheduler, self.faults, self.services.records, self.fatal, trace)
        self.calls.after_change = self.look
        self.seen: Any = SeenThroughFaults(self.services, self.calls)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """What has to be replaced beside `services`, while the world lasts."""
        yield

    def log_name(self, log: str) -> str:
        """The name that a log has here, of the one that its adapter gave it."""
        return log

    def is_fatal(self, build: Build) -> bool:
        """Whether the log of a run of it ends any function that reads it."""
        return any(run.log in self.fatal for run in self.runs(build.uuid))

    # Waking functions

    def start(self, name: str, function: str, event: Mapping[str, Any], settle: Callable[[Function], None]) -> Function:
        """A Lambda function with an event."""
        handler = entry.app.handler_map[function]
        return self.go(name, lambda: handler(event, None), LIMIT_SECONDS[function], settle)

    def go(
        self, name: str, work: Callable[[], Any], limit_seconds: float, settle: Callable[[Function], None]
    ) -> Function:
        def end(function: Function) -> None:
            error = function.error
            if isinstance(error, Ended):
                self.trace(name, "ENDED")
            elif error is not None and not isinstance(error, SlipwayError):
                self.unexpected(name, error)
            settle(function)

        function = Function(self.scheduler, name, work, limit_seconds)
        function.after = end
        self.scheduler.after(0, function.switch)
        return function

    def answer(self, name: str, question: Question, settle: Callable[[Function], None]) -> None:
        """The API is asked by a build: the broker behind it answers."""
        self.go(name, lambda: OwnBroker(self.seen).ask(question), API_LIMIT_SECONDS, settle)

    def logged(self, error: BaseException) -> None:
        """A function has logged an exception and gone on."""
        if not isinstance(error, SlipwayError):
            function = current()
            self.unexpected(function.name if function else "?", error)

    def unexpected(self, name: str, error: BaseException) -> None:
        self.broken.append(("no unexpected exception", f"{name}: {type(error).__name__} {error}"))

    def ticks(self, start: int, end: int) -> None:
        """The schedules of these minutes."""
        for minute in range(start, end):
            self._tick("reconcile", f"reconcile {minute}", minute * 60)
            if minute % 5 == 0:
                self._tick("clean_up", f"clean_up {minute}", minute * 60 + 7)

    def _tick(self, function: str, name: str, seconds: float) -> None:
        if self.faults.happens("tick", f"{name} is not called"):
            return
        if self.faults.happens("tick", f"{name} comes late"):
            seconds += self.chance.between(f"{name} late by", 1, 90)
        self.scheduler.at(seconds, lambda: self._schedule(function, name))
        if self.faults.happens("tick", f"{name} comes twice"):
            seconds += self.chance.pick(f"{name} again after", 0.01, 0.05, 1, 30)
            self.scheduler.at(seconds, lambda: self._schedule(function, f"{name} (again)"))

    def _schedule(self, function: str, name: str) -> None:
        if self._finds_nothing(function) and self.chance.number(f"{name} is idle") < 0.9:
            return  # most ticks are: they cost time and show nothing
        self.start(name, function, self.schedule, lambda function: None)

    def _finds_nothing(self, function: str) -> bool:
        """Whether a tick has nothing to do, also if what it reads is a little old."""
        store, now = self.services.records, self.services.now()
        if self.scheduler.seconds - self._changed_at < 2 * MAX_LAG_SECONDS:
            return False
        if function == "reconcile":
            return not self.taken() and not any(
                build.check_at and build.check_at <= now + MINUTE for build in store.builds.values()
            )
        everything: list[Build | Project] = [*store.builds.values(), *store.projects.values()]
        return not self.services.sources.archives and not any(each.archived_at for each in everything)

    def event(self, run: Run) -> None:
        """CodeBuild tells of a change, perhaps."""
        if run.build.executor != CODEBUILD:
            return
        count = self._sent[run.handle] = self._sent.get(run.handle, 0) + 1
        name = f"event {run.handle.removeprefix('slipway-builds:')}/{count}"
        if self.faults.happens("event", f"{name} gets lost", 2):
            return
        seconds = self.chance.between(f"{name} travels", 0.1, 2)
        if self.faults.happens("event", f"{name} comes late"):
            seconds += self.chance.pick(f"{name} late by", 5, 60, 600, 3600)
        self.scheduler.after(seconds, lambda: self._ring(run.handle, name, 1))
        if self.faults.happens("event", f"{name} comes twice"):
            self.scheduler.after(seconds + 0.05, lambda: self._ring(run.handle, f"{name} (again)", 1))

    def _ring(self, handle: str, name: str, attempt: int) -> None:
        """Lambda calls a function again when an event made it fail, twice."""

        def settle(function: Function) -> None:
            if function.error is not None and attempt < 3:
                self.scheduler.after(60 * attempt, lambda: self._ring(handle, name, attempt + 1))

        called = f"{name} try {attempt}" if attempt > 1 else name
        event = {**self.schedule, "detail": {"build-id": f"arn:aws:codebuild:eu:1:build/{handle}"}}
        self.start(called, "on_codebuild_event", event, settle)

    def _send(self, queue: Queue, mark: str, body: str, after_seconds: float) -> None:
        name = f"{body} {mark}"
        count = self._sent[name] = self._sent.get(name, 0) + 1
        queue.send(body, f"{name}{count}", after_seconds)

    # Watching what is stored

    def look(self) -> None:
        """After each change: what may never happen, not even for a moment."""
        store, now = self.services.records, self.scheduler.seconds
        self._changed_at = now
        if store.projects != self._places:
            self._look_at_projects(store.projects, now)
            self._places = store.projects.copy()
        if store.builds != self._builds:
            for key, build in store.builds.items():
                if build is not self._builds.get(key):
                    self._look_at_build(build, now)
            for key, build in self._builds.items():
                if key not in store.builds or store.builds[key].uuid != build.uuid:
                    self._look_at_purge(build, now)
            self._builds = store.builds.copy()
            self._look_at_limits(store.builds.values())

    def _look_at_projects(self, places: Mapping[tuple[str, str], Project], now: float) -> None:
        for project in places.values():
            self.projects[project.uuid] = project
            if project.archived_at is not None:
                self.hidden_at.setdefault(project.uuid, now)
        for place, project in self._places.items():
            if (place not in places or places[place].uuid != project.uuid) and project.deleted_at is None:
                self.broken.append(("only what was deleted is purged", f"project {project.key} is gone"))

    def _look_at_build(self, build: Build, now: float) -> None:
        known = self.known.get(build.uuid)
        if known is None:
            place = self.services.records.projects.get((build.key.owner, build.key.project))
            known = self.known[build.uuid] = Known(build, place.uuid if place else "?", now)
            self.stream.add(None, build)
        before, known.build = known.build, build
        if before is not build:
            self.stream.add(before, build)
        if before.is_done and (build.last_status, build.image_digest) != (
            before.last_status,
            before.image_digest,
        ):
            words = f"{build.key} was {before.last_status} and became {build.last_status}"
            self.broken.append(("a final status stays", words))
        if build.history[: len(before.history)] != before.history:
            self.broken.append(("a history only grows", str(build.key)))
        if before.queued_at != build.queued_at or (before.is_waiting and not build.is_waiting):
            known.turn_at = now
        if build.is_done and known.final_at is None:
            known.final_at = now
        if build.stop_requested_at is not None and known.stop_at is None:
            known.stop_at = now

    def _look_at_limits(self, builds: Iterable[Build]) -> None:
        if not self.limits:
            return
        going = [build.key for build in builds if build.is_managed and build.attempt and not build.finished_at]
        counts = Counter(scope for key in going for scope in ("", key.owner, str(key.project_key)))
        for scope, count in counts.items():
            if 0 < self.services.settings.max_running_of(scope) < count:
                self.broken.append(("no more builds run than the limits allow", f"{count} of {scope or 'all'}"))

    def _look_at_purge(self, build: Build, now: float) -> None:
        known = self.known[build.uuid]
        known.gone_at = now
        project = self.projects.get(known.project_uuid)
        is_hidden = build.archived_at is not None or project is None or project.archived_at is not None
        if not build.is_done or not is_hidden:
            self.broken.append(("only what was deleted is purged", f"{build.key} was {build.last_status}"))

    def _dropped(self, sha256: str) -> None:
        if self.services.code_references.having(sha256):  # an upload that only noted it will see the mark
            self.broken.append(("code in use is kept", f"{sha256[:8]} was dropped"))
        self._drop(sha256)

    def _refused(self, body: str, reasons: Sequence[str]) -> None:
        """Neither a request that was done, nor one for what is so already, is a dead letter."""
        fields, records = json.loads(body), self.services.records
        project = records.projects.get((fields["owner"], fields["project"]))
        build = records.builds.get(BuildKey(fields["owner"], fields["project"], fields.get("build", 0)))
        once = {fields.get("idempotency_key"), *(each.id for each in self.requests.messages if each.body == body)}
        is_there = project is not None and project.archived_at is None
        marks = {f"{project.uuid}:queue/{each}" for each in once if each} if project and is_there else set()
        is_so = is_there and build and fields["action"] in IS_SO and IS_SO[fields["action"]](build)
        if is_so or marks & {mark for _, mark in records.once}:
            self.broken.append(("what was done is no dead letter", f"{fields}: {reasons}"))
        self._refuse(body, reasons)

    def _tagged(self, image: str, tag: str) -> None:
        self._tag(image, tag)
        having = [known.build for known in self.known.values() if known.build.image == image]  # some have reused it
        build = next((each for each in having if tag in each.image_tags), having[0])
        if tag not in build.image_tags or build.image_digest is None:
            self.broken.append(("a tag was asked for", f"{build.key} is {build.last_status} and got {tag}"))
        if build.deleted_at and build.deleted_at + timedelta(seconds=STILL_TAGS_SECONDS) < self.services.now():
            self.broken.append(("a deleted build gives no tags", f"{build.key} got {tag}"))

    def is_quiet(self) -> bool:
        """Whether nothing will happen any more."""
        is_due = any(build.check_at for build in self.services.records.builds.values())
        return self.scheduler.is_empty and not is_due and not self.taken()

    def taken(self) -> Collection[BuildKey]:
        """The builds that have a slot."""
        return self.services.slots.read().builds

    def runs(self, uuid: str) -> list[SimulatedRun]:
        """The runs of a build, oldest first."""
        return [run for run in self.every_run if run.build.uuid == uuid]

    def draw(self) -> str:
        """A random identifier: of the current function, so that others do not change it."""
        function = current()
        if function is None:
            self._drawn += 1
            return self.chance.hexadecimal(f"outside {self._drawn}")
        function.drawn += 1
        return self.chance.hexadecimal(f"{function.name} draws {function.drawn}")
