"""Creating, listing and changing builds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib.domain.build import CODEBUILD, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Busy
from chalicelib.usecases import execution
from tests.api.conftest import Api
from tests.factories import SPEC
from tests.usecases.conftest import end_with_an_image

BUILDS = "/ada/vision/builds"
CONTENT = json.dumps(SPEC)


def test_the_published_command_lines_body_with_all_its_nulls(api: Api) -> None:
    fields = ("id", "uuid", "name", "user", "description", "tags", "started_at", "config", "resources")
    body = {**dict.fromkeys(fields), "content": CONTENT, "is_managed": True, "ttl": None}

    assert api("POST", BUILDS, body).status == 201


def test_both_layouts_are_given_back(api: Api) -> None:
    built = api.ok("POST", BUILDS, {"content": CONTENT})

    assert built["content"] == CONTENT
    assert built["config"]["build"]["image"] == "python:3.7-slim"
    assert built["config"]["version"] == 1
    assert "LC_ALL" not in built["dockerfile"]  # the later layout sets no locale by itself


def test_yaml_is_taken(api: Api) -> None:
    text = "version: 1\nkind: build\nimage: busybox\nbuild_steps:\n  - echo hello\n"
    assert api.ok("POST", BUILDS, {"content": text})["content"] == text


def test_a_spec_may_speak_of_tags_and_the_request_overrules_them(api: Api) -> None:
    content = json.dumps({**SPEC, "tags": ["a", "b", "a"]})
    assert api.ok("POST", BUILDS, {"content": content})["tags"] == ["a", "b"]
    assert api.ok("POST", BUILDS, {"content": content, "tags": ["c"]})["tags"] == ["c"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"non_field_errors": ["Build expects a `content`."]}),
        ({"content": CONTENT, "ttl": "foo"}, ["ttl must be an integer."]),
        ({"content": "{version: 1, kind: build, image: a b}"}, ["`image` must not contain spaces."]),
        ({"content": "just words"}, None),
        ({"content": ": : :"}, None),
        ({"content": CONTENT, "name": "no spaces please"}, None),
        ({"content": CONTENT, "tags": "a,b"}, None),
        ({"content": {"image": "an object"}}, None),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_and_nothing_is_stored(api: Api, body: Any, expected: Any) -> None:
    before = api.services.written()
    answer = api("POST", BUILDS, body)

    assert answer.status == 400
    assert answer.body
    assert expected in (None, answer.body)
    assert api.services.written() == before


def test_an_unmanaged_build_needs_no_content_and_is_never_announced(api: Api) -> None:
    built = api.ok("POST", BUILDS, {"is_managed": False})

    assert (built["content"], built["config"], built["dockerfile"]) == (None, None, None)
    assert api.services.queue.take() == []


def test_a_taken_name_gets_a_suffix(api: Api) -> None:
    names = [api.ok("POST", BUILDS, {"content": CONTENT, "name": "it"})["name"] for _ in range(3)]
    assert names == ["it", "it-1", "it-2"]


def test_ids_count_up_and_are_not_used_again(api: Api) -> None:
    first = api.ok("POST", BUILDS, {"content": CONTENT})
    api("DELETE", f"{BUILDS}/{first['id']}")
    second = api.ok("POST", BUILDS, {"content": CONTENT})
    assert (first["id"], second["id"]) == (1, 2)


def test_pages_turn_newest_change_first(api: Api) -> None:
    for _ in range(25):
        api.services.clock.forward(seconds=1)
        api.ok("POST", BUILDS, {"content": CONTENT})
    api.services.clock.forward(seconds=1)
    api.ok("PATCH", f"{BUILDS}/3", {"description": "touched"})

    first = api.ok("GET", BUILDS)
    assert first["count"] == 25
    assert [build["id"] for build in first["results"]] == [3, *range(25, 6, -1)]
    assert first["previous"] is None
    assert first["next"].endswith("/api/v1/ada/vision/builds?limit=20&offset=20")

    second = api.ok("GET", f"{BUILDS}?offset=20")
    assert [build["id"] for build in second["results"]] == [6, 5, 4, 2, 1]
    assert second["next"] is None
    assert second["previous"].endswith("?offset=0&limit=20")


def test_next_leads_nowhere_that_is_refused(api: Api) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT})
    project = api.services.projects.get("ada", "vision")
    assert project is not None
    api.services.records.projects["ada", "vision"] = replace(project, live_builds=20_000)

    last_turn = api.ok("GET", f"{BUILDS}?offset=9980")
    assert last_turn["next"].endswith("?offset=10000&limit=20")
    assert api.ok("GET", f"{BUILDS}?offset=10000")["next"] is None
    assert api("GET", f"{BUILDS}?offset=10001").status == 400


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=", "offset=x", "limit=9" + "9" * 30])
def test_odd_paging_is_the_default(api: Api, query: str) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT})
    assert len(api.ok("GET", f"{BUILDS}?{query}")["results"]) == 1


def test_tags_replace_or_merge(api: Api) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT, "tags": ["a", "b"]})

    assert api.ok("PATCH", f"{BUILDS}/1", {"tags": ["c", "a"], "merge": True})["tags"] == ["a", "b", "c"]
    assert api.ok("PATCH", f"{BUILDS}/1", {"tags": ["d", "d"]})["tags"] == ["d"]


def test_merged_tags_have_a_bound_too(api: Api) -> None:
    halves = [[f"{half}{number}" for number in range(30)] for half in "ab"]
    api.ok("POST", BUILDS, {"is_managed": False, "tags": halves[0]})
    refused = api("PATCH", f"{BUILDS}/1", {"tags": halves[1], "merge": True})
    assert (refused.status, list(refused.body)) == (400, ["tags"])
    assert api.ok("GET", f"{BUILDS}/1")["tags"] == halves[0]


def test_a_name_given_to_itself_changes_nothing(api: Api) -> None:
    before = api.ok("POST", BUILDS, {"content": CONTENT, "name": "it"})
    assert api.ok("PATCH", f"{BUILDS}/1", {"name": "it"}) == before


def test_what_cannot_be_changed_is_ignored(api: Api) -> None:
    before = api.ok("POST", BUILDS, {"content": CONTENT})
    assert api.ok("PATCH", f"{BUILDS}/1", {"content": "other", "id": 9, "last_status": "failed"}) == before


def test_a_reported_dockerfile_is_shown(api: Api) -> None:
    api.ok("POST", BUILDS, {"is_managed": False})
    assert api.ok("PATCH", f"{BUILDS}/1", {"dockerfile": "FROM x"})["dockerfile"] == "FROM x"
    assert api.ok("GET", f"{BUILDS}/1")["dockerfile"] == "FROM x"


def test_what_was_built_cannot_be_rewritten(api: Api) -> None:
    before = api.ok("POST", BUILDS, {"content": CONTENT})
    reference = api.ok("GET", f"{BUILDS}/1/coderef")
    said = {"commit": "c" * 40, "git_url": "https://trusted.test/x"}
    assert before["reported"] is None
    assert api.ok("POST", f"{BUILDS}/1/coderef", said) == reference
    api.ok("PATCH", f"{BUILDS}/1", {"dockerfile": "FROM trusted", "backend": "other", "node_scheduled": "n"})

    after = api.ok("GET", f"{BUILDS}/1")
    assert after["reported"] == {
        "dockerfile": "FROM trusted",
        "backend": "other",
        "node_scheduled": "n",
        "code_reference": {"branch": "master", **said},
    }
    assert {**after, "reported": None, "updated_at": before["updated_at"]} == before
    assert api.ok("GET", f"{BUILDS}/1/coderef") == reference


def test_put_takes_a_missing_name_for_none(api: Api) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT, "name": "it"})
    assert api.ok("PUT", f"{BUILDS}/1", {"description": "d"})["name"] is None


@pytest.mark.parametrize("path", ["/ada/vision/builds/2", "/ada/vision/builds/x", "/ada/none/builds/1", "/bob/none"])
def test_what_is_not_there_is_not_found(api: Api, path: str) -> None:
    answer = api("GET", path)
    assert (answer.status, answer.body) == (404, {"detail": "Not found."})


def test_a_query_finds_builds_over_pages(api: Api) -> None:
    for number in range(30):
        api.services.clock.forward(seconds=1)
        api.ok("POST", BUILDS, {"content": CONTENT, "tags": ["even"] if number % 2 else ["odd"]})
    api.ok("POST", f"{BUILDS}/2/stop")

    page = api.ok("GET", f"{BUILDS}?query=tags:even,status:~stopped&limit=10&sort=created_at")
    assert page["count"] == 14
    assert [build["id"] for build in page["results"]] == [*range(4, 24, 2)]
    assert "query=tags%3Aeven%2Cstatus%3A~stopped" in page["next"]
    assert api.ok("GET", f"{BUILDS}?query=")["count"] == 30


@pytest.mark.parametrize("query", ["status", "id:abc", "user.password:x", "created_at:10:30", "%20"])
def test_a_query_that_makes_no_sense_is_a_list_of_sentences(api: Api, query: str) -> None:
    answer = api("GET", f"{BUILDS}?query={query}")
    assert answer.status == 400
    assert all(isinstance(sentence, str) for sentence in answer.body)


def test_what_a_build_took_and_cost(api: Api) -> None:
    api.services.settings = replace(api.services.settings, price_per_minute=0.005)
    api.ok("POST", BUILDS, {"content": CONTENT})
    (key,) = api.services.queue.take()
    assert api.ok("GET", f"{BUILDS}/1")["billed_minutes"] is None
    execution.process(api.services, key)
    run = api.services.codebuild.run_of(key)
    api.services.clock.forward(minutes=10)  # in the queue
    api.services.codebuild.enter(run, Status.BUILDING)
    api.services.clock.forward(seconds=90)
    api.services.codebuild.end(run, Outcome.FAILED)
    execution.observe(api.services, CODEBUILD, [run.handle])

    build = api.ok("GET", f"{BUILDS}/1")
    assert (build["duration_seconds"], build["billed_minutes"], build["estimated_cost"]) == (690, 2, 0.01)


def test_how_large_an_image_is(api: Api) -> None:
    api.services.registry.layer_bytes = (30, 5)
    created = api.ok("POST", BUILDS, {"content": CONTENT})
    assert (created["image_bytes"], created["layer_bytes"]) == (None, None)
    (key,) = api.services.queue.take()
    execution.process(api.services, key)
    end_with_an_image(api.services, key)
    execution.process(api.services, key)

    built = api.ok("GET", f"{BUILDS}/1")
    assert (built["image_bytes"], built["layer_bytes"]) == (35, [30, 5])


def test_a_build_that_never_ran_costs_nothing(api: Api) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT})
    api.ok("POST", f"{BUILDS}/1/stop")
    build = api.ok("GET", f"{BUILDS}/1")
    assert (build["billed_minutes"], build["estimated_cost"]) == (0, None)


def test_a_build_says_why_it_waits_for_its_turn(api: Api) -> None:
    api.ok("POST", BUILDS, {"content": CONTENT})
    (key,) = api.services.queue.take()
    assert api.ok("GET", f"{BUILDS}/1")["waiting_reason"] is None
    api.services.codebuild.fail_next.append(Busy("CodeBuild asks us to wait: no slot is free."))
    execution.process(api.services, key)
    assert api.ok("GET", f"{BUILDS}/1")["waiting_reason"] == "CodeBuild asks us to wait: no slot is free."

    execution.process(api.services, key)
    assert api.ok("GET", f"{BUILDS}/1")["waiting_reason"] is None


def test_a_build_is_made_again_by_one_call(api: Api) -> None:
    first = api.ok("POST", BUILDS, {"content": json.dumps(SPEC), "tags": ["nightly"]})
    assert first["rebuild_of"] is None
    for body in (None, {}, {"nocache": True}):
        again = api("POST", f"{BUILDS}/1/rebuild", body)
        assert (again.status, again.body["rebuild_of"]) == (201, 1)
        assert [again.body[name] for name in ("content", "dockerfile", "tags")] == [
            first[name] for name in ("content", "dockerfile", "tags")
        ]
    assert api.ok("GET", f"{BUILDS}/4")["rebuild_of"] == 1
    assert api("POST", f"{BUILDS}/9/rebuild").status == 404


def test_a_rebuild_with_a_key_is_done_once(api: Api) -> None:
    for _ in range(2):
        api.ok("POST", BUILDS, {"content": json.dumps(SPEC)})
    first, again = (api("POST", f"{BUILDS}/1/rebuild", {}, Idempotency_Key="k") for _ in range(2))
    assert (first.body["id"], again.body["id"], again.headers["Idempotent-Replay"]) == (3, 3, "true")
    assert api("POST", f"{BUILDS}/2/rebuild", {}, Idempotency_Key="k").status == 422
