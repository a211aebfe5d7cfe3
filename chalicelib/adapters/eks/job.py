"""A build's Job and its Secrets, as objects of the Kubernetes API.

A Job has two containers that share the folder `/work`: `fetch` puts the source there, by the same steps that
CodeBuild runs; `build` runs BuildKit on it. The Job's name is made from build and attempt, so that a repeated
submission finds it. Secrets are created after the Job, because it owns them; its pod waits for them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from chalicelib.adapters import steps
from chalicelib.domain.build import Build, Source
from chalicelib.domain.environment import Placement
from chalicelib.domain.repositories import cache_repository
from chalicelib.settings import BUILDKIT, EksSettings

Json = dict[str, Any]

_MANAGED = {"app.kubernetes.io/managed-by": "slipway"}
SELECTOR = "app.kubernetes.io/managed-by=slipway"
TAINT = "slipway/builds"  # of nodes that are reserved for builds
ATTEMPT, UUID = "slipway/attempt", "slipway/uuid"  # labels
BUILD, FETCHES, LINKED = "slipway/build", "slipway/fetches", "slipway/linked-at"  # annotations

JOB_TTL_SECONDS = 3600  # a Job stays so long after its end, for its log to be shipped and for late repeats
_REQUESTS = {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi"}
_LIMITS = {"memory": "4Gi", "ephemeral-storage": "20Gi"}
_DEFAULT_REQUEST_MIB, _DEFAULT_LIMIT_MIB, _DEFAULT_REQUEST_CPU = 2048, 4096, 1


def job_name(build: Build) -> str:
    """At most 63 lower-case letters, digits and hyphens, as names of Jobs must be."""
    return f"slipway-{build.uuid}-{build.attempt}"


def job_of(
    build: Build,
    eks: EksSettings,
    *,
    plain_http: bool,
    has_login: bool,
    queue_minutes: int,
    build_minutes: int,
) -> Json:
    """The Job of a build's current attempt. The registry speaks http if `plain_http`; with `has_login` the
    Secret with its login is mounted."""
    placement = build.placement or Placement()
    fetches = ["Dockerfile", *(["code.tar.gz"] if build.source and build.source.code_sha256 else [])]
    labels = {**_MANAGED, UUID: build.uuid, ATTEMPT: str(build.attempt)}
    annotations = {BUILD: str(build.key), FETCHES: " ".join(fetches)}
    name = job_name(build)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": eks.namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "backoffLimit": 0,  # we count attempts ourselves
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": (queue_minutes + build_minutes) * 60,
            "ttlSecondsAfterFinished": JOB_TTL_SECONDS,
            "template": {
                "metadata": {
                    "labels": {**labels, **placement.labels},
                    "annotations": {**annotations, **placement.annotations},
                },
                "spec": {
                    **_pod(placement, eks),
                    "activeDeadlineSeconds": build_minutes * 60,  # from when it has a node
                    "initContainers": [_fetch_container(build, eks, fetches)],
                    "containers": [_build_container(build, eks, plain_http, has_login)],
                    "volumes": _volumes(name, has_login),
                },
            },
        },
    }


def secrets_of(job: Json, links: Mapping[str, str], login: str | None) -> list[Json]:
    """What the Job's pod must not have in its description: links to the source by file name, and the login
    of the registry, if any, as Docker's configuration. The cluster deletes them with the Job."""
    secrets = [_secret(job, "source", "Opaque", links)]
    if login is not None:
        kind = "kubernetes.io/dockerconfigjson"
        secrets.append(_secret(job, "registry", kind, {".dockerconfigjson": login}))
    return secrets


def _secret(job: Json, suffix: str, kind: str, texts: Mapping[str, str]) -> Json:
    metadata = job["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"{metadata['name']}-{suffix}",
            "namespace": metadata["namespace"],
            "labels": dict(_MANAGED),
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
            ],
        },
        "type": kind,
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()},
    }


def image_of(job: Json) -> str:
    """Where a Job of `job_of` pushes its image."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return next(str(each["value"]) for each in container["env"] if each["name"] == "SLIPWAY_IMAGE")


def _pod(placement: Placement, eks: EksSettings) -> Json:
    """A pod's description but for what it runs."""
    users = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    tolerations = [{"key": TAINT, "operator": "Exists", "effect": "NoSchedule"}, *placement.tolerations]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"securityContext": users} if _is_rootless(eks) else {"hostUsers": False}),
        "nodeSelector": {"kubernetes.io/os": "linux", **placement.node_selector, **eks.node_selector},
        "tolerations": tolerations,
    }


