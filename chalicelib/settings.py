"""The settings. Only this module reads the environment. Deployed, the template sets the variables; the one-machine
stack sets the same ones.

Each setting is a field: its variable is SLIPWAY_<FIELD> (SLIPWAY_EKS_<FIELD> for a cluster), the field has its type,
default and bounds, and `about` its meaning. The Globals of infra/aws/template.yaml map parameters to variables. An
empty variable counts as not set.
"""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct, field

MAX_RUNNING = 500  # builds at once, if any limit is set: each start and end writes the names of all in one item
VERSION_FILE, UNKNOWN_VERSION = Path(__file__).with_name("VERSION"), "unknown"

# BuildKit's pinned images, by the profiles of EksSettings; CodeBuild uses the first. `userns` needs user namespaces for
# pods (on by default since Kubernetes 1.33), so that root in a pod has no rights on its node. `rootless` needs nodes on
# which every user may make user namespaces.
Profile = Literal["userns", "rootless"]
BUILDKIT = {
    "userns": "docker.io/moby/buildkit:v0.29.0@sha256:0039c1d47e8748b5afea56f4e85f14febaf34452bd99d9552d2daa82262b5cc5",
    "rootless": "docker.io/moby/buildkit:v0.33.0-rootless"
    "@sha256:80b15f0735e87bab7bf59ec4d695dfb4a7cfb25521cf56dc75d6f256285b63ef",
}

# The patterns that ECR accepts, with at most two `*`. Each has a character other than digits and `*`, so it matches no
# number: numbers are the tags of builds.
_MOVABLE_TAG = re.compile(r"(?=.*[A-Za-z._-])(?=[^*]*(?:\*[^*]*){0,2}$)[A-Za-z0-9._*-]{1,128}")


def about(meaning: str, *, ge: float | None = None, le: float | None = None) -> msgspec.Meta:
    """The meaning of a setting, and its bounds."""
    return msgspec.Meta(description=meaning, ge=ge, le=le)


class EksSettings(Struct, frozen=True):
    """A cluster that runs builds."""

    cluster: Annotated[str, about("its name in EKS; empty: no cluster")]
    endpoint: Annotated[str, about("URL of its API; empty: looked up in EKS")] = ""
    certificate: Annotated[str, about("of its authority, PEM in base64; empty: looked up in EKS")] = ""
    namespace: Annotated[str, about("namespace of the builds' Jobs")] = "slipway-builds"
    profile: Annotated[Profile, about("how BuildKit runs in a pod")] = "userns"
    image: Annotated[str, about("BuildKit's image, by digest; empty: the pinned one of the profile")] = ""
    architecture: Annotated[Literal["amd64", "arm64"], about("of the nodes, and so of the images")] = "amd64"
    log_group: Annotated[str, about("group of the pods' logs; empty: that of Container Insights")] = ""
    node_selector: Annotated[dict[str, str], about("builds' node labels: `key=value,…`")] = field(default_factory=dict)
    node_keys: Annotated[tuple[str, ...], about("node labels that builds may select by: `key,…`")] = ()


