"""What a build is."""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self

from chalicelib.domain.environment import Placement
from chalicelib.domain.project import ProjectKey

# A build's texts are one item of at most 400 KB (DynamoDB), with the two Dockerfiles that may come later.
MAX_TEXTS_BYTES = 270_000
MAX_DOCKERFILE_BYTES = 65_536
CODEBUILD, EKS = "codebuild", "eks"  # where builds can run
PLATFORMS = ("linux/amd64", "linux/arm64")
ID_DIGITS = 12  # ids are zero-padded in keys so that their text order is their number order
TAGS_MOVED_WITHIN = timedelta(days=1)  # of a build's end: a tag that the registry refuses is not tried for ever
# Stands in a Dockerfile for the lines of special files, whose names a git repository shows too late.
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


@dataclass(frozen=True, slots=True, order=True)
class BuildKey:
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
        """The inverse of `str(key)`; ValueError when `text` is not one."""
        owner, project, number = text.split("/")
        if not (owner and project and number.isascii() and number.isdigit()):
            raise ValueError(f"{text!r} does not name a build")
        return cls(owner, project, int(number))


@dataclass(frozen=True, slots=True)
class StatusEntry:
    """One row of a build's history."""

    id: int
    uuid: str
    status: Status
    created_at: datetime
    message: str | None = None
    traceback: str | None = None
    details: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a build's code comes from: an upload, or a git repository at a revision."""

    code_sha256: str | None = None
    git_url: str | None = None
    git_revision: str | None = None
    context: str | None = None  # the directory that becomes `build`; None for the whole
    dockerfile: str | None = None  # path of the code's own Dockerfile, when the build must look it up
    uploaded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """What an attempt has put in the registry under the build's tag."""

    attempt: int
    digest: str


@dataclass(frozen=True, slots=True)
class Image:
    """What the registry has under a tag."""

    digest: str
    layer_bytes: tuple[int, ...] | None = None  # compressed, the base's first; None of what is not one image


