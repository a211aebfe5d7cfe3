"""Everything Slipway asks of the outside world. Each docstring is a promise that callers lean on.

All of them may raise `Unavailable` when the service behind does not answer; nothing is half done then
that a repetition would not complete.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import IO, Any, Generic, Literal, Protocol, TypeVar

from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildBody, BuildKey, Image
from chalicelib.domain.build_steps import BuildStep
from chalicelib.domain.cleanup import Hidden
from chalicelib.domain.lifecycle import Observation
from chalicelib.domain.log_lines import Block, LogLine, Position
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.user import Token, User
from chalicelib.settings import Settings

MAX_READ_LINES = 10_000  # of a log with one call (GetLogEvents)


@dataclass(frozen=True, slots=True)
class BuildView:
    """A build with all that one request about it needs."""

    build: Build
    body: BuildBody
    project: Project
    bookmarked: bool


@dataclass(frozen=True, slots=True)
class LogPart:
    """A stretch of a log, in the order of time, and the position behind it."""

    lines: Sequence[LogLine]
    next: Position
    is_end: bool  # nothing more was there when it was read


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key for a request: repeats before `expires_at` create nothing new. `body_sha256` is of the
    request, so that a key with another request is found out."""

    key: str
    body_sha256: str
    now: datetime
    expires_at: datetime


Answer = TypeVar("Answer")
Bookmarkable = TypeVar("Bookmarkable", BuildKey, ProjectKey)


class Projects(Protocol):
    """Projects, without what is in them. Reads are consistent unless said otherwise."""

    def get(self, owner: str, name: str) -> Project | None:
        """The project, if there is one, archived or not."""

    def add(self, project: Project) -> None:
        """Raises AlreadyExists when the owner has a project of that name."""

    def save(self, project: Project) -> Project:
        """Writes all but the counters, if the stored project has this uuid and still `project.version`, and
        returns the project with its new version. Raises Conflict otherwise."""

    def list_projects(self, owner: str, offset: int, limit: int, *, public: bool) -> tuple[Sequence[Project], int]:
        """The owner's live projects, newest change first, after skipping `offset`, and how many there are in
        all; the public ones alone if asked for. May lag about a second behind."""

    def miscounted(self, now: datetime, limit: int) -> Sequence[ProjectKey]:
        """Live projects whose number of live builds is to be counted again. May lag behind."""

    def recount(self, project: ProjectKey) -> None:
        """Counts the live builds of a project. Raises Conflict when it gained or lost one meanwhile."""


class Builds(Protocol):
    """Builds with their names and texts. Reads are consistent unless said otherwise; writes carry a condition."""

    def next_id(self, project: Project, now: datetime) -> int:
        """Takes the next id of a project's builds and counts one more live build. No id is given twice; an
        `add` that fails afterwards leaves a gap. Raises NotFound for a deleted project, or another one."""

    def add(self, build: Build, body: BuildBody, wanted_name: str | None, once: IdempotencyKey | None = None) -> Build:
        """Stores a new build whole or not at all.

        A `wanted_name` that is taken gets the next free suffix `-<k>`; the build is returned with the name it
        was given. Raises Conflict when `once` was used already, or when others write the same at this moment.
        """

    def replay(self, project: ProjectKey, once: IdempotencyKey) -> BuildKey | None:
        """The build that was made or changed with this key, until the key expires. Raises KeyReused when that
        was another request."""

    def note(self, once: IdempotencyKey, build: BuildKey) -> None:
        """What `once` stands for was done to the build, which `replay` then answers. Idempotent."""

    def get(self, key: BuildKey) -> Build | None:
        """The build, archived or not."""

    def open(self, key: BuildKey, viewer: str, *, may_lag: bool = False) -> BuildView | None:
        """The build with its texts, its project and whether `viewer` bookmarked it, in one call; archived or not.
        None when build or project is missing. With `may_lag`, at half the price, it may be that of a second ago."""

    def body(self, key: BuildKey) -> BuildBody | None:
        """The build's texts alone."""

    def equal(self, build: Build, limit: int) -> Sequence[Build]:
        """Builds of its project that were added with the recipe of `build`, newest first."""

    def save(self, build: Build, body: BuildBody | None = None) -> Build:
        """Writes what can change, if the stored version is still `build.version`, and returns the build
        with its new version. Of `body`, if it is given, the found and the reported Dockerfile are written
        with it: all or nothing. Raises Conflict otherwise, also when the build is gone."""

    def rename(self, build: Build, wanted_name: str | None, body: BuildBody | None = None) -> Build:
        """Like `save`, and takes a free name (None: none) as `add` does; `build.name` becomes free."""

    def list_builds(self, project: ProjectKey, offset: int, limit: int) -> Sequence[Build]:
        """Live builds, newest change first, after skipping `offset`; may lag about a second behind. Each has
        what lists show: the fields `domain.build.LISTED` and its newest status, without texts."""

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        """Builds whose `look_at` has come, longest overdue first, as a consistent read shows them. A build
        that became due in the last second may be missing. A record that cannot be read is left out, logged,
        and not found again for a day."""

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        """Builds that wait for their turn with this executor and are not leased, those first that have waited
        longest, as a consistent read shows them."""

    def lease(self, build: Build, until: datetime) -> Build:
        """Moves `look_at` to `until` and writes nothing else, not even the version, if the stored `look_at`
        is still `build.look_at`. Raises Conflict otherwise, also when the build is gone."""


