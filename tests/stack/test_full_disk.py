"""A build that this machine cannot run says why, with both backends."""

from __future__ import annotations

import errno
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from infra.bench.serving import served
from infra.local.cluster import node
from infra.local.codebuild import buildspec
from infra.local.machine.engine import Engine
from infra.local.machine.machine import Machine
from tests.stack.conftest import PROJECT, serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("backend", ["codebuild", "eks"])
def test_a_full_disk_is_the_reason(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(buildspec, "Phase", refuse)
    monkeypatch.setattr(node, "Phase", refuse)
    with ExitStack() as closing:
        registry = closing.enter_context(served(lambda _: Response(status=404)))
        nothing = Machine(Engine("docker", {"SLIPWAY_ENGINE": "none"}), registry, "", "scratch")
        settings = {"SLIPWAY_BACKEND": backend}
        client = closing.enter_context(serving(nothing, tmp_path / "stack", settings=settings))
        content = json.dumps({"version": 1, "kind": "build", "image": "scratch"})
        build = client.call("POST", f"{PROJECT}/builds/", {"content": content})[1]
        path = f"{PROJECT}/builds/{build['id']}"
        assert client.until_done(path)["last_status"] == "failed"
        assert "No space left on device" in client.last_message(path)
