"""The ports in memory. They keep every promise of `chalicelib.ports`, and the same contract tests hold
them and the real adapters to it; beyond that, a test can look inside and say what goes wrong when."""

from __future__ import annotations

import io
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import IO, Any, Literal

from chalicelib.adapters.dynamodb import Records
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import CODEBUILD, EKS, LISTED, Build, BuildBody, BuildKey, Image, Status
from chalicelib.domain.build_steps import BuildStep
from chalicelib.domain.cleanup import Hidden
from chalicelib.domain.lifecycle import Observation, Outcome, Step, Trouble
from chalicelib.domain.log_lines import Block, LogLine, Position
from chalicelib.domain.materials import attempt_secret
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.repositories import Rights, cache_repository, image_parts, rights
from chalicelib.domain.slots import Running
from chalicelib.domain.user import Token, User
from chalicelib.errors import AlreadyExists, Busy, Conflict, KeyReused, NoLog, NotFound, Unavailable
from chalicelib.ports import (
    MAX_READ_LINES,
    Announcement,
    Answer,
    Bookmarkable,
    Broker,
    BuildView,
    Delivery,
    Fresh,
    Given,
    IdempotencyKey,
    InLine,
    LogPart,
    Offer,
    Question,
    RegistryLogin,
    Services,
)
from chalicelib.settings import Settings
from chalicelib.usecases.materials import OwnBroker
from tests.factories import DIGEST, NOW, SETTINGS


class Died(BaseException):
    """The function was ended at this point, as Lambda ends one that takes too long."""


class Clock:
    """Stands still until told otherwise."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def forward(self, *, seconds: float = 0, minutes: float = 0, days: float = 0) -> None:
        self.now += timedelta(seconds=seconds, minutes=minutes, days=days)


class FakeRecords:
    """What the fakes of the table's ports have stored."""

    def __init__(self) -> None:
        self.projects: dict[tuple[str, str], Project] = {}
        self.builds: dict[BuildKey, Build] = {}
        self.bodies: dict[BuildKey, BuildBody] = {}
        self.names: dict[tuple[str, str, str], int] = {}  # to how many `-<k>` were given of it
        self.bookmarks: dict[tuple[str, BuildKey | ProjectKey], datetime | None] = {}  # None: removed
        self.once: dict[tuple[ProjectKey, str], tuple[BuildKey, IdempotencyKey]] = {}
        self.noted: dict[tuple[str, ProjectKey], datetime] = {}  # code that a project is about to have
        self.dropping: dict[str, datetime] = {}
        self.miscounted: dict[ProjectKey, datetime] = {}
        self.slots: dict[str, Running] = {}  # at most one
        self.before_write: deque[Callable[[], object]] = deque()  # each runs once, before one write

    def others_go_first(self) -> None:
        if self.before_write:
            self.before_write.popleft()()

    def save(self, build: Build) -> Build:
        self.others_go_first()
        self.expect_unchanged(build)
        self.builds[build.key] = new = replace(build, version=build.version + 1)
        return new

    def expect_unchanged(self, build: Build) -> Build:
        stored = self.builds.get(build.key)
        if stored is None or stored.version != build.version:
            raise Conflict
        return stored

    def take_name(self, key: BuildKey, wanted: str | None) -> str | None:
        if wanted is None:
            return None

        def place(name: str) -> tuple[str, str, str]:
            return key.owner, key.project, name

        name = wanted
        while place(name) in self.names:
            self.names[place(wanted)] += 1
            name = f"{wanted[:115]}-{self.names[place(wanted)]}"
        self.names[place(name)] = 0
        return name


class FakeProjects:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def get(self, owner: str, name: str) -> Project | None:
        return self._records.projects.get((owner, name))

    def add(self, project: Project) -> None:
        if (project.owner, project.name) in self._records.projects:
            raise AlreadyExists
        new = replace(project, last_build_id=0, live_builds=0)
        self._records.projects[project.owner, project.name] = new

    def save(self, project: Project) -> Project:
        stored = self._records.projects.get((project.owner, project.name))
        if stored is None or _identity(stored) != _identity(project):
            raise Conflict
        new = replace(
            project,
            version=project.version + 1,
            last_build_id=stored.last_build_id,
            live_builds=stored.live_builds,
        )
        self._records.projects[project.owner, project.name] = new
        return new

    def list_projects(self, owner: str, offset: int, limit: int, *, public: bool) -> tuple[Sequence[Project], int]:
        shown = [
            project
            for project in self._records.projects.values()
            if project.owner == owner and project.archived_at is None and (project.is_public or not public)
        ]
        shown.sort(key=lambda project: (project.updated_at, project.name), reverse=True)
        return shown[offset : offset + limit], len(shown)

    def miscounted(self, now: datetime, limit: int) -> Sequence[ProjectKey]:
        return [key for key, at in self._records.miscounted.items() if at <= now][:limit]

    def recount(self, project: ProjectKey) -> None:
        self._records.miscounted.pop(project, None)
        stored = self._records.projects.get((project.owner, project.name))
        if stored is not None:
            builds = self._records.builds.values()
            live = [each for each in builds if each.key.project_key == project and not each.archived_at]
            self._records.projects[project.owner, project.name] = replace(stored, live_builds=len(live))


