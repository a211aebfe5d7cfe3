"""A cluster whose one node runs builds as the world has them: the fake Kubernetes API without its server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chalicelib.adapters.eks.job import ATTEMPT, JOB_TTL_SECONDS, UUID
from chalicelib.adapters.eks.observation import JOB_NAME
from chalicelib.domain.build import Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from infra.local.cluster.api import FakeKubernetes, Refused
from infra.local.cluster.objects import Json, timestamp
from tests.fakes import Run
from tests.simulation.http_calls import Answer, Request
from tests.simulation.world import QUEUE_MINUTES, RUN_MINUTES, SimulatedExecutor, SimulatedRun

if TYPE_CHECKING:
    from tests.simulation.adapters import AdaptersWorld

KILLED_WITHIN_SECONDS = 10  # the grace of a pod whose Job is deleted
REGULATED_SECONDS = 600  # after everything has healed, nothing waits longer for what a call failed to bring


class ClusterExecutor(SimulatedExecutor):
    """Its builds begin when their pods have their Secrets."""

    def __init__(self, world: AdaptersWorld) -> None:
        super().__init__(world, world.services, emits_events=False)
        self.waiting: dict[str, SimulatedRun] = {}  # for their Secrets, by handle

    def begin(self, run: SimulatedRun) -> None:
        self.waiting[run.handle] = run
        self._world.scheduler.after((QUEUE_MINUTES + RUN_MINUTES) * 60, lambda: self._time_out(run))

    def furnish(self, run: SimulatedRun) -> None:
        if self.waiting.pop(run.handle, None) and run.outcome is None:
            super().begin(run)

    def end(self, run: Run, outcome: Outcome, *args: Any, **more: Any) -> None:
        super().end(run, Outcome.GONE if outcome is Outcome.FAULT else outcome, *args, **more)

    def _time_out(self, run: SimulatedRun) -> None:
        if run.outcome is not None:
            return
        world = self._world
        if (
            run.handle in self.waiting
            and world.scheduler.seconds - world.healed_at > REGULATED_SECONDS < world.healed_at
        ):
            world.broken.append(("a started build gets its secret", f"{run.build.key} waited in vain"))
        self.end(run, Outcome.TIMED_OUT)


class SimulatedCluster(FakeKubernetes):
    def __init__(self, world: AdaptersWorld, executor: ClusterExecutor) -> None:
        super().__init__("lab", "slipway-builds")
        self._world, self._executor = world, executor
        self.now = world.services.now
        self.node = self  # type: ignore[assignment] # of a node it asks `run` and `has_pod`
        self._runs: dict[str, SimulatedRun] = {}  # by name of the Job

    def answer_request(self, request: Request) -> Answer:
        self._look()
        url = urlsplit(request.url)
        token = request.headers["Authorization"].removeprefix("Bearer ")
        method = request.operation.partition(" ")[0]
        with self.lock:
            status, body = self.answer(method, f"{url.path}?{url.query}", token, request.body)
        return Answer.of_json(body, status)

    def run(self, job: Json) -> None:
        """A Job was made."""
        metadata, template = job["metadata"], job["spec"]["template"]
        build = self._world.known[metadata["labels"][UUID]].build
        run = self._executor.start(replace(build, attempt=int(metadata["labels"][ATTEMPT])))
        self._runs[metadata["name"]] = run
        labels = {**template["metadata"]["labels"], JOB_NAME: metadata["name"]}
        place = {"name": f"{metadata['name']}-pod", "namespace": self.namespace, "labels": labels}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {**template["spec"], "nodeName": "node"}
        pod = {"metadata": {**template["metadata"], **place, "ownerReferences": [owner]}, "spec": spec}
        self.add("pods", {"apiVersion": "v1", "kind": "Pod", **pod})

    def has_pod(self, described: Json) -> bool:
        run = self._runs.get(described["metadata"]["name"].removesuffix("-pod"))
        return run is not None and run.outcome is None

    def _validate(self, described: Json) -> None:
        """The contract tests do that: it takes 20 ms."""

    def _create(self, root: str, resource: str, namespace: str, described: Json) -> Json:
        running = sum(run.outcome is None for run in self._runs.values())
        name = described["metadata"]["name"]
        if resource == "jobs" and name not in self.objects["jobs"] and running >= self._executor.slots:
            raise Refused(403, "exceeded quota: builds")
        created = super()._create(root, resource, namespace, described)
        if resource == "secrets":
            job = name.rpartition("-")[0]
            if job in self._runs:
                self._executor.furnish(self._runs[job])
        return created

    def _delete(self, resource: str, described: Json, policy: str) -> Json:
        deleted = super()._delete(resource, described, policy)
        run = self._runs.get(described["metadata"]["name"])
        if resource == "jobs" and run is not None and run.outcome is None:
            chance, key = self._world.chance, f"{run.name} is killed after"
            seconds = chance.between(key, 0.1, KILLED_WITHIN_SECONDS)
            self._world.scheduler.after(seconds, lambda: self._kill(run))
        return deleted

    def _kill(self, run: SimulatedRun) -> None:
        if run.outcome is None:
            self._executor.end(run, Outcome.STOPPED)

    def _look(self) -> None:
        """Brings the objects up to what the world's builds have become."""
        for name, run in [*self._runs.items()]:
            job, pod = self.objects["jobs"].get(name), self.objects["pods"].get(f"{name}-pod")
            if pod is not None:
                pod["status"] = _pod_status(run)
            if job is not None and run.outcome is not None:
                job["status"] = _job_status(run)
            with self.lock:
                if pod is not None and run.outcome in (Outcome.GONE, Outcome.TIMED_OUT):
                    self.remove("pods", pod)
                if job is None or self._is_to_go(job, run):
                    for resource, each in (("jobs", job), ("pods", pod)):
                        if each is not None:
                            self.remove(resource, each)
                    self._executor.runs.pop(run.handle, None)
                    del self._runs[name]

    def _is_to_go(self, job: Json, run: SimulatedRun) -> bool:
        if run.handle not in self._executor.runs:
            return True
        if run.ended_at is None:
            return False
        is_old = self.now() - run.ended_at > timedelta(seconds=JOB_TTL_SECONDS)
        return "deletionTimestamp" in job["metadata"] or is_old


