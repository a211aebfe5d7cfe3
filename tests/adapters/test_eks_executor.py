"""EKS alone: what goes wrong between us and a cluster, and what a Job and its pod tell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from chalicelib.adapters.eks.api import TRIES, KubernetesApi, bearer_token
from chalicelib.adapters.eks.executor import EksExecutor
from chalicelib.adapters.eks.job import SELECTOR, job_name, job_of
from chalicelib.adapters.eks.observation import observation_of
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, ExecutorRefused, Unavailable
from chalicelib.settings import EksSettings
from chalicelib.usecases import builds, execution, schedule
from infra.local.cluster.api import FakeKubernetes
from tests.adapters.clusters import EXECUTION, container, eks_executor, ended, kubernetes, running
from tests.factories import SETTINGS, make_claimed, make_project, make_user
from tests.fakes import FakeServices

BUILD = make_claimed()
JOB = job_name(BUILD)
GROUP = "/aws/containerinsights/lab/application"


@pytest.fixture
def cluster(on_aws: None) -> Iterator[tuple[FakeKubernetes, EksSettings]]:
    with kubernetes() as made:
        yield made


@pytest.fixture
def fake(cluster: tuple[FakeKubernetes, EksSettings]) -> FakeKubernetes:
    return cluster[0]


@pytest.fixture
def executor(cluster: tuple[FakeKubernetes, EksSettings]) -> EksExecutor:
    return eks_executor(cluster[1])


def executor_on(api: Any) -> EksExecutor:
    """`api` answers in the place of a cluster."""
    return EksExecutor(api, EksSettings("lab"), EXECUTION, lambda uuid, attempt: "hush")


def jobs(fake: FakeKubernetes) -> list[str]:
    return list(fake.objects["jobs"])


# Faults


def test_a_job_comes_with_its_secret(fake: FakeKubernetes, executor: EksExecutor) -> None:
    assert executor.submit(BUILD) == JOB
    assert jobs(fake) == [JOB]
    (secret,) = fake.objects["secrets"].values()
    assert secret["metadata"]["name"] == f"{JOB}-secret"
    assert b64decode(secret["data"]["secret"]).decode() == f"secret of {BUILD.uuid} {BUILD.attempt}"


def test_an_answer_lost_after_the_job_was_made_makes_no_second_one(fake: FakeKubernetes, executor: EksExecutor) -> None:
    fake.lose_next_answer()
    assert executor.submit(BUILD) == JOB
    assert jobs(fake) == [JOB]


def test_a_cluster_that_never_answers_is_unavailable_and_the_next_try_completes(
    fake: FakeKubernetes, executor: EksExecutor
) -> None:
    fake.lose_next_answer(TRIES)
    with pytest.raises(Unavailable):
        executor.submit(BUILD)
    assert jobs(fake) == [JOB]
    assert fake.objects["secrets"] == {}

    assert executor.submit(BUILD) == JOB
    assert len(fake.objects["secrets"]) == 1


def test_a_secret_that_a_dead_submitter_did_not_make_is_made_by_whoever_looks(
    fake: FakeKubernetes, executor: EksExecutor
) -> None:
    fake.lose_next_answer(TRIES)
    with pytest.raises(Unavailable):
        executor.submit(BUILD)

    assert executor.find_handle(BUILD) == JOB
    executor.observe([JOB])
    assert len(fake.objects["secrets"]) == 1


@pytest.mark.parametrize("refusal", [(403, "exceeded quota: secrets"), (429, "wait"), (403, "no"), (500, "")])
def test_whatever_hinders_the_secret_of_a_job_it_stays_the_only_one(
    refusal: tuple[int, str],
) -> None:
    """For 75 minutes no Secret can be made: one Job, one attempt, and a warning that says why it waits."""
    cluster = Cluster()
    services = FakeServices(replace(SETTINGS, eks=EksSettings("lab"), backend="eks"))
    services.executors["eks"] = executor_on(cluster)  # type: ignore[assignment]
    services.projects.add(make_project())
    spec = {"config": {"build": {"image": "python:3"}, "version": 1, "kind": "build"}}
    key = builds.create(services, make_user(), "ada", "vision", spec).build.key

    cluster.refusal_of_secrets = refusal
    for _ in range(75):
        execution.process(services, key)
        schedule.reconcile(services)
        services.clock.forward(minutes=1)
    assert list(cluster.jobs) == [job_name(services.records.builds[key])]
    assert services.records.builds[key].attempt == 1
    assert services.records.builds[key].history[-1].status == "warning"

    cluster.refusal_of_secrets = None
    schedule.reconcile(services)
    assert len(cluster.secrets) == 1


class Cluster:
    """Answers for Jobs and Secrets alone."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.secrets: list[str] = []
        self.refusal_of_secrets: tuple[int, str] | None = None
        self.refuses_after_making = False

    def call(
        self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        kind, name = path.split("/slipway-builds/")[1].partition("/")[::2]
        if kind == "secrets":
            if self.refusal_of_secrets is not None:
                return self.refusal_of_secrets[0], {"message": self.refusal_of_secrets[1]}
            self.secrets.append(body["metadata"]["name"])
            return 201, body
        if method == "POST":
            given = {"uid": "1", "creationTimestamp": "2024-03-01T12:00:00Z"}
            made = {**body, "metadata": {**body["metadata"], **given}}
            self.jobs[body["metadata"]["name"]] = made
            return (429, {"message": "wait"}) if self.refuses_after_making else (201, made)
        if method == "GET" and not name:
            items = list(self.jobs.values()) if kind == "jobs" else []
            return 200, {"items": items, "metadata": {}}
        return (200, self.jobs[name]) if name in self.jobs else (404, {})


def test_a_refusal_that_comes_after_the_job_was_made_does_not_say_that_there_is_none() -> None:
    """The client repeats a call whose answer got lost; what it hears then is about the repetition."""
    cluster = Cluster()
    cluster.refuses_after_making = True
    assert executor_on(cluster).submit(BUILD) == JOB


def test_a_token_that_expired_is_replaced(fake: FakeKubernetes, executor: EksExecutor) -> None:
    executor.submit(BUILD)
    fake.answer_next(401)
    assert set(executor.observe([JOB])) == {JOB}


def test_a_token_is_replaced_before_the_cluster_would_refuse_it(
    cluster: tuple[FakeKubernetes, EksSettings],
) -> None:
    fake, eks = cluster
    now, made = [0.0], []

    def token() -> str:
        made.append(now[0])
        return fake.admin_token

    api = KubernetesApi("lab", eks.endpoint, eks.certificate, token=token, clock=lambda: now[0])
    for now[0] in (0, 60, 500, 600, 700, 1300):
        assert api.call("GET", "/version")[0] == 200
    assert made == [0, 600, 1300]


def test_a_token_names_its_cluster_and_is_good_for_a_while(fake: FakeKubernetes) -> None:
    def status(cluster: str = "lab") -> int:
        token = bearer_token(boto3.Session(region_name="us-east-1"), cluster)
        return fake.answer("GET", f"/api/v1/namespaces/{fake.namespace}/pods", token, b"")[0]

    assert status() == 200
    fake.pass_time(timedelta(minutes=14))
    assert status() == 200
    fake.pass_time(timedelta(minutes=2))
    assert status() == 401


@pytest.mark.parametrize("status", [429, 503])
def test_a_cluster_that_is_busy_for_a_moment_is_asked_again(
    fake: FakeKubernetes, executor: EksExecutor, status: int
) -> None:
    fake.answer_next(status, TRIES - 1)
    assert executor.submit(BUILD) == JOB


@pytest.mark.parametrize(("status", "error"), [(429, Busy), (503, Unavailable), (403, ExecutorRefused)])
def test_what_a_cluster_says_for_longer_is_told(
    fake: FakeKubernetes, executor: EksExecutor, status: int, error: type[Exception]
) -> None:
    fake.answer_next(status, TRIES)
    with pytest.raises(error):
        executor.submit(BUILD)
    assert jobs(fake) == []


def test_a_full_quota_means_wait() -> None:
    class Full:
        def call(self, method: str, *_: Any, **__: Any) -> tuple[int, dict[str, Any]]:
            if method == "GET":
                return 404, {}
            return 403, {"message": 'jobs.batch "x" is forbidden: exceeded quota: builds, used: 2000'}

    with pytest.raises(Busy, match="exceeded quota"):
        executor_on(Full()).submit(BUILD)


@pytest.mark.parametrize(
    ("policy", "left"),
    [("Foreground", ["jobs", "pods", "secrets"]), ("Background", ["pods"]), ("Orphan", ["pods"])],
)
def test_the_fake_deletes_as_it_is_told(
    fake: FakeKubernetes, executor: EksExecutor, policy: str, left: list[str]
) -> None:
    """While the pod runs: a real node would end it next, except for Orphan."""
    executor.submit(BUILD)
    running(fake, JOB)
    fake.node = PodsRun()  # type: ignore[assignment]
    path = f"/apis/batch/v1/namespaces/{fake.namespace}/jobs/{JOB}?propagationPolicy={policy}"
    assert fake.answer("DELETE", path, fake.admin_token, b"")[0] == 200
    assert sorted(kind for kind, objects in fake.objects.items() if objects) == left


class PodsRun:
    """A node on which pods go on."""

    def has_pod(self, described: dict[str, Any]) -> bool:
        return True

    def close(self) -> None:
        """There is nothing to end."""


def test_nobody_at_the_endpoint_is_unavailable(on_aws: None) -> None:
    executor = eks_executor(EksSettings("lab", endpoint="https://127.0.0.1:1"))
    with pytest.raises(Unavailable):
        executor.observe([JOB])


def test_another_namespace_is_forbidden(cluster: tuple[FakeKubernetes, EksSettings]) -> None:
    with pytest.raises(ExecutorRefused, match="forbidden"):
        eks_executor(replace(cluster[1], namespace="kube-system")).submit(BUILD)


# Looking


def test_any_number_of_running_builds_is_one_list_in_pages(fake: FakeKubernetes, executor: EksExecutor) -> None:
    builds = [make_claimed(number=number) for number in range(1, 6)]
    handles = [executor.submit(build) for build in builds]
    for handle in handles:
        running(fake, handle)
    fake.calls.clear()

    assert set(executor.observe(handles)) == set(handles)
    assert [method for method, _ in fake.calls] == ["GET"]

    token = fake.admin_token
    path = f"/api/v1/namespaces/{fake.namespace}/pods?limit=2"
    names, pages, more = [], 0, ""
    while True:
        _, page = fake.answer("GET", path + more, token, b"")
        names += [each["metadata"]["name"] for each in page["items"]]
        pages += 1
        if "continue" not in page["metadata"]:
            break
        more = f"&continue={page['metadata']['continue']}"
    assert (len(names), pages) == (5, 3)


# What is seen, told. Pods and Jobs as servers write them, shortened to what matters.


def seen(pod: dict[str, Any] | None, job: dict[str, Any] | None = None) -> Observation | None:
    made = job_of(BUILD, EksSettings("lab"), EXECUTION)
    made["metadata"]["creationTimestamp"] = "2024-03-01T12:00:00Z"
    template = made["spec"]["template"]
    if pod is not None:
        pod = {
            "metadata": {
                **template["metadata"],
                "name": f"{JOB}-x",
                "namespace": "slipway-builds",
                "creationTimestamp": "2024-03-01T12:00:01Z",
                **({"deletionTimestamp": "2024-03-01T12:10:00Z"} if pod.pop("going", False) else {}),
            },
            "spec": {**template["spec"], "nodeName": "ip-10-0-0-1.ec2.internal"},
            "status": pod,
        }
        pod["metadata"]["labels"] = {**pod["metadata"]["labels"], "batch.kubernetes.io/job-name": JOB}
    if job is not None:
        if job.pop("going", False):
            made["metadata"]["deletionTimestamp"] = "2024-03-01T12:10:00Z"
        made["status"] = job
    return observation_of(made if job is not None else None, pod, GROUP)


def condition(kind: str, status: str = "True", **more: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "lastTransitionTime": "2024-03-01T12:00:05Z", **more}]}


