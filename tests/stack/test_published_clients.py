"""polyaxon-cli and polyaxon-client 0.6.1 as published, in an environment of their own, against the stack."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.local.machine.machine import STATE, Machine
from tests.required_engines import with_other_engine
from tests.stack.conftest import Client, serving

pytestmark = with_other_engine
CLIENTS = Path(__file__).parents[1] / "clients"


@pytest.fixture(scope="module")
def installed_clients() -> Path:
    """The folder of the environment's programs; made once for each content of its lock file."""
    files = sorted(CLIENTS.iterdir())
    recipe = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:12]
    home = (STATE / f"clients-{recipe}").absolute()
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may need it at the same time
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
            pip = (sys.executable, "-m", "pip", "--python", home / "bin/python", "--disable-pip-version-check")
            install = ("install", "--quiet", "--no-compile", "-r", CLIENTS / "requirements.txt")
            subprocess.run([*pip, *install], check=True)
            (packages,) = (home / "lib").glob("python*/site-packages")
            shutil.copy(CLIENTS / "sitecustomize.py", packages)
            (home / "ready").touch()
    return home / "bin"


@dataclass(frozen=True)
class CommandLine:
    """`polyaxon`, logged in as root, in a directory that is initialised for the project `cli`."""

    programs: Path
    home: Path
    client: Client

    def run(self, *arguments: str, answer: str = "", status: int = 0) -> str:
        """What it prints; it must end with this exit status."""
        done = self._done([str(self.programs / "polyaxon"), *arguments], answer)
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def python(self, code: str) -> Any:
        """What a program with the client prints, as JSON."""
        done = self._done([str(self.programs / "python"), "-c", textwrap.dedent(code)], "")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _done(self, command: list[str], answer: str) -> subprocess.CompletedProcess[str]:
        host, _, port = self.client.running.url.removeprefix("http://").partition(":")
        variables = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "POLYAXON_API_HOST": host,
            "POLYAXON_HTTP_PORT": port,
            "POLYAXON_WS_PORT": port,
            "POLYAXON_SECRET_USER_TOKEN": self.client.running.token,
            "NO_PROXY": "127.0.0.1",
        }
        if not command[0].endswith("python"):
            variables = {name: value for name, value in variables.items() if "POLYAXON" not in name}
        return subprocess.run(
            command, cwd=self.home / "work", env=variables, input=answer, capture_output=True, text=True
        )

    def until_done(self, number: int) -> Any:
        return self.client.until_done(f"/root/cli/builds/{number}")


@pytest.fixture(scope="module")
def cli(
    local_machine: Machine, installed_clients: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    home = tmp_path_factory.mktemp("home")
    (home / "work").mkdir()
    with serving(local_machine, tmp_path_factory.mktemp("stack")) as client:
        cli = CommandLine(installed_clients, home, client)
        port = client.running.url.rpartition(":")[2]
        cli.run("config", "set", "--host=127.0.0.1", f"--port={port}")
        assert "Login successful" in cli.run("login", f"--token={client.running.token}")
        cli.run("project", "create", "--name=cli", "--description=first", "--tags=a,b")
        assert "Project was initialized" in cli.run("init", "cli")
        spec = {"version": 1, "kind": "build", "image": local_machine.base_image, "nocache": True}
        (home / "work" / "build.json").write_text(json.dumps({**spec, "build_steps": ["echo cli-$((40+2))"]}))
        (home / "work" / "hello.txt").write_text("hello\n")
        yield cli


def columns(table: str) -> list[str]:
    """The headings of the last table that was printed."""
    lines = table.splitlines()
    rule = max(number for number, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line.strip()))
    return lines[rule - 1].split()


@pytest.mark.proof
def test_who_am_i_and_which_versions_fit(cli: CommandLine) -> None:
    assert "Username: root" in cli.run("whoami")
    assert "0.6.1" in cli.run("version")
    assert "Current platform version: 0.6.1" in cli.run("version", "--platform")


@pytest.mark.proof
def test_a_wrong_token_is_refused(cli: CommandLine) -> None:
    assert "401" in cli.run("login", "--token=wrong", status=1)
    cli.run("login", f"--token={cli.client.running.token}")


@pytest.mark.proof
def test_there_is_no_login_by_password(cli: CommandLine) -> None:
    assert "400" in cli.run("login", "-u", "root", "-p", "x", status=1)
    cli.run("login", f"--token={cli.client.running.token}")