class Settings(Struct, frozen=True):
    table: Annotated[str, about("DynamoDB's table")]
    dispatch_queue_url: Annotated[str, about("SQS: builds to start, stop or observe")]
    log_queue_url: Annotated[str, about("SQS: builds that have ended, whose log is to be stored")]
    hook_queue_url: Annotated[str, about("SQS: calls of webhooks")]
    dead_letter_queue_url: Annotated[str, about("SQS: requests that can never succeed")]
    codebuild_project: Annotated[str, about("CodeBuild's project, which runs the builds")]
    bucket: Annotated[str, about("S3: code and logs")]
    registry: Annotated[str, about("where images go: host[:port][/prefix]")]
    build_key_secret: Annotated[str, about("Secrets Manager: what the secrets of builds' attempts are made from")]
    registry_kind: Annotated[Literal["ecr", "plain"], about("plain: http, for one machine only")]
    registry_login: Annotated[str, about("user:password of a plain registry, if any")] = ""
    registry_role: Annotated[str, about("IAM role; a build's login to ECR is a narrowed session of it")] = ""
    docker_hub_secret: Annotated[str, about("Secrets Manager: JSON with `username` and `token`; empty: none")] = ""
    api_url: Annotated[str, about("URL of the API with its prefix, for builds; set where they are started")] = ""
    broker_function: Annotated[str, about("Lambda function that answers builds; only for the function of the API")] = ""
    movable_tags: Annotated[
        str, about("`image_tags` that builds may name: at most five patterns, none for a number")
    ] = "latest,v*,main,dev*,release-*"
    public_registries: Annotated[
        str, about("hosts of registries that are asked, without a login, for digests of base images: `host host …`")
    ] = "docker.io ghcr.io quay.io public.ecr.aws mcr.microsoft.com"
    private_git_hosts: Annotated[str, about("git hosts that may have private addresses: `host host …`")] = ""
    private_hook_hosts: Annotated[str, about("hosts of webhooks that may be private and use http: `host host …`")] = ""
    backend: Annotated[Literal["codebuild", "eks"], about("where builds run that do not name a backend")] = "codebuild"
    build_architecture: Annotated[Literal["x86_64", "arm64"], about("of CodeBuild's machines and images")] = "x86_64"
    buildkit_image: Annotated[str, about("BuildKit on CodeBuild, by digest")] = BUILDKIT["userns"]
    eks: EksSettings | None = None  # the cluster that runs builds as well
    watch_every_seconds: Annotated[int, about("seconds between polls of builds on EKS, during a tick")] = 10
    watch_seconds: Annotated[int, about("seconds that a tick polls such builds; a tick starts each minute")] = 55
    event_bus: Annotated[str, about("EventBridge: the bus to which each status of a build is sent; empty: none")] = ""
    automation_user: Annotated[str, about("user that runs requests from the queue; empty: none is run")] = ""
    reply_queues: Annotated[str, about("queues that requests may name in `reply_to`: `ARN ARN …`; empty: none")] = ""
    build_timeout_minutes: Annotated[int, about("a build that runs longer fails", ge=5, le=2160)] = 60
    queue_timeout_minutes: Annotated[int, about("a build that has not started by then fails", ge=5, le=480)] = 60
    wait_timeout_minutes: Annotated[int, about("a build that waits longer for its turn fails", ge=5)] = 1_440
    max_running_builds: Annotated[
        int, about("builds that run at once; 0: no limit, or 500 if another limit is set", ge=0, le=MAX_RUNNING)
    ] = 0
    max_running_builds_per_owner: Annotated[int, about("of these, of an owner's projects; 0: no limit", ge=0)] = 0
    max_running_builds_per_project: Annotated[int, about("of these, of a project; 0: no limit", ge=0)] = 0
    max_running_builds_of: Annotated[
        dict[str, Annotated[int, msgspec.Meta(ge=0)]],
        about("other limits of some owners and projects: `owner=n,owner/project=n,…`"),
    ] = field(default_factory=dict)
    look_again_seconds: Annotated[int, about("a build is checked after so many seconds without an event", ge=60)] = 300
    max_cpu: Annotated[int, about("cores that one build may ask for", ge=1)] = 16
    max_memory_mib: Annotated[int, about("memory that one build may ask for, in MiB", ge=1_024)] = 65_536
    max_disk_mib: Annotated[int, about("disk that one build may ask for, in MiB", ge=1_024)] = 102_400
    token_lifetime_days: Annotated[int, about("a new token is valid for so many days", ge=1)] = 30
    token_renewal_days: Annotated[int, about("with one token, a user can make others for so many days", ge=1)] = 365
    projects_are_public: Annotated[bool, about("whether all users may read a new project, its builds and logs")] = True
    price_per_minute: Annotated[float, about("price of a minute of a build, for `estimated_cost`; 0: none", ge=0)] = 0.0
    requests_per_minute: Annotated[int, about("approximate limit for each user; 0: none", ge=0)] = 600
    purge_after_days: Annotated[int, about("archived builds and projects are purged after so many days", ge=1)] = 7
    keep_images: Annotated[int, about("how many of a project's newest images stay; 0: all", ge=0, le=100_000)] = 0
    keep_image_days: Annotated[int, about("or how many days an image stays; 0: for ever", ge=0)] = 0
    keep_image_tags: Annotated[str, about("images with a tag that begins with one of these stay: `a b`")] = "release"
    reported_log_group: Annotated[str, about("log group for builds that run elsewhere")] = "/slipway/reported"
    secret_prefix: Annotated[str, about("SSM: where projects' secrets are")] = "/slipway/local"  # noqa: S105
    account_memory_seconds: Annotated[int, about("how many seconds a process caches users and tokens")] = 30
    max_answer_bytes: Annotated[int, about("of the rows or log lines of an answer, as JSON")] = 5_900_000
    max_stored_log_bytes: Annotated[int, about("of a log; the rest is cut, with a mark", ge=1_000_000)] = 100_000_000
    max_upload_bytes: Annotated[int, about("of an archive in storage; polyaxon-cli's limit")] = 150 * 1024**2
    max_inline_upload_bytes: Annotated[int, about("of an archive in a request; Lambda takes 6 MB of base64")] = (
        4_500_000
    )
    max_body_bytes: Annotated[int, about("of a JSON body; its texts must fit a DynamoDB item of 400 KB")] = 300_000

    def __repr__(self) -> str:
        return "Settings()"  # without a registry's password

    def __post_init__(self) -> None:
        if self.backend not in self.executors:
            raise ValueError(f"SLIPWAY_BACKEND is {self.backend}; offered: {', '.join(self.executors)}.")
        if self.keep_images and self.keep_image_days:
            raise ValueError("SLIPWAY_KEEP_IMAGES or SLIPWAY_KEEP_IMAGE_DAYS: ECR keeps by count or by age, not both.")
        if len(self.tag_patterns) > 5 or not all(map(_MOVABLE_TAG.fullmatch, self.tag_patterns)):
            rule = "Expected at most five patterns with a letter or `.`, `_`, `-`, and at most two `*`"
            raise ValueError(f"SLIPWAY_MOVABLE_TAGS is {self.movable_tags!r}: {rule}.")

    @property
    def platforms(self) -> dict[str, str]:
        """The executors of this deployment, with the platform of their images."""
        codebuild = {"codebuild": f"linux/{'arm64' if self.build_architecture == 'arm64' else 'amd64'}"}
        return codebuild | ({"eks": f"linux/{self.eks.architecture}"} if self.eks else {})

    @property
    def executors(self) -> tuple[str, ...]:
        return tuple(self.platforms)

    @property
    def limits_builds(self) -> bool:
        """Whether any limit on the number of builds that run at once is set."""
        by_default = self.max_running_builds, self.max_running_builds_per_owner, self.max_running_builds_per_project
        return any(by_default) or bool(self.max_running_builds_of)

    def max_running_of(self, scope: str) -> int:
        """How many builds of an owner, of a project (`owner/name`), or in all (empty) may run at once; 0: no limit."""
        if not scope:
            return self.max_running_builds or MAX_RUNNING
        default = self.max_running_builds_per_project if "/" in scope else self.max_running_builds_per_owner
        return self.max_running_builds_of.get(scope, default)

    @property
    def tag_patterns(self) -> list[str]:
        return [pattern.strip() for pattern in self.movable_tags.split(",")]

    @property
    def plain_http(self) -> bool:
        """Whether the registry is a plain one: http, and a fixed login or none; only on one machine."""
        return self.registry_kind == "plain"


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises KeyError with the names of missing variables, and ValueError for a variable
    with a wrong value."""
    given = _given(Settings, "SLIPWAY_", environment)
    eks = _given(EksSettings, "SLIPWAY_EKS_", environment)
    required = [each.name for each in msgspec.structs.fields(Settings) if each.required]
    if missing := [f"SLIPWAY_{name.upper()}" for name in required if name not in given]:
        raise KeyError(f"Set {', '.join(missing)} in the environment.")
    if "cluster" in eks:
        if keys := eks.get("node_keys"):
            eks["node_keys"] = [key.strip() for key in keys.split(",")]
        if "node_selector" in eks:
            eks["node_selector"] = _pairs("SLIPWAY_EKS_NODE_SELECTOR", eks["node_selector"])
        given["eks"] = eks
    if "max_running_builds_of" in given:
        given["max_running_builds_of"] = _pairs("SLIPWAY_MAX_RUNNING_BUILDS_OF", given["max_running_builds_of"])
    try:
        return msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as exc:
        why, _, where = str(exc).rstrip("`").partition(" - at `$.")
        if not where:  # raised by `__post_init__`
            raise ValueError(why) from exc
        variable = f"SLIPWAY_{where.partition('[')[0].replace('.', '_').upper()}"
        raise ValueError(f"{variable} is {environment[variable]!r}: {why}.") from exc


def _given(settings: type[Struct], prefix: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The texts of the settings that are set, by field."""
    names = [name for name in settings.__struct_fields__ if name != "eks"]  # which has variables of its own
    return {name: text for name in names if (text := environment.get(f"{prefix}{name.upper()}"))}


