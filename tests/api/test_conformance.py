"""The checklist for a service that answers Polyaxon's v0 build-job API, item by item, each touched once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib import settings
from tests.api.conftest import Api
from tests.factories import SPEC

BUILDS = "/ada/vision/builds"
FIELDS = {"content": json.dumps(SPEC)}


@pytest.fixture
def build(api: Api) -> Any:
    return api.ok("POST", BUILDS, FIELDS)


@pytest.mark.parametrize(
    "path",
    [
        "/users",
        "/ada",
        "/ada/vision",
        BUILDS,
        f"{BUILDS}/1",
        f"{BUILDS}/1/statuses",
        f"{BUILDS}/1/coderef",
        f"{BUILDS}/1/logs",
        "/versions/cli",
        "/log_handler",
        "/bookmarks/ada/builds",
    ],
)
def test_1_both_slash_forms_of_every_path_are_one(api: Api, build: Any, path: str) -> None:
    plain, slashed = api("GET", path), api("GET", path + "/")
    assert plain.status == slashed.status
    assert not 300 <= plain.status < 400
    assert plain.body == slashed.body


def test_2_the_command_lines_body_with_its_nulls_makes_a_build(api: Api) -> None:
    nulls = dict.fromkeys(["id", "uuid", "user", "last_status", "dockerfile", "resources", "experiments"])
    created = api("POST", f"{BUILDS}/", {**nulls, **FIELDS, "is_managed": True, "ttl": None})
    assert (created.status, type(created.body["id"])) == (201, int)
    assert api.ok("GET", f"{BUILDS}/{created.body['id']}/")["last_status"] == "created"


def test_3_what_is_needed_to_create(api: Api) -> None:
    assert api("POST", BUILDS, {}).body == {"non_field_errors": ["Build expects a `content`."]}
    assert api("POST", BUILDS, {"is_managed": False}).status == 201
    assert api.services.queue.take() == []
    refused = api("POST", BUILDS, {**FIELDS, "ttl": "foo"})
    assert (refused.status, refused.body) == (400, ["ttl must be an integer."])
    assert api("POST", BUILDS, {"content": "no spec"}).status == 400
    assert api.ok("GET", BUILDS)["count"] == 1


def test_4_a_taken_name_gets_a_suffix_and_ones_own_stays(api: Api) -> None:
    names = [api.ok("POST", BUILDS, {**FIELDS, "name": "n"})["name"] for _ in range(2)]
    assert names == ["n", "n-1"]
    assert api.ok("PATCH", f"{BUILDS}/1", {"name": "n"})["name"] == "n"


def test_5_what_patch_changes(api: Api, build: Any) -> None:
    assert api.ok("PATCH", f"{BUILDS}/1", {"tags": ["a"]})["tags"] == ["a"]
    assert api.ok("PATCH", f"{BUILDS}/1", {"tags": ["b"], "merge": True})["tags"] == ["a", "b"]
    assert api.ok("PATCH", f"{BUILDS}/1", {"content": "x"})["content"] == FIELDS["content"]
    changed = api.ok("PATCH", f"{BUILDS}/1", {"dockerfile": "FROM y"})
    assert changed["reported"]["dockerfile"] == "FROM y"
    assert changed["dockerfile"] == api.ok("GET", f"{BUILDS}/1")["dockerfile"] != "FROM y"


def test_6_what_a_stranger_may(api: Api) -> None:
    for project in ("vision", "secret"):
        api.ok("POST", f"/ada/{project}/builds", FIELDS)
    assert api("GET", f"{BUILDS}/1", as_="bob").status == 200
    assert api("POST", BUILDS, FIELDS, as_="bob").status == 403
    assert api("GET", "/ada/secret/builds/1", as_="bob").status == 403
    assert api("POST", f"{BUILDS}/1/bookmark", as_="bob").status == 201
    assert api("POST", "/ada/secret/builds/1/bookmark", as_="bob").status == 403
    assert api("GET", f"{BUILDS}/1", as_=None).status == 401


def test_7_delete_archive_and_restore(api: Api, build: Any) -> None:
    other = api.ok("POST", BUILDS, FIELDS)["id"]
    assert api("DELETE", f"{BUILDS}/{other}").status == 204
    assert api("GET", f"{BUILDS}/{other}").status == 404

    assert (api("POST", f"{BUILDS}/1/archive").status, api.ok("GET", BUILDS)["count"]) == (200, 0)
    (archived,) = api.ok("GET", "/archives/ada/builds")["results"]
    assert (archived["id"], archived["deleted"]) == (1, True)
    for _ in range(2):
        assert (api("POST", f"{BUILDS}/1/restore").status, api.ok("GET", BUILDS)["count"]) == (200, 1)
    assert api.ok("GET", "/archives/ada/builds")["count"] == 0


def test_8_bookmarks(api: Api, build: Any) -> None:
    assert [api("POST", f"{BUILDS}/1/bookmark").status for _ in range(2)] == [201, 201]
    (listed,) = api.ok("GET", "/bookmarks/ada/builds")["results"]
    assert listed["content_object"]["id"] == 1
    assert [api("DELETE", f"{BUILDS}/1/unbookmark").status for _ in range(2)] == [204, 204]
    api.ok("POST", BUILDS, FIELDS)
    assert api("DELETE", f"{BUILDS}/2/unbookmark").status == 404


def test_9_a_status_that_may_not_follow_is_refused_and_changes_nothing(api: Api) -> None:
    api.ok("POST", BUILDS, {"is_managed": False})
    for status in ("running", "succeeded"):
        assert api("POST", f"{BUILDS}/1/statuses", {"status": status}).status == 201
    before = api.ok("GET", f"{BUILDS}/1")
    assert api("POST", f"{BUILDS}/1/statuses", {"status": "running"}).status == 400
    assert api.ok("GET", f"{BUILDS}/1") == before
    row = api.ok("GET", f"{BUILDS}/1/statuses")["results"][0]
    assert api.ok("GET", f"{BUILDS}/1/statuses/{row['uuid']}") == row
    assert api("GET", f"{BUILDS}/1/statuses/{'0' * 32}").status == 404
    assert api("PATCH", f"{BUILDS}/1/statuses/{row['uuid']}").status == 405


def test_10_lists_without_what_is_archived(api: Api) -> None:
    for _ in range(22):
        api.services.clock.forward(seconds=1)
        api.ok("POST", BUILDS, FIELDS)
    api("POST", f"{BUILDS}/3/archive")
    page = api.ok("GET", f"{BUILDS}/?offset=20")
    assert (page["count"], [build["id"] for build in page["results"]]) == (21, [1])


def test_11_no_log_is_a_404_with_a_text(api: Api, build: Any) -> None:
    answer = api("GET", f"{BUILDS}/1/logs")
    assert (answer.status, type(answer.body)) == (404, str)
    api.ok("POST", BUILDS, {"is_managed": False})
    assert api("POST", f"{BUILDS}/2/logs", "a line").status == 200
    assert api.ok("GET", f"{BUILDS}/2/logs/stream/") == api.ok("GET", f"{BUILDS}/2/logs")
    assert api.ok("GET", f"{BUILDS}/2/logs").endswith(" UTC -- a line\n")


def test_12_dockerfiles_of_both_generations(api: Api) -> None:
    nested = {"version": 1, "kind": "build", "build": {"image": "a"}}
    assert "LANG en_US.UTF-8" in api.ok("POST", BUILDS, {"config": nested})["dockerfile"]
    flat = {"version": 1, "kind": "build", "image": "a", "lang_env": "C.UTF-8"}
    assert "LANG C.UTF-8" in api.ok("POST", BUILDS, {"content": json.dumps(flat)})["dockerfile"]
    del flat["lang_env"]
    assert "LANG" not in api.ok("POST", BUILDS, {"content": json.dumps(flat)})["dockerfile"]


# 13, the published command line, is tests/stack/test_published_clients.py.


def test_clients_ask_these_first(api: Api) -> None:
    for path in ("/versions/cli/", "/versions/platform/", "/versions/lib/", "/log_handler/"):
        assert api("GET", path, as_=None).status == 200
        assert api("GET", path, as_="nobody").status == 401
    assert api.ok("GET", "/versions/chart", as_=None) == {"version": "0.6.1"}
    assert api.ok("GET", "/versions/slipway", as_=None) == {"version": settings.version()}
    assert api.ok("GET", "/openapi.json")["info"]["version"] == settings.version()
    assert api("GET", "/versions/other", as_=None).status == 404
    assert api("GET", "/healthz", as_=None, root="").body == ""
    refused = api("POST", "/users/token/", b"username=a&password=b", as_=None)
    assert (refused.status, list(refused.body)) == (400, ["non_field_errors"])


def test_a_request_with_a_key_is_done_once(api: Api) -> None:
    first, again = (api.ok("POST", BUILDS, FIELDS, Idempotency_Key="k") for _ in range(2))
    assert first["id"] == again["id"]
    other = api.ok("POST", BUILDS, FIELDS, Idempotency_Key="other")
    assert other["id"] != first["id"]
    assert api("POST", BUILDS, FIELDS, Idempotency_Key="x" * 200).status == 400


def test_projects(api: Api) -> None:
    created = api.ok("POST", "/projects/", {"name": "p", "tags": ["a"], "is_public": False, "readme": "r"})
    assert (created["is_public"], created["readme"], created["num_builds"]) == (False, "r", 0)
    listed = api.ok("GET", "/ada")
    assert (listed["count"], {each["has_code"] for each in listed["results"]}) == (3, {False})
    assert {each["name"] for each in api.ok("GET", "/ada", as_="bob")["results"]} == {"vision"}
    assert api("GET", "/nobody").status == 404
    assert api.ok("PATCH", "/ada/p", {"tags": ["b"], "merge": True})["tags"] == ["a", "b"]
    assert api("PATCH", "/ada/p", {"name": "q"}).status == 400
    assert api("POST", "/ada/p/bookmark").status == 201
    assert api.ok("GET", "/ada/p")["bookmarked"]
    assert api.ok("GET", "/bookmarks/ada/projects")["results"][0]["content_object"]["name"] == "p"
    assert api("DELETE", "/ada/p/unbookmark").status == 204
    assert api("POST", "/ada/p/archive").status == 200
    assert api("GET", "/ada/p").status == 404
    assert api("POST", "/ada/p/restore").status == 200
    assert api("DELETE", "/ada/p").status == 204
    assert api("GET", "/ada/p").status == 404


@pytest.mark.parametrize("name", ["users", "project", "builds", "status", "data"])
def test_reserved_words_are_no_names(api: Api, name: str) -> None:
    refusal = {"name": ["The name is a reserved word or already taken."]}
    assert api("POST", BUILDS, {**FIELDS, "name": name}).body == refusal
    assert api("POST", "/projects", {"name": name}).body == refusal
    assert api("POST", BUILDS, {**FIELDS, "name": "build"}).status == 201