@pytest.mark.proof
def test_projects(cli: CommandLine) -> None:
    cli.run("project", "create", "--name=other", "--private")
    table = cli.run("project", "list")
    assert columns(table)[:5] == ["id", "name", "user", "owner", "tags"]
    assert {"cli", "other"} <= set(table.split())
    assert re.search(r"is_public +False", cli.run("project", "-p", "other", "get"))
    assert "Project updated" in cli.run("project", "-p", "other", "update", "--description=changed")
    assert "changed" in cli.run("project", "-p", "other", "get")
    assert "bookmarked" in cli.run("project", "-p", "other", "bookmark")
    assert "other" in cli.run("bookmark", "projects")
    assert "unbookmarked" in cli.run("project", "-p", "other", "unbookmark")
    url = "--url=https://github.com/polyaxon/polyaxon-quick-start"
    assert "initialized" in cli.run("project", "-p", "other", "git", url).lower()
    assert "was delete successfully" in cli.run("project", "-p", "other", "delete", answer="y\n")
    assert "404" in cli.run("project", "-p", "other", "get", status=1)
    assert "400" in cli.run("project", "create", "--name=cli", status=1)


@pytest.mark.proof
def test_code_is_uploaded_built_and_fetched_again(cli: CommandLine) -> None:
    assert "Files uploaded." in cli.run("upload")
    said = cli.run("run", "-u", "-f", "build.json", "--name=with-code", "--tags=x,y", "--description=d")
    match = re.search(r"Build (\d+) was created", said)
    assert match, said
    number = match[1]
    build = cli.until_done(int(number))

    assert (build["last_status"], build["tags"], build["name"]) == ("succeeded", ["x", "y"], "with-code")
    image = cli.client.machine.engine
    assert image.run_in_image(build["image"], ["cat", "/code/hello.txt"]) == "hello\n"
    (cli.home / "work" / "hello.txt").write_text("changed\n")
    cli.run("upload")
    assert build["commit"] in cli.run("build", "-b", number, "code")
    assert "downloaded" in cli.run("project", "download").lower()


@pytest.fixture
def built(cli: CommandLine) -> str:
    """The number of a build that was posted by the command line and has ended."""
    said = cli.run("run", "-f", "build.json")
    match = re.search(r"Build (\d+) was created", said)
    assert match, said
    cli.until_done(int(match[1]))
    return match[1]


def test_a_build_from_its_start_to_its_end(cli: CommandLine, built: str) -> None:
    statuses = cli.run("build", "-b", built, "statuses")
    assert columns(statuses) == ["id", "created_at", "status", "message"]
    assert [word for word in statuses.split() if word in ("created", "running", "succeeded")] == [
        "created",
        "running",
        "succeeded",
    ]
    assert "cli-42" in cli.run("build", "-b", built, "logs", "-p")


@pytest.mark.proof
def test_what_one_does_with_a_build(cli: CommandLine, built: str) -> None:
    b = ("build", "-b", built)
    assert f"root.cli.builds.{built}" in cli.run(*b, "get")
    assert "renamed" in cli.run(*b, "update", "--name=renamed", "--description=better", "--tags=q")
    assert " UTC -- " not in cli.run(*b, "logs", "-p", "--hide_time")
    assert "bookmarked" in cli.run(*b, "bookmark")
    assert f"root.cli.builds.{built}" in cli.run("bookmark", "builds")
    assert "unbookmarked" in cli.run(*b, "unbookmark")
    assert "invalidated" in cli.run(*b, "invalidate")
    assert "invalidated" in cli.run("project", "invalidate-builds")
    assert "stopped" in cli.run(*b, "stop", "-y")
    assert "deleted successfully" in cli.run(*b, "delete", answer="y\n")
    assert "404" in cli.run(*b, "get", status=1)


@pytest.mark.proof
def test_pages_turn(cli: CommandLine) -> None:
    for _ in range(23):
        assert cli.client.call("POST", "/root/cli/builds", {"is_managed": False, "tags": ["page"]})[0] == 201
    first = cli.run("project", "builds", "-q", "tags:page")
    assert columns(first) == [
        *("id", "unique_name", "user", "last_status", "created_at", "started_at", "finished_at", "total_run"),
        "backend",
    ]
    second = cli.run("project", "builds", "-q", "tags:page", "--page=2")
    assert (first.count("root.cli.builds."), second.count("root.cli.builds.")) == (20, 3)
    assert "400" in cli.run("project", "builds", "-q", "tags", status=1)
    assert cli.run("project", "builds", "-s", "created_at").count("root.cli.builds.") == 20