class Archive(Protocol):
    """Builds that are archived or deleted, and the end of builds and projects."""

    def archive(self, build: Build) -> Build:
        """Like `Builds.save`, and takes the build out of the project's list and then out of its count; it is
        listed as archived by its creator then, unless it is deleted. Raises Conflict."""

    def restore(self, build: Build) -> Build:
        """The inverse of `archive`. Raises Conflict."""

    def list_archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        """Archived builds that `user` created, newest change first, and how many there are in all. Each has
        what lists show, as in `Builds.list_builds`."""

    def purgeable(
        self, deleted_before: datetime, archived_before: datetime, limit: int | None = None
    ) -> Iterator[Hidden]:
        """What may be purged, first what was deleted, longest due first; no build with a `look_at`. At most
        `limit` of the deleted and of the archived if that is given. May lag behind, so read again."""

    def builds_of(self, project: ProjectKey) -> Iterator[BuildKey]:
        """Any builds of a project, archived or not, oldest first, found as they are taken."""

    def purge(self, record: Build | Project) -> None:
        """Forgets a build with its texts, name and bookmarks, or a project that has no builds any more.

        Raises Conflict unless the stored one has the uuid and version of `record`, for a project also when an
        id was taken since. Ended half way, a repetition completes it."""


class Bookmarks(Protocol):
    """Which builds and projects a user bookmarked."""

    def among(self, user: str, candidates: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        """Those of `candidates` that `user` bookmarked."""

    def add(self, user: str, key: Bookmarkable, now: datetime) -> None:
        """Idempotent."""

    def remove(self, user: str, key: Bookmarkable) -> bool:
        """False when it was never bookmarked. Idempotent otherwise."""

    def list_builds(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Build], int]:
        """Builds that `user` bookmarked, latest bookmark first, and how many there are in all."""

    def list_projects(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Project], int]:
        """Projects that `user` bookmarked, latest bookmark first, and how many there are in all."""


class CodeReferences(Protocol):
    """Which projects and builds have an archive of code."""

    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        """Whether the project or one of its builds has this code; former code of the project may count."""

    def is_referenced(self, code_sha256: str, now: datetime) -> bool:
        """Whether any project or build has this code, or was noted to have it within the last hour."""

    def note(self, code_sha256: str, project: ProjectKey, now: datetime) -> None:
        """Says that a project is about to have this code."""

    def begin_drop(self, code_sha256: str, now: datetime) -> None:
        """Marks an archive before it is checked for references and dropped: an upload that kept the same
        content meanwhile sees the mark, and the check sees the note of an upload that does not."""

    def end_drop(self, code_sha256: str) -> None:
        """Removes the mark of an archive that is not dropped after all. Idempotent."""

    def is_being_dropped(self, code_sha256: str, now: datetime) -> bool:
        """Whether such a mark was made within the last ten minutes."""


Account = TypeVar("Account", User, Token)


@dataclass(frozen=True, slots=True)
class Fresh(Generic[Account]):
    """A user or token as stored at this moment; `row` shows the adapter whether it has changed since."""

    record: Account
    row: tuple[str, ...]


Given = Sequence[Fresh[Any]]