class FakeBuilds:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def next_id(self, project: Project, now: datetime) -> int:
        stored = self._records.projects.get((project.owner, project.name))
        if stored is None or stored.uuid != project.uuid or stored.deleted_at is not None:
            raise NotFound
        new = replace(stored, last_build_id=stored.last_build_id + 1, live_builds=stored.live_builds + 1)
        self._records.projects[project.owner, project.name] = new
        self._records.miscounted.setdefault(project.key, now + timedelta(days=1))
        return new.last_build_id

    def add(self, build: Build, body: BuildBody, wanted_name: str | None, once: IdempotencyKey | None = None) -> Build:
        records = self._records
        records.others_go_first()
        project = build.key.project_key
        if build.key in records.builds or (once and self.replay(project, once)):
            raise Conflict
        build = replace(build, name=records.take_name(build.key, wanted_name))
        if once is not None:
            records.once[project, once.key] = (build.key, once)
        records.builds[build.key] = build
        records.bodies[build.key] = body
        return build

    def note(self, once: IdempotencyKey, build: BuildKey) -> None:
        self._records.once[build.project_key, once.key] = (build, once)

    def replay(self, project: ProjectKey, once: IdempotencyKey) -> BuildKey | None:
        done, before = self._records.once.get((project, once.key), (None, once))
        if done is None or before.expires_at <= once.now:
            return None
        if before.body_sha256 != once.body_sha256:
            raise KeyReused("This idempotency key came with another request before; use a new one.")
        return done

    def get(self, key: BuildKey) -> Build | None:
        return self._records.builds.get(key)

    def open(self, key: BuildKey, viewer: str, *, may_lag: bool = False) -> BuildView | None:
        build, body = self._records.builds.get(key), self._records.bodies.get(key)
        project = self._records.projects.get((key.owner, key.project))
        if build is None or body is None or project is None:
            return None
        return BuildView(build, body, project, self._records.bookmarks.get((viewer, key)) is not None)

    def body(self, key: BuildKey) -> BuildBody | None:
        return self._records.bodies.get(key)

    def equal(self, build: Build, limit: int) -> Sequence[Build]:
        found = [
            each
            for key, each in self._records.builds.items()
            if key.project_key == build.key.project_key and each.recipe == build.recipe
        ]
        return sorted(found, key=lambda each: each.key, reverse=True)[:limit]

    def save(self, build: Build, body: BuildBody | None = None) -> Build:
        saved = self._records.save(build)
        self._report(build.key, body)
        return saved

    def rename(self, build: Build, wanted_name: str | None, body: BuildBody | None = None) -> Build:
        records = self._records
        records.others_go_first()
        records.expect_unchanged(build)
        name = records.take_name(build.key, wanted_name)
        if build.name is not None:
            del records.names[build.key.owner, build.key.project, build.name]
        records.builds[build.key] = new = replace(build, name=name, version=build.version + 1)
        self._report(build.key, body)
        return new

    def _report(self, key: BuildKey, body: BuildBody | None) -> None:
        if body is not None:
            stored = self._records.bodies[key]
            self._records.bodies[key] = replace(
                stored,
                found_dockerfile=body.found_dockerfile,
                reported_dockerfile=body.reported_dockerfile,
            )

    def list_builds(self, project: ProjectKey, offset: int, limit: int) -> Sequence[Build]:
        live = [
            as_listed(build)
            for key, build in self._records.builds.items()
            if key.project_key == project and build.archived_at is None
        ]
        live.sort(key=lambda build: (build.updated_at, build.key.id), reverse=True)
        return live[offset : offset + limit]

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        waiting = [
            (build.check_at, key)
            for key, build in self._records.builds.items()
            if build.check_at and build.check_at <= now and not build.is_waiting
        ]
        return [self._records.builds[key] for _, key in sorted(waiting)][:limit]

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        line = [
            (build.check_at, key)
            for key, build in self._records.builds.items()
            if build.is_waiting and build.executor == executor and build.check_at and build.check_at <= now
        ]
        return [self._records.builds[key] for _, key in sorted(line)][:limit]

    def line(self, executor: str, now: datetime) -> Sequence[InLine]:
        builds = self._records.builds.values()
        waiting = [(build.check_at, build) for build in builds if build.is_waiting and build.executor == executor]
        return sorted(InLine(since, build.key, executor) for since, build in waiting if since and since <= now)

    def get_all(self, builds: Sequence[BuildKey], now: datetime) -> Sequence[Build]:
        return [self._records.builds[key] for key in builds if key in self._records.builds]

    def lease(self, build: Build, until: datetime) -> Build:
        self._records.others_go_first()
        stored = self._records.builds.get(build.key)
        if stored is None or stored.check_at != build.check_at:
            raise Conflict
        self._records.builds[build.key] = replace(stored, check_at=until)
        return replace(build, check_at=until)


