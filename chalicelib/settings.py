"""The settings, the only reader of the environment. Deployed, the template sets them; the one-machine
stack sets the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# BuildKit's images by the profiles of EksSettings, pinned; builds on CodeBuild use the first. `userns` needs
# user namespaces for pods (on by default since Kubernetes 1.33): root in there is nobody outside. `rootless`
# needs nodes where any user may make user namespaces.
BUILDKIT = {
    "userns": "docker.io/moby/buildkit:v0.29.0"
    "@sha256:0039c1d47e8748b5afea56f4e85f14febaf34452bd99d9552d2daa82262b5cc5",
    "rootless": "docker.io/moby/buildkit:v0.33.0-rootless"
    "@sha256:80b15f0735e87bab7bf59ec4d695dfb4a7cfb25521cf56dc75d6f256285b63ef",
}


@dataclass(frozen=True, slots=True)
class EksSettings:
    """A cluster that runs builds. Each is SLIPWAY_EKS_<NAME> in the environment."""

    cluster: str  # its name in EKS; without it there is none
    endpoint: str = ""  # of its API; else EKS is asked
    certificate: str = ""  # of its authority, PEM in base64; else EKS is asked
    namespace: str = "slipway-builds"
    profile: str = "userns"  # or rootless
    image: str = ""  # BuildKit's, by digest; else the profile's of BUILDKIT
    cache_repository: str = ""  # where layers are cached, with tags that can be moved; else nowhere
    registry_role: str = ""  # whose rights, narrowed to one repository, a build's login has (ECR)
    log_group: str = ""  # else Container Insights' of the cluster
    node_selector: Mapping[str, str] = field(default_factory=dict)  # of all builds: `key=value,…`
    node_keys: tuple[str, ...] = ()  # keys that specs may use in node_selector and tolerations: `key,…`

    def __post_init__(self) -> None:
        if self.profile not in BUILDKIT:
            raise ValueError(f"SLIPWAY_EKS_PROFILE is {self.profile}; expected {' or '.join(BUILDKIT)}.")


@dataclass(frozen=True, slots=True)
class Settings:
    table: str  # DynamoDB's table
    dispatch_queue_url: str  # SQS: builds that need attention
    log_queue_url: str  # SQS: builds that have ended, whose log is to be kept
    dead_letter_queue_url: str  # SQS: requests that can never succeed
    codebuild_project: str  # runs the builds
    bucket: str  # S3: sources of builds
    registry: str  # where images go: host[:port][/prefix]
    registry_kind: str  # ecr | plain (`plain_http`)
    registry_login: str = field(default="", repr=False)  # user:password, of a plain one; empty: none
    backend: str = "codebuild"  # where builds run that name no executor: codebuild | eks
    buildkit_image: str = BUILDKIT["userns"]  # BuildKit's on CodeBuild
    eks: EksSettings | None = None  # the cluster that runs builds as well
    watch_every_seconds: int = 10  # builds of which no events tell, while a tick lasts
    watch_seconds: int = 55  # how long a tick lasts that has such builds to watch; schedules come each minute
    automation_user: str = ""  # who requests of the queue act as; without one they wait
    api_prefix: str = "/api/v1"  # "/v1" where the API stage is called `api`
    build_timeout_minutes: int = 60  # CodeBuild takes 5 to 2160
    queue_timeout_minutes: int = 60  # CodeBuild takes 5 to 480
    wait_timeout_minutes: int = 1_440  # for a build's turn, while its executor takes no more builds
    look_again_seconds: int = 300  # after this long without news, a schedule looks for itself
    token_lifetime_days: int = 30
    price_per_minute: float = 0.0  # of a build, for its estimated cost; 0: unknown
    requests_per_minute: int = 0  # of one user, roughly; 0: no limit
    purge_after_days: int = 7  # archived builds and projects are purged then
    reported_log_group: str = "/slipway/reported"  # CloudWatch: lines of builds that run elsewhere
    account_memory_seconds: int = 30  # how long a process may trust what it knows of users and tokens
    max_answer_bytes: int = 5_900_000  # of the rows or log lines in an answer, as `domain.answer` counts them
    max_upload_bytes: int = 150 * 1024**2  # of an archive uploaded to storage, as the command line caps it
    max_inline_upload_bytes: int = 4_500_000  # of an archive in a request: Lambda takes 6 MB of base64
    max_body_bytes: int = 300_000  # of a JSON request; the stored texts must fit DynamoDB's 400 KB item

    def __post_init__(self) -> None:
        if self.backend not in self.executors:
            raise ValueError(f"SLIPWAY_BACKEND is {self.backend}; offered: {', '.join(self.executors)}.")

    @property
    def executors(self) -> tuple[str, ...]:
        """Where builds can run here."""
        return ("codebuild", "eks") if self.eks else ("codebuild",)

    @property
    def plain_http(self) -> bool:
        """Whether the registry speaks http and has a fixed login or none: only on one machine."""
        return self.registry_kind == "plain"


_REQUIRED = {
    "table": "SLIPWAY_TABLE",
    "dispatch_queue_url": "SLIPWAY_DISPATCH_QUEUE_URL",
    "log_queue_url": "SLIPWAY_LOG_QUEUE_URL",
    "dead_letter_queue_url": "SLIPWAY_DEAD_LETTER_QUEUE_URL",
    "codebuild_project": "SLIPWAY_CODEBUILD_PROJECT",
    "bucket": "SLIPWAY_BUCKET",
    "registry": "SLIPWAY_REGISTRY",
    "registry_kind": "SLIPWAY_REGISTRY_KIND",
}


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises KeyError naming the variables that are missing, ValueError
    for a number that is none."""
    missing = [variable for variable in _REQUIRED.values() if variable not in environment]
    if missing:
        raise KeyError(f"Set {', '.join(missing)} in the environment.")
    values: dict[str, str | int | float] = {
        name: environment[variable] for name, variable in _REQUIRED.items()
    }
    if backend := environment.get("SLIPWAY_BACKEND"):
        values["backend"] = backend
    for name in (
        "max_inline_upload_bytes",
        "build_timeout_minutes",
        "queue_timeout_minutes",
        "wait_timeout_minutes",
        "look_again_seconds",
        "token_lifetime_days",
        "requests_per_minute",
        "purge_after_days",
        "watch_every_seconds",
        "watch_seconds",
    ):
        if text := environment.get(f"SLIPWAY_{name.upper()}"):
            values[name] = int(text)
    for name in ("automation_user", "buildkit_image", "reported_log_group"):
        if text := environment.get(f"SLIPWAY_{name.upper()}"):
            values[name] = text
    if values["registry_kind"] == "plain":
        values["registry_login"] = environment.get("SLIPWAY_REGISTRY_LOGIN", "")
    if price := environment.get("SLIPWAY_PRICE_PER_MINUTE"):
        values["price_per_minute"] = float(price)
    values["api_prefix"] = api_prefix(environment)
    return Settings(eks=_eks(environment), **values)  # type: ignore[arg-type]


