"""Builds on a real cluster, through a deployed Slipway: only where one is named, and never part of the
verdict of `make test`.

  SLIPWAY_LIVE_URL      the deployment's API, as its output `Url` says; it has a cluster (EksCluster)
  SLIPWAY_LIVE_TOKEN    of a user who may make projects there
  SLIPWAY_LIVE_BASE     a base image that the cluster can pull (default: busybox from public.ecr.aws)
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

PATIENCE_SECONDS = 600
NEEDED = ("SLIPWAY_LIVE_URL", "SLIPWAY_LIVE_TOKEN")
MISSING = [name for name in NEEDED if not os.environ.get(name)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no deployment to ask: {', '.join(MISSING)} not set"),
]


def call(method: str, path: str, fields: Any = None) -> Any:
    headers = {"Authorization": f"token {os.environ['SLIPWAY_LIVE_TOKEN']}"}
    answer = urllib3.request(method, os.environ["SLIPWAY_LIVE_URL"] + path, headers=headers, json=fields)
    assert answer.status < 300, answer.data
    return json.loads(answer.data) if answer.data else None


@pytest.fixture(scope="module")
def builds() -> Iterator[str]:
    """The path of a project's builds."""
    user, name = call("GET", "/users")["username"], f"live-{uuid.uuid4().hex[:8]}"
    call("POST", "/projects", {"name": name})
    yield f"/{user}/{name}/builds"
    call("DELETE", f"/{user}/{name}")


def start(builds: str, *steps: str) -> str:
    base = os.environ.get("SLIPWAY_LIVE_BASE", "public.ecr.aws/docker/library/busybox")
    spec = {"version": 1, "kind": "build", "image": base, "backend": "eks", "build_steps": [*steps]}
    return f"{builds}/{call('POST', builds, {'content': json.dumps(spec)})['id']}"


def until_ended(build: str) -> tuple[str, str | None]:
    """Status and message of the end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (last := call("GET", f"{build}/statuses?limit=100")["results"][-1])["status"] not in (
        *("succeeded", "failed", "stopped"),
    ):
        assert time.monotonic() < deadline, last
        time.sleep(2)
    return last["status"], last["message"]


def test_success_twice_at_once(builds: str) -> None:
    both = [start(builds, f"echo {word} > /word") for word in ("red", "blue")]
    assert [until_ended(build)[0] for build in both] == ["succeeded"] * 2


def test_a_failing_step_is_named(builds: str) -> None:
    assert until_ended(start(builds, "echo before", "exit 7")) == ("failed", "Exit code 7: exit 7")


def test_a_stopped_build_is_gone(builds: str) -> None:
    build = start(builds, "sleep 3600")
    time.sleep(20)
    call("POST", f"{build}/stop")
    assert until_ended(build)[0] == "stopped"
