"""Code of people in images that a real engine builds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from infra.local.machine.machine import Machine
from tests.factories import make_archive
from tests.git_server import GitServer, git_server
from tests.required_engines import with_any_engine
from tests.stack.conftest import PROJECT, Client, serving, trusting

pytestmark = pytest.mark.engine
FILES = {
    "app/main.py": "print('hello from main')\n",
    "app/requirements.txt": "",
    "app/setup.sh": "#!/bin/sh\necho set up > /set-up\n",
    "app/.dockerignore": "# kept out\n/secret.txt\n**/*.key\n!kept.key\n",
    "app/secret.txt": "",
    "app/sub/a.key": "",
    "app/kept.key": "",
    "docker/Dockerfile": "FROM {base}\nRUN echo my own > /own\nCOPY build/app/main.py /main.py\n",
}


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("git")) as server:
        server.git("code", "checkout", "--quiet", "-b", BRANCH)
        server.commit("code", {"note.txt": "on the branch"})
        server.add_submodule("code", "../lib.git", server.commit("lib", {"lib.txt": "of the submodule"}))
        yield server


@pytest.fixture(scope="module")
def client(
    local_machine: Machine,
    git: GitServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    machine = trusting(local_machine, git)
    settings = {"SLIPWAY_PRIVATE_GIT_HOSTS": "127.0.0.1"}
    with serving(machine, tmp_path_factory.mktemp("stack"), settings=settings) as client:
        files = {name: text.replace("{base}", machine.base_image) for name, text in FILES.items()}
        upload(client, PROJECT, make_archive(files))
        yield client


BRANCH = "feature/#1-it's,(odd)"


def upload(client: Client, project: str, archive: bytes) -> None:
    answer = urllib3.request(
        "PUT",
        f"{client.running.url}/api/v1{project}/repo/upload/",
        headers={"Authorization": f"token {client.running.token}"},
        fields={"repo": ("/tmp/x.tar.gz", archive, "text/plain")},
    )
    assert answer.status == 200, answer.data


def read(client: Client, path: str, *command: str) -> str:
    """What a command prints in the image of a build that must succeed."""
    build = client.until_done(path)
    assert build["last_status"] == "succeeded", client.log(path)
    return client.machine.engine.run_in_image(build["image"], [*command])


@with_any_engine
def test_code_of_a_directory_is_in_the_image_and_its_special_files_before_the_steps(client: Client) -> None:
    path = client.build("cat requirements.txt && ./setup.sh", context="app")
    dockerfile: str = client.get(path)["dockerfile"]

    assert "COPY build/requirements.txt /code\nCOPY build/setup.sh /code\nRUN " in dockerfile
    assert read(client, path, "python3", "/code/main.py") == "hello from main\n"
    assert read(client, path, "cat", "/set-up") == "set up\n"


def test_a_dockerfile_of_ones_own(client: Client) -> None:
    spec: dict[str, Any] = {"image": None, "dockerfile": "docker/Dockerfile"}
    path = client.build(**spec)

    assert "RUN echo my own > /own" in client.get(path)["dockerfile"]
    assert read(client, path, "cat", "/own", "/main.py") == "my own\nprint('hello from main')\n"


@with_any_engine
def test_an_upload_through_storage(client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "large"})[0] == 201
    status, offer = client.call("POST", "/root/large/repo/upload/offers")
    assert status == 201
    form = {**offer["fields"], "file": ("x", make_archive({"a.txt": "from storage\n"}))}
    assert urllib3.request("POST", offer["url"], fields=form).status in (200, 204)
    complete = offer["complete"].partition("/api/v1")[2]
    assert client.call("POST", complete)[0] == 200

    assert read(client, client.build("true", project="/root/large"), "cat", "/code/a.txt") == "from storage\n"


@with_any_engine
def test_code_from_git_at_its_head_and_at_a_commit(client: Client, git: GitServer) -> None:
    assert client.call("POST", "/projects", {"name": "git"})[0] == 201
    assert client.call("POST", "/root/git/repo/external", {"git_url": git.url})[0] == 201
    head = client.build("true", project="/root/git")
    first = client.build("true", project="/root/git", commit=git.commits[0])
    unknown = client.build("true", project="/root/git", commit="0" * 40)
    branch = client.build("true", project="/root/git", branch=BRANCH)

    assert client.get(head)["dockerfile"] is None  # until the build has told
    assert read(client, head, "cat", "/code/note.txt") == "second"
    assert read(client, first, "cat", "/code/note.txt") == "first"
    assert read(client, branch, "cat", "/code/note.txt", "/code/lib/lib.txt") == "on the branchof the submodule"
    for path, commit in zip((head, first), reversed(git.commits), strict=True):
        assert client.until(path, lambda build: build["dockerfile"] is not None)["commit"] == commit
        assert f"The commit is {commit}" in client.log(path)
    assert client.until_done(unknown)["last_status"] == "failed"
    assert "ERROR: the repository has no branch, tag, commit or ref 0000" in client.log(unknown)


def test_what_dockerignore_names_is_not_in_the_image(client: Client) -> None:
    path = client.build("true", context="app")
    listed = read(client, path, "find", "/code", "-type", "f").split()
    assert sorted(listed) == [
        f"/code/{name}" for name in (".dockerignore", "kept.key", "main.py", "requirements.txt", "setup.sh")
    ]


VALUES = (
    *(
        "prod",
        "sea green",
        "",
        " at its ends ",
        "two  blanks",
        "a\ttab",
        '{"a": 1}',
        "it's",
        "'",
        '"',
        "''",
        '"quoted"',
    ),
    *(
        "pa$$word",
        "$HOME",
        "${HOME}",
        "$",
        "$1",
        "$$",
        "${HOME:-x}",
        "a$",
        "C:\\dir",
        "a\\",
        "\\",
        "\\\\",
        "\\$HOME",
        '\\"',
    ),
    *("`id`", "$(id)", "a=b", "#a", "a #b", "<<EOF", "é日本", "%s", "!x", "{{ x }}", "-a", "a;b|c&d", "\u00a0"),
)
SHOW = "import os, json; print(json.dumps({name: os.environ[name] for name in os.environ if name[:2] == 'V_'}))"


@with_any_engine
def test_values_arrive_as_they_were_written(client: Client) -> None:
    """In steps and in the image; but for what refers to a known variable."""
    variables = [[f"V_{number:02}", value] for number, value in enumerate(VALUES)]
    variables += [["V_PATH", "$V_00:$V_ARG"], ["PATH", "/opt/own:$PATH"], ["V_OWN", "of the base: ${V_OWN}."]]
    expected = dict(variables) | {"V_ARG": "1", "V_PATH": "prod:1", "V_OWN": "of the base: ."}
    del expected["PATH"]
    path = client.build(
        f'python3 -c "{SHOW}" >/seen', "test ${PATH%%:*} = /opt/own", env_vars=variables, build_args={"V_ARG": "1"}
    )
    assert json.loads(read(client, path, "cat", "/seen")) == expected
    del expected["V_ARG"]  # of the build alone
    assert json.loads(read(client, path, "python3", "-c", SHOW)) == expected
