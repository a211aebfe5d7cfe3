"""Builds as Kubernetes Jobs: first described, by pure functions, then sent.

A Job has two containers that share the folder `/work`: `fetch` lays the source out there, with the very
steps of `buildspec.yml`; `build` runs BuildKit on it. The Job's name is made from build and attempt, so
that whoever submits an attempt again finds it there. Secrets come after the Job, because it owns them; pods
wait for them, and the next observation makes those that are missing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from chalicelib.domain.build import Build, Source, Status
from chalicelib.domain.environment import Placement
from chalicelib.domain.failure import failure_reason
from chalicelib.domain.lifecycle import Observation, Outcome, Trouble, steps_of
from chalicelib.errors import Busy, ExecutorRefused, SlipwayError, Unavailable
from chalicelib.ports import Sources
from chalicelib.settings import BUILDKIT, EksSettings

log = logging.getLogger(__name__)
Json = dict[str, Any]

_MANAGED = {"app.kubernetes.io/managed-by": "slipway"}
SELECTOR = "app.kubernetes.io/managed-by=slipway"
TAINT = "slipway/builds"  # of nodes that are kept for builds
_ATTEMPT, _UUID = "slipway/attempt", "slipway/uuid"  # labels
_BUILD, _FETCHES, _LINKED = "slipway/build", "slipway/fetches", "slipway/linked-at"  # annotations

KEPT_SECONDS = 3600  # after its end a Job stays, for the log to be shipped and for late repeats
LINK_AFTER = timedelta(minutes=10)  # links to the source are renewed while nobody has used them
LINK_AFTER_IN_USE = timedelta(seconds=30)  # and sooner when whoever uses them does not get on
LIST_LIMIT = 500
_REQUESTS = {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi"}
_LIMITS = {"memory": "4Gi", "ephemeral-storage": "20Gi"}
_DEFAULT_REQUEST_MIB, _DEFAULT_LIMIT_MIB, _DEFAULT_REQUEST_CPU = 2048, 4096, 1


class Api(Protocol):
    """The Kubernetes API of one cluster."""

    def call(
        self, method: str, path: str, body: Json | None = None, query: Mapping[str, str] | None = None
    ) -> tuple[int, Json]:
        """Status and body of the answer, whatever the status. Raises Unavailable without one."""


# The objects


def job_name(build: Build) -> str:
    """At most 63 lower-case letters, digits and hyphens, as names of Jobs must be."""
    return f"slipway-{build.uuid}-{build.attempt}"


def job_of(build: Build, eks: EksSettings, *, insecure: bool, queue_minutes: int, build_minutes: int) -> Json:
    """The Job of a build's current attempt. `insecure` says that the registry has no login and no TLS."""
    placement = build.placement or Placement()
    source = build.source or Source()
    fetches = ["Dockerfile", *(["code.tar.gz"] if source.code_sha256 else [])]
    labels = {**_MANAGED, _UUID: build.uuid, _ATTEMPT: str(build.attempt)}
    annotations = {_BUILD: str(build.key), _FETCHES: " ".join(fetches)}
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
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {
                    "labels": {**labels, **placement.labels},
                    "annotations": {**annotations, **placement.annotations},
                },
                "spec": _pod(build, name, source, fetches, placement, eks, insecure, build_minutes * 60),
            },
        },
    }


def secrets_of(job: Json, links: Mapping[str, str], login: str | None) -> list[Json]:
    """What the Job's pod must not have in its description: links to the source, and the login of the
    registry as Docker's configuration. They go when the Job goes."""
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


