"""Reads the state of a build from its Job and its pod, as Kubernetes describes them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from chalicelib.adapters.eks.job import ATTEMPT, BUILD, HAS_SECRET, UUID, Json
from chalicelib.domain.build import Status
from chalicelib.domain.failure import KILLED, KILLED_CODE, failure_reason
from chalicelib.domain.lifecycle import Observation, Outcome, Trouble, steps_of

JOB_NAME = "batch.kubernetes.io/job-name"  # the label by which a pod names its Job


def observation_of(job: Json | None, pod: Json | None, log_group: str) -> Observation | None:
    """The observation of a Job and its pod; None when both are gone, or the Job is being deleted and has no pod. `job`
    may be None if `pod_is_enough`. `log_group` is the CloudWatch group of the containers' logs."""
    described = job or pod
    if described is None:
        return None
    metadata = described["metadata"]
    is_deleted = job is not None and _is_deleted(job)
    if pod is None and is_deleted:
        return None
    handle = metadata["name"] if job else metadata["labels"][JOB_NAME]
    end = _end(job, pod, is_deleted)
    return Observation(
        key=metadata["annotations"][BUILD],
        uuid=metadata["labels"][UUID],
        attempt=int(metadata["labels"][ATTEMPT]),
        handle=handle,
        log=_log(pod, log_group),
        steps=steps_of(_stages(metadata, pod)),
        trouble=_trouble(pod) if end.outcome is None and pod else None,
        **end._asdict(),
    )


def _stages(metadata: Json, pod: Json | None) -> Iterator[tuple[Status, datetime]]:
    yield Status.SCHEDULED, _time(metadata["creationTimestamp"])
    if pod is None:
        return
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "True":
            yield Status.BUILDING, _time(condition["lastTransitionTime"])
    if started := (_state(pod, "build", "running") or _state(pod, "build", "terminated")).get("startedAt"):
        yield Status.RUNNING, _time(started)


class _End(NamedTuple):
    """What an Observation says of the end."""

    outcome: Outcome | None = None
    reason: str | None = None
    ended_at: datetime | None = None
    has_own_reason: bool = True


def _end(job: Json | None, pod: Json | None, is_deleted: bool) -> _End:
    status = (pod or {}).get("status", {})
    if status.get("phase") == "Succeeded" or _condition(job, "Complete"):
        at = _state(pod, "build", "terminated").get("finishedAt")
        return _End(Outcome.SUCCEEDED, ended_at=at and _time(at))
    failed = _condition(job, "Failed") or _condition(job, "FailureTarget")
    if is_deleted:
        return _End()  # it is being stopped; the build ends when its pod is gone
    if failed.get("reason") == "DeadlineExceeded":
        minutes = (job or {})["spec"]["activeDeadlineSeconds"] // 60
        words = f"The build did not end within {minutes} minutes, waiting for a node included."
        return _End(Outcome.TIMED_OUT, words, _time(failed["lastTransitionTime"]))
    has_failed = status.get("phase") == "Failed"
    was_removed = (pod is None and failed) or (pod is not None and has_failed and _is_deleted(pod))
    if was_removed and not _condition(pod, "DisruptionTarget"):
        return _End(Outcome.GONE, "The build's pod was removed while it ran.")
    if pod is not None and has_failed:
        return _pod_failure(pod)
    return _End()


