"""The smoke run of a deployment, against one machine: each step that does not need AWS, with real builds."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from infra.aws import smoke
from infra.local.machine.machine import Machine
from tests.required_engines import ENGINE
from tests.stack.conftest import Client, serving

NEED_AWS = {"a build on the cluster", "a build outlives its login", "no alarm rings"}


@pytest.mark.engine
@pytest.mark.parametrize("local_machine", [ENGINE], indirect=True)
def test_every_step_that_can_run_here_holds(local_machine: Machine, tmp_path: Path) -> None:
    said: list[str] = []
    with serving(local_machine, tmp_path) as client:
        on = smoke.Smoke(
            f"{client.running.url}/api/v1",
            client.running.token,
            local_machine.base_image,
            client.running.queues.requests,
        )
        assert list(smoke.run(on, said.append)) == []
        skipped = {line.partition(":")[0] for line in said if ": skipped: " in line}
        assert skipped == NEED_AWS
        assert len([line for line in said if ": ok (" in line]) == len(smoke.STEPS) - len(NEED_AWS)


def test_a_broken_step_is_named_and_the_others_go_on(client: Client) -> None:
    said: list[str] = []
    on = smoke.Smoke(f"{client.running.url}/api/v1", secrets.token_hex(32))
    broken = dict(smoke.run(on, said.append))
    assert "answered 401" in broken["a project is made"]
    assert len(said) == len(smoke.STEPS)
