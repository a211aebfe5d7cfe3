"""The calls to a cluster: builds are submitted, observed and stopped as Jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote

from chalicelib.adapters.eks.job import (
    FETCHES,
    LINKED,
    SELECTOR,
    UUID,
    image_of,
    job_name,
    job_of,
    secrets_of,
)
from chalicelib.adapters.eks.observation import JOB_NAME, needs_links, observation_of, pod_is_enough
from chalicelib.domain.build import Build, Status
from chalicelib.domain.lifecycle import Observation, Trouble
from chalicelib.errors import Busy, ExecutorRefused, SlipwayError, Unavailable
from chalicelib.ports import Sources
from chalicelib.settings import EksSettings

log = logging.getLogger(__name__)
Json = dict[str, Any]

LIST_LIMIT = 500


class Api(Protocol):
    """The Kubernetes API of one cluster."""

    def call(
        self, method: str, path: str, body: Json | None = None, query: Mapping[str, str] | None = None
    ) -> tuple[int, Json]:
        """Status and body of the answer, whatever the status. Raises Unavailable without one."""


class EksExecutor:
    """`Executor` on a Kubernetes cluster; a handle is the name of a Job."""

    replay_seconds = 150  # a Job's name makes repeats safe for longer; a stop waits at most so long
    emits_events = False  # no events: builds have to be polled

    def __init__(
        self,
        api: Api,
        eks: EksSettings,
        sources: Sources,
        login: Callable[[str], str] | None,
        *,
        plain_http: bool,
        queue_minutes: int,
        build_minutes: int,
        now: Callable[[], datetime],
    ) -> None:
        """`login` makes the Docker configuration that may push one image, None where none is needed;
        `plain_http` is for a registry without TLS."""
        self._api, self._eks, self._sources, self._login, self._now = api, eks, sources, login, now
        self._plain_http, self._queue_minutes, self._build_minutes = plain_http, queue_minutes, build_minutes
        self._jobs = f"/apis/batch/v1/namespaces/{eks.namespace}/jobs"
        self._core = f"/api/v1/namespaces/{eks.namespace}"
        self._group = eks.log_group or f"/aws/containerinsights/{eks.cluster}/application"

    def submit(self, build: Build) -> str:
        wanted = job_of(
            build,
            self._eks,
            plain_http=self._plain_http,
            has_login=self._login is not None,
            queue_minutes=self._queue_minutes,
            build_minutes=self._build_minutes,
        )
        name: str = wanted["metadata"]["name"]
        status, job = self._api.call("POST", self._jobs, wanted)
        if refusal := _refusal(status, job):
            try:  # the call may have been repeated after an answer got lost: only the cluster knows
                found = self._job(name)
            except ExecutorRefused:  # the cluster lets us do nothing
                raise refusal from None
            except SlipwayError as exc:
                raise Unavailable("The cluster did not say whether the build's Job is there.") from exc
            if found is None:
                raise refusal
            job = found
        if LINKED not in job["metadata"]["annotations"]:
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
        """`_furnish`, or why it failed. The Job exists and waits for its Secrets: no error may say that the
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
        links = self._sources.links(metadata["labels"][UUID], metadata["annotations"][FETCHES].split())
        login = self._login(image_of(job)) if self._login else None
        for secret in secrets_of(job, links, login):
            status, _ = self._call("POST", f"{self._core}/secrets", secret, ok=(409,))
            if status == 409:
                path = f"{self._core}/secrets/{secret['metadata']['name']}"
                self._call("PATCH", path, {"data": secret["data"]})
        note = {"metadata": {"annotations": {LINKED: self._now().isoformat()}}}
        self._call("PATCH", f"{self._jobs}/{metadata['name']}", note, ok=(404,))

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        query: Mapping[str, str] | None = None,
        *,
        ok: Collection[int] = (),
    ) -> tuple[int, Json]:
        """Status and body of an answer that is a success or one of `ok`. Raises what `_refusal` makes of any
        other, Unavailable without an answer."""
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
