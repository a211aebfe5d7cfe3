"""The registry: on loopback, in its folder, and gone afterwards."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import urllib3

from infra.local import registry
from infra.local.engines import Engine, NoEngine

pytestmark = pytest.mark.engine
BUILDAH = Engine("buildah", {})


@pytest.fixture(autouse=True)
def needs_docker_registry(request: pytest.FixtureRequest) -> None:
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed")


def test_it_answers_until_the_block_is_left(tmp_path: Path) -> None:
    with registry.serve(tmp_path, BUILDAH, print) as host:
        answer = urllib3.request("GET", f"http://{host}/v2/")
        assert answer.status == 200
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"

    address, port = host.split(":")
    assert address == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(port)), timeout=5)


def test_two_stand_side_by_side(tmp_path: Path) -> None:
    with (
        registry.serve(tmp_path / "a", BUILDAH, print) as first,
        registry.serve(tmp_path / "b", BUILDAH, print) as second,
    ):
        assert first != second


def test_a_port_that_somebody_else_took_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = registry._free_port
    with registry.serve(tmp_path / "a", BUILDAH, print) as taken:
        ports = iter([int(taken.partition(":")[2]), choose()])
        monkeypatch.setattr(registry, "_free_port", lambda: next(ports))
        with registry.serve(tmp_path / "b", BUILDAH, print) as host:
            assert host != taken


def test_without_any_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with (
        pytest.raises(NoEngine, match="apt-get install docker-registry"),
        registry.serve(tmp_path, BUILDAH, print),
    ):
        pass