def _pod(
    build: Build,
    name: str,
    source: Source,
    fetches: Sequence[str],
    placement: Placement,
    eks: EksSettings,
    insecure: bool,
    deadline_seconds: int,
) -> Json:
    rootless = eks.profile == "rootless"
    image = eks.image or BUILDKIT[eks.profile]
    work = {"name": "work", "mountPath": "/work"}
    state = "/home/user/.local/share/buildkit" if rootless else "/var/lib/buildkit"
    login = [] if insecure else [{"name": "registry", "mountPath": "/run/registry", "readOnly": True}]
    fetch = {
        "name": "fetch",
        "image": image,
        "command": ["sh", "-c", fetch_script(), "fetch", *fetches],
        "workingDir": "/work",
        "env": _env(
            SLIPWAY_LINKS="/run/links",
            SLIPWAY_NONCE=build.nonce,
            SLIPWAY_GIT_URL=source.git_url or "",
            SLIPWAY_GIT_REVISION=source.git_revision or "",
            SLIPWAY_CONTEXT=source.context or "",
            SLIPWAY_DOCKERFILE=source.dockerfile or "",
        ),
        "resources": resources_of(None),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [work, {"name": "links", "mountPath": "/run/links", "readOnly": True}],
    }
    run = {
        "name": "build",
        "image": image,
        "command": ["sh", "-c", _BUILD_SCRIPT, "build", *buildctl_arguments(build, eks, insecure=insecure)],
        "workingDir": "/work",
        "env": _env(
            SLIPWAY_IMAGE=build.image,
            SLIPWAY_NONCE=build.nonce,
            **({} if insecure else {"DOCKER_CONFIG": "/run/registry"}),
            **({"BUILDKITD_FLAGS": "--oci-worker-no-process-sandbox"} if rootless else {}),
        ),
        "resources": resources_of(build.resources),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _ROOTLESS if rootless else {"privileged": True},  # within the user namespace
        "volumeMounts": [work, {"name": "state", "mountPath": state}, *login],
    }
    volumes: list[Json] = [
        {"name": "work", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "links", "secret": {"secretName": f"{name}-source"}},
    ]
    if not insecure:
        items = [{"key": ".dockerconfigjson", "path": "config.json"}]
        volumes.append({"name": "registry", "secret": {"secretName": f"{name}-registry", "items": items}})
    users = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    tolerations = [{"key": TAINT, "operator": "Exists", "effect": "NoSchedule"}, *placement.tolerations]
    return {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": deadline_seconds,  # from when it has a node
        "terminationGracePeriodSeconds": 10,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"securityContext": users} if rootless else {"hostUsers": False}),
        "nodeSelector": {"kubernetes.io/os": "linux", **placement.node_selector, **eks.node_selector},
        "tolerations": tolerations,
        "initContainers": [fetch],
        "containers": [run],
        "volumes": volumes,
    }


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


def buildctl_arguments(build: Build, eks: EksSettings, *, insecure: bool) -> list[str]:
    """What `buildctl build` is told."""
    plain = ",registry.insecure=true" if insecure else ""
    cache: list[str] = []
    if eks.cache_repository:
        tag = hashlib.sha256(build.image.rpartition(":")[0].encode()).hexdigest()[:40]
        reference = f"type=registry,ref={eks.cache_repository}:{tag}"
        options = "mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true"
        cache = ["--import-cache", reference, "--export-cache", f"{reference},{options}"]
    return [
        *("--progress", "plain", "--frontend", "dockerfile.v0"),
        *("--local", "context=/work", "--local", "dockerfile=/work"),
        *(["--no-cache"] if build.nocache else []),
        *cache,
        *("--output", f"type=image,name={build.image},push=true{plain}"),
    ]


def fetch_script() -> str:
    """Fetches the files it is given as arguments by the links that are mounted, and lays the code out with
    the steps that CodeBuild runs. What it has to say is shown once, at its end."""
    return "\n".join((_FETCH_SCRIPT, *(shared_step(name) for name in ("fetch_code", "complete_dockerfile"))))


def shared_step(name: str) -> str:
    """The text of one step of `buildspec.yml`."""
    text = Path(__file__).with_name("buildspec.yml").read_text()
    (step,) = re.findall(rf"^ {{6}}- \|\n( {{8}}# {name}\b.*?\n)(?= {{0,7}}\S|\Z)", text, re.S | re.M)
    return textwrap.dedent(step)


# Both scripts run in BuildKit's image: busybox, no bash. `set -e` does the rest, also within the steps.
_FETCH_SCRIPT = """\
set -eu
exec 3>&1 >fetch.log 2>&1
trap 'cat fetch.log >&3' EXIT
for name; do
  left=120
  until wget -q -O "$name" "$(cat "$SLIPWAY_LINKS/$name")"; do
    # the link may have died with the session that signed it: a fresh one will be mounted
    left=$((left - 1))
    [ "$left" -gt 0 ] || { printf 'ERROR: %s could not be fetched\\n' "$name"; exit 1; }
    sleep 5
  done
done
"""
_BUILD_SCRIPT = """\
cat fetch.log
printf 'Building: %s\\n' "$SLIPWAY_IMAGE"
status=0
buildctl-daemonless.sh build "$@" || status=$?
[ "$status" -ne 0 ] || printf 'Pushing finished: %s\\n' "$SLIPWAY_IMAGE"
printf 'slipway-end %s\\n' "$SLIPWAY_NONCE"
exit "$status"
"""


def _env(**variables: str) -> list[Json]:
    return [{"name": name, "value": value} for name, value in variables.items()]


# What became of them


