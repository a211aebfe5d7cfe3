"""A build's Job and its Secret, as objects of the Kubernetes API.

A Job has two containers that share the folder `/work`: `fetch` puts the source there, by the same steps that
CodeBuild runs; `build` runs BuildKit on it. The Job's name is made from build and attempt, so a repeated submission
finds it. The Secret has the secret of the attempt. It is created after the Job, which owns it; the pod waits for it.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any

from chalicelib.adapters import steps
from chalicelib.domain.build import Build
from chalicelib.domain.environment import Placement, amounts
from chalicelib.domain.repositories import cache_repository
from chalicelib.settings import BUILDKIT, EksSettings, Settings

Json = dict[str, Any]

_MANAGED = {"app.kubernetes.io/managed-by": "slipway"}
SELECTOR = "app.kubernetes.io/managed-by=slipway"
TAINT = "slipway/builds"  # of nodes that are reserved for builds
ATTEMPT, UUID = "slipway/attempt", "slipway/uuid"  # labels
BUILD, HAS_SECRET = "slipway/build", "slipway/has-secret"  # annotations

JOB_TTL_SECONDS = 3600  # how long a Job stays after its end: its log is shipped, and late repeats find it
# Of a spec's cores and MiB: the name in Kubernetes, the factor and its unit, the default request and limit (0: none).
_AMOUNTS = {
    "cpu": ("cpu", 1_000, "m", 1, 0),
    "memory": ("memory", 1, "Mi", 2_048, 4_096),
    "disk": ("ephemeral-storage", 1, "Mi", 10_240, 20_480),
}
# Autoscalers must not move a pod: its build would begin again.
_STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def job_name(build: Build) -> str:
    """At most 63 lower-case letters, digits and hyphens, as names of Jobs must be."""
    return f"slipway-{build.uuid}-{build.attempt}"


def job_of(build: Build, eks: EksSettings, settings: Settings) -> Json:
    """The Job of a build's current attempt."""
    build_minutes = settings.build_timeout_minutes
    placement = build.placement or Placement()
    labels = {**_MANAGED, UUID: build.uuid, ATTEMPT: str(build.attempt)}
    annotations = {BUILD: str(build.key)}
    variables = {
        **steps.variables_of(build, settings.api_url),
        "SLIPWAY_MEMORY": "/run/slipway",
        "SLIPWAY_SECRET_FILE": "/run/secret/secret",
    }
    name = job_name(build)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": eks.namespace, "labels": labels, "annotations": annotations},
        "spec": {
            "backoffLimit": 0,  # we count attempts ourselves
            "activeDeadlineSeconds": (settings.queue_timeout_minutes + build_minutes) * 60,
            "ttlSecondsAfterFinished": JOB_TTL_SECONDS,
            "template": {
                "metadata": {
                    "labels": {**labels, **placement.labels},
                    "annotations": {**annotations, **_STAYS, **placement.annotations},
                },
                "spec": {
                    **_pod(placement, eks),
                    "activeDeadlineSeconds": build_minutes * 60,  # counts from when the pod has a node
                    "initContainers": [_fetch_container(eks, variables)],
                    "containers": [_build_container(build, eks, settings.plain_http, variables)],
                    "volumes": [
                        {"name": "work", "emptyDir": {}},
                        {"name": "state", "emptyDir": {}},
                        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
                        {"name": "secret", "secret": {"secretName": f"{name}-secret"}},
                    ],
                },
            },
        },
    }


def secret_of(job: Json, secret: str) -> Json:
    """The Secret of a Job, with the secret of the attempt. The cluster deletes it with the Job."""
    metadata = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": f"{metadata['name']}-secret",
            "namespace": metadata["namespace"],
            "labels": dict(_MANAGED),
            "ownerReferences": [owner],
        },
        "type": "Opaque",
        "data": {"secret": base64.b64encode(secret.encode()).decode()},
    }


