"""Builds that take too long, with minutes that last a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local.machine.machine import Machine
from tests.required_engines import with_other_engine
from tests.stack.conftest import Client, processes, serving, unique_sleep

pytestmark = [*with_other_engine, pytest.mark.proof]


@pytest.fixture(scope="module")
def client(local_machine: Machine, backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {
        "SLIPWAY_BACKEND": backend,
        "SLIPWAY_BUILD_TIMEOUT_MINUTES": "15",
        "SLIPWAY_QUEUE_TIMEOUT_MINUTES": "5",
    }
    folder = tmp_path_factory.mktemp("stack")
    with serving(local_machine, folder, concurrency=1, seconds_per_minute=1, settings=settings) as client:
        yield client


@pytest.mark.parametrize("backend", ["codebuild"], indirect=True)
def test_a_build_that_takes_too_long_and_one_that_waits_too_long_fail_with_the_reason(client: Client) -> None:
    running = client.build(nap := unique_sleep())
    client.until(running, lambda build: build["last_status"] in ("building", "running"))
    waiting = client.build("true")

    assert client.until_done(waiting)["last_status"] == "failed"
    assert client.last_message(waiting) == "The build waited longer than 5 minutes in the queue."
    assert client.until_done(running)["last_status"] == "failed"
    assert client.last_message(running) == "The build took longer than 15 minutes."
    client.until(running, lambda _: not processes(nap))


@pytest.mark.parametrize("backend", ["eks"], indirect=True)
def test_a_build_on_a_cluster_that_takes_too_long_fails_with_the_reason(client: Client) -> None:
    path = client.build(nap := unique_sleep())
    assert client.until_done(path)["last_status"] == "failed"
    assert client.last_message(path) == "The build took longer than 15 minutes."
    client.until(path, lambda _: not processes(nap))