class Accounts(Protocol):
    """Users and their tokens.

    `user` and `token` may answer from memory (a setting says for how long). What gives or takes rights reads
    by `fresh_…` and names what it has read as `given`: if any of that has changed, its write raises Conflict.
    """

    def user(self, name: str, opening: BuildKey | None = None) -> User | None:
        """The user, if there is one. Read with a build that the user is `opening`, for an `open` with `may_lag` that
        comes within a second: both are one call then."""

    def token(self, sha256: str) -> Token | None:
        """What belongs to the hash of a token, expired or not."""

    def fresh_user(self, name: str) -> Fresh[User] | None:
        """The same as `user`, never from memory."""

    def fresh_token(self, sha256: str) -> Fresh[Token] | None:
        """The same as `token`, never from memory."""

    def add_user(self, user: User, token: Token, given: Given = ()) -> None:
        """Both or neither. Raises AlreadyExists when the name is taken, Conflict."""

    def add_token(self, token: Token, given: Given = ()) -> None:
        """Replaces a token of the same hash. Raises Conflict."""

    def tokens(self, user: str) -> Sequence[Token]:
        """All tokens of a user, in no order, also such as have expired or were revoked with all others."""

    def drop_token(self, token: Token, given: Given = ()) -> None:
        """Idempotent. Raises Conflict."""

    def note_use(self, token: Token, day: date) -> None:
        """The token was used on that day. Nothing happens if it is gone."""

    def save_user(self, user: User, given: Given = ()) -> None:
        """Replaces the user. Raises Conflict."""

    def count_requests(self, name: str, minute: datetime, requests: int) -> int:
        """Counts `requests` of a user in a minute, for all processes; returns how many there are with these."""


class BuildQueue(Protocol):
    """Announces that a build needs attention. There are two such queues: one for builds to start, stop or
    observe, one for builds that have ended and whose log is to be kept."""

    def announce(self, key: BuildKey, after_seconds: int = 0) -> None:
        """At least once, in any order, soon or soon after so many seconds (at most 900)."""


class DeadLetters(Protocol):
    """Where requests go that can never succeed."""

    def put(self, body: str, reasons: Sequence[str]) -> None:
        """Keeps the request with the reasons why it was refused."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Leave to upload a file straight to storage: POST a form of `fields` and `file` to `url`."""

    id: str
    url: str
    fields: Mapping[str, str]
    expires_at: datetime


class Sources(Protocol):
    """Code of projects."""

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        """Keeps an archive by its hash, with what is in it. Idempotent."""

    def listing(self, sha256: str) -> Listing:
        """What is in a kept archive. Raises NotFound."""

    def open(self, sha256: str) -> IO[bytes]:
        """A kept archive, at its start. Raises NotFound."""

    def find_archive(self, commit: str) -> str | None:
        """The hash of the kept archive that `commit`, the beginning of it, stands for."""

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        """Leave for one upload into `project` of at most `max_bytes`."""

    def upload_url(self) -> str:
        """The `url` of every offer."""

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        """What was uploaded under an offer. Raises NotFound."""

    def discard(self, build: Build) -> None:
        """Forgets the build's log. Idempotent."""

    def stale(self, before: datetime, prefix: str, limit: int) -> Sequence[str]:
        """Hashes that begin with `prefix`, of archives that were last kept before that time."""

    def url(self, sha256: str) -> str:
        """Where a kept archive can be fetched from within the next minute, without credentials."""

    def drop(self, sha256: str) -> None:
        """Forgets an archive. Idempotent."""


class Secrets(Protocol):
    """Values that a project's builds may mount. Those of a deleted project are not those of another with its name."""

    def put(self, project: Project, name: str, value: str) -> None:
        """Sets or replaces one. Raises Invalid when the store does not take the value or is full."""

    def names(self, project: Project) -> Sequence[str]:
        """Of all, in their order. Nothing is decrypted for that."""

    def delete(self, project: Project, name: str) -> None:
        """Raises NotFound without it."""

    def values(self, project: Project, names: Sequence[str]) -> Mapping[str, str]:
        """By their names, those that it has."""


class LogArchive(Protocol):
    """Logs of builds that have ended, as texts."""

    def store(self, build: Build, text: Iterable[bytes]) -> None:
        """Replaces the build's log by this UTF-8 text, whole or not at all. Its pieces are taken as they are
        needed: little of it is in memory."""

    def store_found(self, build: Build, table: Sequence[Block], steps: Sequence[BuildStep]) -> None:
        """Keeps beside the text where in it positions of the log are, and what the build did."""

    def table(self, build: Build) -> Sequence[Block]:
        """The table that was kept; empty for a log that an older version has kept. So are the steps."""

    def steps(self, build: Build) -> Sequence[BuildStep]:
        """The steps that were kept."""

    def read(self, build: Build, start: int, size: int) -> bytes:
        """At most `size` bytes from byte `start` on. Raises NoLog."""

    def url(self, build: Build) -> str:
        """Where the whole log can be fetched from within the next minute, without credentials."""