class FakeSlots:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def read(self) -> Running:
        return self._records.slots.get("all", Running())

    def take(self, build: BuildKey, running: Running) -> None:
        self._records.others_go_first()
        now = self.read()
        if now.version != running.version:
            raise Conflict
        self._records.slots["all"] = Running(now.builds | {build}, now.version + 1)

    def free(self, builds: Collection[BuildKey]) -> None:
        now = self.read()
        self._records.slots["all"] = replace(now, builds=now.builds - {*builds})


class FakeArchive:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def archive(self, build: Build) -> Build:
        return self._save_and_count(build, -1)

    def restore(self, build: Build) -> Build:
        return self._save_and_count(build, 1)

    def _save_and_count(self, build: Build, live: int) -> Build:
        build, projects = self._records.save(build), self._records.projects
        project = projects[build.key.owner, build.key.project]
        projects[project.owner, project.name] = replace(project, live_builds=project.live_builds + live)
        self._records.miscounted.setdefault(project.key, build.updated_at + timedelta(days=1))
        return build

    def list_archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        shown = [
            as_listed(build)
            for build in self._records.builds.values()
            if build.user == user and build.archived_at and not build.deleted_at
        ]
        shown.sort(key=lambda build: (build.updated_at, build.key.id), reverse=True)
        return shown[offset : offset + limit], len(shown)

    def purgeable(
        self, deleted_before: datetime, archived_before: datetime, limit: int | None = None
    ) -> Iterator[Hidden]:
        records: list[Build | Project] = [*self._records.builds.values(), *self._records.projects.values()]
        idle = [each for each in records if not (isinstance(each, Build) and each.check_at)]
        deleted = [(each.deleted_at, each) for each in idle if each.deleted_at]
        archived = [(each.archived_at, each) for each in idle if each.archived_at and not each.deleted_at]
        for due, before in ((deleted, deleted_before), (archived, archived_before)):
            found = [(at, each) for at, each in sorted(due, key=lambda one: one[0]) if at <= before]
            for at, each in found[:limit]:
                yield Hidden(each.key, deleted_at=at) if each.deleted_at else Hidden(each.key, archived_at=at)

    def builds_of(self, project: ProjectKey) -> Iterator[BuildKey]:
        yield from sorted(key for key in self._records.builds if key.project_key == project)

    def purge(self, record: Build | Project) -> None:
        records = self._records
        if isinstance(record, Project):
            stored = records.projects.get((record.owner, record.name))
            if stored is None or _identity(stored) != _identity(record):
                raise Conflict
            if stored.last_build_id != record.last_build_id:
                raise Conflict
            del records.projects[record.owner, record.name]
        else:
            kept = records.builds.get(record.key)
            if kept is None or _identity(kept) != _identity(record):
                raise Conflict
            if record.name is not None:
                records.names.pop((record.key.owner, record.key.project, record.name), None)
            records.bodies.pop(record.key, None)
            del records.builds[record.key]
        for mark in [mark for mark in records.bookmarks if mark[1] == record.key]:
            del records.bookmarks[mark]


def as_listed(build: Build) -> Build:
    shown: dict[str, Any] = {name: getattr(build, name) for name in LISTED}
    newest = replace(build.history[-1], message=None, traceback=None, details=None)
    return Build(nonce="", history=(newest,), version=build.version, **shown)