@pytest.mark.proof
def test_a_spec_with_faults_is_answered_in_words(cli: CommandLine) -> None:
    (cli.home / "work" / "bad.json").write_text(
        json.dumps({"version": 1, "kind": "build", "image": "a", "build_steps": ["--mount=x ls"]})
    )
    assert "flags of RUN are not allowed" in cli.run("run", "-f", "bad.json", status=1)


def test_every_method_of_the_clients_build_and_project_api(cli: CommandLine) -> None:
    """A build that runs elsewhere, told about by the library."""
    told = cli.python(
        """
        import io, json, tarfile
        from polyaxon_client.client import PolyaxonClient

        client = PolyaxonClient(reraise=True)
        project, build = client.project, client.build_job
        out = {"whoami": client.auth.get_user()["username"]}
        project.create_project({"name": "library"})
        where = ("root", "library")
        out["project"] = project.get_project(*where)["name"]
        out["projects"] = len(project.list_projects("root")["results"])
        project.update_project(*where, {"description": "d"})
        out["described"] = project.get_project(*where)["description"]
        project.bookmark(*where), project.unbookmark(*where)
        created = project.create_build(*where, {"is_managed": False, "name": "b"})
        n = created["id"]
        out["listed"] = [each["id"] for each in project.list_builds(*where)["results"]]
        out["created"] = build.get_build(*where, n)["last_status"]
        build.create_status(*where, n, "building", message="m")
        build.create_status(*where, n, "running")
        build.send_logs(*where, n, "one line")
        build.send_logs(*where, n, ["two", "three"])
        build.create_code_reference(*where, n, {"commit": "abc", "branch": "main"})
        out["code"] = build.get_code_reference(*where, n)["commit"]
        build.update_build(*where, n, {"dockerfile": "FROM x", "tags": ["t"]})
        out["dockerfile"] = build.get_build(*where, n)["dockerfile"]
        statuses = build.get_statuses(*where, n)["results"]
        out["statuses"] = [row["status"] for row in statuses]
        build.bookmark(*where, n)
        out["bookmarked"] = build.get_build(*where, n)["bookmarked"]
        build.unbookmark(*where, n)
        build.invalidate(*where, n)
        out["heartbeat"] = build.get_heartbeat_url(*where, n)
        build.create_status(*where, n, "succeeded")
        out["ended"] = build.get_build(*where, n)["last_status"]
        out["logs"] = build.logs(*where, n, stream=False).text
        build.stop(*where, n)
        out["deleted"] = build.delete_build(*where, n).status_code
        project.invalidate_builds(*where)
        for _ in range(23):
            last = project.create_build(*where, {"is_managed": False})["id"]
        out["second page"] = [len(project.list_builds(*where, page=page)["results"]) for page in (1, 2)]
        for _ in range(19):
            build.create_status(*where, last, "unschedulable")
        build.create_status(*where, last, "failed")
        out["last statuses"] = [row["status"] for row in build.get_statuses(*where, last, page=2)["results"]]
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            tar.add("hello.txt", "./hello.txt")
        files = [("repo", ("/tmp/library.tar.gz", io.BytesIO(archive.getvalue()), "text/plain"))]
        out["uploaded"] = project.upload_repo(*where, files, len(archive.getvalue()), sync=True).status_code
        with open(project.download_repo(*where), "rb") as kept:
            out["fetched"] = kept.read() == archive.getvalue()
        project.create_project({"name": "from-git"})
        git = ("root", "from-git", "https://github.com/polyaxon/polyaxon-quick-start")
        out["git"] = [project.set_repo(*git).status_code for _ in range(2)]
        out["project deleted"] = project.delete_project(*where).status_code
        print(json.dumps(out))
        """
    )
    assert told.pop("logs").count(" UTC -- ") == 3
    assert told.pop("heartbeat").endswith("/builds/1/_heartbeat/")
    assert told.pop("projects") >= 2
    assert told == {
        "whoami": "root",
        "project": "library",
        "described": "d",
        "listed": [1],
        "created": "created",
        "code": "abc",
        "dockerfile": "FROM x",
        "statuses": ["created", "building", "running"],
        "bookmarked": True,
        "ended": "succeeded",
        "deleted": 204,
        "second page": [20, 3],
        "last statuses": ["failed"],
        "uploaded": 200,
        "fetched": True,
        "git": [201, 200],
        "project deleted": 204,
    }