class Executor(Protocol):
    """Where builds run."""

    def submit(self, build: Build) -> str:
        """Starts the build's current attempt and returns its handle. The same attempt submitted again within
        `replay_seconds` of its claim is one build.

        Raises Busy (this call made nothing: come later), ExecutorRefused (this call made nothing, and never
        will) and Unavailable (unknown: the same attempt has to be submitted again, or searched). Neither of
        the first two says anything about another call for the same attempt."""

    @property
    def replay_seconds(self) -> int:
        """How long after the claim a repeated `submit` may begin. With the longest a handler can live
        (120 s) it is shorter than the executor remembers an attempt."""

    @property
    def emits_events(self) -> bool:
        """Whether events tell of changes; else builds have to be watched."""

    def find_handle(self, build: Build) -> str | None:
        """The handle of the build's current attempt when it was started since `build.submitting_at`."""

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        """What became of the handles, without those that the executor does not know; in as few calls as it allows."""

    def stop(self, handle: str) -> None:
        """Ends it, wherever it is. Idempotent; an unknown handle counts as ended."""


class Registry(Protocol):
    """Where images go."""

    def prepare(self, image: str) -> None:
        """Makes the repository of `image`, and the cache of its project, if they need making."""

    def forget_cache(self, image: str) -> None:
        """Deletes the cached layers of the project of `image`; its images stay. Idempotent."""

    def find(self, image: str) -> Image | None:
        """What the registry itself answers for `image` (repository and tag), None without one."""

    def base_digest(self, reference: str, image: str) -> str | None:
        """The digest of a base image for the build of `image`, as its registry answers it to anybody or, if it is the
        registry of images, to us. None without one, for another project's image, and of other registries than are set.
        """

    def tag(self, image: str, tag: str) -> None:
        """Has the repository's `tag` name what `image` names, whatever it named before. Raises Unavailable also where
        there is no such image, or the registry does not move this tag."""


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """A login for the registry `host` (host[:port])."""

    host: str
    username: str
    password: str = field(repr=False)
    expires_at: datetime


class RegistryLogins(Protocol):
    """Logins that builds push and pull with."""

    def mint(self, image: str) -> RegistryLogin:
        """One more login for the build of `image`, with `domain.repositories.rights` alone, good until
        `expires_at`, about an hour from now."""


class DeploymentSecrets(Protocol):
    """Secrets of the deployment itself."""

    def build_key(self) -> bytes:
        """What the secrets of builds' attempts are made from; the same for the life of the deployment."""

    def docker_hub_login(self) -> tuple[str, str] | None:
        """User and token for Docker Hub, if the deployment has one."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a build asks or reports, and the secret it shows for that."""

    about: Literal["materials", "login", "report"]
    build: str  # the text of a BuildKey
    attempt: int
    secret: str = field(repr=False)
    told: Mapping[str, str]  # fields of a report


class Broker(Protocol):
    """Answers builds; in AWS apart from the function that the Internet reaches, which holds nobody's logins."""

    def ask(self, question: Question) -> str:
        """The answer as a text. Raises Forbidden, Gone, Throttled and Invalid."""


class Logs(Protocol):
    """Lines of builds; `log` is what the executor's observation named, or what `reported` names."""

    def read(self, log: str, after: Position, limit: int = MAX_READ_LINES) -> LogPart:
        """What is behind a position: about `limit` lines or 1 MB at most, nothing only at the end. What is
        added later with an earlier time is never found from a position behind it. A process that asks for the
        same within a second gets the same answer, without asking the log service."""

    def reported(self, build: Build) -> str:
        """The log for lines of a build that runs elsewhere."""

    def append(self, log: str, lines: Sequence[LogLine]) -> None:
        """Adds lines to a log that `reported` named, after all others. At least once."""

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        """The last `count` lines or pieces, oldest first; empty when there are none."""


class Services(Protocol):
    """What use cases may reach. Made when first touched, so that a function loads only what it uses."""

    settings: Settings
    projects: Projects
    builds: Builds
    archive: Archive
    bookmarks: Bookmarks
    code_references: CodeReferences
    accounts: Accounts
    queue: BuildQueue
    log_queue: BuildQueue
    dead_letters: DeadLetters
    sources: Sources
    secrets: Secrets
    log_archive: LogArchive
    registry: Registry
    registry_logins: RegistryLogins
    deployment_secrets: DeploymentSecrets
    scripts: Mapping[str, str]  # the steps of builds, by their names
    broker: Broker
    logs: Logs

    def executor(self, name: str) -> Executor:
        """By the name that `Build.executor` has. Raises Unavailable for one that is not offered any more."""

    def aside(self, read: Callable[[], Answer]) -> Callable[[], Answer]:
        """Begins to read beside what comes next; the answer, or the error, is got by a call of what is returned."""

    def now(self) -> datetime:
        """Aware UTC, in milliseconds: what the API shows is what is stored."""
