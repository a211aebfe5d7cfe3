"""The demo: posts a build over REST, follows it, and runs the application in its image."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3

from chalicelib.adapters.registry import HttpRegistry
from infra.local.machine.machine import Machine

PROJECT = "/root/quick-start"
EXAMPLE = Path(__file__).with_name("example")
GREETING = "Ahoy from Slipway"
FOLLOW_EVERY_SECONDS = 0.3
PATIENCE_SECONDS = 600
DONE = ("succeeded", "failed", "stopped")


class DemoFailed(Exception):
    """The demo did not end with an image; the message says why."""


def run(url: str, token: str, machine: Machine, say: Callable[[str], None], *, keeps: bool = False) -> None:
    """Runs the demo and prints its results. Raises DemoFailed."""
    api = Api(url + "/api/v1", token)
    if PROJECT.removeprefix("/root/") not in [each["name"] for each in api.get("/root?limit=500")["results"]]:
        api.post("/projects/", {"name": "quick-start"})
    say(f"Uploading {EXAMPLE.name}/ with PUT /api/v1{PROJECT}/repo/upload/ …")
    api.upload(f"{PROJECT}/repo/upload/", packed(EXAMPLE))
    specification = {
        "version": 1,
        "kind": "build",
        "image": machine.base_image,
        "env_vars": [["GREETING", GREETING]],
        "build_steps": ["pip3 install --no-cache-dir -r requirements.txt"],
    }
    say(f"Posting a build with POST /api/v1{PROJECT}/builds/ …")
    posted_at = time.monotonic()
    build = api.post(f"{PROJECT}/builds/", {"content": json.dumps(specification), "tags": ["demo"]})
    build = follow(api, f"{PROJECT}/builds/{build['id']}", posted_at)
    print(json.dumps(build, indent=2))
    if build["last_status"] != "succeeded":
        reason = api.get(f"{PROJECT}/builds/{build['id']}/statuses")["results"][-1]["message"]
        raise DemoFailed(f"The build ended as {build['last_status']}: {reason}")
    found = HttpRegistry(machine.registry_login).find(build["image"])
    digest = found and found.digest
    print(f"\nThe registry answers for {build['image']}:\n  {digest}")
    if digest != build["image_digest"]:
        raise DemoFailed("The registry has another digest than the build shows.")
    proof = machine.engine.run_in_image(build["image"], ["python3", "/code/greet.py"])
    if GREETING not in proof:
        raise DemoFailed(f"The application in the image does not greet: {proof!r}")
    print(f"\npython3 /code/greet.py, run in the image:\n{proof}")
    if keeps:
        print(f"The image stays. To run it while `make up` runs:\n{how_to_run(build['image'], machine)}")


def how_to_run(image: str, machine: Machine) -> str:
    """Shell commands that run the demo's application with the engine that built it."""
    host, login, program = machine.registry, machine.registry_login, "python3 /code/greet.py"
    user, _, password = login.partition(":")
    match machine.engine.name:
        case "docker":
            return f"docker login --username {user} --password {password} {host}\ndocker run --rm {image} {program}"
        case "podman":
            return f"podman run --rm --tls-verify=false --creds {login} {image} {program}"
    return (
        f"container=$(buildah from --tls-verify=false --creds {login} {image})\n"
        f'buildah run "$container" -- {program}\nbuildah rm "$container"'
    )


def packed(folder: Path) -> bytes:
    """The files of a folder as a gzipped tar."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for path in sorted(folder.glob("*")):
            if path.is_file():
                tar.add(path, f"./{path.name}")
    return archive.getvalue()


def follow(api: Api, path: str, posted_at: float) -> Any:
    """Prints statuses and log lines as they come; returns the build at its end. Raises DemoFailed."""
    statuses = lines = 0
    while time.monotonic() - posted_at < PATIENCE_SECONDS:
        build = api.get(path)
        lines = _print_new(api.log(path), lines, "  | ")
        history = [
            f"{entry['status']}{': ' + entry['message'] if entry['message'] else ''}"
            for entry in api.get(f"{path}/statuses")["results"]
        ]
        for status in history[statuses:]:
            print(f"[{time.monotonic() - posted_at:5.1f} s] {status}", flush=True)
        statuses = len(history)
        if build["last_status"] in DONE:
            _print_new(api.log(path), lines, "  | ")
            return build
        time.sleep(FOLLOW_EVERY_SECONDS)
    raise DemoFailed(f"The build did not end within {PATIENCE_SECONDS} seconds.")


def _print_new(log: str, printed: int, margin: str) -> int:
    lines = log.splitlines()
    for line in lines[printed:]:
        print(f"{margin}{line}", flush=True)
    return len(lines)


class Api:
    """The REST API with one token. Answers outside 2xx raise DemoFailed."""

    def __init__(self, root: str, token: str) -> None:
        self._root = root
        self._headers = {"Authorization": f"token {token}"}
        self._http = urllib3.PoolManager(retries=False)

    def get(self, path: str) -> Any:
        return self._json("GET", path)

    def post(self, path: str, fields: dict[str, Any]) -> Any:
        return self._json("POST", path, json=fields)

    def upload(self, path: str, archive: bytes) -> None:
        answer = self._http.request(
            "PUT", self._root + path, headers=self._headers, fields={"repo": ("repo.tar.gz", archive)}
        )
        if answer.status >= 300:
            raise DemoFailed(f"PUT {path} answered {answer.status}: {answer.data.decode()[:500]}")

    def log(self, path: str) -> str:
        """The log so far, empty while there is none."""
        answer = self._http.request("GET", f"{self._root}{path}/logs", headers=self._headers)
        return answer.data.decode() if answer.status == 200 else ""

    def _json(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(method, self._root + path, headers=self._headers, **body)
        if answer.status >= 300:
            raise DemoFailed(f"{method} {path} answered {answer.status}: {answer.data.decode()[:500]}")
        return answer.json()


def explain(error: Exception) -> None:
    """The reason, as the last line."""
    print(f"\nThe demo failed: {error}", file=sys.stderr)
