"""Builds that really run, seen through the API."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chalicelib.adapters.registry import HttpRegistry
from infra.local.machine.machine import Machine
from tests.local.test_engines import left_by_builds
from tests.required_engines import with_any_engine
from tests.stack.conftest import PROJECT, Client, engines_building, processes, serving, unique_sleep

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tmp_path_factory.mktemp("stack")
    with serving(local_machine, folder, concurrency=2) as client:
        yield client


def test_a_build_becomes_an_image_in_the_registry(client: Client) -> None:
    path = client.build("echo $COLOUR > /colour", "echo finished-$((40+2))", env_vars=[["COLOUR", "sea green"]])
    build = client.until_done(path)

    assert client.statuses(path) == ["created", "scheduled", "building", "running", "succeeded"]
    registry = HttpRegistry(client.machine.registry_login)
    found = registry.find(build["image"])
    assert found is not None and found.layer_bytes is not None
    assert build["image_digest"] == found.digest
    assert (build["image_bytes"], build["layer_bytes"]) == (sum(found.layer_bytes), list(found.layer_bytes))
    assert client.machine.engine.run_in_image(build["image"], ["cat", "/colour"]) == "sea green\n"
    assert build["created_at"] <= build["started_at"] <= build["finished_at"] <= build["updated_at"]
    assert "finished-42" in client.log(path)
    assert "slipway-end" not in client.log(path)


def test_a_failing_step_is_named_with_its_exit_code_and_the_log_is_whole(client: Client) -> None:
    path = client.build("echo before-$((40+2))", "echo last-$((40+3)); exit 7", "echo never-$((40+4))")
    build = client.until_done(path)

    assert build["last_status"] == "failed"
    assert client.last_message(path) == "Exit code 7: echo last-$((40+3)); exit 7"
    assert build["image_digest"] is None
    log = client.log(path)
    assert "before-42" in log
    assert "last-43" in log
    assert "never-44" not in log


def test_a_base_image_that_is_not_there_fails_with_the_engines_words(client: Client) -> None:
    content = f'{{"version": 1, "kind": "build", "image": "{client.machine.registry}/no/such:image"}}'
    _, created = client.call("POST", f"{PROJECT}/builds", {"content": content})
    path = f"{PROJECT}/builds/{created['id']}"

    assert client.until_done(path)["last_status"] == "failed"
    assert "no/such:image" in client.last_message(path)


def test_stopping_a_running_build_ends_its_processes(client: Client) -> None:
    nap = unique_sleep()
    path = client.build(f"echo started-$((40+2)); {nap}")
    client.until_logged(path, "started-42")
    client.until(path, lambda _: bool(processes(nap)))

    assert client.call("POST", f"{path}/stop") == (200, "")
    build = client.until_done(path)

    assert build["last_status"] == "stopped"
    assert build["image_digest"] is None
    client.until(path, lambda _: not processes(nap))
    assert client.call("POST", f"{path}/stop") == (200, "")  # nothing more happens
    assert client.statuses(path)[-1] == "stopped"


def test_an_engine_that_is_killed_takes_its_step_with_it(client: Client) -> None:
    """By the kernel without memory, for instance."""
    nap = unique_sleep()
    path = client.build(f"echo started-$((40+2)); {nap}")
    client.until_logged(path, "started-42")
    image = client.get(path)["image"]

    for process in engines_building(image):
        os.kill(process, signal.SIGKILL)
    assert client.until_done(path)["last_status"] == "failed"

    words = "BUILD: The command was killed (signal 9); the machine may have run out of memory."
    assert client.last_message(path) == words
    client.until(path, lambda _: not processes(nap))
    client.until(path, lambda _: left_by_builds(client.machine.engine) == [])


def test_deleting_a_running_build_hides_it_at_once_and_ends_its_processes(client: Client) -> None:
    nap = unique_sleep()
    path = client.build(f"echo started-$((40+2)); {nap}")
    client.until_logged(path, "started-42")

    assert client.call("DELETE", path) == (204, "")
    assert client.call("GET", path)[0] == 404
    other = client.build("true")
    client.until(other, lambda _: not processes(nap))


@with_any_engine
def test_builds_run_side_by_side_and_a_third_waits(client: Client) -> None:
    first = client.build("echo first > /who", "echo started-$((40+2)); sleep 3600")
    second = client.build("echo second > /who", "echo started-$((40+3)); sleep 3600")
    client.until_logged(first, "started-42")
    client.until_logged(second, "started-43")

    third = client.build("echo third-$((40+2))")
    client.until(third, lambda build: build["last_status"] == "scheduled")
    client.call("POST", f"{third}/stop")
    assert client.until_done(third)["last_status"] == "stopped"
    assert "third-42" not in client.log(third)

    for path in (first, second):
        client.call("POST", f"{path}/stop")
        assert client.until_done(path)["last_status"] == "stopped"


def test_two_builds_at_once_make_two_images(client: Client) -> None:
    paths = [client.build(f"echo {colour} > /colour") for colour in ("red", "blue")]
    images = [client.until_done(path)["image"] for path in paths]
    read = [client.machine.engine.run_in_image(image, ["cat", "/colour"]).strip() for image in images]
    assert read == ["red", "blue"]
