"""Arguments, secrets and private code, from a project to the steps of real engines, and to nothing else."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import urllib3

from infra.local.machine.machine import Machine
from tests.git_server import GitServer, git_server
from tests.required_engines import with_every_engine_and_executor
from tests.stack.conftest import DONE, MANIFESTS, Client, processes, serving, trusting, wait_until

pytestmark = with_every_engine_and_executor
TOKEN, VALUE = "marked-git-7c1e", "marked-5e1f/one\n second 'line' $x & marked-5e1f"
MARKS = [TOKEN, *VALUE.split("\n")]
ODD = " two  blanks, 'single' \"double\" $HOME `id` $(id) \\ \\n ! * # é=1 "
SHOW = "cat /run/secrets/pip; wc -c </run/secrets/pip >/size"
LOOK = """
import os
print(open("/size").read(), [file for _, _, files in os.walk("/run") for file in files if file == "pip"])
"""
OWN = """FROM {base}
ARG ODD
ARG EMPTY
RUN printf '%s\\n<%s>' "$ODD" "$EMPTY" >/odd
RUN --mount=type=secret,id=pip {show}
COPY build/note.txt /note.txt
"""


@pytest.fixture(scope="module")
def git(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """A repository that answers one login, with a Dockerfile that needs all there is."""
    dockerfile = OWN.format(base=local_machine.base_image, show=SHOW)
    folder = tmp_path_factory.mktemp("git")
    with git_server(folder, f"ada:{TOKEN}", {"Dockerfile": dockerfile}) as server:
        yield server


@pytest.fixture(scope="module")
def client(
    local_machine: Machine, backend: str, git: GitServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    machine = trusting(local_machine, git)
    settings = {"SLIPWAY_BACKEND": backend, "SLIPWAY_PRIVATE_GIT_HOSTS": "127.0.0.1"}
    with serving(machine, tmp_path_factory.mktemp("stack"), settings=settings) as client:
        secrets = "/root/quick-start/secrets"
        assert client.call("POST", "/root/quick-start/repo/external", {"git_url": git.url})[0] == 201
        for name, value in (("token", VALUE), ("git-token", f"ada:{TOKEN}")):
            assert client.call("PUT", f"{secrets}/{name}", {"value": value})[0] == 204
        assert client.get(secrets) == {"names": ["git-token", "token"]}
        yield client


GIVEN: dict[str, Any] = {"secrets": [{"id": "pip", "from": "token"}], "build_args": {"ODD": ODD, "EMPTY": ""}}


def test_a_private_repository_gets_arguments_and_secrets_and_nothing_else_has_them(
    client: Client, git: GitServer
) -> None:
    by_steps = client.build(f'printf \'%s\\n<%s>\' "$ODD" "$EMPTY" >/odd; sleep 1; {SHOW}', **GIVEN)
    listed = processes_until_done(client, by_steps)
    own = client.build(**GIVEN, image=None, dockerfile="Dockerfile")
    for path in (by_steps, own):
        build = client.until_done(path)
        assert build["last_status"] == "succeeded", client.log(path)
        assert build["commit"] == git.commits[-1]
        assert f"The commit is {git.commits[-1]}" in client.log(path)
        assert client.log(path).count("***") >= 2
        read = client.machine.engine.run_in_image
        assert read(build["image"], ["cat", "/odd"]) == f"{ODD}\n<>"
        assert read(build["image"], ["python3", "-c", LOOK]).split() == [str(len(VALUE)), "[]"]
    assert read(client.get(own)["image"], ["cat", "/note.txt"]) == "second"
    assert "COPY build/requirements.txt /code" in client.get(by_steps)["dockerfile"]

    searched = {
        "processes": listed,
        "records": table(),
        "storage": storage(),
        "logs": logs(),
        "the executor": executor(client),
        **{path: image(client, client.get(path)["image"]) for path in (by_steps, own)},
    }
    assert "id=pip,src=" in listed
    for place, text in searched.items():
        assert "quick-start" in text, f"{place}: not searched"
        assert [mark for mark in MARKS if mark in text] == [], place


def test_a_failing_step_ends_the_build_although_its_output_is_masked(client: Client) -> None:
    step = "cat /run/secrets/pip; echo; exit 7"
    path = client.build(step, **GIVEN)
    assert client.until_done(path)["last_status"] == "failed"
    assert client.last_message(path) == f"Exit code 7: {step}"
    assert not [mark for mark in MARKS if mark in client.last_message(path) + client.log(path)]


# Where values must not be


def processes_until_done(client: Client, path: str) -> str:
    """The command lines of all processes of this machine, read again and again until the build has ended."""
    seen: set[str] = set()

    def is_done(build: Any) -> bool:
        for _ in range(4):
            seen.update(processes(""))
            time.sleep(0.05)
        return build["last_status"] in DONE

    client.until(path, is_done)
    return "\n".join(seen)


def table() -> str:
    return json.dumps(boto3.client("dynamodb").scan(TableName="slipway")["Items"], default=str)


def storage() -> str:
    """Of both builds the log is kept there, soon after their end."""
    s3: Any = boto3.client("s3")
    keys: list[str] = []

    def list_keys() -> bool:
        keys[:] = [each["Key"] for each in s3.list_objects_v2(Bucket="slipway-sources").get("Contents", [])]
        return len(keys) >= 2

    wait_until(list_keys)
    texts = [s3.get_object(Bucket="slipway-sources", Key=key)["Body"].read().decode(errors="replace") for key in keys]
    return "\n".join(texts)


def logs() -> str:
    client: Any = boto3.client("logs")
    texts = []
    for group in client.describe_log_groups()["logGroups"]:
        for page in client.get_paginator("filter_log_events").paginate(logGroupName=group["logGroupName"]):
            texts += [event["message"] for event in page["events"]]
    return "\n".join(texts)


def executor(client: Client) -> str:
    """All that it says of its builds."""
    if (cluster := client.running.kubernetes) is not None:
        with cluster.lock:
            return json.dumps(cluster.objects, default=str)
    codebuild: Any = boto3.client("codebuild")
    ids = codebuild.list_builds_for_project(projectName="slipway-builds")["ids"]
    return json.dumps(codebuild.batch_get_builds(ids=ids), default=str)


def image(client: Client, reference: str) -> str:
    """Manifest, configuration with its history, and the files of all layers, as the registry has them."""
    host, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")

    def get(what: str) -> bytes:
        headers = {
            **urllib3.make_headers(basic_auth=client.machine.registry_login),
            "Accept": ", ".join(MANIFESTS),
        }
        answer = urllib3.request("GET", f"http://{host}/v2/{name}/{what}", headers=headers)
        assert answer.status == 200, answer.data
        return answer.data

    manifest = json.loads(get(f"manifests/{tag}"))
    blobs = [get(f"blobs/{each['digest']}") for each in (manifest["config"], *manifest["layers"])]
    files = [gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob for blob in blobs]
    return "\n".join([name, json.dumps(manifest), *(each.decode(errors="replace") for each in files)])
