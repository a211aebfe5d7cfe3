"""A fake Kubernetes API without a node: nothing moves there but by a test's hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from chalicelib.adapters.eks.api import KubernetesApi
from chalicelib.adapters.eks.executor import EksExecutor
from chalicelib.settings import EksSettings
from infra.local.kubernetes import FakeKubernetes
from tests.fakes import Clock, FakeSources


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
    sources: FakeSources | None = None,
    *,
    login: Callable[[str], str] = lambda image: '{"auths": {}}',
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> EksExecutor:
    """Speaks to that cluster over TLS, with a token signed by the environment's credentials."""
    api = KubernetesApi(eks.cluster, eks.endpoint, eks.certificate)
    return EksExecutor(
        api,
        eks,
        sources or FakeSources(Clock()),
        login,
        plain_http=False,
        queue_minutes=60,
        build_minutes=60,
        now=now,
    )