def _eks(environment: Mapping[str, str]) -> EksSettings | None:
    given: dict[str, Any] = {
        name: text
        for name in EksSettings.__dataclass_fields__
        if (text := environment.get(f"SLIPWAY_EKS_{name.upper()}"))
    }
    if "cluster" not in given:
        return None
    if keys := given.get("node_keys"):
        given["node_keys"] = tuple(key.strip() for key in keys.split(","))
    if selector := given.get("node_selector"):
        given["node_selector"] = dict(pair.strip().split("=", 1) for pair in selector.split(","))
    return EksSettings(**given)


def api_prefix(environment: Mapping[str, str] = os.environ) -> str:
    """The prefix of every route; apart, because routes are declared before anything is wired."""
    return environment.get("SLIPWAY_API_PREFIX", "/api/v1")


def stack(environment: Mapping[str, str] = os.environ) -> str:
    """The deployment's name, by which its metrics are told from another's."""
    return environment.get("SLIPWAY_STACK", "")


def has_own_s3(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether S3 is not Amazon's: the SDK reads its address from these variables."""
    return any(environment.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))


def in_lambda(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a function of Lambda's."""
    return "AWS_LAMBDA_FUNCTION_NAME" in environment


def is_traced(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether X-Ray samples this invocation; Lambda's runtime says so anew for each."""
    return in_lambda(environment) and "Sampled=1" in environment.get("_X_AMZN_TRACE_ID", "")