def _identity(record: Build | Project) -> tuple[str, int]:
    return record.uuid, record.version


class FakeBookmarks:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def among(self, user: str, candidates: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        return frozenset(key for key in candidates if self._records.bookmarks.get((user, key)))

    def add(self, user: str, key: BuildKey | ProjectKey, now: datetime) -> None:
        self._records.bookmarks[user, key] = now

    def remove(self, user: str, key: BuildKey | ProjectKey) -> bool:
        if (user, key) not in self._records.bookmarks:
            return False
        self._records.bookmarks[user, key] = None
        return True

    def list_builds(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Build], int]:
        keys = [key for key in self._bookmarked(user, ascending) if isinstance(key, BuildKey)]
        found = [self._records.builds.get(key) for key in keys[offset : offset + limit]]
        return [build for build in found if build and build.deleted_at is None], len(keys)

    def list_projects(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Project], int]:
        keys = [key for key in self._bookmarked(user, ascending) if isinstance(key, ProjectKey)]
        found = [self._records.projects.get((key.owner, key.name)) for key in keys[offset : offset + limit]]
        return [project for project in found if project], len(keys)

    def _bookmarked(self, user: str, ascending: bool) -> list[BuildKey | ProjectKey]:
        marks = [(at, key) for (whose, key), at in self._records.bookmarks.items() if whose == user and at]
        marks.sort(key=lambda mark: mark[0], reverse=not ascending)
        return [key for _, key in marks]


class FakeCodeReferences:
    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        return project in self.having(code_sha256)

    def is_referenced(self, code_sha256: str, now: datetime) -> bool:
        noted = any(
            sha256 == code_sha256 and at > now - timedelta(hours=1) for (sha256, _), at in self._records.noted.items()
        )
        return noted or bool(self.having(code_sha256))

    def note(self, code_sha256: str, project: ProjectKey, now: datetime) -> None:
        self._records.noted[code_sha256, project] = now

    def begin_drop(self, code_sha256: str, now: datetime) -> None:
        self._records.dropping[code_sha256] = now

    def end_drop(self, code_sha256: str) -> None:
        self._records.dropping.pop(code_sha256, None)

    def is_being_dropped(self, code_sha256: str, now: datetime) -> bool:
        at = self._records.dropping.get(code_sha256)
        return at is not None and at > now - timedelta(minutes=10)

    def having(self, code_sha256: str) -> set[ProjectKey]:
        """Projects that have the code, or a build with it."""
        builds, projects = self._records.builds.values(), self._records.projects.values()
        of_builds = {
            build.key.project_key for build in builds if build.source and build.source.code_sha256 == code_sha256
        }
        return of_builds | {project.key for project in projects if project.code and project.code.sha256 == code_sha256}


class FakeAccounts:
    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.by_hash: dict[str, Token] = {}
        self.taken: dict[tuple[str, datetime], int] = {}
        self.before_write: deque[Callable[[], object]] = deque()  # each runs once, before one write

    def user(self, name: str, opening: BuildKey | None = None) -> User | None:
        return self.users.get(name)

    def token(self, sha256: str) -> Token | None:
        return self.by_hash.get(sha256)

    def fresh_user(self, name: str) -> Fresh[User] | None:
        return Fresh(self.users[name], ("user", name)) if name in self.users else None

    def fresh_token(self, sha256: str) -> Fresh[Token] | None:
        token = self.by_hash.get(sha256)
        return Fresh(token, ("token", sha256)) if token else None

    def add_user(self, user: User, token: Token, given: Given = ()) -> None:
        self._check(given)
        if user.name in self.users:
            raise AlreadyExists
        self.users[user.name] = user
        self.by_hash[token.sha256] = token

    def add_token(self, token: Token, given: Given = ()) -> None:
        self._check(given)
        self.by_hash[token.sha256] = token

    def tokens(self, user: str) -> Sequence[Token]:
        return [token for token in self.by_hash.values() if token.user == user]

    def drop_token(self, token: Token, given: Given = ()) -> None:
        self._check(given)
        self.by_hash.pop(token.sha256, None)

    def note_use(self, token: Token, day: date) -> None:
        if token.sha256 in self.by_hash:
            self.by_hash[token.sha256] = replace(self.by_hash[token.sha256], used_on=day)

    def save_user(self, user: User, given: Given = ()) -> None:
        self._check(given)
        self.users[user.name] = user

    def _check(self, given: Given) -> None:
        if self.before_write:
            self.before_write.popleft()()
        for fresh in given:
            kind, name = fresh.row
            now = self.users.get(name) if kind == "user" else _unused(self.by_hash.get(name))
            if now != _unused(fresh.record):
                raise Conflict

    def count_requests(self, name: str, minute: datetime, requests: int) -> int:
        self.taken[name, minute] = self.taken.get((name, minute), 0) + requests
        return self.taken[name, minute]


