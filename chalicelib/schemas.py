"""The types of the API's JSON: answers, builds that are requested, and messages of the queue of requests."""

from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from chalicelib.domain.build import ID_DIGITS
from chalicelib.domain.build import Status as StatusName
from chalicelib.domain.build_request import MAX_BACKEND, MAX_KEY, MAX_TEXT
from chalicelib.domain.cleanup import CleanupRule
from chalicelib.domain.spec import MAX_TAG, MAX_TAGS, SLUG

DEFAULT_LIMIT = 20
MAX_LIMIT = 500
MAX_OFFSET = 10_000  # all rows before the offset are read

Body = TypeVar("Body")
Id = Annotated[int, Meta(ge=1)]
BuildId = Annotated[int, Meta(ge=1, lt=10**ID_DIGITS, examples=[1])]
Count = Annotated[int, Meta(ge=0)]
Time = Annotated[datetime, Meta(tz=True)]  # with its format
Amount = Annotated[float, Meta(ge=0)]
Object = Annotated[dict[str, Any], Meta(extra_json_schema={"additionalProperties": True})]
Name = Annotated[str, Meta(pattern=f"^{SLUG.pattern}$", examples=["quick-start"])]
Description = Annotated[str, Meta(max_length=MAX_TEXT)]
Tag = Annotated[str, Meta(min_length=1, max_length=MAX_TAG)]
Tags = Annotated[list[Tag], Meta(max_length=MAX_TAGS, examples=[["nightly"]])]
Backend = Annotated[str, Meta(max_length=MAX_BACKEND, examples=["native", "eks"])]
Key = Annotated[
    str, Meta(pattern=f"^[ -~]{{1,{MAX_KEY}}}$", description="A repeated request gets the build of the first one.")
]
Nocache = Annotated[bool | None, Meta(description="true: no cached layer is used.")]
REUSE = Meta(description="true: take the image of an equal build, if there is one.")
SPECIFICATION = '{"version": 1, "kind": "build", "image": "python:3.12-slim", "build_steps": ["pip install flask"]}'


# Answers whose status is not the route's


class Redirect(Struct, frozen=True):
    """302 to `url`."""

    url: str


class Created(Struct, Generic[Body], frozen=True):
    """201 of a route that may also answer 200; with Idempotent-Replay if an earlier request created the record."""

    body: Body
    is_replay: bool = False


# Answers


class User(Struct):
    username: str
    email: str | None
    is_superuser: bool


class NewUser(User):
    """The token is shown only once."""

    token: str
    token_expires_at: Time


class Token(Struct):
    """`id` identifies the token, but does not allow to log in; `last_used` is a day in UTC."""

    id: str
    name: str
    created_at: Time
    expires_at: Time
    last_used: date | None


class Build(Struct):
    """A build in a list, without long texts and fields that need the whole record."""

    id: Id
    uuid: str
    name: str | None
    unique_name: str
    pod_id: str
    user: str
    description: str | None
    created_at: Time
    updated_at: Time
    started_at: Time | None
    finished_at: Time | None
    last_status: StatusName
    tags: list[str] | None
    project: str
    backend: str
    is_managed: bool
    bookmarked: bool
    image: str
    image_digest: str | None
    commit: str | None
    resources: Object | None
    node_scheduled: str | None
    num_jobs: Count
    num_experiments: Count
    on_behalf_of: str | None
    duration_seconds: Amount | None
    waiting_reason: str | None  # why it waits for its turn, if it does; where limits are set, with its place in line


class Reported(Struct):
    """Values that clients have reported for a build that runs here. They do not change the build's own fields."""

    dockerfile: str | None
    backend: str | None
    node_scheduled: str | None
    code_reference: Object | None


class BuildDetail(Build):
    """A build with its texts, in both layouts of its specification."""

    content: str | None
    config: Object | None
    dockerfile: str | None
    reported: Reported | None
    reused_from: Id | None  # the build whose image it has
    image_tags: list[str]
    image_bytes: Count | None  # compressed
    layer_bytes: list[Count] | None  # the base's first
    billed_minutes: Count | None
    estimated_cost: Amount | None  # in the currency of the configured price
    purge_at: Time | None  # the earliest purge, if it was archived or deleted
    rebuild_of: Id | None  # the build of the project whose specification and code it repeats


class ArchivedBuild(Build):
    purge_at: Time | None
    deleted: bool = True


class Purge(Struct):
    """A build (`owner/project/id`), or a project (`owner/name`) with all its builds; purged at this time or later."""

    name: str
    because: Literal["archived", "deleted"]
    purge_at: Time | None


class Cleanup(Struct):
    """`next` has at most a hundred entries, in the order of their purge."""

    rules: list[CleanupRule]
    next: list[Purge]


class StatusEntry(Struct):
    """One status of a build's history; `job` is the build's id."""

    id: Id
    uuid: str
    created_at: Time
    message: str | None
    traceback: str | None
    status: StatusName
    details: Object | None
    job: Id


