"""What a build's login reaches: its own project's repositories, and nothing of another's."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import urllib3

from infra.local.machine.machine import Machine
from tests.required_engines import with_every_engine_and_executor
from tests.stack.conftest import MANIFESTS, PROJECT, Client, serving, wait_until

pytestmark = with_every_engine_and_executor  # an engine may take another's image from its own store
MALLORYS = "/root/other"


@pytest.fixture(scope="module")
def client(local_machine: Machine, backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {"SLIPWAY_BACKEND": backend}
    with serving(local_machine, tmp_path_factory.mktemp("stack"), settings=settings) as client:
        assert client.call("POST", "/projects", {"name": "other"})[0] == 201
        yield client


# buildah and podman show the registry's words, docker its status
REFUSED = ("This login may not do that", "403 Forbidden")


@pytest.fixture(scope="module")
def secret(client: Client) -> str:
    """An image of one project."""
    build = client.until_done(client.build("echo MARK-secret-$((40+2)) > /secret"))
    assert build["last_status"] == "succeeded"
    return str(build["image"])


def test_a_build_cannot_use_another_projects_image(client: Client, secret: str) -> None:
    steps = {"nocache": True, "build_steps": ["cat /secret"]}  # a cached step prints nothing
    content = json.dumps({"version": 1, "kind": "build", "image": secret, **steps})
    for project, status in ((MALLORYS, "failed"), (PROJECT, "succeeded")):
        posted, build = client.call("POST", f"{project}/builds", {"content": content})
        assert posted == 201
        path = f"{project}/builds/{build['id']}"
        assert client.until_done(path)["last_status"] == status, client.log(path)
        expected = ("MARK-secret-42",) if status == "succeeded" else REFUSED
        wait_until(partial(logged, client, path, expected))  # a cluster's logs come late
        assert ("MARK-secret-42" in client.log(path)) == (status == "succeeded")
        assert any(words in client.log(path) for words in REFUSED) == (status == "failed")


def logged(client: Client, path: str, any_of: Sequence[str]) -> bool:
    log = client.log(path)
    return any(words in log for words in any_of)


def test_a_build_that_escapes_finds_a_login_that_opens_nothing_of_others(client: Client, secret: str) -> None:
    """With the secret of a running build: what it had asked for before its steps ran is shut by then."""
    path = client.build("echo started-$((40+2)); sleep 3600", project=MALLORYS)
    client.until_logged(path, "started-42")
    variables = given_to(client, path)
    assert asked(variables, "_materials")[0] == 410
    given = json.loads(asked(variables, "_login")[1])
    login = f"{given['Username']}:{given['Secret']}"
    assert client.machine.registry_login not in login

    def status(method: str, repository: str, rest: str) -> int:
        url = f"http://{client.machine.registry}/v2/{repository}/{rest}"
        return urllib3.request(method, url, headers=urllib3.make_headers(basic_auth=login)).status

    victim, _, tag = secret.partition("/")[2].rpartition(":")
    own = client.get(path)["image"].partition("/")[2].rpartition(":")[0]
    assert status("GET", victim, f"manifests/{tag}") == 403
    for future in (tag, "2", "999"):
        assert status("PUT", victim, f"manifests/{future}") == 403
    assert status("POST", victim, "blobs/uploads/") == 403
    assert status("POST", victim.replace("slipway/", "slipway-cache/", 1), "blobs/uploads/") == 403
    assert status("POST", own, "blobs/uploads/") == 202  # the login is a good one

    client.call("POST", f"{path}/stop")
    client.until_done(path)
    assert asked(variables, "_login")[0] == 410


def asked(variables: dict[str, str], what: str) -> tuple[int, str]:
    """Status and body of the answer to what a build asks."""
    answer = urllib3.request(
        "POST",
        f"{variables['SLIPWAY_API']}/{what}",
        headers={"Authorization": f"Build {variables['SLIPWAY_SECRET']}"},
        json={"attempt": int(variables["SLIPWAY_ATTEMPT"])},
    )
    return answer.status, answer.data.decode()


def given_to(client: Client, path: str) -> dict[str, str]:
    """The variables of a build, as its executor has them while it runs."""
    uuid = client.get(path)["uuid"]
    if (kubernetes := client.running.kubernetes) is None:
        each = [build.request["environmentVariablesOverride"] for build in client.running.codebuild._builds.values()]
        (variables,) = (given for given in map(by_name, each) if given["SLIPWAY_UUID"] == uuid)
        return variables
    (job,) = (job for job in kubernetes.objects["jobs"].values() if job["metadata"]["labels"]["slipway/uuid"] == uuid)
    variables = by_name(job["spec"]["template"]["spec"]["containers"][0]["env"])
    (held,) = (
        secret["data"]["secret"]
        for secret in kubernetes.objects["secrets"].values()
        if secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    )
    return {**variables, "SLIPWAY_SECRET": base64.b64decode(held).decode()}


def by_name(variables: list[dict[str, str]]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in variables}


def test_a_tag_that_was_pushed_in_advance_never_becomes_a_builds_image(client: Client) -> None:
    """By a build of the project itself, whose login may push there: no other build's may."""
    path = client.build("echo started-$((40+2)); sleep 3600")
    client.until_logged(path, "started-42")
    login = json.loads(asked(given_to(client, path), "_login")[1])
    headers = urllib3.make_headers(basic_auth=f"{login['Username']}:{login['Secret']}")
    repository = client.get(path)["image"].partition("/")[2].rpartition(":")[0]
    base = f"http://{client.machine.registry}/v2/{repository}"
    first = client.until_done(client.build("true"))
    made = urllib3.request(
        "GET", f"{base}/manifests/{first['id']}", headers={**headers, "Accept": ", ".join(MANIFESTS)}
    )
    assert made.status == 200
    kind = made.headers["Content-Type"]
    pushed = urllib3.request(
        "PUT", f"{base}/manifests/{first['id'] + 1}", headers={**headers, "Content-Type": kind}, body=made.data
    )
    assert pushed.status == 201

    victim = client.build("true")
    build = client.until_done(victim)

    assert build["id"] == first["id"] + 1
    assert (build["last_status"], build["image_digest"]) == ("failed", None)
    assert client.last_message(victim).endswith("which this build did not make.")
    client.call("POST", f"{path}/stop")
    client.until_done(path)


def test_a_build_whose_login_ended_before_the_push_asks_for_another_and_pushes(client: Client) -> None:
    proxy = client.machine.registry_proxy
    if proxy is None:
        pytest.skip("the registry's proxy runs in a container")
    with socket.create_server(("127.0.0.1", 0)) as gate:
        port = gate.getsockname()[1]
        wait = f"import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)"
        path = client.build(f'echo started-$((40+2)); python3 -c "{wait}"')
        step, _ = gate.accept()
        proxy.expire_logins()
        step.close()

    assert client.until_done(path)["last_status"] == "succeeded", client.log(path)
