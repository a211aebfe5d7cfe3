"""The page this service began with: its requests and, field by field, its example answers."""

from __future__ import annotations

from typing import Any

import pytest

from chalicelib.domain.build import CODEBUILD, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.usecases import execution
from tests.api.conftest import Api

CONFIG = {
    "build": {
        "build_steps": ["pip3 install --no-cache-dir -U polyaxon-helper"],
        "image": "tensorflow/tensorflow:1.4.1-py3",
    },
    "version": 1,
    "kind": "build",
}
DOCKERFILE = (
    "\nFROM tensorflow/tensorflow:1.4.1-py3\n\nENV LC_ALL en_US.UTF-8\nENV LANG en_US.UTF-8\n"
    "ENV LANGUAGE en_US.UTF-8\n# Use bash as default shell, rather than sh\nENV SHELL /bin/bash\n\n"
    "WORKDIR /code\n\nRUN pip3 install --no-cache-dir -U polyaxon-helper\nCOPY build /code\n"
)
FIELDS = {
    *("id", "uuid", "name", "unique_name", "user", "description", "created_at", "updated_at", "started_at"),
    *("finished_at", "last_status", "tags", "project", "config", "resources", "node_scheduled", "num_jobs"),
    *("num_experiments", "dockerfile", "commit", "bookmarked"),
}
LATER_FIELDS = {"content", "pod_id", "backend", "is_managed", "image", "image_digest"}
BUILD = "/ada/vision/builds/1"
both_forms = pytest.mark.parametrize("slash", ["", "/"], ids=["plain", "slash"])


@pytest.fixture
def build(api: Api) -> Any:
    return api.ok("POST", "/ada/vision/builds/", {"config": CONFIG})


def run(api: Api) -> None:
    """The first build runs and succeeds."""
    services = api.services
    (key,) = services.queue.take()
    execution.process(services, key)
    now = services.codebuild.run_of(key)
    for status in (Status.SCHEDULED, Status.BUILDING, Status.RUNNING):
        services.clock.forward(seconds=1)
        services.codebuild.enter(now, status)
    stored = services.builds.get(key)
    assert stored is not None
    end = f"slipway-end {stored.nonce}"
    services.logs.write(f"logs:{now.handle}", "Building: it", end, at=services.now())
    services.push(stored)
    services.codebuild.end(now, Outcome.SUCCEEDED)
    execution.observe(services, CODEBUILD, [now.handle])


@both_forms
def test_create_answers_the_whole_build(api: Api, slash: str) -> None:
    answer = api("POST", f"/ada/vision/builds{slash}", {"config": CONFIG})

    assert answer.status == 201
    assert answer.body.keys() >= FIELDS | LATER_FIELDS
    assert answer.body["last_status"] == "created"


@both_forms
def test_get_build(api: Api, build: Any, slash: str) -> None:
    run(api)
    got = api.ok("GET", BUILD + slash)

    assert got.keys() >= FIELDS | LATER_FIELDS
    assert got["id"] == 1
    assert got["unique_name"] == "ada.vision.builds.1"
    assert got["project"] == "ada.vision"
    assert got["user"] == "ada"
    assert got["config"] == CONFIG
    assert got["dockerfile"] == DOCKERFILE
    assert isinstance(got["content"], str)
    assert got["pod_id"] == f"plx-build-{got['uuid']}"
    assert (got["last_status"], got["bookmarked"]) == ("succeeded", False)
    assert got["created_at"] == "2024-03-01T12:00:00Z"
    assert got["started_at"] <= got["finished_at"] == got["updated_at"]
    assert got["image_digest"] == api.services.registry.images[got["image"]]
    assert (got["image_bytes"], got["layer_bytes"], got["image_tags"]) == (None, None, [])


@both_forms
def test_update_build(api: Api, build: Any, slash: str) -> None:
    changed = api.ok("PATCH", BUILD + slash, {"description": "new description"})

    assert changed == {**build, "description": "new description"}
    assert api.ok("GET", BUILD) == changed


@both_forms
def test_delete_build(api: Api, build: Any, slash: str) -> None:
    answer = api("DELETE", BUILD + slash)

    assert (answer.status, answer.body) == (204, "")
    assert api("GET", BUILD).status == 404
    assert api.ok("GET", "/ada/vision/builds")["count"] == 0


@both_forms
def test_get_build_statuses(api: Api, build: Any, slash: str) -> None:
    run(api)
    page = api.ok("GET", f"{BUILD}/statuses{slash}")

    assert (page["count"], page["next"], page["previous"]) == (5, None, None)
    assert [row["status"] for row in page["results"]] == [
        "created",
        "scheduled",
        "building",
        "running",
        "succeeded",
    ]
    assert all(row.keys() >= {"id", "uuid", "created_at", "message", "status", "details"} for row in page["results"])
    assert {row["job"] for row in page["results"]} == {1}
    assert page["results"][-1]["message"] == "Completed"


@both_forms
def test_stop_build(api: Api, build: Any, slash: str) -> None:
    answer = api("POST", f"{BUILD}/stop{slash}")

    assert (answer.status, answer.body) == (200, "")
    assert api.ok("GET", BUILD)["last_status"] == "stopped"


@both_forms
def test_get_build_logs(api: Api, build: Any, slash: str) -> None:
    missing = api("GET", f"{BUILD}/logs{slash}")
    assert (missing.status, type(missing.body)) == (404, str)

    run(api)
    answer = api("GET", f"{BUILD}/logs{slash}")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body == "2024-03-01 12:00:03 UTC -- Building: it\n"


@both_forms
def test_bookmark_and_unbookmark_build(api: Api, build: Any, slash: str) -> None:
    assert api("DELETE", f"{BUILD}/unbookmark{slash}").status == 404  # never bookmarked
    for _ in range(2):
        answer = api("POST", f"{BUILD}/bookmark{slash}", Content_Type="application/json")
        assert (answer.status, answer.body) == (201, "")
    assert api.ok("GET", BUILD)["bookmarked"]
    assert not api.ok("GET", BUILD, as_="bob")["bookmarked"]

    for _ in range(2):
        answer = api("DELETE", f"{BUILD}/unbookmark{slash}", Content_Type="application/json")
        assert (answer.status, answer.body) == (204, "")
    assert not api.ok("GET", BUILD)["bookmarked"]