@pytest.mark.parametrize(
    ("pod", "job", "status", "words"),
    [
        (
            {
                "phase": "Pending",
                **condition("PodScheduled", "False", reason="Unschedulable", message="0/3 nodes"),
            },
            {},
            "unschedulable",
            "No node takes the build: 0/3 nodes",
        ),
        (
            {
                "phase": "Pending",
                **condition("PodScheduled"),
                **container("fetch", waiting={"reason": "ImagePullBackOff", "message": "toomanyrequests"}),
            },
            {},
            "warning",
            "BuildKit's image cannot be pulled: toomanyrequests",
        ),
        (
            {"phase": "Running", "reason": "NodeLost"},
            {},
            "unknown",
            "The node on which the build runs does not answer.",
        ),
    ],
    ids=["unschedulable", "image pull", "silent node"],
)
def test_trouble_that_may_pass(pod: Any, job: Any, status: str, words: str) -> None:
    observation = seen(pod, job)
    assert observation is not None
    assert observation.outcome is None
    assert observation.trouble is not None
    assert (observation.trouble.status, observation.trouble.message) == (status, words)


BUILDKIT = (
    '#6 ERROR: process "/bin/sh -c exit 7" did not complete successfully: exit code: 7\n'
    'error: failed to solve: process "/bin/sh -c exit 7" did not complete successfully: exit code: 7'
)