def _pod_failure(pod: Json) -> _End:
    status, spec = pod["status"], pod["spec"]
    ended = [(name, state) for name in ("fetch", "build") if (state := _state(pod, name, "terminated"))]
    at = max((_time(each["finishedAt"]) for _, each in ended if each.get("finishedAt")), default=None)
    if status.get("reason") == "DeadlineExceeded":
        minutes = spec["activeDeadlineSeconds"] // 60
        return _End(Outcome.TIMED_OUT, f"The build took longer than {minutes} minutes.", at)
    if status.get("reason") == "Evicted":
        message = status.get("message", "no reason given")
        is_own = "exceed" in message  # its own limit; else the node lacks resources or is shut down
        outcome = Outcome.FAILED if is_own else Outcome.FAULT
        return _End(outcome, f"The node evicted the build: {message}", at)
    if disruption := _condition(pod, "DisruptionTarget"):
        words = f"The build lost its node ({disruption.get('reason')}): {disruption.get('message', '')}"
        return _End(Outcome.FAULT, words, at)
    if status.get("reason") in ("NodeLost", "NodeShutdown", "Terminated", "Shutdown"):
        return _End(Outcome.FAULT, "The node on which the build ran went away.", at)
    for name, terminated in ended:
        if terminated.get("reason") == "OOMKilled":
            (container,) = [c for c in (*spec["initContainers"], *spec["containers"]) if c["name"] == name]
            limit = container["resources"]["limits"]["memory"]
            words = f"The build needed more memory than its limit of {limit}; raise `environment.resources`."
            return _End(Outcome.FAILED, words, at)
        if terminated.get("exitCode"):
            # the container's last lines, because they reach CloudWatch only later
            cause = failure_reason(terminated.get("message", "").splitlines())
            code = str(terminated["exitCode"])
            end = KILLED if code == KILLED_CODE else f"ended with exit code {code}"
            words = cause or f"The container `{name}` {end}."
            return _End(Outcome.FAILED, words, at, has_own_reason=cause is not None)
    return _End(Outcome.FAILED, status.get("message"), at, has_own_reason=False)


def _trouble(pod: Json) -> Trouble | None:
    """Why a pod makes no progress, if that can still change."""
    status = pod.get("status", {})
    scheduled = _condition(pod, "PodScheduled", "False")
    if scheduled.get("reason") == "Unschedulable":
        return Trouble(Status.UNSCHEDULABLE, f"No node takes the build: {scheduled.get('message', '')}")
    if status.get("reason") == "NodeLost" or status.get("phase") == "Unknown":
        return Trouble(Status.UNKNOWN, "The node on which the build runs does not answer.")
    for name in ("fetch", "build"):
        waiting = _state(pod, name, "waiting")
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
    """`group:stream` of the container `build`, or of `fetch` while `build` does not run."""
    if pod is None:
        return None
    for name in ("build", "fetch"):
        container_id = _container(pod, name).get("containerID", "").rpartition("//")[2]
        if container_id:
            file = f"{pod['metadata']['name']}_{pod['metadata']['namespace']}_{name}-{container_id}.log"
            return f"{group}:{pod['spec']['nodeName']}-application.var.log.containers.{file}"
    return None


def _is_deleted(described: Json) -> bool:
    """Whether the object is being deleted; it stays until its pods and containers have ended."""
    return "deletionTimestamp" in described["metadata"]


def _is_fetched(pod: Json | None) -> bool:
    return bool(_state(pod, "fetch", "terminated"))


def needs_secret(job: Json, pod: Json | None) -> bool:
    """Whether the Job's pod still waits for the Job's Secret."""
    is_over = _condition(job, "Failed") or _condition(job, "Complete")
    return not (is_over or _is_fetched(pod) or _is_deleted(job) or HAS_SECRET in job["metadata"]["annotations"])


def pod_is_enough(pod: Json) -> bool:
    """Whether the pod alone shows the state of the build, so that its Job need not be read."""
    return _is_fetched(pod) and pod.get("status", {}).get("phase") != "Failed" and not _is_deleted(pod)


def _container(pod: Json | None, name: str) -> Json:
    status = (pod or {}).get("status", {})
    all_of_it = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    return next((each for each in all_of_it if each["name"] == name), {})


def _state(pod: Json | None, container: str, kind: str) -> Json:
    """The state of a container, if it is of that kind: waiting, running or terminated."""
    return _container(pod, container).get("state", {}).get(kind) or {}


def _condition(described: Json | None, kind: str, status: str = "True") -> Json:
    for condition in (described or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == kind and condition["status"] == status:
            return dict(condition)
    return {}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
