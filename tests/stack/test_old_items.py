"""This version on a table that commit 45232c2 wrote: items of every kind are read, builds are stopped,
archived, restored and purged. No build runs, so no container engine is needed."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import urllib3
from chalice.test import Client as ChaliceClient

from app import app
from infra.local.stack import TABLE, stack
from tests.factories import make_archive

pytestmark = pytest.mark.slow
FIXTURE = Path(__file__).parents[1] / "adapters" / "fixtures" / "items-45232c2.json"
EVENTS = Path(__file__).parents[1] / "events"
# All that the fixture must have: a new kind of item is added to it, none is removed.
KINDS = {"B#0", "D#D", "N#N", "P#P", "U#U", "U#B", "D#B", "P#B", "T#T", "I#I", "R#R", "C#B", "C#P"}
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Upgraded:
    """This version on the old items, whose times are moved so that they were written until just now."""

    url: str
    builds: dict[str, str]  # paths, by what was done with them
    statuses: dict[str, str]

    def __call__(self, method: str, path: str, fields: Any = None, token: str = "ada", **headers: str) -> Any:
        answer = urllib3.request(
            method,
            f"{self.url}/api/v1{path}",
            json=fields,
            headers={"Authorization": f"token {token}", **headers},
            retries=False,
        )
        assert answer.status < 300, (method, path, answer.status, answer.data)
        return answer.json() if answer.data else None

    def status(self, method: str, path: str, token: str = "ada") -> int:
        headers = {"Authorization": f"token {token}"}
        return urllib3.request(
            method, f"{self.url}/api/v1{path}", headers=headers, retries=False, redirect=False
        ).status

    def until_stopped(self, build: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self("GET", build)["last_status"] != "stopped":
            scheduled("reconcile")
            assert time.monotonic() < deadline, self("GET", f"{build}/statuses")
            time.sleep(0.2)


@pytest.fixture
def upgraded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Upgraded]:
    written = json.loads(FIXTURE.read_text())
    engine: Any = SimpleNamespace(environment={"SLIPWAY_ENGINE": "none"}, clean_up=lambda *_: None)
    never: dict[str, Any] = {"reconcile_every_seconds": 3600, "clean_up_every_seconds": 3600}
    with empty_registry() as registry, stack(engine, registry, tmp_path, **never) as on:
        client = boto3.client("dynamodb")
        items = json.loads(json.dumps(written["items"]).replace("registry.test:5000", registry))
        end = datetime.now(UTC) - timedelta(hours=getattr(request, "param", 0))
        puts = [{"PutRequest": {"Item": item}} for item in moved(items, end - datetime.fromisoformat(written["now"]))]
        for at in range(0, len(puts), 25):  # at most, of DynamoDB
            client.batch_write_item(RequestItems={TABLE: puts[at : at + 25]})
        paths = {name: build["key"] for name, build in written["builds"].items()}
        yield Upgraded(
            on.url,
            {name: "/{}/{}/builds/{}".format(*key.split("/")) for name, key in paths.items()},
            {name: build["status"] for name, build in written["builds"].items()},
        )


@contextmanager
def empty_registry() -> Iterator[str]:
    """Host and port of a registry that has no image."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def moved(items: list[Any], by: timedelta) -> list[Any]:
    """The items as if they had been written so much later."""

    def time_of(found: re.Match[str]) -> str:
        later = datetime.fromisoformat(found[0]) + by
        return later.isoformat(timespec="milliseconds").replace("+00:00", found[1])

    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(Z|\+00:00)", time_of, json.dumps(items))
    moved_items: list[Any] = json.loads(text)
    for item in moved_items:
        if "ttl" in item:
            item["ttl"]["N"] = str(int(item["ttl"]["N"]) + int(by.total_seconds()))
    return moved_items


def scheduled(function: str) -> Any:
    event = json.loads((EVENTS / "schedule.json").read_text())
    with ChaliceClient(app) as client:
        return client.lambda_.invoke(function, event).payload


def rows() -> list[Any]:
    pages = boto3.client("dynamodb").get_paginator("scan").paginate(TableName=TABLE)
    return [item for page in pages for item in page["Items"]]


def test_the_fixture_has_items_of_every_kind() -> None:
    items = json.loads(FIXTURE.read_text())["items"]
    assert {item["pk"]["S"][:2] + item["sk"]["S"][0] for item in items} == KINDS


