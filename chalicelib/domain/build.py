"""What a build is."""

import json
import math
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct

from chalicelib.domain.environment import Placement
from chalicelib.domain.project import ProjectKey

# A build's texts are one DynamoDB item of at most 400 KB, with the two Dockerfiles that may be added later.
MAX_TEXTS_BYTES = 270_000
MAX_DOCKERFILE_BYTES = 65_536
CODEBUILD, EKS = "codebuild", "eks"  # where builds can run
PLATFORMS = ("linux/amd64", "linux/arm64")
ID_DIGITS = 12  # ids are zero-padded in keys so that their text order is their number order
TAGS_MOVED_WITHIN = timedelta(days=1)  # after a build's end, no more attempts: the registry may refuse a tag for ever
# Replaced by the lines of special files after a git repository was fetched: before, their names are not known.
SPECIAL_FILES_MARK = "#slipway-special-files"


class Status(StrEnum):
    """The thirteen statuses of the Polyaxon job lifecycle."""

    CREATED = "created"
    RESUMING = "resuming"
    BUILDING = "building"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    UNSCHEDULABLE = "unschedulable"
    WARNING = "warning"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UPSTREAM_FAILED = "upstream_failed"
    STOPPED = "stopped"
    SKIPPED = "skipped"


DONE = frozenset({Status.SUCCEEDED, Status.FAILED, Status.UPSTREAM_FAILED, Status.STOPPED, Status.SKIPPED})


