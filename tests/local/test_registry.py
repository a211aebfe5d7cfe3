"""The registry: on loopback, in its folder, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import urllib3

from infra.local.machine import registry
from infra.local.machine.engine import Engine, NoEngine
from infra.local.machine.registry import Registry

pytestmark = pytest.mark.engine
BUILDAH = Engine("buildah", {})
PATIENCE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def needs_docker_registry(request: pytest.FixtureRequest) -> None:
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed")


def status(images: Registry, path: str, login: str = "", method: str = "GET") -> int:
    headers = urllib3.make_headers(basic_auth=login) if login else {}
    return urllib3.request(method, f"http://{images.host}{path}", headers=headers, retries=False).status


def test_it_answers_its_login_until_the_block_is_left(tmp_path: Path) -> None:
    with registry.serve(tmp_path, BUILDAH, print) as images:
        headers = urllib3.make_headers(basic_auth=images.login)
        answer = urllib3.request("GET", f"http://{images.host}/v2/", headers=headers)
        assert answer.status == 200
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"

    address, port = images.host.split(":")
    assert address == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, int(port)), timeout=5)


def test_variables_of_podman_are_not_taken_for_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    with registry.serve(tmp_path, BUILDAH, print) as images:
        assert status(images, "/v2/", images.login) == 200


def test_two_stand_side_by_side_with_logins_of_their_own(tmp_path: Path) -> None:
    with (
        registry.serve(tmp_path / "a", BUILDAH, print) as first,
        registry.serve(tmp_path / "b", BUILDAH, print) as second,
    ):
        assert first.host != second.host
        assert status(second, "/v2/", second.login) == 200
        assert status(second, "/v2/", first.login) == 401


def test_without_its_login_nothing_is_read_or_written(tmp_path: Path) -> None:
    with registry.serve(tmp_path, BUILDAH, print) as images:
        for login in ("", f"{registry.USER}:guessed", f"{registry.USER}:"):
            assert status(images, "/v2/_catalog", login) == 401
            assert status(images, "/v2/ann/app/tags/list", login) == 401
            assert status(images, "/v2/ann/app/blobs/uploads/", login, "POST") == 401
            assert status(images, "/v2/ann/app/manifests/1", login, "PUT") == 401
        assert status(images, "/v2/_catalog", images.login) == 200


def test_only_the_proxy_listens_on_a_port(tmp_path: Path) -> None:
    """The registry itself has a socket in a folder that only this user may enter."""
    with registry.serve(tmp_path, BUILDAH, print):
        processes = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if is_ours(path, tmp_path)]
        assert len(processes) == 1
        (settings,) = processes[0].joinpath("cmdline").read_bytes().split(b"\0")[2:3]
        folder = Path(settings.decode()).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / "socket").is_socket()
        own = {str(each.readlink()) for each in processes[0].joinpath("fd").iterdir()}
        listening = [line.split() for line in processes[0].joinpath("net/tcp").read_text().splitlines()[1:]]
        assert not [row for row in listening if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def is_ours(cmdline: Path, state: Path) -> bool:
    """Whether it is the command line of the registry that keeps its images there."""
    try:
        words = cmdline.read_bytes().split(b"\0")
        return words[0] == b"docker-registry" and str(state) in Path(words[2].decode()).read_text()
    except OSError:
        return False


def test_without_any_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with (
        pytest.raises(NoEngine, match="apt-get install docker-registry"),
        registry.serve(tmp_path, BUILDAH, print),
    ):
        pass


def test_one_that_was_killed_is_started_again_at_the_same_place(tmp_path: Path) -> None:
    with registry.serve(tmp_path, BUILDAH, print) as images:
        upload = f"http://{images.host}/v2/ann/app/blobs/uploads/"
        headers = urllib3.make_headers(basic_auth=images.login)
        begun = urllib3.request("POST", upload, headers=headers).headers["Location"]
        digest = f"sha256:{sha256(b'layer').hexdigest()}"
        assert urllib3.request("PUT", f"{begun}&digest={digest}", body=b"layer", headers=headers).status == 201

        (number,) = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_ours(path, tmp_path)]
        os.kill(number, signal.SIGKILL)
        wait_until(lambda: not registry.answers(images))
        wait_until(lambda: registry.answers(images))

        assert status(images, f"/v2/ann/app/blobs/{digest}", images.login) == 200
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_ours(path, tmp_path)]


def wait_until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_what_a_killed_registry_had_half_written_is_mended_or_removed(tmp_path: Path) -> None:
    root = tmp_path / "docker/registry/v2"
    whole = sha256(b"{}").hexdigest()
    shared = f"repositories/slipway/root/p/_layers/sha256/{whole}/link"
    files = {
        f"blobs/sha256/{whole[:2]}/{whole}/data": b"{}",
        shared: b"sha256:",
        "repositories/slipway/root/p/_layers/sha256/abcd/link": b"",
        "blobs/sha256/ab/abcd/data": b"",
        "blobs/sha256/ff/ffee/data": b"x" * (registry.MANIFEST_BYTES + 1),
        "repositories/slipway/root/p/_manifests/tags/1/current/link": f"sha256:{whole}".encode(),
        "repositories/slipway/root/p/_manifests/tags/2/current/link": b"",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    registry.repair_incomplete(tmp_path)

    left = {str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()}
    assert files.keys() - left == {each for each, content in files.items() if content == b""}
    assert (root / shared).read_text() == f"sha256:{whole}"