@pytest.mark.parametrize(
    ("pod", "job", "outcome", "words"),
    [
        ({"phase": "Succeeded", **container(**ended(0))}, None, Outcome.SUCCEEDED, None),
        (None, condition("Complete"), Outcome.SUCCEEDED, None),
        (
            {"phase": "Failed", **container(**ended(1, message=BUILDKIT))},
            {},
            Outcome.FAILED,
            "Exit code 7: exit 7",
        ),
        (
            {"phase": "Failed", **container(**ended(137, "OOMKilled"))},
            {},
            Outcome.FAILED,
            "The build needed more memory than its limit of 4096Mi; raise `environment.resources`.",
        ),
        (
            {"phase": "Failed", **container(**ended(137))},
            {},
            Outcome.FAILED,
            "The container `build` was killed (signal 9); the machine may have run out of memory.",
        ),
        (
            {
                "phase": "Failed",
                **container("fetch", **ended(1, message="ERROR: Dockerfile could not be fetched")),
            },
            {},
            Outcome.FAILED,
            "Dockerfile could not be fetched",
        ),
        (
            {"phase": "Failed", "reason": "DeadlineExceeded", **container(**ended(137))},
            {},
            Outcome.TIMED_OUT,
            "The build took longer than 60 minutes.",
        ),
        (
            {"phase": "Failed", "going": True, **container(**ended(137))},
            condition("FailureTarget", reason="DeadlineExceeded"),
            Outcome.TIMED_OUT,
            "The build did not end within 120 minutes, waiting for a node included.",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"},
            {},
            Outcome.FAULT,
            "The node evicted the build: low on ephemeral-storage",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "Usage exceeds the total limit of 20Gi"},
            {},
            Outcome.FAILED,
            "The node evicted the build: Usage exceeds the total limit of 20Gi",
        ),
        (
            {
                "phase": "Failed",
                "going": True,
                **condition("DisruptionTarget", reason="DeletionByTaintManager", message="the node is gone"),
            },
            {},
            Outcome.FAULT,
            "The build lost its node (DeletionByTaintManager): the node is gone",
        ),
        (
            {"phase": "Failed", "reason": "NodeShutdown"},
            {},
            Outcome.FAULT,
            "The node on which the build ran went away.",
        ),
        (
            None,
            condition("Failed", reason="BackoffLimitExceeded"),
            Outcome.GONE,
            "The build's pod was removed while it ran.",
        ),
    ],
    ids=[
        "success",
        "success without pod",
        "failing step",
        "memory",
        "killed",
        "no source",
        "deadline",
        "deadline in all",
        "eviction",
        "eviction by its own limit",
        "disruption",
        "node loss",
        "pod deleted",
    ],
)
def test_ends(pod: Any, job: Any, outcome: Outcome, words: str | None) -> None:
    observation = seen(pod, job)
    assert observation is not None
    assert (observation.outcome, observation.reason) == (outcome, words)
    assert observation.trouble is None