def _pairs(variable: str, text: str) -> dict[str, str]:
    """The pairs of `key=value,…`. Raises ValueError."""
    pairs = [pair.strip().partition("=") for pair in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError(f"{variable} is {text!r}: Expected `key=value,…`.")
    return {key: value for key, _, value in pairs}


def api_prefix(environment: Mapping[str, str] = os.environ) -> str:
    """The prefix of every route. Not in Settings, because routes are declared before the settings are read."""
    return environment.get("SLIPWAY_API_PREFIX", "/api/v1")


@cache
def version() -> str:
    """The version that was written when this code was packaged or started: a commit, as `git describe` names it."""
    return VERSION_FILE.read_text() if VERSION_FILE.exists() else UNKNOWN_VERSION


def stack(environment: Mapping[str, str] = os.environ) -> str:
    """The deployment's name, a dimension of its metrics."""
    return environment.get("SLIPWAY_STACK", "")


def has_own_s3(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether S3 is not that of AWS: the SDK reads its address from these variables."""
    return any(environment.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))


def in_lambda(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a Lambda function."""
    return "AWS_LAMBDA_FUNCTION_NAME" in environment


def is_traced(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether X-Ray samples this invocation: Lambda sets `_X_AMZN_TRACE_ID` anew for each invocation."""
    return in_lambda(environment) and "Sampled=1" in environment.get("_X_AMZN_TRACE_ID", "")
