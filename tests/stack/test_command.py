"""`make up` and `make demo` as programs: what they print, how they end, what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import urllib3

from chalicelib.page import NOT_BUILT
from infra.local.machine.machine import STATE, Machine
from tests.local.test_engines import left_by_builds
from tests.required_engines import with_one_engine
from tests.stack.conftest import processes, unique_sleep, wait_until

pytestmark = with_one_engine
ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-root"


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(local_machine: Machine) -> Iterator[Start]:
    """Starts programs; those that still run when a test ends are ended, so that nothing of theirs is left."""
    with ExitStack() as ending:

        def start(*words: str, **more: Any) -> subprocess.Popen[str]:
            program = started(local_machine, *words, **more)
            ending.callback(program.wait)
            ending.callback(program.terminate)
            return program

        yield start


@pytest.fixture
def command(start: Start) -> Start:
    return partial(start, sys.executable, "-m", "infra.local")


def started(machine: Machine, *words: str, folder: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
    own = {"SLIPWAY_ROOT_TOKEN": TOKEN, "PORT": "0", "KEEP": "0"}
    environment = {**os.environ, **machine.engine.environment, **own, **variables}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def post(url: str, path: str, fields: dict[str, Any]) -> None:
    answer = urllib3.request("POST", f"{url}/api/v1{path}", headers={"Authorization": f"token {TOKEN}"}, json=fields)
    assert answer.status == 201, answer.data


def test_up_says_what_a_client_needs_serves_until_it_is_ended_and_ends_what_runs(command: Start) -> None:
    up = command("up", "--port", "0")
    assert up.stdout is not None
    ready = json.loads(up.stdout.readline())
    assert (ready["ready"], ready["user"], ready["token"]) == (True, "root", TOKEN)
    sqs = boto3.client(
        "sqs",
        endpoint_url=ready["aws_endpoint"],
        region_name="us-east-1",
        aws_access_key_id=ready["aws_access_key_id"],
        aws_secret_access_key=ready["aws_secret_access_key"],
    )
    assert sqs.send_message(QueueUrl=ready["requests_queue"], MessageBody="{}")["MessageId"]
    url, login = f"http://{ready['registry']}/v2/", urllib3.make_headers(basic_auth=ready["registry_login"])
    assert urllib3.request("GET", url, headers=login).status == 200
    assert urllib3.request("GET", url).status == 401

    nap = unique_sleep()
    spec = {"version": 1, "kind": "build", "image": ready["base_image"], "build_steps": [nap]}
    post(ready["url"], "/projects", {"name": "quick-start"})
    post(ready["url"], "/root/quick-start/builds", {"content": json.dumps(spec)})
    wait_until(lambda: bool(processes(nap)))
    up.send_signal(signal.SIGTERM)
    rest, said = up.communicate()

    assert (up.returncode, rest) == (0, "")
    assert said.rstrip().endswith("Stopped.")
    wait_until(lambda: not processes(nap))


def test_up_that_is_killed_leaves_nothing(command: Start, local_machine: Machine) -> None:
    """The step prints all the time: its engine ends at once when nobody reads that, and leaves the step."""
    up = command("up", "--port", "0")
    assert up.stdout is not None
    ready = json.loads(up.stdout.readline())
    nap = unique_sleep()
    chatty = f"{nap} & while true; do echo x; sleep 0.1; done"
    spec = {"version": 1, "kind": "build", "image": ready["base_image"], "build_steps": [chatty]}
    post(ready["url"], "/projects", {"name": "quick-start"})
    post(ready["url"], "/root/quick-start/builds", {"content": json.dumps(spec)})
    wait_until(lambda: any(each.startswith("sleep") for each in processes(nap)))
    children = ["ps", "-ww", "--ppid", str(up.pid), "-o", "args="]
    listed = subprocess.run(children, capture_output=True, text=True, check=True).stdout.splitlines()
    (folder,) = (line.split()[-1] for line in listed if "run_folder" in line)
    assert folder in " ".join(processes("docker-registry"))

    up.kill()
    _, said = up.communicate()  # until the watcher has ended as well

    assert said.endswith("The stack was killed; ending and removing what it left …\n")
    assert not Path(folder).exists()
    wait_until(lambda: not processes(nap))
    assert processes(folder) == []
    wait_until(lambda: left_by_builds(local_machine.engine) == [])


@pytest.mark.proof
def test_up_without_node_and_network_serves_the_api_and_says_what_the_page_needs(start: Start, tmp_path: Path) -> None:
    """In a checkout where nothing is built, with what was installed before."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    for name in ("chalicelib", "infra", ".chalice"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("ui", "__pycache__", "deployments"))
    shutil.copytree(ROOT / "infra/ui", checkout / "infra/ui", ignore=shutil.ignore_patterns("node_modules", "made"))
    for name in ("Makefile", "app.py", "requirements.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / ".slipway").symlink_to(STATE)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(sys.executable)
    for name in ("lib", "pyvenv.cfg"):
        (checkout / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (checkout / ".venv/local").touch()
    programs.mkdir()
    for folder in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(folder).glob("*"):
            (programs / program.name).unlink(missing_ok=True)
            (programs / program.name).symlink_to(program)
    for name in ("node", "nodejs", "npm"):
        (programs / name).unlink(missing_ok=True)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:1", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}

    up = start("make", "--silent", "up", folder=checkout, PATH=str(programs), PIP_NO_CACHE_DIR="1", **nowhere)
    assert up.stdout is not None
    ready = json.loads(up.stdout.readline())

    assert urllib3.request("GET", f"{ready['url']}/healthz").status == 200
    page = urllib3.request("GET", ready["page"])
    assert (page.status, page.data.decode()) == (404, NOT_BUILT)
    assert urllib3.request("GET", f"{ready['page']}/slipway").status == 200
    up.terminate()
    _, said = up.communicate()
    assert "The page is not built. Node 20 or newer is not here, and pip cannot fetch it." in said
    assert "The API is served without it." in said
    with pytest.raises(urllib3.exceptions.HTTPError):  # with make, what it started has ended
        urllib3.request("GET", f"{ready['url']}/healthz", retries=False)


def test_a_port_that_is_taken_is_said_in_a_sentence(command: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = command("up", "--port", str(port))
        _, said = up.communicate()

    assert up.returncode == 1
    assert said.rstrip().endswith(f"Port {port} is taken; choose another: make up PORT=8001")


def test_demo_ends_with_the_application_run_in_its_image_which_it_may_keep(command: Start, tmp_path: Path) -> None:
    demo = command("demo", "--keep", str(tmp_path / "kept"))
    printed, said = demo.communicate()

    assert demo.returncode == 0, said
    assert "| Ahoy from Slipway |" in printed
    assert '"last_status": "succeeded"' in printed
    assert "pip3 install" in printed
    assert "To run it while `make up` runs:" in printed
    assert [*(tmp_path / "kept" / "registry").glob("**/quick-start-*/_manifests/tags/1")]


def test_a_demo_that_is_interrupted_stops_what_it_started(command: Start) -> None:
    demo = command("demo")
    assert demo.stdout is not None
    assert demo.stderr is not None
    while "] created" not in (line := demo.stdout.readline()):
        assert line, "it ended before"
    url = next(line for line in iter(demo.stderr.readline, "") if "registry listens" in line).split()[-1]
    demo.send_signal(signal.SIGINT)
    _, said = demo.communicate()

    assert demo.returncode == 130
    assert said.rstrip().endswith("Stopped.")
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"http://{url.rstrip('.')}/v2/", retries=False)


def test_a_backend_that_is_not_there_is_said_before_anything_starts(
    command: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_BACKEND", "foo")
    demo = command("demo")
    printed, said = demo.communicate()

    assert (demo.returncode, printed) == (2, "")
    assert said.rstrip().endswith("builds cannot run on `foo` here; SLIPWAY_BACKEND may be codebuild or eks")