def test_what_was_stopped_counts_as_running_until_its_pod_is_gone() -> None:
    going = seen({"phase": "Failed", "going": True, **container(**ended(143))}, {"going": True})
    assert going is not None
    assert going.outcome is None
    assert seen(None, {"going": True}) is None


def test_stages_and_the_stream_of_the_log() -> None:
    observation = seen(
        {
            "phase": "Running",
            **condition("PodScheduled"),
            **container(running={"startedAt": "2024-03-01T12:00:30Z"}),
        },
        {},
    )
    assert observation is not None
    assert [(step.status, step.at.second) for step in observation.steps] == [
        ("scheduled", 0),
        ("building", 5),
        ("running", 30),
    ]
    file = f"{JOB}-x_slipway-builds_build-c1.log"
    assert observation.log == f"{GROUP}:ip-10-0-0-1.ec2.internal-application.var.log.containers.{file}"


# A client that is not ours


@pytest.fixture
def kubectl(cluster: tuple[FakeKubernetes, EksSettings], tmp_path: Path) -> Callable[..., str]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed here")
    fake, eks = cluster
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "fake",
        "clusters": [
            {
                "name": "fake",
                "cluster": {"server": eks.endpoint, "certificate-authority-data": eks.certificate},
            }
        ],
        "users": [{"name": "admin", "user": {"token": fake.admin_token}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "admin", "namespace": fake.namespace}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))

    def call(*arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [program, "--kubeconfig", str(tmp_path / "config"), "--cache-dir", str(tmp_path), *arguments],
            input=given,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    return call


def test_kubectl_gets_along_with_the_fake(
    fake: FakeKubernetes, executor: EksExecutor, kubectl: Callable[..., str]
) -> None:
    executor.submit(BUILD)
    assert kubectl("get", "jobs", "-l", SELECTOR, "-o", "name") == f"job.batch/{JOB}\n"
    assert kubectl("get", "jobs", "-l", "slipway/attempt=9", "-o", "name") == ""

    other = job_of(make_claimed(number=2), EksSettings("lab"), EXECUTION)
    name = other["metadata"]["name"]
    create = ("create", "--validate=false", "-f", "-")
    assert kubectl(*create, given=json.dumps(other)) == f"job.batch/{name} created\n"
    assert "already exists" in kubectl(*create, given=json.dumps(other))
    other["metadata"]["name"] = "again"
    other["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert "restartPolicy" in kubectl(*create, given=json.dumps(other))
    assert kubectl("delete", "job", name, "--wait=false").startswith("job.batch")
    assert jobs(fake) == [JOB]
    assert executor.find_handle(BUILD) == JOB
