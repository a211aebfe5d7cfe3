"""The settings, the only reader of the environment. Deployed, the template sets them; the one-machine
stack sets the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    table: str  # DynamoDB's table
    dispatch_queue_url: str  # SQS: builds that need attention
    dead_letter_queue_url: str  # SQS: requests that can never succeed
    codebuild_project: str  # runs the builds
    bucket: str  # S3: sources of builds
    registry: str  # where images go: host[:port][/prefix]
    registry_kind: str  # ecr | plain (http, no login: only for one machine)
    backend: str = "codebuild"  # where builds run that name no executor: codebuild | eks
    eks_cluster: str = ""  # the EKS cluster that runs builds as well; empty: none does
    automation_user: str = ""  # who requests of the queue act as; without one they wait
    api_prefix: str = "/api/v1"  # "/v1" where the API stage is called `api`
    build_timeout_minutes: int = 60  # CodeBuild takes 5 to 2160
    queue_timeout_minutes: int = 60  # CodeBuild takes 5 to 480
    look_again_seconds: int = 300  # after this long without news, a schedule looks for itself
    token_lifetime_days: int = 30
    purge_after_days: int = 7  # archived builds and projects are purged then
    reported_log_group: str = "/slipway/reported"  # CloudWatch: lines of builds that run elsewhere
    account_memory_seconds: int = 30  # how long a process may trust what it knows of users and tokens
    max_log_bytes: int = 5_000_000  # of a log in one response; API Gateway and Lambda end near 6 MB
    max_upload_bytes: int = 150 * 1024**2  # of an archive uploaded to storage, as the command line caps it
    max_inline_upload_bytes: int = 4_500_000  # of an archive in a request: Lambda takes 6 MB of base64
    max_body_bytes: int = 300_000  # of a JSON request; the stored texts must fit DynamoDB's 400 KB item

    def __post_init__(self) -> None:
        if self.backend not in self.executors:
            raise ValueError(f"SLIPWAY_BACKEND is {self.backend}; offered: {', '.join(self.executors)}.")

    @property
    def executors(self) -> tuple[str, ...]:
        """Where builds can run here."""
        return ("codebuild", "eks") if self.eks_cluster else ("codebuild",)


_REQUIRED = {
    "table": "SLIPWAY_TABLE",
    "dispatch_queue_url": "SLIPWAY_DISPATCH_QUEUE_URL",
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
    values: dict[str, str | int] = {name: environment[variable] for name, variable in _REQUIRED.items()}
    for name in ("backend", "eks_cluster"):
        if text := environment.get(f"SLIPWAY_{name.upper()}"):
            values[name] = text
    for name in (
        "max_inline_upload_bytes",
        "build_timeout_minutes",
        "queue_timeout_minutes",
        "look_again_seconds",
        "token_lifetime_days",
        "purge_after_days",
    ):
        if text := environment.get(f"SLIPWAY_{name.upper()}"):
            values[name] = int(text)
    for name in ("automation_user", "reported_log_group"):
        if text := environment.get(f"SLIPWAY_{name.upper()}"):
            values[name] = text
    values["api_prefix"] = api_prefix(environment)
    return Settings(**values)  # type: ignore[arg-type]


def api_prefix(environment: Mapping[str, str] = os.environ) -> str:
    """The prefix of every route; apart, because routes are declared before anything is wired."""
    return environment.get("SLIPWAY_API_PREFIX", "/api/v1")
