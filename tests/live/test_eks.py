"""The executor on a real cluster: only where KUBECONFIG names one, and never part of `make test`'s verdict.

Beside KUBECONFIG (its current context; the manifests of infra/aws/kubernetes are applied) it needs
  SLIPWAY_LIVE_BUCKET    a bucket that AWS credentials of this shell may write, for the source
  SLIPWAY_LIVE_IMAGE     where to push: a repository of ECR that is there, host/prefix/owner/name
  SLIPWAY_LIVE_ROLE      the role that may push there, which this shell may assume
  SLIPWAY_LIVE_BASE      a base image that the cluster can pull (default: busybox from public.ecr.aws)
  SLIPWAY_LIVE_PROFILE   userns or rootless
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pytest

from chalicelib.adapters.eks.api import KubernetesApi
from chalicelib.adapters.eks.executor import EksExecutor
from chalicelib.domain.build import Build
from chalicelib.domain.lifecycle import Observation, Outcome
from chalicelib.settings import EksSettings, Profile
from tests.factories import make_claimed

PATIENCE_SECONDS = 600
NEEDED = ("KUBECONFIG", "SLIPWAY_LIVE_BUCKET", "SLIPWAY_LIVE_IMAGE", "SLIPWAY_LIVE_ROLE")
MISSING = [name for name in NEEDED if not os.environ.get(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no cluster to run on: {', '.join(MISSING)} not set"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The cluster's API through `kubectl proxy`, whatever way of logging in the configuration has."""
    program = shutil.which("kubectl")
    assert program is not None, "kubectl is needed"
    proxy = subprocess.Popen([program, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    assert proxy.stdout is not None
    address = re.search(r"127\.0\.0\.1:\d+", proxy.stdout.readline())
    assert address is not None
    yield f"http://{address[0]}"
    proxy.terminate()
    proxy.wait()


def executor(endpoint: str, build_minutes: int = 10) -> EksExecutor:
    from chalicelib.adapters.registry import EcrLogins, docker_config
    from chalicelib.adapters.s3 import S3Sources

    profile = msgspec.convert(os.environ.get("SLIPWAY_LIVE_PROFILE", "userns"), Profile)
    eks = EksSettings("live", endpoint=endpoint, profile=profile)
    return EksExecutor(
        KubernetesApi("live", endpoint, token=lambda: ""),
        eks,
        S3Sources(os.environ["SLIPWAY_LIVE_BUCKET"]),
        lambda image: docker_config(EcrLogins(os.environ["SLIPWAY_LIVE_ROLE"]).mint(image)),
        plain_http=False,
        queue_minutes=5,
        build_minutes=build_minutes,
        now=lambda: datetime.now(UTC),
    )


def staged(*steps: str) -> Build:
    from chalicelib.adapters.s3 import S3Sources

    base = os.environ.get("SLIPWAY_LIVE_BASE", "public.ecr.aws/docker/library/busybox")
    identity = uuid.uuid4().hex
    build = replace(make_claimed(), uuid=identity, image=f"{os.environ['SLIPWAY_LIVE_IMAGE']}:{identity}")
    text = "\n".join([f"FROM {base}", *(f"RUN {step}" for step in steps), ""])
    S3Sources(os.environ["SLIPWAY_LIVE_BUCKET"]).stage(build, text)
    return build


def until_ended(on: EksExecutor, handle: str) -> Observation:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (seen := on.observe([handle]).get(handle)) is None or seen.outcome is None:
        assert time.monotonic() < deadline, seen
        time.sleep(2)
    return seen


def test_success_twice_at_once(endpoint: str) -> None:
    on = executor(endpoint)
    handles = [on.submit(staged(f"echo {word} > /word")) for word in ("red", "blue")]
    assert [until_ended(on, handle).outcome for handle in handles] == [Outcome.SUCCEEDED] * 2


def test_a_failing_step_is_named(endpoint: str) -> None:
    on = executor(endpoint)
    seen = until_ended(on, on.submit(staged("echo before", "exit 7")))
    assert (seen.outcome, seen.reason) == (Outcome.FAILED, "Exit code 7: exit 7")


def test_a_stopped_build_is_gone(endpoint: str) -> None:
    on = executor(endpoint)
    handle = on.submit(staged("sleep 3600"))
    time.sleep(20)
    on.stop(handle)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while on.observe([handle]):
        assert time.monotonic() < deadline
        time.sleep(2)


def test_a_build_that_takes_too_long_says_so(endpoint: str) -> None:
    on = executor(endpoint, build_minutes=2)
    seen = until_ended(on, on.submit(staged("sleep 3600")))
    assert (seen.outcome, seen.reason) == (Outcome.TIMED_OUT, "The build took longer than 2 minutes.")
