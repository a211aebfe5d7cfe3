"""The JSON of the API, as types: what `serializers` makes, `web` writes and the OpenAPI document describes.

What may be sent is described too; the use cases check it, because clients expect faults in words of theirs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

Tags = list[str] | None


class User(msgspec.Struct):
    username: str
    email: str | None
    is_superuser: bool


class NewUser(User):
    """The token is shown this once."""

    token: str
    token_expires_at: datetime


class Build(msgspec.Struct):
    """A build in a list: everything but its texts."""

    id: int
    uuid: str
    name: str | None
    unique_name: str
    pod_id: str
    user: str
    description: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    last_status: str
    tags: Tags
    project: str
    backend: str
    is_managed: bool
    bookmarked: bool
    image: str
    image_digest: str | None


class BuildDetail(Build):
    """A build with its texts, in both layouts of its specification."""

    content: str | None
    config: dict[str, Any] | None
    resources: dict[str, Any] | None
    node_scheduled: str | None
    num_jobs: int
    num_experiments: int
    dockerfile: str | None
    commit: str | None
    on_behalf_of: str | None
    duration_seconds: float | None
    billed_minutes: int | None
    estimated_cost: float | None  # in the currency of the configured price


class ArchivedBuild(Build):
    deleted: bool = True


class Status(msgspec.Struct):
    """One row of a build's history; `job` is the build's id."""

    id: int
    uuid: str
    created_at: datetime
    message: str | None
    traceback: str | None
    status: str
    details: dict[str, Any] | None
    job: int


class CodeReference(msgspec.Struct):
    id: int
    branch: str | None
    commit: str | None
    head: str | None
    is_dirty: bool
    git_url: str | None
    repo: None = None
    external_repo: None = None


class Project(msgspec.Struct):
    id: int
    uuid: str
    user: str
    owner: str
    name: str
    unique_name: str
    description: str | None
    tags: Tags
    created_at: datetime
    updated_at: datetime
    is_public: bool
    has_code: bool
    bookmarked: bool


class ProjectDetail(Project):
    readme: str | None
    git_url: str | None
    num_builds: int
    # What else Polyaxon runs in projects: clients expect the fields.
    tensorboard: None = None
    notebook: None = None
    has_tensorboard: bool = False
    has_notebook: bool = False
    num_experiment_groups: int = 0
    num_independent_experiments: int = 0
    num_experiments: int = 0
    num_jobs: int = 0


class Offer(msgspec.Struct):
    """POST a form of `fields` and the archive as `file` to `url`, then POST to `complete`."""

    url: str
    fields: dict[str, str]
    complete: str
    expires_at: datetime


class Versions(msgspec.Struct):
    latest_version: str
    min_version: str


class ChartVersion(msgspec.Struct):
    version: str


class LogHandler(msgspec.Struct):
    """Where clients shall report their own errors: nowhere."""

    dsn: None = None
    environment: str = "production"
    tags: dict[str, str] = {}


class Detail(msgspec.Struct):
    """A refusal."""

    detail: str


Entry = TypeVar("Entry")


class Page(msgspec.Struct, Generic[Entry]):
    """Some entries of a list that has `count` in all; `next` and `previous` are addresses."""

    count: int
    next: str | None
    previous: str | None
    results: list[Entry]


class Bookmarked(msgspec.Struct, Generic[Entry]):
    content_object: Entry


# What may be sent. Other fields are ignored: clients send all of an answer back.


class UserFields(msgspec.Struct, omit_defaults=True):
    username: str
    email: str | None = None
    is_superuser: bool | None = None


class ProjectFields(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    readme: str | None = None
    tags: Tags = None
    merge: bool | None = None
    is_public: bool | None = None


class NewProjectFields(ProjectFields, kw_only=True):
    name: str


class BuildFields(msgspec.Struct):
    """`content` is the text of a specification, or `config` the older layout as an object."""

    content: str | None = None
    config: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    tags: Tags = None
    backend: str | None = None
    is_managed: bool | None = None
    ttl: int | str | None = None


class BuildChanges(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    tags: Tags = None
    merge: bool | None = None
    dockerfile: str | None = None
    node_scheduled: str | None = None
    backend: str | None = None


class StatusFields(msgspec.Struct):
    status: str | None = None
    message: str | None = None
    traceback: str | None = None
    details: dict[str, Any] | None = None
    created_at: str | None = None


class SettlingFields(msgspec.Struct):
    status: str


class CodeReferenceFields(msgspec.Struct):
    branch: str | None = None
    commit: str | None = None
    head: str | None = None
    git_url: str | None = None
    is_dirty: bool | None = None


class GitFields(msgspec.Struct):
    git_url: str


Lines = str | list[str]
