"""Everything Slipway asks of the outside world. Each docstring is a promise that callers lean on.

All of them may raise `Unavailable` when the service behind does not answer; nothing is half done then
that a repetition would not complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Protocol

from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, BuildBody, BuildKey, Project, Token, User
from chalicelib.domain.lifecycle import Observation
from chalicelib.settings import Settings


@dataclass(frozen=True, slots=True)
class Opened:
    """A build with all that one request about it needs."""

    build: Build
    body: BuildBody
    project: Project
    bookmarked: bool


@dataclass(frozen=True, slots=True)
class LogLine:
    at: datetime
    text: str


class BuildStore(Protocol):
    """Projects and builds. Reads are consistent unless said otherwise; writes carry a condition."""

    def project(self, owner: str, name: str) -> Project | None:
        """The project, if there is one."""

    def add_project(self, project: Project) -> None:
        """Raises AlreadyExists when the owner has a project of that name."""

    def save_project(self, project: Project) -> Project:
        """Writes all but the counters, if the stored version is still `project.version`. Raises Conflict."""

    def add(self, project: Project, build: Build, body: BuildBody, wanted_name: str | None) -> Build:
        """Stores a new build whole or not at all, as `project.last_build_id + 1`.

        A `wanted_name` that is taken gets the first free suffix `-<k>`; the build is returned with the
        name it was given. Raises Conflict when the project changed since it was read.
        """

    def get(self, key: BuildKey) -> Build | None:
        """The build, archived or not."""

    def open(self, key: BuildKey, viewer: str) -> Opened | None:
        """The build with its texts, its project and whether `viewer` bookmarked it, in one call;
        archived or not. None when build or project is missing."""

    def body(self, key: BuildKey) -> BuildBody | None:
        """The build's texts alone."""

    def save(self, build: Build) -> Build:
        """Writes what can change, if the stored version is still `build.version`, and returns the build
        with its new version. Raises Conflict otherwise, also when the build is gone."""

    def save_dockerfile(self, key: BuildKey, dockerfile: str | None) -> None:
        """Replaces the reported Dockerfile. Raises NotFound when the build is gone."""

    def rename(self, build: Build, wanted_name: str) -> Build:
        """Like `save`, and takes a free name as `add` does."""

    def archive(self, build: Build, now: datetime) -> Build:
        """Like `save`, and takes the build out of lists and the project's count. Raises Conflict."""

    def page(self, project: Project, offset: int, limit: int) -> Sequence[Build]:
        """Live builds, newest change first, after skipping `offset`; may lag about a second behind."""

    def due(self, now: datetime, limit: int) -> Sequence[BuildKey]:
        """Builds whose `look_at` has come, longest overdue first; may lag behind, so read again."""

    def bookmarks(self, user: str, keys: Sequence[BuildKey]) -> frozenset[BuildKey]:
        """Those of `keys` (all of one project) that `user` bookmarked."""

    def bookmark(self, user: str, key: BuildKey, now: datetime) -> None:
        """Idempotent."""

    def unbookmark(self, user: str, key: BuildKey) -> bool:
        """False when it was never bookmarked. Idempotent otherwise."""


class Accounts(Protocol):
    """Users and their tokens."""

    def user(self, name: str) -> User | None:
        """The user, if there is one."""

    def token(self, sha256: str) -> Token | None:
        """What belongs to the hash of a token, expired or not."""

    def add_user(self, user: User, token: Token) -> None:
        """Both or neither. Raises AlreadyExists when the name is taken."""

    def add_token(self, token: Token) -> None:
        """Replaces a token of the same hash."""


class BuildQueue(Protocol):
    """Announces that a build needs attention; what kind, its record says."""

    def announce(self, key: BuildKey) -> None:
        """At least once, soon, in any order."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Leave to upload a file straight to storage: POST a form of `fields` and `file` to `url`."""

    id: str
    url: str
    fields: Mapping[str, str]
    expires_at: datetime


class Sources(Protocol):
    """Code of projects, and what executors fetch of it."""

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        """Keeps an archive by its hash, with what is in it. Idempotent."""

    def listing(self, sha256: str) -> Listing:
        """What is in a kept archive. Raises NotFound."""

    def open(self, sha256: str) -> IO[bytes]:
        """A kept archive, at its start. Raises NotFound."""

    def stage(self, build: Build, dockerfile: str | None) -> None:
        """Lays out what the build's executor fetches: Dockerfile and code.tar.gz. Idempotent."""

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        """Leave for one upload into `project` of at most `max_bytes`."""

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        """What was uploaded under an offer. Raises NotFound."""


class Executor(Protocol):
    """Where builds run."""

    def submit(self, build: Build) -> str:
        """Starts the build's current attempt, whose source is staged, and returns its handle.
        The same attempt submitted again
        within `replay_seconds` is one build. Raises Busy (nothing started, come later) and
        ExecutorRefused (never will)."""

    @property
    def replay_seconds(self) -> int:
        """How long a repeated `submit` of one attempt is safe."""

    def find(self, build: Build) -> str | None:
        """The handle of the build's current attempt when it was started since `build.submitting_at`."""

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        """What became of the handles; one that the executor does not know is missing. In as few calls as
        the service allows."""

    def stop(self, handle: str) -> None:
        """Ends it, wherever it is. Idempotent; an unknown handle counts as ended."""


class Registry(Protocol):
    """Where images go."""

    def prepare(self, image: str) -> None:
        """Makes the repository of `image` if it needs making."""

    def digest(self, image: str) -> str | None:
        """The digest the registry itself answers for `image` (repository and tag), None without one."""


class LogReader(Protocol):
    """Reads the lines of one build; `log` is what the executor's observation named."""

    def lines(self, log: str) -> Sequence[LogLine]:
        """All lines, oldest first. Raises NoLog while there are none."""

    def tail(self, log: str, count: int) -> Sequence[LogLine]:
        """The last `count` lines, oldest first; empty when there are none."""


class Services(Protocol):
    """What use cases may reach. Made when first touched, so that a function loads only what it uses."""

    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> BuildStore: ...
    @property
    def accounts(self) -> Accounts: ...
    @property
    def queue(self) -> BuildQueue: ...
    @property
    def sources(self) -> Sources: ...
    @property
    def executors(self) -> Mapping[str, Executor]:
        """By the name that `Build.executor` has; one the deployment does not offer is a KeyError."""
        ...

    @property
    def registry(self) -> Registry: ...
    @property
    def logs(self) -> LogReader: ...
    def now(self) -> datetime:
        """Aware UTC, in milliseconds: what the API shows is what is stored."""
        ...
