"""The interfaces to the outside world. Each docstring is a promise to callers.

Every method may raise `Unavailable` when its service does not answer. A call that did only a part of its work is
completed by a repetition of the call.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import IO, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildBody, BuildKey, Image
from chalicelib.domain.build_steps import BuildStep
from chalicelib.domain.cleanup import Hidden
from chalicelib.domain.lifecycle import Observation
from chalicelib.domain.log_lines import Block, LogLine, Position
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.slots import Running
from chalicelib.domain.user import Token, User
from chalicelib.settings import Settings

MAX_READ_LINES = 10_000  # of a log with one call (GetLogEvents)


class BuildView(Struct, frozen=True):
    """A build with everything that a request about it needs."""

    build: Build
    body: BuildBody
    project: Project
    bookmarked: bool
    is_replay: bool = False  # an earlier request with the same idempotency key has made the build


class InLine(NamedTuple):
    """A build that waits for its turn since a time."""

    since: datetime
    key: BuildKey
    executor: str


class LogPart(Struct, frozen=True):
    """A part of a log, in the order of time, and the position after it."""

    lines: Sequence[LogLine]
    next: Position
    is_end: bool  # there were no more lines when it was read


class IdempotencyKey(Struct, frozen=True):
    """A caller's key for a request: repeats before `expires_at` create nothing new. `body_sha256` is a hash of the
    request, to detect another request with the same key."""

    key: str
    body_sha256: str
    now: datetime
    expires_at: datetime


Answer = TypeVar("Answer")
Bookmarkable = TypeVar("Bookmarkable", BuildKey, ProjectKey)


class Projects(Protocol):
    """Projects, without their builds. Reads are consistent unless the method says otherwise."""

    def get(self, owner: str, name: str) -> Project | None:
        """The project, archived or not; None if there is none."""

    def add(self, project: Project) -> None:
        """Stores a new project. Raises AlreadyExists when the owner has one of that name."""

    def save(self, project: Project) -> Project:
        """Writes the project except its counters, if the stored one has the same uuid and version, and returns it with
        its new version. Raises Conflict otherwise."""

    def list_projects(self, owner: str, offset: int, limit: int, *, public: bool) -> tuple[Sequence[Project], int]:
        """The owner's live projects, newest change first, after the first `offset`, and the number of all; with
        `public`, only public ones. May lag about a second."""

    def miscounted(self, now: datetime, limit: int) -> Sequence[ProjectKey]:
        """Live projects whose count of live builds may be wrong. May lag about a second."""

    def recount(self, project: ProjectKey) -> None:
        """Counts the live builds of a project again. Raises Conflict when a build is added or removed meanwhile."""


class Builds(Protocol):
    """Builds with their names and texts. Reads are consistent unless noted; writes are conditional."""

    def next_id(self, project: Project, now: datetime) -> int:
        """Takes the next id of a project's builds and counts one more live build. No id is returned twice; if `add`
        fails afterwards, there is a gap. Raises NotFound if the project was deleted or replaced."""

    def add(self, build: Build, body: BuildBody, wanted_name: str | None, once: IdempotencyKey | None = None) -> Build:
        """Stores a new build, completely or not at all, and returns it with its name.

        If `wanted_name` is taken, the name gets the next free suffix `-<k>`. Raises Conflict when `once` was used
        already, or when others write the same rows at this moment.
        """

    def replay(self, project: ProjectKey, once: IdempotencyKey) -> BuildKey | None:
        """The build that a request with this key made or changed; None after the key has expired. Raises KeyReused if
        the key was used with another request."""

    def note(self, once: IdempotencyKey, build: BuildKey) -> None:
        """Stores that the request with the key `once` changed this build, so that `replay` returns it. Idempotent."""

    def get(self, key: BuildKey) -> Build | None:
        """The build, archived or not; None if there is none."""

    def open(self, key: BuildKey, viewer: str, *, may_lag: bool = False) -> BuildView | None:
        """The build with its texts, its project and whether `viewer` bookmarked it, in one call; archived or not.
        None when build or project is missing. `may_lag` costs half, and may show what was stored a second ago."""

    def body(self, key: BuildKey) -> BuildBody | None:
        """Only the texts of the build."""

    def equal(self, build: Build, limit: int) -> Sequence[Build]:
        """Builds with the project and the recipe of `build`, newest first."""

    def save(self, build: Build, body: BuildBody | None = None) -> Build:
        """Writes the build if the stored version is still `build.version`, and returns it with its new version. If
        `body` is given, the same transaction writes its found and its reported Dockerfile. Raises Conflict if the
        stored version is another, or the build is gone."""

    def rename(self, build: Build, wanted_name: str | None, body: BuildBody | None = None) -> Build:
        """Like `save`, but also frees `build.name` and gives the build another name as `add` does (None: no name)."""

    def list_builds(self, project: ProjectKey, offset: int, limit: int) -> Sequence[Build]:
        """Live builds, newest change first, after the first `offset`; may lag about a second. Each has only the
        fields `domain.build.LISTED` and its newest status, without texts."""

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        """Builds whose `check_at` has come, longest overdue first, as a consistent read shows them. A build
        that became due in the last second may be missing. A record that cannot be read is left out, logged,
        and not found again for a day."""

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        """Builds that wait for their turn with this executor and are not leased, in their current state, the longest
        wait first."""

    def line(self, executor: str, now: datetime) -> Sequence[InLine]:
        """The builds of `waiting`, at most 50,000, without their records. May lag about a second."""

    def get_all(self, builds: Sequence[BuildKey], now: datetime) -> Sequence[Build]:
        """Those of these builds that exist, in this order. A record that cannot be read is left out, as in `due`."""

    def lease(self, build: Build, until: datetime) -> Build:
        """Moves `check_at` to `until` if the stored `check_at` is still `build.check_at`. Writes nothing else, not even
        the version. Raises Conflict if the stored `check_at` is another, or the build is gone."""


class Slots(Protocol):
    """Which builds have a slot. Reads are consistent."""

    def read(self) -> Running:
        """All builds that have a slot."""

    def take(self, build: BuildKey, running: Running) -> None:
        """Gives the build a slot. Raises Conflict if another build got a slot since `running` was read."""

    def free(self, builds: Collection[BuildKey]) -> None:
        """Takes the slots of these builds back. Idempotent."""


class Archive(Protocol):
    """Archived and deleted builds, and the purge of builds and projects."""

    def archive(self, build: Build) -> Build:
        """Like `Builds.save`, and removes the build from the project's list and then from the project's count. A build
        that is not deleted is then in the creator's list of archived builds. Raises Conflict."""

    def restore(self, build: Build) -> Build:
        """The inverse of `archive`. Raises Conflict."""

    def list_archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        """Archived builds that `user` created, newest change first, and the number of all. Each has only the fields of
        `Builds.list_builds`."""

    def purgeable(
        self, deleted_before: datetime, archived_before: datetime, limit: int | None = None
    ) -> Iterator[Hidden]:
        """Builds without a `check_at`, and projects, that may be purged: at most `limit` deleted ones, then at most
        `limit` archived ones, the longest due first. May lag behind, so read each record again."""

    def builds_of(self, project: ProjectKey) -> Iterator[BuildKey]:
        """All builds of a project, archived or not, oldest first, read while the caller iterates."""

    def purge(self, record: Build | Project) -> None:
        """Deletes a build with its texts, name and bookmarks, or a project that has no builds any more.

        Raises Conflict if the stored record has another uuid or version; for a project, also if a build's id was taken
        since then. A repetition completes a call that did only a part."""