def _unused(account: Any) -> Any:
    """Without the day of its last use, which changes apart."""
    return replace(account, used_on=None) if isinstance(account, Token) else account


class FakeBuildQueue:
    def __init__(self) -> None:
        self.announced: list[BuildKey] = []
        self.later: list[BuildKey] = []  # announced with a delay
        self.is_down = False

    def announce(self, key: BuildKey, after_seconds: int = 0) -> None:
        if self.is_down:
            raise Unavailable("The queue did not answer.")
        (self.later if after_seconds else self.announced).append(key)

    def take(self) -> list[BuildKey]:
        """All messages; they are no longer announced then."""
        taken, self.announced = self.announced, []
        return taken


class FakeEventBus:
    def __init__(self) -> None:
        self.told: list[Announcement] = []
        self.takes = 1_000_000  # so many more, then none

    def put(self, announcement: Announcement) -> None:
        if self.takes == 0:
            raise Unavailable("The bus did not take the event.")
        self.takes -= 1
        self.told.append(announcement)


class FakeReplies:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Announcement]] = []
        self.deleted: set[str] = set()  # queues

    def send(self, queue: str, request: str, announcement: Announcement) -> None:
        if queue in self.deleted:
            raise NotFound
        self.sent.append((queue, request, announcement))


class FakeHookQueue:
    def __init__(self) -> None:
        self.sent: list[Delivery] = []
        self.hidden: list[tuple[str, int]] = []  # receipts, and for how many seconds
        self.is_down = False

    def send(self, delivery: Delivery) -> None:
        if self.is_down:
            raise Unavailable("The queue did not answer.")
        self.sent.append(delivery)

    def hide(self, receipt: str, seconds: int) -> None:
        self.hidden.append((receipt, seconds))


