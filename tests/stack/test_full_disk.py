"""A build that this machine cannot run says why, with both backends."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from infra.local.cluster import node
from infra.local.codebuild import buildspec
from infra.local.machine.engine import Engine
from infra.local.machine.machine import Machine
from tests.stack.conftest import PROJECT, serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["codebuild", "eks"])
def test_a_full_disk_is_the_reason(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(buildspec, "Phase", refuse)
    monkeypatch.setattr(node, "Phase", refuse)
    nothing = Machine(Engine("docker", {"SLIPWAY_ENGINE": "none"}), "127.0.0.1:9", "", "scratch")
    with serving(nothing, tmp_path / "stack", settings={"SLIPWAY_BACKEND": backend}) as client:
        content = json.dumps({"version": 1, "kind": "build", "image": "scratch"})
        build = client.call("POST", f"{PROJECT}/builds/", {"content": content})[1]
        path = f"{PROJECT}/builds/{build['id']}"
        assert client.until_done(path)["last_status"] == "failed"
        assert "No space left on device" in client.last_message(path)
