"""The main job with the backend eks: a fake Kubernetes API whose Jobs really build, with minutes of two
seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chalicelib.adapters.registry import HttpRegistry
from infra.local.cluster.api import FakeKubernetes
from infra.local.machine.machine import Machine
from tests.factories import make_archive
from tests.required_engines import with_one_engine
from tests.stack.conftest import PROJECT, Client, processes, serving, unique_sleep

# On a cluster it is BuildKit, in whose place an engine only stands.
pytestmark = with_one_engine


@pytest.fixture(scope="module")
def client(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {"SLIPWAY_BACKEND": "eks"}
    with serving(local_machine, tmp_path_factory.mktemp("stack"), concurrency=2, settings=settings) as client:
        yield client


def kubernetes(client: Client) -> FakeKubernetes:
    fake = client.running.kubernetes
    assert fake is not None
    return fake


def test_a_build_becomes_an_image_in_the_registry(client: Client) -> None:
    path = client.build(
        "echo $COLOUR > /colour", "echo finished-$((40+2)); sleep 3", env_vars=[["COLOUR", "sea green"]]
    )
    build = client.until_done(path)

    assert client.statuses(path) == ["created", "scheduled", "building", "running", "succeeded"]
    registry = HttpRegistry(client.machine.registry_login)
    found = registry.find(build["image"])
    assert found is not None and found.layer_bytes is not None
    assert build["image_digest"] == found.digest
    assert (build["image_bytes"], build["layer_bytes"]) == (sum(found.layer_bytes), list(found.layer_bytes))
    assert client.machine.engine.run_in_image(build["image"], ["cat", "/colour"]) == "sea green\n"
    log = client.log(path)
    assert "finished-42" in log
    assert "slipway-end" not in log
    assert '"kubernetes"' not in log


def test_a_failing_step_is_named_with_its_exit_code_and_the_log_is_whole(client: Client) -> None:
    path = client.build("echo before-$((40+2))", "echo last-$((40+3)); exit 7", "echo never-$((40+4))")
    build = client.until_done(path)

    assert build["last_status"] == "failed"
    assert client.last_message(path) == "Exit code 7: echo last-$((40+3)); exit 7"
    assert build["image_digest"] is None
    client.until_logged(path, "last-43")
    log = client.log(path)
    assert "before-42" in log
    assert "never-44" not in log


def test_stopping_a_running_build_ends_its_processes_and_leaves_nothing(client: Client) -> None:
    nap = unique_sleep()
    path = client.build(f"echo started-$((40+2)); {nap}")
    client.until_logged(path, "started-42")
    uuid = client.get(path)["uuid"]

    assert client.call("POST", f"{path}/stop") == (200, "")
    build = client.until_done(path)

    assert build["last_status"] == "stopped"
    assert build["image_digest"] is None
    assert not processes(nap)  # `stopped` means that nothing runs any more
    for objects in kubernetes(client).objects.values():
        assert not [name for name in objects if uuid in name]
    assert "started-42" in client.log(path)


def test_two_builds_at_once_make_two_images_and_a_third_shows_that_it_waits(client: Client) -> None:
    paths = [client.build(f"echo {colour} > /colour; sleep 4") for colour in ("red", "blue")]
    for path in paths:
        client.until(path, lambda build: build["last_status"] in ("building", "running"))
    third = client.build("true")
    client.until(third, lambda build: build["last_status"] == "unschedulable")
    assert client.last_message(third).startswith("No node takes the build: 0/1 nodes are available")

    images = [client.until_done(path)["image"] for path in paths]
    read = [client.machine.engine.run_in_image(image, ["cat", "/colour"]).strip() for image in images]
    assert read == ["red", "blue"]
    assert client.until_done(third)["last_status"] == "succeeded"
    assert client.statuses(third).count("unschedulable") == 1


def test_uploaded_code_is_in_the_image(client: Client) -> None:
    project = "/root/with-code"
    client.call("POST", "/projects", {"name": "with-code"})
    client.upload(project, make_archive({"app.py": "print()"}))
    content = f'{{"version": 1, "kind": "build", "image": "{client.machine.base_image}"}}'
    _, created = client.call("POST", f"{project}/builds", {"content": content})
    path = f"{project}/builds/{created['id']}"
    assert client.until_done(path)["last_status"] == "succeeded"
    image = client.get(path)["image"]
    assert client.machine.engine.run_in_image(image, ["cat", "/code/app.py"]) == "print()"


def test_a_pod_that_is_deleted_under_us_fails_the_build(client: Client) -> None:
    nap = unique_sleep()
    path = client.build(nap)
    client.until(path, lambda _: bool(processes(nap)))
    fake, uuid = kubernetes(client), client.get(path)["uuid"]
    (pod,) = [name for name in fake.objects["pods"] if uuid in name]
    status, _ = fake.answer("DELETE", f"/api/v1/namespaces/{fake.namespace}/pods/{pod}", fake.admin_token, b"")
    assert status == 200

    assert client.until_done(path)["last_status"] == "failed"
    assert client.last_message(path) == "The build's pod was removed while it ran."


@pytest.mark.proof
def test_a_cluster_that_loses_an_answer_or_refuses_for_a_moment_builds_once(client: Client) -> None:
    fake = kubernetes(client)
    fake.lose_next_answer()  # the Job is made, and nobody hears of it
    first = client.build("true")
    assert client.until_done(first)["last_status"] == "succeeded"

    for status in (401, 429, 503):
        fake.answer_next(status)
        path = client.build("true")
        assert client.until_done(path)["last_status"] == "succeeded"
        assert client.statuses(path)[:2] == ["created", "scheduled"]

    uuid = client.get(first)["uuid"]
    assert len([name for name in fake.objects["jobs"] if uuid in name]) == 1


def test_requests_that_cannot_go_to_a_cluster_are_refused_at_once(client: Client) -> None:
    content = (
        f'{{"version": 1, "kind": "build", "image": "{client.machine.base_image}",'
        ' "environment": {"service_account": "admin", "node_selector": {"a": "b"}}}'
    )
    status, reasons = client.call("POST", f"{PROJECT}/builds", {"content": content})
    assert (status, reasons) == (
        400,
        [
            "`environment.node_selector` may not name this key; this deployment allows none.",
            "`environment.service_account` is refused for builds on EKS.",
        ],
    )