class FakeWebhooks:
    """Receivers that say what a test wants."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Announcement]] = []  # by address and secret, what was taken
        self.failure: str | None = None

    def send(self, url: str, secret: str, announcement: Announcement, now: datetime) -> None:
        if self.failure is not None:
            raise Unavailable(self.failure)
        self.told.append((url, secret, announcement))


class FakeDeadLetters:
    def __init__(self) -> None:
        self.letters: list[tuple[str, list[str]]] = []

    def put(self, body: str, reasons: Sequence[str]) -> None:
        self.letters.append((body, list(reasons)))


class FakeLogArchive:
    def __init__(self) -> None:
        self.texts: dict[str, str] = {}  # by build uuid
        self.tables: dict[str, Sequence[Block]] = {}
        self.kept_steps: dict[str, Sequence[BuildStep]] = {}
        self.is_down = False

    def store(self, build: Build, text: Iterable[bytes]) -> None:
        if self.is_down:
            raise Unavailable("The storage did not answer; try again.")
        self.texts[build.uuid] = b"".join(text).decode()

    def store_found(self, build: Build, table: Sequence[Block], steps: Sequence[BuildStep]) -> None:
        self.tables[build.uuid], self.kept_steps[build.uuid] = table, steps

    def table(self, build: Build) -> Sequence[Block]:
        return self.tables.get(build.uuid, ())

    def steps(self, build: Build) -> Sequence[BuildStep]:
        return self.kept_steps.get(build.uuid, ())

    def read(self, build: Build, start: int, size: int) -> bytes:
        if build.uuid not in self.texts:
            raise NoLog
        return self.texts[build.uuid].encode()[start : start + size]

    def url(self, build: Build) -> str:
        return f"https://storage.test/logs/{build.uuid}"


class FakeSources:
    def __init__(self, clock: Clock, log_archive: FakeLogArchive | None = None) -> None:
        self._clock, self._log_archive = clock, log_archive or FakeLogArchive()
        self.kept_at: dict[str, datetime] = {}
        self.archives: dict[str, tuple[bytes, Listing]] = {}
        self.offers: dict[str, bytes | None] = {}

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        self.archives[sha256] = (packed.read(), listing)
        self.kept_at[sha256] = self._clock.now

    def listing(self, sha256: str) -> Listing:
        return self._kept(sha256)[1]

    def open(self, sha256: str) -> IO[bytes]:
        return io.BytesIO(self._kept(sha256)[0])

    def find_archive(self, commit: str) -> str | None:
        return next((sha256 for sha256 in sorted(self.archives) if sha256.startswith(commit)), None)

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        offer_id = uuid.uuid4().hex
        self.offers[f"uploads/{project.uuid}/{offer_id}"] = None
        fields = {"key": f"uploads/{project.uuid}/{offer_id}"}
        return Offer(offer_id, "https://storage.test/", fields, now + timedelta(minutes=15))

    def upload_url(self) -> str:
        return "https://storage.test/"

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        content = self.offers.get(f"uploads/{project.uuid}/{offer_id}")
        if content is None:
            raise NotFound
        return io.BytesIO(content)

    def upload(self, offer: Offer, content: bytes) -> None:
        """What a client does with an offer."""
        self.offers[offer.fields["key"]] = content

    def discard(self, build: Build) -> None:
        self._log_archive.texts.pop(build.uuid, None)

    def stale(self, before: datetime, prefix: str, limit: int) -> Sequence[str]:
        old = sorted(sha256 for sha256, at in self.kept_at.items() if at < before)
        return [sha256 for sha256 in old if sha256.startswith(prefix)][:limit]

    def url(self, sha256: str) -> str:
        return f"https://storage.test/code/{sha256}"

    def drop(self, sha256: str) -> None:
        self.archives.pop(sha256, None)
        self.kept_at.pop(sha256, None)

    def _kept(self, sha256: str) -> tuple[bytes, Listing]:
        if sha256 not in self.archives:
            raise NotFound
        return self.archives[sha256]


@dataclass
class Run:
    """A build as the executor has it."""

    handle: str
    build: Build
    started_at: datetime
    steps: list[Step] = field(default_factory=list)
    outcome: Outcome | None = None
    ended_at: datetime | None = None
    reason: str | None = None
    has_own_reason: bool = False
    trouble: Trouble | None = None

    @property
    def log(self) -> str:
        return f"logs:{self.handle}"

    def observation(self) -> Observation:
        return Observation(
            key=str(self.build.key),
            uuid=self.build.uuid,
            attempt=self.build.attempt,
            handle=self.handle,
            log=self.log,
            steps=tuple(self.steps),
            outcome=self.outcome,
            ended_at=self.ended_at,
            reason=self.reason,
            has_own_reason=self.has_own_reason,
            trouble=self.trouble,
        )


class FakeExecutor:
    """Runs nothing; a test moves its builds."""

    replay_seconds = 150
    forgets_after_seconds = 300  # an attempt submitted later is started anew

    def __init__(self, clock: Clock, emits_events: bool = True) -> None:
        self._clock, self.emits_events = clock, emits_events
        self.runs: dict[str, Run] = {}
        self.slots = 1_000_000
        self.stopped: list[str] = []
        self.fail_next: deque[BaseException] = deque()  # raised by `submit` instead of starting anything
        self.is_down = False  # to questions and stops
        self.dies_after_start = False  # `submit` starts the build, and nobody hears of it
        self.after_start: Callable[[], None] = lambda: None  # happens before `submit` returns

    def submit(self, build: Build) -> str:
        if self.fail_next:
            raise self.fail_next.popleft()
        run = self._remembered(build)
        if run is None:
            if sum(each.outcome is None for each in self.runs.values()) >= self.slots:
                raise Busy("No slot is free.")
            run = self.start(build)
        if self.dies_after_start:
            self.dies_after_start = False
            raise Died
        self.after_start()
        return run.handle

    def find_handle(self, build: Build) -> str | None:
        assert build.submitting_at is not None
        for run in reversed(self.runs.values()):
            if _attempt(run.build) == _attempt(build) and run.started_at >= build.submitting_at:
                return run.handle
        return None

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        if self.is_down:
            raise Unavailable("The executor did not answer.")
        return {handle: self.runs[handle].observation() for handle in handles if handle in self.runs}

    def stop(self, handle: str) -> None:
        if self.is_down:
            raise Unavailable("The executor did not answer.")
        self.stopped.append(handle)
        run = self.runs.get(handle)
        if run and run.outcome is None:
            self.end(run, Outcome.STOPPED)

    # What a test does

    def run_of(self, key: BuildKey) -> Run:
        """The newest run of a build."""
        return [run for run in self.runs.values() if run.build.key == key][-1]

    def enter(self, run: Run, *statuses: Status) -> None:
        """The build goes through these stages now."""
        run.steps += [Step(status, self._clock.now) for status in statuses]

    def end(self, run: Run, outcome: Outcome, reason: str | None = None, *, has_own_reason: bool = True) -> None:
        run.outcome, run.ended_at, run.reason, run.has_own_reason = (
            outcome,
            self._clock.now,
            reason,
            has_own_reason,
        )

    def forget(self, run: Run) -> None:
        """The executor keeps no builds forever."""
        del self.runs[run.handle]

    def _remembered(self, build: Build) -> Run | None:
        for run in self.runs.values():
            age = self._clock.now - run.started_at
            if _attempt(run.build) == _attempt(build) and age < timedelta(seconds=self.forgets_after_seconds):
                return run
        return None

    def start(self, build: Build) -> Run:
        run = Run(f"run-{len(self.runs) + 1}", build, self._clock.now)
        self.runs[run.handle] = run
        return run


def _attempt(build: Build) -> tuple[str, int]:
    return build.uuid, build.attempt


class FakeRegistry:
    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.bases: dict[str, str] = {}  # digests that other registries answer
        self.refuses_tags = False
        self.layer_bytes: tuple[int, ...] | None = None  # of all images
        self.prepared: set[str] = set()
        self.is_down = False

    def prepare(self, image: str) -> None:
        self._answer()
        self.prepared |= {image.rpartition(":")[0], cache_repository(image)}

    def forget_cache(self, image: str) -> None:
        self._answer()
        self.prepared.discard(cache_repository(image))

    def find(self, image: str) -> Image | None:
        self._answer()
        return Image(self.images[image], self.layer_bytes) if image in self.images else None

    def tag(self, image: str, tag: str) -> None:
        self._answer()
        if image not in self.images or self.refuses_tags:
            raise Unavailable("The image registry answered 400.")
        self.images[f"{image.rpartition(':')[0]}:{tag}"] = self.images[image]

    def base_digest(self, reference: str, image: str, hosts: Collection[str]) -> str | None:
        self._answer()
        host, repository, tag = image_parts(reference)
        if host == image.partition("/")[0]:
            return self.images.get(f"{host}/{repository}:{tag}") if rights(image).reach(repository) else None
        return self.bases.get(reference) if host in hosts else None

    def push(self, image: str, digest: str = DIGEST) -> None:
        """What the executor's build does at its end."""
        assert image.rpartition(":")[0] in self.prepared, "the repository has to be prepared first"
        self.images[image] = digest

    def _answer(self) -> None:
        if self.is_down:
            raise Unavailable("The image registry did not answer.")