class Bookmarks(Protocol):
    """The bookmarks of users on builds and projects."""

    def among(self, user: str, candidates: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        """Those of `candidates` that `user` bookmarked."""

    def add(self, user: str, key: Bookmarkable, now: datetime) -> None:
        """Adds a bookmark of the time `now`; an existing bookmark gets this time."""

    def remove(self, user: str, key: Bookmarkable) -> bool:
        """Removes a bookmark. Idempotent; False if there never was one."""

    def list_builds(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Build], int]:
        """Builds that `user` bookmarked, latest bookmark first, and how many there are in all."""

    def list_projects(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Project], int]:
        """Projects that `user` bookmarked, latest bookmark first unless `ascending`, and how many there are in all."""


class CodeReferences(Protocol):
    """Which projects and builds use an archive of code."""

    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        """Whether the project or one of its builds uses this code; the project's former code may count."""

    def is_referenced(self, code_sha256: str, now: datetime) -> bool:
        """Whether any project or build uses this code, or `note` was called for it within the last hour."""

    def note(self, code_sha256: str, project: ProjectKey, now: datetime) -> None:
        """Notes that a project is about to use this code."""

    def begin_drop(self, code_sha256: str, now: datetime) -> None:
        """Marks an archive; its references are checked after this call, before it is deleted. With a concurrent upload
        of the same content, either the upload sees the mark, or the check sees the `note` of the upload."""

    def end_drop(self, code_sha256: str) -> None:
        """Removes the mark of `begin_drop`, because the archive is still used. Idempotent."""

    def is_being_dropped(self, code_sha256: str, now: datetime) -> bool:
        """Whether `begin_drop` marked the archive within the last ten minutes."""