def test_every_build_is_read_with_its_history_and_texts(upgraded: Upgraded) -> None:
    hidden = {name for name in upgraded.builds if name.startswith(("archived", "deleted"))}
    for name, path in upgraded.builds.items():
        if name in hidden:
            assert upgraded.status("GET", path) == 404, name
            continue
        build, history = upgraded("GET", path), upgraded("GET", f"{path}/statuses")["results"]
        assert build["last_status"] == history[-1]["status"] == upgraded.statuses[name], name
        assert (build["content"] is None) == (name == "reported"), name
    reported = upgraded("GET", f"{upgraded.builds['reported']}/statuses")["results"][1]
    assert (reported["traceback"], reported["details"]) == ("t" * 3000, {"a": [1, None, "ü"]})
    assert upgraded("GET", f"{upgraded.builds['reported']}/coderef")["commit"] == "f" * 40
    assert upgraded("GET", upgraded.builds["reported"])["dockerfile"] == "FROM reported\n"


def test_lists_users_tokens_and_bookmarks_are_read(upgraded: Upgraded) -> None:
    page = upgraded("GET", "/ada/vision/builds?limit=100", token="bob")
    visible = [name for name, path in upgraded.builds.items() if upgraded.status("GET", path, "bob") == 200]
    assert page["count"] == len(page["results"])
    assert {f"/ada/vision/builds/{row['id']}" for row in page["results"]} >= {
        path for name, path in upgraded.builds.items() if name in visible and "/vision/" in path
    }
    marked = upgraded("GET", "/bookmarks/bob/builds", token="bob")["results"]
    assert {row["content_object"]["id"] for row in marked} == {1, 13}
    assert upgraded("GET", "/bookmarks/bob/projects", token="bob")["count"] == 1
    assert upgraded("GET", "/archives/ada/builds")["count"] == 2
    assert {each["name"] for each in upgraded("GET", "/ada")["results"]} == {"vision", "secret", "from-git"}
    assert [upgraded.status("GET", "/users", token) for token in ("root", "expired", "bob-before")] == [
        200,
        401,
        401,
    ]


def test_a_repeated_request_finds_what_the_old_version_made(upgraded: Upgraded) -> None:
    urllib3.request(  # the file of the project's code, which is in the bucket and not in the table
        "PUT",
        f"{upgraded.url}/api/v1/ada/vision/repo/upload",
        body=make_archive({"train.py": "print(1)\n", "requirements.txt": "flask\n"}),
        headers={"Authorization": "token ada", "Content-Type": "application/gzip"},
    )
    fields = {"content": "{version: 1, kind: build, image: busybox}"}
    again = upgraded("POST", "/ada/vision/builds", fields, **{"Idempotency-Key": "night-1"})
    assert f"/ada/vision/builds/{again['id']}" == upgraded.builds["asked once"]


def test_new_builds_go_on_counting_and_names_that_are_taken_stay_so(upgraded: Upgraded) -> None:
    created = upgraded("POST", "/ada/vision/builds", {"is_managed": False, "name": "train"})
    assert created["id"] > 19
    assert created["name"] not in ("train", "train-1")


def test_builds_in_every_state_are_stopped(upgraded: Upgraded) -> None:
    for name in ("waiting", "reported", "faulty", "scheduled", "running", "stopping"):
        upgraded("POST", f"{upgraded.builds[name]}/stop")
    for name in ("waiting", "reported", "faulty", "scheduled", "running", "stopping"):
        upgraded.until_stopped(upgraded.builds[name])


def test_builds_are_archived_and_restored(upgraded: Upgraded) -> None:
    for name in ("succeeded", "failed", "stopped"):
        upgraded("POST", f"{upgraded.builds[name]}/archive")
    assert upgraded("GET", "/archives/ada/builds")["count"] == 5
    for name in ("succeeded", "archived lately"):
        upgraded("POST", f"{upgraded.builds[name]}/restore")
        assert upgraded("GET", upgraded.builds[name])["last_status"] == upgraded.statuses[name]
    upgraded("POST", "/ada/archived-lately/restore")
    assert upgraded("GET", "/ada/archived-lately/builds")["count"] == 1


@pytest.mark.parametrize("upgraded", [2], indirect=True)  # hours: a purge waits for an hour
def test_the_cleanup_purges_what_was_deleted_or_archived_long_ago(upgraded: Upgraded) -> None:
    scheduled("reconcile")  # the deleted build that runs is stopped first
    deadline = time.monotonic() + PATIENCE_SECONDS
    while scheduled("clean_up") and "deleted while it runs" in left(upgraded):
        assert time.monotonic() < deadline, left(upgraded)
        time.sleep(0.2)
        scheduled("reconcile")
    purged = {"deleted", "deleted while it runs", "archived long ago"}
    assert left(upgraded) == set(upgraded.builds) - purged
    text = json.dumps(rows())
    assert not [name for name in ("ada/deleted", "vision#gone") if name in text]


def left(upgraded: Upgraded) -> set[str]:
    """Which of the old builds have a record."""
    keys = {(row["pk"]["S"], row["sk"]["S"]) for row in rows()}
    found = set()
    for name, path in upgraded.builds.items():
        _, owner, project, _, number = path.split("/")
        if (f"B#{owner}/{project}", f"{int(number):012}") in keys:
            found.add(name)
    return found