class FakeRegistryLogins:
    def __init__(self) -> None:
        self.minted: dict[str, Rights] = {}  # by password
        self.is_down = False

    def mint(self, image: str) -> RegistryLogin:
        if self.is_down:
            raise Unavailable("The registry gave no login; try again.")
        password = f"login-{len(self.minted) + 1}"
        self.minted[password] = rights(image)
        return RegistryLogin(image.partition("/")[0], "AWS", password)


class FakeDeploymentSecrets:
    def __init__(self) -> None:
        self.docker_hub: tuple[str, str] | None = None

    def build_key(self) -> bytes:
        return b"a key"

    def docker_hub_login(self) -> tuple[str, str] | None:
        return self.docker_hub


class FakeSecrets:
    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], str] = {}  # by the project's uuid and the name

    def put(self, project: Project, name: str, value: str) -> None:
        self.stored[project.uuid, name] = value

    def names(self, project: Project) -> Sequence[str]:
        return sorted(name for uuid_, name in self.stored if uuid_ == project.uuid and "/" not in name)

    def delete(self, project: Project, name: str) -> None:
        if self.stored.pop((project.uuid, name), None) is None:
            raise NotFound

    def values(self, project: Project, names: Sequence[str]) -> Mapping[str, str]:
        return {name: self.stored[project.uuid, name] for name in names if (project.uuid, name) in self.stored}