def _fetch_container(build: Build, eks: EksSettings, fetches: Sequence[str]) -> Json:
    source = build.source or Source()
    return {
        "name": "fetch",
        "image": _buildkit_image(eks),
        "command": ["sh", "-c", fetch_script(), "fetch", *fetches],
        "workingDir": "/work",
        "env": _env(
            SLIPWAY_LINKS="/run/links",
            SLIPWAY_NONCE=build.nonce,
            SLIPWAY_GIT_URL=source.git_url or "",
            SLIPWAY_GIT_REVISION=source.git_revision or "",
            SLIPWAY_CONTEXT=source.context or "",
            SLIPWAY_DOCKERFILE=source.dockerfile or "",
            **steps.VARIABLES,
        ),
        "resources": resources_of(None),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [_WORK, {"name": "links", "mountPath": "/run/links", "readOnly": True}],
    }


def _build_container(build: Build, eks: EksSettings, plain_http: bool, has_login: bool) -> Json:
    rootless = _is_rootless(eks)
    state = "/home/user/.local/share/buildkit" if rootless else "/var/lib/buildkit"
    login = {"name": "registry", "mountPath": "/run/registry", "readOnly": True}
    arguments = buildctl_arguments(build, plain_http=plain_http)
    return {
        "name": "build",
        "image": _buildkit_image(eks),
        "command": ["sh", "-c", steps.step("run_buildkit"), "build", *arguments],
        "workingDir": "/work",
        "env": _env(
            SLIPWAY_IMAGE=build.image,
            SLIPWAY_NONCE=build.nonce,
            **({"DOCKER_CONFIG": "/run/registry"} if has_login else {}),
            **({"BUILDKITD_FLAGS": "--oci-worker-no-process-sandbox"} if rootless else {}),
        ),
        "resources": resources_of(build.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _ROOTLESS if rootless else {"privileged": True},  # within the user namespace
        "volumeMounts": [_WORK, {"name": "state", "mountPath": state}, *([login] if has_login else [])],
    }


def _volumes(name: str, has_login: bool) -> list[Json]:
    items = [{"key": ".dockerconfigjson", "path": "config.json"}]
    login = {"name": "registry", "secret": {"secretName": f"{name}-registry", "items": items}}
    return [
        {"name": "work", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "links", "secret": {"secretName": f"{name}-source"}},
        *([login] if has_login else []),
    ]


def _is_rootless(eks: EksSettings) -> bool:
    return eks.profile == "rootless"


def _buildkit_image(eks: EksSettings) -> str:
    return eks.image or BUILDKIT[eks.profile]


_WORK: Json = {"name": "work", "mountPath": "/work"}
_ROOTLESS: Json = {
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "seccompProfile": {"type": "Unconfined"},
    "appArmorProfile": {"type": "Unconfined"},
}


def resources_of(wanted: Mapping[str, Any] | None) -> Json:
    """Requests and limits as quantities, from a spec's numbers (cores, MiB); zero means not given. Where
    only one of the two is given, the other follows so that no request exceeds its limit."""
    requests, limits = dict(_REQUESTS), dict(_LIMITS)
    cpu, memory = (wanted or {}).get("cpu") or {}, (wanted or {}).get("memory") or {}
    if cores := cpu.get("limits"):
        limits["cpu"] = _cores(cores)
    if cores := cpu.get("requests") or min(cpu.get("limits") or math.inf, _DEFAULT_REQUEST_CPU):
        requests["cpu"] = _cores(cores)
    ask, most = memory.get("requests") or 0, memory.get("limits") or 0
    if ask or most:
        limits["memory"] = _mebibytes(most or max(ask, _DEFAULT_LIMIT_MIB))
        requests["memory"] = _mebibytes(ask or min(most, _DEFAULT_REQUEST_MIB))
    return {"requests": requests, "limits": limits}


def _cores(amount: float) -> str:
    thousandths = max(math.ceil(amount * 1000), 1)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


def _mebibytes(amount: float) -> str:
    return f"{math.ceil(amount)}Mi"


def buildctl_arguments(build: Build, *, plain_http: bool) -> list[str]:
    """The arguments of `buildctl build`."""
    plain = ",registry.insecure=true" if plain_http else ""
    cache = f"type=registry,ref={cache_repository(build.image)}:layers{plain}"
    options = "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true"
    return [
        *("--progress", "plain", "--frontend", "dockerfile.v0"),
        *("--local", "context=/work", "--local", "dockerfile=/work"),
        *(["--no-cache"] if build.nocache else []),
        *("--import-cache", cache, "--export-cache", f"{cache},{options}"),
        *("--output", f"type=image,name={build.image},push=true{plain}"),
    ]


def fetch_script() -> str:
    """Fetches the files named by its arguments, then prepares code and Dockerfile as CodeBuild does."""
    return "\n".join(map(steps.step, ("fetch_by_links", "fetch_code", "complete_dockerfile")))


def _env(**variables: str) -> list[Json]:
    return [{"name": name, "value": value} for name, value in variables.items()]