def observation_of(job: Json | None, pod: Json | None, log_group: str) -> Observation | None:
    """What a Job and its pod say; None when both are gone, or the Job is going and has no pod any more.

    The pod alone will do while it runs.
    """
    described = job or pod
    if described is None:
        return None
    metadata = described["metadata"]
    going = job is not None and _is_going(job)
    if pod is None and going:
        return None
    handle = metadata["name"] if job else metadata["labels"]["batch.kubernetes.io/job-name"]
    end = _end(job, pod, going)
    return Observation(
        key=metadata["annotations"][_BUILD],
        attempt=int(metadata["labels"][_ATTEMPT]),
        handle=handle,
        log=_log(pod, log_group),
        steps=steps_of(_stages(metadata, pod)),
        outcome=end.outcome,
        ended_at=end.at,
        reason=end.reason,
        has_own_reason=end.has_own_reason,
        trouble=_trouble(pod) if end.outcome is None and pod else None,
    )


def _stages(metadata: Json, pod: Json | None) -> Iterator[tuple[Status, datetime]]:
    yield Status.SCHEDULED, _time(metadata["creationTimestamp"])
    if pod is None:
        return
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            yield Status.BUILDING, _time(condition["lastTransitionTime"])
    state = _container(pod, "containerStatuses", "build").get("state", {})
    if started := (state.get("running") or state.get("terminated") or {}).get("startedAt"):
        yield Status.RUNNING, _time(started)


@dataclass(frozen=True, slots=True)
class _End:
    outcome: Outcome | None = None
    reason: str | None = None
    at: datetime | None = None
    has_own_reason: bool = True


def _end(job: Json | None, pod: Json | None, going: bool) -> _End:
    status = (pod or {}).get("status", {})
    if status.get("phase") == "Succeeded" or _condition(job, "Complete"):
        state = _container(pod, "containerStatuses", "build").get("state", {})
        at = (state.get("terminated") or {}).get("finishedAt")
        return _End(Outcome.SUCCEEDED, at=at and _time(at))
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget")
    if going:
        return _End()  # somebody wants it gone, and waits until it is
    if failed.get("reason") == "DeadlineExceeded":
        minutes = (job or {})["spec"]["activeDeadlineSeconds"] // 60
        words = f"The build did not end within {minutes} minutes, waiting for a node included."
        return _End(Outcome.TIMED_OUT, words, _time(failed["lastTransitionTime"]))
    has_failed = status.get("phase") == "Failed"
    was_removed = (pod is None and failed) or (pod is not None and has_failed and _is_going(pod))
    if was_removed and not _condition(pod, "DisruptionTarget"):
        return _End(Outcome.GONE, "The build's pod was removed while it ran.")
    if pod is not None and has_failed:
        return _pod_failure(pod)
    return _End()


def _pod_failure(pod: Json) -> _End:
    status, spec = pod["status"], pod["spec"]
    disruption = _condition(pod, "DisruptionTarget")
    kinds = (("initContainerStatuses", "fetch"), ("containerStatuses", "build"))
    ended = [
        (name, terminated)
        for kind, name in kinds
        if (terminated := _container(pod, kind, name).get("state", {}).get("terminated"))
    ]
    at = max((_time(each["finishedAt"]) for _, each in ended if each.get("finishedAt")), default=None)
    if status.get("reason") == "DeadlineExceeded":
        minutes = spec["activeDeadlineSeconds"] // 60
        return _End(Outcome.TIMED_OUT, f"The build took longer than {minutes} minutes.", at)
    if status.get("reason") == "Evicted":
        words = f"The node evicted the build: {status.get('message', 'no reason given')}"
        return _End(Outcome.FAILED, words, at)
    if disruption:
        words = f"The build lost its node ({disruption.get('reason')}): {disruption.get('message', '')}"
        return _End(Outcome.FAILED, words, at)
    if status.get("reason") in ("NodeLost", "NodeShutdown", "Terminated", "Shutdown"):
        return _End(Outcome.FAILED, "The node on which the build ran went away.", at)
    for name, terminated in ended:
        if terminated.get("reason") == "OOMKilled":
            (container,) = [c for c in (*spec["initContainers"], *spec["containers"]) if c["name"] == name]
            limit = container["resources"]["limits"]["memory"]
            words = f"The build needed more memory than its limit of {limit}; raise `environment.resources`."
            return _End(Outcome.FAILED, words, at)
        if terminated.get("exitCode"):
            # the last lines of its log, which reach CloudWatch only later
            told = failure_reason(terminated.get("message", "").splitlines())
            words = told or f"The container `{name}` ended with exit code {terminated['exitCode']}."
            return _End(Outcome.FAILED, words, at, has_own_reason=told is not None)
    return _End(Outcome.FAILED, status.get("message"), at, has_own_reason=False)


