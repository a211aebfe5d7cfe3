"""A fake Kubernetes API without a node: nothing moves there but by a test's hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from chalicelib.adapters.eks.api import KubernetesApi
from chalicelib.adapters.eks.executor import EksExecutor
from chalicelib.domain.record import replace
from chalicelib.settings import EksSettings
from infra.local.cluster.api import FakeKubernetes
from tests.factories import SETTINGS

API_URL = "https://api.test/v1"
EXECUTION = replace(SETTINGS, api_url=API_URL, registry_kind="ecr")


@contextmanager
def kubernetes() -> Iterator[tuple[FakeKubernetes, EksSettings]]:
    """The fake, and the settings to reach it."""
    fake = FakeKubernetes("lab", "slipway-builds")
    endpoint, certificate = fake.start()
    try:
        yield fake, EksSettings("lab", endpoint=endpoint, certificate=certificate)
    finally:
        fake.close()


def eks_executor(
    eks: EksSettings,
    *,
    secret_of: Callable[[str, int], str] = lambda uuid, attempt: f"secret of {uuid} {attempt}",
) -> EksExecutor:
    """Speaks to that cluster over TLS, with a token signed by the environment's credentials."""
    api = KubernetesApi(eks.cluster, eks.endpoint, eks.certificate)
    return EksExecutor(api, eks, EXECUTION, secret_of)


def running(fake: FakeKubernetes, handle: str, **status: Any) -> Any:
    """Gives a Job a pod that runs."""
    template = fake.objects["jobs"][handle]["spec"]["template"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": handle}
    metadata = {**template["metadata"], "name": f"{handle}-x", "namespace": fake.namespace, "labels": labels}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {**template["spec"], "nodeName": "n"},
    }
    with fake.lock:
        fake.add("pods", pod)
        pod["status"] = {
            "phase": "Running",
            "initContainerStatuses": [{"name": "fetch", "state": {"terminated": {"exitCode": 0}}}],
            **status,
        }
    return pod


def container(name: str = "build", **state: Any) -> dict[str, Any]:
    kind = "containerStatuses" if name == "build" else "initContainerStatuses"
    return {kind: [{"name": name, "containerID": "containerd://c1", "state": state}]}


def ended(exit_code: int, reason: str = "Error", message: str = "", at: str = "2024-03-01T12:01:00Z") -> dict[str, Any]:
    return {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason,
            "message": message,
            "startedAt": "2024-03-01T12:00:10Z",
            "finishedAt": at,
        }
    }
