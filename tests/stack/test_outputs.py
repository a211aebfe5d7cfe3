"""What comes out of a build: steps, sizes, labels and tags of the image, and the same image of the same inputs."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import urllib3

from chalicelib.adapters.registry import HttpRegistry
from chalicelib.errors import Unavailable
from infra.local.machine.machine import Machine
from tests.factories import make_archive
from tests.git_server import GitServer, git_server
from tests.required_engines import with_one_engine
from tests.stack.conftest import PROJECT, Client, serving, trusting, wait_until

pytestmark = with_one_engine
LABEL = "org.opencontainers.image."


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture(scope="module")
def client(local_machine: Machine, git: GitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {"SLIPWAY_PRIVATE_GIT_HOSTS": "127.0.0.1"}
    with serving(trusting(local_machine, git), tmp_path_factory.mktemp("stack"), settings=settings) as client:
        client.upload(PROJECT, make_archive({"requirements.txt": "x", "app/main.py": "print()"}))
        yield client


def built(client: Client, path: str) -> Any:
    build = client.until_done(path)
    assert build["last_status"] == "succeeded", client.log(path)
    return build


def from_registry(client: Client, image: str, what: str = "manifests", name: str | None = None) -> Any:
    """A manifest, or what a digest names, as the registry has it."""
    host, _, rest = image.partition("/")
    repository, _, tag = rest.rpartition(":")
    headers = urllib3.make_headers(basic_auth=client.machine.registry_login)
    headers["Accept"] = "application/vnd.oci.image.manifest.v1+json"
    # docker-registry answers 500 while a tag is being moved to the manifest: it writes links in place
    again = urllib3.Retry(total=5, status_forcelist=[500], backoff_factor=0.1)
    url = f"http://{host}/v2/{repository}/{what}/{name or tag}"
    answer = urllib3.request("GET", url, headers=headers, retries=again)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def labels(client: Client, image: str) -> dict[str, str]:
    config = from_registry(client, image, "blobs", from_registry(client, image)["config"]["digest"])
    given = config["config"].get("Labels") or {}
    return {name.removeprefix(LABEL): value for name, value in given.items() if name.startswith(LABEL)}


def has_digest(client: Client, image: str, digest: str) -> bool:
    with suppress(Unavailable):  # docker-registry answers 500 while a tag moves
        found = HttpRegistry(client.machine.registry_login).find(image)
        return found is not None and found.digest == digest
    return False


@pytest.mark.proof
def test_equal_inputs_make_equal_images_with_an_empty_and_with_a_warm_cache(client: Client) -> None:
    if client.machine.engine.name == "docker":
        pytest.skip("docker's own store cannot rewrite the times of files")
    told: dict[str, Any] = {"env_vars": [["ONCE", secrets.token_hex(8)]], "image_tags": ["v1.2", "latest"]}
    steps = ("mkdir /made && echo made > /made/it", "cat requirements.txt")

    client.upload(PROJECT, make_archive({"requirements.txt": "y"}))
    built(client, client.build(*steps, **told))  # whose layers others may take
    client.upload(PROJECT, make_archive({"requirements.txt": "x", "app/main.py": "print()"}))
    cold = built(client, client.build(*steps, **told))
    warm = built(client, client.build(*steps, nocache=False, **told))
    again = built(client, client.build(*steps, **told))

    cached = [step["is_cached"] for step in client.get(f"{PROJECT}/builds/{warm['id']}/steps")["results"]]
    assert cached.count(True) >= 5
    assert cold["image_digest"] == warm["image_digest"] == again["image_digest"]
    assert cold["layer_bytes"] == warm["layer_bytes"]
    assert sum(cold["layer_bytes"]) == cold["image_bytes"] > 0


def test_an_image_is_labelled_with_its_code_and_tagged(client: Client) -> None:
    build = built(client, client.build("true", image_tags=["v1.2", "latest"]))

    found = labels(client, build["image"])
    assert set(found) == {"revision", "version", "created"}
    assert (found["revision"], found["version"]) == (build["commit"], "v1.2")
    assert datetime.fromisoformat(found["created"]) <= datetime.fromisoformat(build["created_at"])
    repository = build["image"].rpartition(":")[0]
    for tag in ("v1.2", "latest"):  # moved as soon as the success is recorded
        wait_until(partial(has_digest, client, f"{repository}:{tag}", build["image_digest"]))


@pytest.mark.proof
def test_an_image_of_a_git_repository_is_labelled_with_its_commit(client: Client, git: GitServer) -> None:
    assert client.call("POST", "/projects", {"name": "git"})[0] == 201
    assert client.call("POST", "/root/git/repo/external", {"git_url": git.url})[0] == 201

    build = built(client, client.build("true", project="/root/git", branch="main"))

    show = [
        "git",
        "-C",
        str(next(git.certificate.parent.rglob("code.git"))),
        "show",
        "--no-patch",
        "--format=%ct",
        git.commits[-1],
    ]
    committed_at = datetime.fromtimestamp(int(subprocess.check_output(show)), UTC)
    assert labels(client, build["image"]) == {
        "source": git.url,
        "revision": git.commits[-1],
        "created": f"{committed_at:%Y-%m-%dT%H:%M:%SZ}",
    }


def test_instructions_of_dockers_format_stay_in_the_image(client: Client) -> None:
    dockerfile = f"FROM {client.machine.base_image}\nHEALTHCHECK CMD true\n"
    client.upload(PROJECT, make_archive({"Dockerfile": dockerfile}))

    spec: dict[str, Any] = {"image": None, "dockerfile": "Dockerfile"}
    build = built(client, client.build(**spec))

    host, _, rest = build["image"].partition("/")
    repository, _, tag = rest.rpartition(":")
    headers = urllib3.make_headers(basic_auth=client.machine.registry_login)
    headers["Accept"] = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = urllib3.request("GET", f"http://{host}/v2/{repository}/manifests/{tag}", headers=headers).json()
    config = from_registry(client, build["image"], "blobs", manifest["config"]["digest"])
    assert config["config"]["Healthcheck"] == {"Test": ["CMD-SHELL", "true"]}


def test_an_equal_build_gets_the_same_image_and_nothing_runs(client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "equal", "reuse": True})[0] == 201
    base = built(client, client.build("true", project="/root/equal"))
    assert base["reused_from"] is None  # nobody tells the digest of what the engine has in its own store

    def build() -> Any:
        return built(client, client.build("echo made > /it", project="/root/equal", image=base["image"], nocache=False))

    first, second = build(), build()

    assert (first["reused_from"], second["reused_from"]) == (None, first["id"])
    assert (second["image"], second["image_digest"]) == (first["image"], first["image_digest"])
    assert has_digest(client, second["image"], second["image_digest"])
    statuses = client.get(f"/root/equal/builds/{second['id']}/statuses")["results"]
    assert [each["status"] for each in statuses] == ["created", "succeeded"]


def test_a_build_that_failed_says_in_which_step(client: Client) -> None:
    path = client.build("sleep 0.2", "exit 7", project=PROJECT)
    assert client.until_done(path)["last_status"] == "failed"

    steps = client.get(f"{path}/steps")["results"]
    assert steps[-1]["name"].endswith("RUN exit 7") and "7" in steps[-1]["error"]
    slept = next(step for step in steps if step["name"].endswith("RUN sleep 0.2"))
    assert (slept["error"], slept["is_cached"]) == (None, False)
    assert slept["duration_seconds"] >= 0.2