def _trouble(pod: Json) -> Trouble | None:
    """What keeps a pod from going on that may yet pass."""
    status = pod.get("status", {})
    scheduled = _condition(pod, "PodScheduled", "False")
    if scheduled.get("reason") == "Unschedulable":
        return Trouble(Status.UNSCHEDULABLE, f"No node takes the build: {scheduled.get('message', '')}")
    if status.get("reason") == "NodeLost" or status.get("phase") == "Unknown":
        return Trouble(Status.UNKNOWN, "The node on which the build runs does not answer.")
    for kind, name in (("initContainerStatuses", "fetch"), ("containerStatuses", "build")):
        waiting = _container(pod, kind, name).get("state", {}).get("waiting") or {}
        if waiting.get("reason") in _WAITS:
            words = f"{_WAITS[waiting['reason']]}: {waiting.get('message', waiting['reason'])}"
            return Trouble(Status.WARNING, words)
    return None


_WAITS = {
    "ErrImagePull": "BuildKit's image cannot be pulled",
    "ImagePullBackOff": "BuildKit's image cannot be pulled",
    "InvalidImageName": "BuildKit's image has no valid name",
    "CreateContainerConfigError": "The container cannot be made",
    "CreateContainerError": "The container cannot be made",
    "RunContainerError": "The container cannot be started",
}


def _log(pod: Json | None, group: str) -> str | None:
    """`group:stream` of the container that has the most to say: `build`, and `fetch` before it runs."""
    if pod is None:
        return None
    for kind, name in (("containerStatuses", "build"), ("initContainerStatuses", "fetch")):
        container_id = _container(pod, kind, name).get("containerID", "").rpartition("//")[2]
        if container_id:
            file = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}_{name}-{container_id}.log"
            return f"{group}:{pod['spec']['nodeName']}-application.var.log.containers.{file}"
    return None


def _is_going(described: Json) -> bool:
    """Whether somebody deleted it, and its end is awaited."""
    return "deletionTimestamp" in described["metadata"]


def _is_fetched(pod: Json | None) -> bool:
    fetched = _container(pod, "initContainerStatuses", "fetch").get("state", {}) if pod else {}
    return "terminated" in fetched


def needs_links(job: Json, pod: Json | None, now: datetime) -> bool:
    """Whether the Job's pod still has to fetch its source, and may find the links dead or missing."""
    is_over = _condition(job, "Failed") or _condition(job, "Complete")
    if is_over or _is_fetched(pod) or _is_going(job):
        return False
    linked_at = job["metadata"]["annotations"].get(_LINKED)
    in_use = "running" in (_container(pod, "initContainerStatuses", "fetch").get("state", {}) if pod else {})
    return linked_at is None or now - _time(linked_at) > (LINK_AFTER_IN_USE if in_use else LINK_AFTER)


def _container(pod: Json | None, kind: str, name: str) -> Json:
    found = [each for each in (pod or {}).get("status", {}).get(kind, ()) if each["name"] == name]
    return found[0] if found else {}