class EventData(Struct):
    status: StatusEntry
    build: Build


class BuildEvent(Struct):
    """A build has a new status; `type` is `build.<status>`. An event may arrive twice, with the same `id`, and events
    of one build may arrive in another order than that of the ids of their statuses. `build` is as it was then."""

    id: str
    type: str
    timestamp: Time
    data: EventData


class BuildStep(Struct):
    """A step of the engine. `duration_seconds` is null if it has not ended, or was cached."""

    name: str
    started_at: Time
    duration_seconds: Amount | None
    is_cached: bool
    error: str | None


class CodeReference(Struct):
    id: Id
    branch: str | None
    commit: str | None
    head: str | None
    is_dirty: bool
    git_url: str | None
    repo: None = None
    external_repo: None = None


class Project(Struct):
    id: Id
    uuid: str
    user: str
    owner: str
    name: str
    unique_name: str
    description: str | None
    tags: list[str] | None
    created_at: Time
    updated_at: Time
    is_public: bool
    has_code: bool
    bookmarked: bool


class ProjectDetail(Project):
    readme: str | None
    git_url: str | None
    reuse: bool
    num_builds: Count
    # clients expect these fields of Polyaxon
    tensorboard: None = None
    notebook: None = None
    has_tensorboard: bool = False
    has_notebook: bool = False
    num_experiment_groups: Count = 0
    num_independent_experiments: Count = 0
    num_experiments: Count = 0
    num_jobs: Count = 0


class Offer(Struct):
    """POST a form to `url`: `fields`, and the archive as the field `file`. Then POST to the address `complete`."""

    url: str
    fields: dict[str, str]
    complete: str
    expires_at: Time


class Outcome(Struct):
    """What the route of the build itself would have answered: its status, and why it refused."""

    id: Id
    status: int
    detail: str | None = None


class Preview(Struct):
    """The Dockerfile that would be built; null if it is in a git repository."""

    dockerfile: str | None


class SecretNames(Struct):
    names: list[str]


class Hook(Struct):
    """`failure`: why its receiver did not accept the last call; `updated_at`: when that changed, or a test was made."""

    name: str
    url: str
    failure: str | None
    updated_at: Time | None
    is_disabled: bool


class NewHook(Hook):
    """The answer that shows the webhook's secret: no other answer shows it."""

    secret: str


class Versions(Struct):
    latest_version: str
    min_version: str


class Version(Struct):
    version: str


class LogHandler(Struct):
    """Without a `dsn`, clients do not report their own errors."""

    dsn: None = None
    environment: str = "production"
    tags: dict[str, str] = {}


class Page(Struct, Generic[Body]):
    """A page of a list with `count` entries; `next` and `previous` are URLs."""

    count: Count
    next: str | None
    previous: str | None
    results: list[Body]


class FoundBuilds(Page[Build]):
    """Builds of a project. `count_is_minimum`: not all were read, so more may match."""

    count_is_minimum: bool


class BookmarkedBuild(Struct):
    content_object: Build


class BookmarkedProject(Struct):
    content_object: Project


# Request bodies, the others are in infra/request_bodies.py. Other fields are ignored: clients send whole answers back.


class Described(Struct):
    name: Name | None = None
    description: Description | None = None
    tags: Tags | None = None


class RebuildFields(Struct):
    nocache: Nocache = None


class BuildFields(Described):
    """`content` is a specification, as text or as an object; or `config` the older layout as an object."""

    content: Annotated[str, Meta(description="YAML or JSON.", examples=[SPECIFICATION])] | Object | None = None
    config: Object | None = None
    backend: Backend | None = None
    is_managed: Annotated[bool | None, Meta(description="false: clients report its statuses.")] = None
    ttl: Count | str | None = None
    nocache: Nocache = None
    reuse: Annotated[bool | None, REUSE] = None


class BuildIds(Struct):
    ids: Annotated[list[BuildId], Meta(min_length=1, max_length=100)]


# Messages of the queue of requests. The schema that is published is made of these types, and they check what comes.


class Request(Struct, kw_only=True):
    """`user` acts himself if the service knows him, else he is only recorded. `reply_to`: the ARN of the queue that
    gets the id and the end of a new build."""

    version: Literal[1]
    owner: Name
    project: Name
    user: Annotated[str, Meta(max_length=128, pattern=r"^[^\x00-\x1f\x7f\x85\u2028\u2029]*$")] | None = None
    idempotency_key: Key | None = None
    reply_to: Annotated[str, Meta(max_length=256)] | None = None


class RequestForBuild(Request):
    build: BuildId


# By their actions: what messages must be, all of it.
REQUESTS: dict[tuple[str, ...], tuple[type[Struct], ...]] = {
    ("create",): (Request, BuildFields),
    ("rebuild",): (RequestForBuild, RebuildFields),
    ("stop", "archive", "restore", "delete"): (RequestForBuild,),
}