Account = TypeVar("Account", User, Token)


class Fresh(Struct, Generic[Account], frozen=True):
    """A user or token as stored now. The adapter compares `row` later, to see whether the record has changed."""

    record: Account
    row: tuple[str, ...]


Given = Sequence[Fresh[Any]]


class Accounts(Protocol):
    """Users and their tokens.

    `user` and `token` may answer from a cache (a setting says for how long). Requests that change rights read with
    `fresh_…` and pass those records as `given`: if one of the records has changed, the write raises Conflict.
    """

    def user(self, name: str, opening: BuildKey | None = None) -> User | None:
        """The user; None if there is none. If `opening` is given, the same call also reads that build, for an `open`
        with `may_lag` that follows within a second."""

    def token(self, sha256: str) -> Token | None:
        """The token with this hash, expired or not; None if there is none."""

    def fresh_user(self, name: str) -> Fresh[User] | None:
        """Like `user`, but never from the cache."""

    def fresh_token(self, sha256: str) -> Fresh[Token] | None:
        """Like `token`, but never from the cache."""

    def add_user(self, user: User, token: Token, given: Given = ()) -> None:
        """Stores a new user and a token, both or neither. Raises AlreadyExists when the name is taken, Conflict."""

    def add_token(self, token: Token, given: Given = ()) -> None:
        """Stores a token; replaces a token with the same hash. Raises Conflict."""

    def tokens(self, user: str) -> Sequence[Token]:
        """All tokens of a user, in any order, also expired and revoked ones."""

    def drop_token(self, token: Token, given: Given = ()) -> None:
        """Deletes a token. Idempotent. Raises Conflict."""

    def note_use(self, token: Token, day: date) -> None:
        """Stores the day on which a token was used. Does nothing if the token is gone."""

    def save_user(self, user: User, given: Given = ()) -> None:
        """Replaces the user. Raises Conflict."""

    def count_requests(self, name: str, minute: datetime, requests: int) -> int:
        """Adds to the number of requests of a user in a minute, for all processes; returns the new number."""


class BuildQueue(Protocol):
    """Queues builds. There are two such queues: for builds to start, stop or observe, and for builds that have ended
    and whose log is to be stored."""

    def announce(self, key: BuildKey, after_seconds: int = 0) -> None:
        """Queues a build's key, delivered at least once and in any order, after `after_seconds` (at most 900)."""


class Announcement(Struct, frozen=True):
    """A message to other programs. It has the same `id` however often it is sent."""

    id: str
    type: str  # `build.<status>`, or `test`
    at: datetime
    text: str  # JSON


class EventBus(Protocol):
    """Sends announcements to their subscribers."""

    def put(self, announcement: Announcement) -> None:
        """Sends it at least once, in any order. Raises Unavailable unless it was accepted."""


class Delivery(Struct, frozen=True):
    """A call of a webhook: of the project's webhook with the id `hook`."""

    project: ProjectKey
    hook: str
    announcement: Announcement


class HookQueue(Protocol):
    """Calls of webhooks that wait."""

    def send(self, delivery: Delivery) -> None:
        """It is received at least once, in any order, until it is handled without an error."""

    def hide(self, receipt: str, seconds: int) -> None:
        """The delivery with this `receipt` is received again after so many seconds, unless it is handled by then."""


class Webhooks(Protocol):
    """Receivers of webhooks, anywhere on the Internet."""

    def send(self, url: str, secret: str, announcement: Announcement, now: datetime) -> None:
        """Raises Unavailable, with the reason for people, unless the receiver has answered 2xx within ten seconds."""