def _condition(described: Json | None, kind: str, status: str = "True") -> Json:
    for condition in (described or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == kind and condition["status"] == status:
            return dict(condition)
    return {}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


# The calls


class EksExecutor:
    """`Executor` on a Kubernetes cluster; a handle is the name of a Job."""

    replay_seconds = 150  # a Job's name makes repeats safe for longer, but a stop waits for so long
    emits_events = False  # no events: builds have to be watched

    def __init__(
        self,
        api: Api,
        eks: EksSettings,
        sources: Sources,
        login: Callable[[str], str | None],
        *,
        insecure: bool,
        queue_minutes: int,
        build_minutes: int,
        now: Callable[[], datetime],
    ) -> None:
        """`login` makes the Docker configuration that may push one image, None where none is needed."""
        self._api, self._eks, self._sources, self._login, self._now = api, eks, sources, login, now
        self._insecure, self._queue_minutes, self._build_minutes = insecure, queue_minutes, build_minutes
        self._jobs = f"/apis/batch/v1/namespaces/{eks.namespace}/jobs"
        self._core = f"/api/v1/namespaces/{eks.namespace}"
        self._group = eks.log_group or f"/aws/containerinsights/{eks.cluster}/application"

    def submit(self, build: Build) -> str:
        wanted = job_of(
            build,
            self._eks,
            insecure=self._insecure,
            queue_minutes=self._queue_minutes,
            build_minutes=self._build_minutes,
        )
        name: str = wanted["metadata"]["name"]
        status, job = self._api.call("POST", self._jobs, wanted)
        if status >= 300:
            refusal = _translated(status, job)
            try:  # the call may have been repeated after an answer got lost: only the cluster knows
                found = self._job(name)
            except ExecutorRefused:  # as a cluster does that lets us do nothing
                raise refusal from None
            except SlipwayError as exc:
                raise Unavailable("The cluster did not say whether the build's Job is there.") from exc
            if found is None:
                raise refusal
            job = found
        if _LINKED not in job["metadata"]["annotations"]:
            self._try_to_furnish(job)
        return name

    def find_handle(self, build: Build) -> str | None:
        return job_name(build) if self._job(job_name(build)) is not None else None

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        pods = {
            pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", ""): pod
            for pod in self._list(f"{self._core}/pods")
        }
        jobs: dict[str, Json] = {}
        if not all(handle in pods and _speaks_for_itself(pods[handle]) for handle in handles):
            jobs = {job["metadata"]["name"]: job for job in self._list(self._jobs)}
        seen = {}
        for handle in handles:
            job, pod = jobs.get(handle), pods.get(handle)
            trouble = None
            if job and needs_links(job, pod, self._now()):
                trouble = self._try_to_furnish(job)
            if (observation := observation_of(job, pod, self._group)) is not None:
                is_over = observation.outcome is not None
                seen[handle] = (
                    observation if is_over else replace(observation, trouble=trouble or observation.trouble)
                )
        return seen

    def stop(self, handle: str) -> None:
        """The Job stays until its pod is gone, so that nothing runs any more when it is not found."""
        status, body = self._api.call(
            "DELETE", f"{self._jobs}/{quote(handle, safe='')}", query={"propagationPolicy": "Foreground"}
        )
        if status >= 300 and status != 404:
            raise _translated(status, body)

    def _job(self, name: str) -> Json | None:
        status, body = self._api.call("GET", f"{self._jobs}/{name}")
        if status == 404:
            return None
        if status >= 300:
            raise _translated(status, body)
        return body

    def _list(self, path: str) -> Iterator[Json]:
        query = {"labelSelector": SELECTOR, "limit": str(LIST_LIMIT)}
        while True:
            status, page = self._api.call("GET", path, query=query)
            if status >= 300:
                raise _translated(status, page)
            yield from page["items"]
            if not (more := page["metadata"].get("continue")):
                return
            query = {**query, "continue": more}

    def _try_to_furnish(self, job: Json) -> Trouble | None:
        """`_furnish`; what hinders it. The Job is there and waits for its Secrets: no error may say that the
        attempt was not made, and the next observation tries again."""
        try:
            self._furnish(job)
        except SlipwayError as error:
            log.warning("Job %s has no Secrets yet: %s", job["metadata"]["name"], error)
            return Trouble(Status.WARNING, f"The build waits for its source and login: {error}")
        return None

    def _furnish(self, job: Json) -> None:
        """Makes or renews the Job's Secrets, then notes when on the Job."""
        metadata = job["metadata"]
        names = metadata["annotations"][_FETCHES].split()
        links = self._sources.links(metadata["labels"][_UUID], names)
        image = _image(job)
        for secret in secrets_of(job, links, self._login(image)):
            status, body = self._api.call("POST", f"{self._core}/secrets", secret)
            if status == 409:
                change = {"data": secret["data"]}
                path = f"{self._core}/secrets/{secret['metadata']['name']}"
                status, body = self._api.call("PATCH", path, change)
            if status >= 300:
                raise _translated(status, body)
        note = {"metadata": {"annotations": {_LINKED: self._now().isoformat()}}}
        status, body = self._api.call("PATCH", f"{self._jobs}/{metadata['name']}", note)
        if status >= 300 and status != 404:
            raise _translated(status, body)


def _speaks_for_itself(pod: Json) -> bool:
    """Whether what the Job says about this pod does not matter now."""
    return _is_fetched(pod) and pod.get("status", {}).get("phase") != "Failed" and not _is_going(pod)


def _image(job: Json) -> str:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return next(str(each["value"]) for each in container["env"] if each["name"] == "SLIPWAY_IMAGE")


def _translated(status: int, body: Json) -> SlipwayError:
    message = str(body.get("message", ""))
    if status == 429 or (status == 403 and "exceeded quota" in message):
        return Busy(f"The cluster asks us to wait: {message or status}")
    if status in (400, 403, 404, 422):
        return ExecutorRefused(f"The cluster refused the build: {message or status}")
    return Unavailable(f"The cluster answered {status}: {message or json.dumps(body)[:200]}")