class FakeLogs:
    def __init__(self) -> None:
        self.logs: dict[str, list[LogLine]] = {}
        self.is_down = False
        self.fails_after_lines: int | None = None

    def read(self, log: str, after: Position, limit: int = MAX_READ_LINES) -> LogPart:
        lines, position, at = self.tail(log, -1), Position(), 0
        while at < len(lines) and (next_one := position.after(lines[at].at)) <= after:
            position, at = next_one, at + 1
        if self.fails_after_lines is not None:
            limit = min(limit, self.fails_after_lines - at)
            if limit <= 0:
                raise Unavailable("The log service did not answer; try again.")
        found = lines[at : at + limit]
        for line in found:
            after = after.after(line.at)
        return LogPart(found, after, not found)

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        if self.is_down:
            raise Unavailable("The log service did not answer; try again.")
        lines = sorted(self.logs.get(log, []), key=lambda line: line.at)
        return lines[-count:] if count >= 0 else lines

    def reported(self, build: Build) -> str:
        return f"reported:{build.uuid}"

    def append(self, log: str, lines: Sequence[LogLine]) -> None:
        self.logs.setdefault(log, []).extend(lines)

    def write(self, log: str, *texts: str, at: datetime = NOW) -> None:
        self.logs.setdefault(log, []).extend(LogLine(at, text) for text in texts)


RECORDS = ("projects", "builds", "slots", "archive", "bookmarks", "code_references")  # ports of one table


class FakeServices(Services):
    """In memory, with a clock that a test moves."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.clock = Clock()
        self.settings = settings
        self.records = FakeRecords()
        self.projects = FakeProjects(self.records)
        self.builds = FakeBuilds(self.records)
        self.slots = FakeSlots(self.records)
        self.archive = FakeArchive(self.records)
        self.bookmarks = FakeBookmarks(self.records)
        self.code_references = FakeCodeReferences(self.records)
        self.accounts = FakeAccounts()
        self.queue = FakeBuildQueue()
        self.log_queue = FakeBuildQueue()
        self.event_bus = FakeEventBus()
        self.replies = FakeReplies()
        self.hook_queue = FakeHookQueue()
        self.webhooks = FakeWebhooks()
        self.dead_letters = FakeDeadLetters()
        self.log_archive = FakeLogArchive()
        self.sources = FakeSources(self.clock, self.log_archive)
        self.codebuild = FakeExecutor(self.clock)
        self.eks = FakeExecutor(self.clock, emits_events=False)
        self.executors = {CODEBUILD: self.codebuild, EKS: self.eks}  # those that the deployment offers
        self.registry = FakeRegistry()
        self.registry_logins = FakeRegistryLogins()
        self.secrets = FakeSecrets()
        self.deployment_secrets = FakeDeploymentSecrets()
        self.scripts = {"ask": "#!/bin/sh\n"}
        self.broker: Broker = OwnBroker(self)
        self.logs = FakeLogs()

    def executor(self, name: str) -> FakeExecutor:
        if name not in self.executors:
            raise Unavailable(f"Nothing runs on {name} here.")
        return self.executors[name]

    def question(
        self,
        about: Literal["materials", "login", "report"],
        build: Build,
        attempt: int | None = None,
        /,
        **told: str,
    ) -> Question:
        """What an attempt of a build asks, by default the current one."""
        number = build.attempt if attempt is None else attempt
        secret = attempt_secret(self.deployment_secrets.build_key(), build.uuid, number)
        return Question(about, str(build.key), number, secret, told)

    def push(self, build: Build, digest: str = DIGEST) -> None:
        """What a build does at its end: it pushes its image and says so."""
        self.registry.push(build.image, digest)
        self.broker.ask(self.question("report", build, digest=digest))

    def use(self, records: Records) -> None:
        """These ports in the place of those in memory."""
        for name in RECORDS:
            setattr(self, name, getattr(records, name))

    def aside(self, read: Callable[[], Answer]) -> Callable[[], Answer]:
        answer = read()
        return lambda: answer

    def now(self) -> datetime:
        return self.clock.now

    def written(self) -> object:
        """All that was ever written or told but the days of tokens' use, to be compared with later."""
        return deepcopy(
            (
                vars(self.records),
                {**vars(self.accounts), "by_hash": {k: _unused(v) for k, v in self.accounts.by_hash.items()}},
                self.queue.announced,
                self.log_queue.announced,
                self.event_bus.told,
                self.replies.sent,
                self.hook_queue.sent,
                self.webhooks.told,
                self.dead_letters.letters,
                (self.sources.archives, self.sources.offers),
                self.log_archive.texts,
                self.codebuild.runs,
                self.eks.runs,
                self.registry.images,
                self.registry.prepared,
                self.secrets.stored,
            )
        )