def _job_status(run: SimulatedRun) -> Json:
    kind, reason = "Failed", "BackoffLimitExceeded"
    if run.outcome is Outcome.SUCCEEDED:
        kind, reason = "Complete", "CompletionsReached"
    elif run.outcome is Outcome.TIMED_OUT:
        reason = "DeadlineExceeded"
    at = timestamp(run.ended_at)
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at}]}


def _pod_status(run: SimulatedRun) -> Json:
    entered: Mapping[Status, str] = {step.status: timestamp(step.at) for step in run.steps}
    if Status.BUILDING not in entered:
        return {"phase": "Pending", "conditions": []}
    ended = {"exitCode": int(run.outcome is not Outcome.SUCCEEDED), "finishedAt": timestamp(run.ended_at)}
    is_fetched = Status.RUNNING in entered
    fetch: Json = (
        {"terminated": {"exitCode": 0}} if is_fetched else {"running": {"startedAt": entered[Status.BUILDING]}}
    )
    build: Json = {"running": {"startedAt": entered[Status.RUNNING]}} if is_fetched else {}
    if run.outcome is not None and is_fetched:
        build = {"terminated": {**build["running"], **ended}}
    elif run.outcome is not None:
        fetch = {"terminated": ended}
    container = {"containerID": f"containerd://{run.name}"}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": entered[Status.BUILDING]}
    phases = {None: "Running", Outcome.SUCCEEDED: "Succeeded"}
    return {
        "phase": phases.get(run.outcome, "Failed"),
        "conditions": [scheduled],
        "initContainerStatuses": [{"name": "fetch", "state": fetch, **container}],
        **({"containerStatuses": [{"name": "build", "state": build, **container}]} if is_fetched else {}),
    }