def _pod(placement: Placement, eks: EksSettings) -> Json:
    """The pod's specification without containers and volumes."""
    users = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    tolerations = [{"key": TAINT, "operator": "Exists", "effect": "NoSchedule"}, *placement.tolerations]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"securityContext": users} if eks.profile == "rootless" else {"hostUsers": False}),
        "nodeSelector": {
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": eks.architecture,
            **placement.node_selector,
            **eks.node_selector,
        },
        "tolerations": tolerations,
    }


def _fetch_container(eks: EksSettings, variables: Mapping[str, str]) -> Json:
    return {
        **_container("fetch", eks, {**variables, **steps.VARIABLES}, None),
        "command": ["sh", "-c", steps.step("prepare_in_pod")],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": _MOUNTS,
    }


def _build_container(build: Build, eks: EksSettings, plain_http: bool, variables: Mapping[str, str]) -> Json:
    rootless = eks.profile == "rootless"
    state = "/home/user/.local/share/buildkit" if rootless else "/var/lib/buildkit"
    plain = ",registry.insecure=true" if plain_http else ""
    own = {
        "DOCKER_CONFIG": variables["SLIPWAY_MEMORY"],
        "BUILDKIT_STEP_LOG_MAX_SIZE": "-1",  # the default cuts a step's log at 2 MiB
        "BUILDKIT_STEP_LOG_MAX_SPEED": "-1",
        "SLIPWAY_OUTPUT": f"type=image,name={build.image},push=true{plain}",
        "SLIPWAY_CACHE": f"type=registry,ref={cache_repository(build.image)}:layers{plain}",
        "SLIPWAY_CACHE_OPTIONS": "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true",
        "BUILDCTL_CONNECT_RETRIES_MAX": "100",  # waits for its start; the default of 10 is too few on slow nodes
        **({"BUILDKITD_FLAGS": "--oci-worker-no-process-sandbox"} if rootless else {}),
    }
    return {
        **_container("build", eks, {**variables, **own}, build.resources),
        "command": ["sh", f"{variables['SLIPWAY_MEMORY']}/run_buildkit", *_BUILDCTL],
        "securityContext": _ROOTLESS if rootless else {"privileged": True},  # within the user namespace
        "volumeMounts": [*_MOUNTS, {"name": "state", "mountPath": state}],
    }


def _container(name: str, eks: EksSettings, variables: Mapping[str, str], resources: Mapping[str, Any] | None) -> Json:
    """What both containers have. `$` is doubled in values, because Kubernetes expands `$(NAME)` and turns `$$` into
    `$`."""
    return {
        "name": name,
        "image": eks.image or BUILDKIT[eks.profile],
        "workingDir": "/work",
        "env": [{"name": name, "value": value.replace("$", "$$")} for name, value in variables.items()],
        "resources": resources_of(resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


_MOUNTS: list[Json] = [
    {"name": "work", "mountPath": "/work"},
    {"name": "memory", "mountPath": "/run/slipway"},
    {"name": "secret", "mountPath": "/run/secret", "readOnly": True},
]
_BUILDCTL = (
    *("--progress", "plain", "--frontend", "dockerfile.v0"),
    *("--local", "context=/work", "--local", "dockerfile=/work"),
)
_ROOTLESS: Json = {
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "seccompProfile": {"type": "Unconfined"},
    "appArmorProfile": {"type": "Unconfined"},
}


def resources_of(wanted: Mapping[str, Any] | None) -> Json:
    """Quantities of requests and limits, from a spec's numbers (cores, MiB); 0 means not given. If only the request or
    only the limit is given, the default of the other is adjusted, so that no request exceeds its limit."""
    requests, limits = {}, {}
    for kind, (name, factor, unit, request, limit) in _AMOUNTS.items():
        ask, most = amounts(wanted, kind)
        requests[name] = f"{math.ceil((ask or min(most or request, request)) * factor)}{unit}"
        if most or limit:
            limits[name] = f"{math.ceil((most or max(ask, limit)) * factor)}{unit}"
    return {"requests": requests, "limits": limits}