@dataclass(frozen=True, slots=True)
class Build:
    """The record of a build, small enough to be read and written whole; its texts are in `BuildBody`."""

    key: BuildKey
    uuid: str
    user: str  # who created it; the owner is in the key
    created_at: datetime
    updated_at: datetime
    backend: str  # as the user named it
    nonce: str  # ends the log; told to the executor only, so that no step of the user can print it
    image: str  # where the result goes: repository and tag, known from the start
    history: tuple[StatusEntry, ...]
    name: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    is_managed: bool = True  # False: nothing runs here, statuses are reported from outside
    started_at: datetime | None = None
    finished_at: datetime | None = None  # before its last status, if that waits for the words of the log
    end_reason: str | None = None  # why it failed, in its executor's words
    image_digest: str | None = None
    layer_bytes: tuple[int, ...] | None = None  # of the image: `Image.layer_bytes`
    image_tags: tuple[str, ...] = ()  # that the image gets once the build has succeeded
    image_tags_moved: bool = False
    nocache: bool = False
    node_scheduled: str | None = None
    reported_backend: str | None = None  # what a client said of a build that runs here; only ever shown
    reported_node: str | None = None  # likewise
    resources: dict[str, Any] | None = None
    placement: Placement | None = None  # what its pod has beside, where it gets one
    commit: str | None = None
    source: Source | None = None  # the code that goes into the image; None for an image without code
    executor: str = CODEBUILD  # where it runs: chosen at creation, from `backend` and what is offered
    attempt: int = 0  # counts the times an executor was asked to start this build
    submitting_at: datetime | None = None  # the claim: somebody is asking the executor since then
    handle: str | None = None  # what the executor calls this build; opaque outside of it
    log: str | None = None  # where the log reader finds this build's lines; opaque outside of it
    tag_was_free: bool = False  # before its first claim; nobody asked for those that an older version started
    fetched_attempt: int = 0  # the last that has its code: its secret opens no more materials
    pushes: tuple[Push, ...] = ()  # as attempts have reported them
    faults: int = 0  # attempts that ended by the executor's own fault
    queued_at: datetime | None = None  # since when it waits for its current attempt; None: since its creation
    turn_at: datetime | None = None  # when it was last claimed after it had waited for its turn
    waiting_reason: str | None = None  # why the executor takes no build now, in its words
    unsure_attempts: tuple[int, ...] = ()  # former ones that may have made the image all the same
    stop_requested_at: datetime | None = None
    look_at: datetime | None = None  # by then somebody must look again; None once nothing can happen
    archived_at: datetime | None = None  # hidden since then
    deleted_at: datetime | None = None  # to be purged, and never to be restored; implies archived_at
    stored_log_bytes: int | None = None  # size of the whole log in storage; None while it is not there
    keeping_log_until: datetime | None = None  # until then nobody else may begin to keep it
    reported_log_bytes: int | None = None  # of lines that were reported for it
    on_behalf_of: str | None = None  # for whom an automation says it acts; only recorded
    rebuild_of: int | None = None  # the build of the project of whose specification and code it is made again
    code_reference: dict[str, Any] | None = None  # what a client said of its code
    version: int = 1  # every write asserts the version it read

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
        """When its current attempt became possible."""
        return self.queued_at or self.created_at

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its turn, because its executor took no more builds."""
        return self.waiting_reason is not None and self.submitting_at is None and not self.is_done

    @property
    def duration_seconds(self) -> float | None:
        """From its start to its end; None before that."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def billed_minutes(self) -> int | None:
        """Started minutes that its executor was at work for it, waiting left out; None before its end."""
        if self.finished_at is None:
            return None
        if self.worked_since is None or not self.is_managed:
            return 0
        return math.ceil((self.finished_at - self.worked_since) / timedelta(minutes=1))

    @property
    def worked_since(self) -> datetime | None:
        """When waiting was over; None for a build at which nobody was at work yet."""
        work = [entry for entry in self.history if entry.status in (Status.BUILDING, Status.RUNNING)]
        return work[0].created_at if work else None

    @property
    def unique_name(self) -> str:
        return f"{self.key.owner}.{self.key.project}.builds.{self.key.id}"

    @property
    def pod_id(self) -> str:
        return f"plx-build-{self.uuid}"


# What lists show of a build and queries ask about. It is all that the index of lists holds, beside the newest
# status: each change writes it there twice, and up to 1 KB costs one unit.
LISTED = frozenset(
    {"key", "uuid", "user", "created_at", "updated_at", "backend", "image", "name", "description", "tags"}
    | {"is_managed", "started_at", "finished_at", "image_digest", "commit", "archived_at", "deleted_at"}
    | {"resources", "node_scheduled", "on_behalf_of"}
)


@dataclass(frozen=True, slots=True)
class BuildBody:
    """The texts of a build, kept apart so that lists stay light."""

    content: str | None = None
    config: dict[str, Any] | None = None
    dockerfile: str | None = None  # what is built
    build_args: dict[str, str] | None = None
    secrets: dict[str, str] | None = None  # names of the project's secrets, by the ids of their mounts
    found_dockerfile: str | None = None  # what is built, where only the fetched code shows it
    reported_dockerfile: str | None = None  # what a client said was built, by PATCH

    @property
    def built_dockerfile(self) -> str | None:
        """What is built; None while that is only known where the code is fetched."""
        is_known = self.dockerfile is not None and SPECIAL_FILES_MARK not in self.dockerfile
        return self.dockerfile if is_known else self.found_dockerfile

    @property
    def is_too_large(self) -> bool:
        """Whether what a build is made from, as JSON in UTF-8, exceeds `MAX_TEXTS_BYTES`."""
        parts = [self.content, self.config, self.dockerfile, self.build_args]
        texts = json.dumps(parts, ensure_ascii=False)
        return len(texts.encode()) > MAX_TEXTS_BYTES