class Replies(Protocol):
    """Queues of programs that have requested builds."""

    def send(self, queue: str, request: str, announcement: Announcement) -> None:
        """To the queue with this ARN, about a request. Raises NotFound if there is no such queue."""


class DeadLetters(Protocol):
    """The queue of requests that can never succeed."""

    def put(self, body: str, reasons: Sequence[str]) -> None:
        """Stores a request with the reasons why it was refused."""


class Offer(Struct, frozen=True):
    """A signed form to upload a file to storage: POST `fields` and `file` to `url`."""

    id: str
    url: str
    fields: Mapping[str, str]
    expires_at: datetime


class Sources(Protocol):
    """Archives of projects' code, and uploads."""

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        """Stores an archive by its hash, with its listing. Idempotent."""

    def listing(self, sha256: str) -> Listing:
        """The listing of a stored archive. Raises NotFound."""

    def open(self, sha256: str) -> IO[bytes]:
        """A stored archive, at its start. Raises NotFound."""

    def find_archive(self, commit: str) -> str | None:
        """The hash of a stored archive whose hash begins with `commit`; None if there is none."""

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        """A signed form for one upload to `project` of at most `max_bytes`."""

    def upload_url(self) -> str:
        """The `url` of every offer."""

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        """The file that was uploaded by an offer. Raises NotFound."""

    def discard(self, build: Build) -> None:
        """Deletes the build's stored log. Idempotent."""

    def stale(self, before: datetime, prefix: str, limit: int) -> Sequence[str]:
        """At most `limit` hashes of archives last stored before `before`; each hash begins with `prefix`."""

    def url(self, sha256: str) -> str:
        """A link to a stored archive that is valid for a minute, without credentials."""

    def drop(self, sha256: str) -> None:
        """Deletes an archive. Idempotent."""


class Secrets(Protocol):
    """Secrets that a project's builds may mount, and others, whose names have a slash. A later project of the same name
    does not have them."""

    def put(self, project: Project, name: str, value: str) -> None:
        """Sets or replaces a secret. Raises Invalid when the store refuses the value or is full."""

    def names(self, project: Project) -> Sequence[str]:
        """The names of all that builds may mount, sorted. Decrypts nothing."""

    def delete(self, project: Project, name: str) -> None:
        """Deletes a secret. Raises NotFound."""

    def values(self, project: Project, names: Sequence[str]) -> Mapping[str, str]:
        """The values of the secrets that exist, by name."""


class LogArchive(Protocol):
    """Stored logs of builds that have ended, as texts."""

    def store(self, build: Build, text: Iterable[bytes]) -> None:
        """Replaces the build's log by this UTF-8 text, completely or not at all. Reads the pieces one by one."""

    def store_found(self, build: Build, table: Sequence[Block], steps: Sequence[BuildStep]) -> None:
        """Stores the table of byte positions in the build's log, and the steps found in the log."""

    def table(self, build: Build) -> Sequence[Block]:
        """The stored table; empty, as are the steps, for a log that an older version has stored."""

    def steps(self, build: Build) -> Sequence[BuildStep]:
        """The stored steps."""

    def read(self, build: Build, start: int, size: int) -> bytes:
        """At most `size` bytes, from byte `start` on. Raises NoLog."""

    def url(self, build: Build) -> str:
        """A link to the whole log that is valid for a minute, without credentials."""


class Executor(Protocol):
    """Where builds run."""

    def submit(self, build: Build) -> str:
        """Starts the build's current attempt and returns the attempt's handle. If the same attempt is submitted again
        within `replay_seconds` of its claim, the executor still starts only one build.

        Raises Busy (this call started nothing; a later one may), ExecutorRefused (this call started nothing, and no
        later one will) and Unavailable (unknown: submit the same attempt again, or search it). After Busy and
        ExecutorRefused, another call for the same attempt may still have started it."""

    @property
    def replay_seconds(self) -> int:
        """How long after the claim a repeated `submit` may begin. The sum of this and the longest life of a handler
        (120 s) is less than the time for which the executor recognizes a repeated attempt."""

    @property
    def emits_events(self) -> bool:
        """Whether the executor sends events; if not, builds must be polled."""

    def find_handle(self, build: Build) -> str | None:
        """The handle of the build's current attempt, if it was started since `build.submitting_at`; else None."""

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        """The observations of the handles that the executor knows, in as few calls as it allows."""

    def stop(self, handle: str) -> None:
        """Stops the attempt, in every state. Idempotent; an unknown handle counts as stopped."""