class BuildKey(Struct, frozen=True, order=True):
    """Names a build: ids count up from 1 within their project."""

    owner: str
    project: str
    id: int

    def __str__(self) -> str:
        return f"{self.owner}/{self.project}/{self.id}"

    @property
    def project_key(self) -> ProjectKey:
        return ProjectKey(self.owner, self.project)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str(key)`. Raises ValueError."""
        owner, project, number = text.split("/")
        if not (owner and project and number.isascii() and number.isdigit()):
            raise ValueError(f"{text!r} does not name a build")
        return cls(owner, project, int(number))


class StatusEntry(Struct, frozen=True):
    """One status of a build's history."""

    id: int
    uuid: str
    status: Status
    created_at: datetime
    message: str | None = None
    traceback: str | None = None
    details: dict[str, Any] | None = None


class Source(Struct, frozen=True):
    """Where a build's code comes from: an upload, or a git repository at a revision."""

    code_sha256: str | None = None
    git_url: str | None = None
    git_revision: str | None = None
    context: str | None = None  # the directory of the code that becomes `build`; None: the whole code
    dockerfile: str | None = None  # path of the code's own Dockerfile, if the build uses it
    uploaded_at: datetime | None = None


class Push(Struct, frozen=True):
    """An image that an attempt has reported to have pushed."""

    attempt: int
    digest: str


class Image(Struct, frozen=True):
    """An image in the registry."""

    digest: str
    layer_bytes: tuple[int, ...] | None = None  # compressed, the base's first; None if it is not one image


class Build(Struct, frozen=True):
    """The record of a build, which is always read and written as a whole; long texts are in `BuildBody`."""

    key: BuildKey
    uuid: str
    user: str  # the creator; the owner is in the key
    created_at: datetime
    updated_at: datetime
    backend: str  # as the user named it
    nonce: str  # marks the end of the log; only the executor gets it, so that no step of the user can print it
    image: str  # the reference of the result, repository and tag
    history: tuple[StatusEntry, ...]
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    is_managed: bool = True  # False: it runs elsewhere, and clients report its statuses
    started_at: datetime | None = None
    finished_at: datetime | None = None  # may be set before the last status, which waits for the log's reason
    end_reason: str | None = None  # the executor's reason of a failure
    image_digest: str | None = None
    layer_bytes: tuple[int, ...] | None = None  # of the image: `Image.layer_bytes`
    image_tags: tuple[str, ...] = ()  # further tags for the image after success
    image_tags_moved: bool = False
    nocache: bool = False
    node_scheduled: str | None = None
    reported_backend: str | None = None  # reported by a client for a build that runs here; only shown
    reported_node: str | None = None  # likewise
    resources: dict[str, Any] | None = None
    placement: Placement | None = None  # further fields for its pod, on EKS
    commit: str | None = None
    recipe: str | None = None  # what it is made of: `domain.reuse.recipe_of`; None if that was not asked for
    reused_from: int | None = None  # the build whose image it has
    source: Source | None = None  # the code of the image; None without code
    executor: str = CODEBUILD  # where it runs; chosen at creation
    attempt: int = 0  # the number of attempts that were claimed
    submitting_at: datetime | None = None  # the claim: a handler has been asking the executor since then
    handle: str | None = None  # the executor's name of this build; opaque for others
    log: str | None = None  # the name of its log; opaque except for `Logs`
    tag_was_free: bool = False  # the tag did not exist before the first claim; False if an older version started it
    fetched_attempt: int = 0  # the last attempt that has its code; its secret gives no materials any more
    pushes: tuple[Push, ...] = ()  # reported by attempts
    faults: int = 0  # the number of attempts that ended by a fault of the executor
    queued_at: datetime | None = None  # since when its current attempt waits; None: since its creation
    turn_at: datetime | None = None  # when its turn came last, after it had waited
    waiting_reason: str | None = None  # why it waits for its turn: the words of its executor, or a limit
    unsure_attempts: tuple[int, ...] = ()  # earlier attempts that may have made the image
    stop_requested_at: datetime | None = None
    check_at: datetime | None = None  # when the schedule checks it next; None if nothing is left to do
    archived_at: datetime | None = None  # hidden since then
    deleted_at: datetime | None = None  # it will be purged and cannot be restored; implies archived_at
    stored_log_bytes: int | None = None  # size of the log in storage; None while it is not stored
    keeping_log_until: datetime | None = None  # the lease of the function that stores the log
    reported_log_bytes: int | None = None  # the size of all lines that clients have reported
    on_behalf_of: str | None = None  # the user that an automation has named; only recorded
    reply_to: str | None = None  # ARN of the queue that gets its id and its end
    reply_about: str | None = None  # the key or id of the message that named this queue
    rebuild_of: int | None = None  # the build of the project whose specification and code it repeats
    code_reference: dict[str, Any] | None = None  # reported by a client
    version: int = 1  # each write has the condition that the version is unchanged

    @property
    def last_status(self) -> Status:
        return self.history[-1].status

    @property
    def is_done(self) -> bool:
        return self.last_status in DONE

    @property
    def image_bytes(self) -> int | None:
        return None if self.layer_bytes is None else sum(self.layer_bytes)

    def has_tags_to_move(self, now: datetime) -> bool:
        if self.finished_at is None or self.image_digest is None or self.deleted_at is not None:
            return False
        return bool(self.image_tags) and not self.image_tags_moved and now < self.finished_at + TAGS_MOVED_WITHIN

    @property
    def waits_since(self) -> datetime:
        """Since when its current attempt could start."""
        return self.queued_at or self.created_at

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its turn, because its executor or a limit allows no more builds."""
        return self.waiting_reason is not None and self.submitting_at is None and not self.is_done

    @property
    def duration_seconds(self) -> float | None:
        """From its start to its end; None before its end, or if it never started."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def billed_minutes(self) -> int | None:
        """Minutes that its executor worked, rounded up, without waiting; None before its end."""
        if self.finished_at is None:
            return None
        if self.worked_since is None or not self.is_managed:
            return 0
        return math.ceil((self.finished_at - self.worked_since) / timedelta(minutes=1))

    @property
    def worked_since(self) -> datetime | None:
        """When its executor began to work; None before that."""
        work = [entry for entry in self.history if entry.status in (Status.BUILDING, Status.RUNNING)]
        return work[0].created_at if work else None

    @property
    def unique_name(self) -> str:
        return f"{self.key.owner}.{self.key.project}.builds.{self.key.id}"

    @property
    def pod_id(self) -> str:
        return f"plx-build-{self.uuid}"


# The fields that lists show and queries use. The index of lists contains only these and the newest status: each change
# writes the entry twice, and up to 1 KB costs one write unit.
LISTED = frozenset(
    {"key", "uuid", "user", "created_at", "updated_at", "backend", "image", "name", "description", "tags"}
    | {"is_managed", "started_at", "finished_at", "image_digest", "commit", "archived_at", "deleted_at"}
    | {"resources", "node_scheduled", "on_behalf_of", "waiting_reason"}
)


class BuildBody(Struct, frozen=True):
    """The long texts of a build, stored apart so that lists need not read them."""

    content: str | None = None
    config: dict[str, Any] | None = None
    dockerfile: str | None = None  # what is built
    build_args: dict[str, str] | None = None
    secrets: dict[str, str] | None = None  # names of the project's secrets, by the ids of their mounts
    found_dockerfile: str | None = None  # what is built, reported after the code was fetched
    reported_dockerfile: str | None = None  # reported by a client, with PATCH

    @property
    def built_dockerfile(self) -> str | None:
        """The Dockerfile that is built; None if it depends on the code and the code is not fetched yet."""
        is_known = self.dockerfile is not None and SPECIAL_FILES_MARK not in self.dockerfile
        return self.dockerfile if is_known else self.found_dockerfile

    @property
    def is_too_large(self) -> bool:
        """Whether the inputs, as JSON in UTF-8, exceed `MAX_TEXTS_BYTES`."""
        parts = [self.content, self.config, self.dockerfile, self.build_args]
        texts = json.dumps(parts, ensure_ascii=False)
        return len(texts.encode()) > MAX_TEXTS_BYTES
