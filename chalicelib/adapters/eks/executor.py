"""The executor on a Kubernetes cluster: it submits, observes and stops builds as Jobs."""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from urllib.parse import quote

from chalicelib.adapters.eks.api import KubernetesApi
from chalicelib.adapters.eks.job import ATTEMPT, HAS_SECRET, SELECTOR, UUID, Json, job_name, job_of, secret_of
from chalicelib.adapters.eks.observation import JOB_NAME, needs_secret, observation_of, pod_is_enough
from chalicelib.domain.build import Build, Status
from chalicelib.domain.lifecycle import Observation, Trouble
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, SlipwayError, Unavailable
from chalicelib.settings import EksSettings, Settings

log = logging.getLogger(__name__)

LIST_LIMIT = 500


class EksExecutor:
    """`Executor` on a Kubernetes cluster; a handle is the name of a Job."""

    replay_seconds = 150  # a stop waits at most so long; Jobs' names make repeats safe for longer
    emits_events = False  # no events: builds have to be polled

    def __init__(
        self, api: KubernetesApi, eks: EksSettings, settings: Settings, secret_of: Callable[[str, int], str]
    ) -> None:
        """`secret_of` returns the secret of an attempt, given the build's uuid and the attempt."""
        self._api, self._eks, self._settings, self._secret_of = api, eks, settings, secret_of
        self._jobs = f"/apis/batch/v1/namespaces/{eks.namespace}/jobs"
        self._core = f"/api/v1/namespaces/{eks.namespace}"
        self._group = eks.log_group or f"/aws/containerinsights/{eks.cluster}/application"

    def submit(self, build: Build) -> str:
        wanted = job_of(build, self._eks, self._settings)
        name: str = wanted["metadata"]["name"]
        status, job = self._api.call("POST", self._jobs, wanted)
        if refusal := _refusal(status, job):
            try:  # the call may have been repeated because its answer was lost: look whether there is a Job
                found = self._job(name)
            except ExecutorRefused:  # the cluster refuses everything
                raise refusal from None
            except SlipwayError as exc:
                raise Unavailable("The cluster did not say whether the build's Job is there.") from exc
            if found is None:
                raise refusal
            job = found
        if HAS_SECRET not in job["metadata"]["annotations"]:
            self._try_to_furnish(job)
        return name

    def find_handle(self, build: Build) -> str | None:
        return job_name(build) if self._job(job_name(build)) is not None else None

    def observe(self, handles: Sequence[str]) -> Mapping[str, Observation]:
        pods = {pod["metadata"]["labels"].get(JOB_NAME, ""): pod for pod in self._list(f"{self._core}/pods")}
        jobs: dict[str, Json] = {}
        if not all(handle in pods and pod_is_enough(pods[handle]) for handle in handles):
            jobs = {job["metadata"]["name"]: job for job in self._list(self._jobs)}
        seen = {}
        for handle in handles:
            job, pod = jobs.get(handle), pods.get(handle)
            trouble = self._try_to_furnish(job) if job and needs_secret(job, pod) else None
            if (observation := observation_of(job, pod, self._group)) is not None:
                is_over = observation.outcome is not None
                seen[handle] = observation if is_over else replace(observation, trouble=trouble or observation.trouble)
        return seen

    def stop(self, handle: str) -> None:
        """Deletes the Job. Kubernetes removes it only after its pod, so without a Job there is no pod either."""
        path = f"{self._jobs}/{quote(handle, safe='')}"
        self._call("DELETE", path, query={"propagationPolicy": "Foreground"}, ok=(404,))

    def _job(self, name: str) -> Json | None:
        status, body = self._call("GET", f"{self._jobs}/{name}", ok=(404,))
        return None if status == 404 else body

    def _list(self, path: str) -> Iterator[Json]:
        query = {"labelSelector": SELECTOR, "limit": str(LIST_LIMIT)}
        while True:
            _, page = self._call("GET", path, query=query)
            yield from page["items"]
            if not (more := page["metadata"].get("continue")):
                return
            query = {**query, "continue": more}

    def _try_to_furnish(self, job: Json) -> Trouble | None:
        """Makes the Job's Secret, and notes that on the Job; returns the trouble if that fails. It must not raise,
        because the Job exists and waits for its Secret; the next observation tries again."""
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        note = {"metadata": {"annotations": {HAS_SECRET: "true"}}}
        try:
            secret = self._secret_of(labels[UUID], int(labels[ATTEMPT]))
            self._call("POST", f"{self._core}/secrets", secret_of(job, secret), ok=(409,))
            self._call("PATCH", f"{self._jobs}/{name}", note, ok=(404,))
        except SlipwayError as error:
            log.warning("The Secret of Job %s could not be made yet: %s", name, error)
            return Trouble(Status.WARNING, f"The build waits for its secret: {error}")
        return None

    def _call(
        self, method: str, path: str, body: Json | None = None, query: Json | None = None, *, ok: Collection[int] = ()
    ) -> tuple[int, Json]:
        """The status and the body, if it is a success or in `ok`. Raises the error of `_refusal`, and Unavailable."""
        status, answer = self._api.call(method, path, body, query)
        if status not in ok and (refusal := _refusal(status, answer)):
            raise refusal
        return status, answer


def _refusal(status: int, body: Json) -> SlipwayError | None:
    if status < 300:
        return None
    message = str(body.get("message", ""))
    if status == 429 or (status == 403 and "exceeded quota" in message):
        return Busy(f"The cluster asks us to wait: {message or status}")
    if status in (400, 403, 404, 422):
        return ExecutorRefused(f"The cluster refused the build: {message or status}")
    return Unavailable(f"The cluster answered {status}: {message or json.dumps(body)[:200]}")