class Registry(Protocol):
    """The image registry."""

    def prepare(self, image: str) -> None:
        """Makes the repository of `image` and the cache of its project, if they do not exist."""

    def forget_cache(self, image: str) -> None:
        """Deletes the cached layers of the project of `image`; its images stay. Idempotent."""

    def find(self, image: str) -> Image | None:
        """The image in the registry for `image` (repository and tag); None if there is none."""

    def base_digest(self, reference: str, image: str, hosts: Collection[str]) -> str | None:
        """The digest of the base image `reference` for the build of `image`. Asks our registry, or (without login) one
        in `hosts`; None for all others, for an image of another project, and for a missing image."""

    def tag(self, image: str, tag: str) -> None:
        """Moves or makes `tag` in the repository of `image`, so that it names this image. Raises Unavailable also if
        the image does not exist, or the registry does not move this tag."""


class RegistryLogin(Struct, frozen=True):
    """A login for the registry `host` (host[:port])."""

    host: str
    username: str
    password: str

    def __repr__(self) -> str:
        return f"RegistryLogin({self.username!r} at {self.host!r})"


class RegistryLogins(Protocol):
    """Logins to the registry for builds."""

    def mint(self, image: str) -> RegistryLogin:
        """A new login for the build of `image` with the rights of `domain.repositories.rights`, valid for about an
        hour."""


class DeploymentSecrets(Protocol):
    """Secrets of the deployment itself."""

    def build_key(self) -> bytes:
        """The key from which the secrets of attempts are made; it never changes."""

    def docker_hub_login(self) -> tuple[str, str] | None:
        """User and token for Docker Hub; None if the deployment has none."""


class Question(Struct, frozen=True):
    """A request or report of a build, with the secret of its attempt."""

    about: Literal["materials", "login", "report"]
    build: str  # the text of a BuildKey
    attempt: int
    secret: str
    reported: Mapping[str, str]  # fields of a report

    def __repr__(self) -> str:
        return f"Question({self.about!r}, {self.build!r}, {self.attempt})"


class Broker(Protocol):
    """Answers requests of running builds. In AWS a separate function, so that the public one has no logins."""

    def ask(self, question: Question) -> str:
        """The answer as a text. Raises Forbidden, Gone, Throttled and Invalid."""


class Logs(Protocol):
    """Logs of builds; `log` is a name from an executor's observation, or from `reported`."""

    def read(self, log: str, after: Position, limit: int = MAX_READ_LINES) -> LogPart:
        """The lines after a position: at most about `limit`, or 1 MB. They are empty only at the end of the log. A line
        that is added with a time before the position is not found. Within a second, a process gets the same answer
        again, without a call of the log service."""

    def reported(self, build: Build) -> str:
        """The name of the log of a build that Slipway does not run, to which clients send the lines."""

    def append(self, log: str, lines: Sequence[LogLine]) -> None:
        """Adds lines to a log of `reported`, at its end, at least once."""

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        """The last `count` lines or pieces, oldest first."""


class Services(Protocol):
    """All ports, for use cases. Each is made at its first use, so that a function loads only what it needs."""

    settings: Settings
    projects: Projects
    builds: Builds
    slots: Slots
    archive: Archive
    bookmarks: Bookmarks
    code_references: CodeReferences
    accounts: Accounts
    queue: BuildQueue
    log_queue: BuildQueue
    event_bus: EventBus
    replies: Replies
    hook_queue: HookQueue
    webhooks: Webhooks
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
        """The executor that `Build.executor` names. Raises Unavailable if the deployment does not offer it any more."""

    def aside(self, read: Callable[[], Answer]) -> Callable[[], Answer]:
        """Begins to call `read` in the background. A call of the result waits for the answer, or raises the error."""

    def now(self) -> datetime:
        """The current time, aware and in UTC, in whole milliseconds: the API shows exactly what is stored."""
