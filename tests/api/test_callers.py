"""Who may call, and what those who may not are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chalice.local import LambdaContext

from app import app
from chalicelib.domain.record import replace
from chalicelib.domain.user import token_sha256
from chalicelib.usecases import throttle
from tests.api.conftest import DAYS, Api
from tests.factories import SPEC

FIELDS = {"content": json.dumps(SPEC)}


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        ("", "Authentication credentials were not provided."),
        ("Basic ada", "Authentication credentials were not provided."),
        ("Bearer nobody", "Invalid token."),
        ("Token nobody", "Invalid token."),
        ("Token", "Invalid token header. No credentials provided."),
        ("Token a b", "Invalid token header. Token string should not contain spaces."),
    ],
)
def test_without_a_good_token_nothing_is_answered(api: Api, header: str, detail: str) -> None:
    answer = api("GET", "/users", Authorization=header)
    assert (answer.status, answer.body) == (401, {"detail": detail})
    assert answer.headers["WWW-Authenticate"] == "Token"


def test_a_token_expires(api: Api) -> None:
    api.services.clock.forward(seconds=30 * DAYS)
    answer = api("GET", "/users")
    assert (answer.status, answer.body) == (401, {"detail": "Token expired"})


def test_the_scheme_is_read_in_any_case(api: Api) -> None:
    assert api("GET", "/users", Authorization="TOKEN ada").status == 200


def test_a_bearer_is_a_token(api: Api) -> None:
    assert api("GET", "/users", Authorization="Bearer ada").status == 200


def test_tokens_are_listed_without_themselves_and_revoked_by_id(api: Api) -> None:
    issued = api("POST", "/users/ada/tokens", {"name": "ci"}).body["token"]
    page = api.ok("GET", "/users/ada/tokens")
    assert (page["count"], page["next"], page["previous"]) == (2, None, None)
    shown = {token["name"]: token for token in page["results"]}
    assert shown[""]["last_used"] == "2024-03-01"
    assert shown["ci"]["last_used"] is None
    assert issued not in json.dumps(page) and token_sha256(issued) not in json.dumps(page)

    assert api("DELETE", f"/users/ada/tokens/{shown['ci']['id']}").status == 204

    assert api("GET", "/users", Authorization=f"Token {issued}").status == 401
    assert api("DELETE", f"/users/ada/tokens/{shown['ci']['id']}").status == 404


@pytest.mark.parametrize("path", ["/users", "/nobody/nothing", "/ada/vision/builds/1"])
def test_no_answer_is_taken_for_something_else_by_a_browser(api: Api, path: str) -> None:
    assert api("GET", path).headers["X-Content-Type-Options"] == "nosniff"


def test_links_are_of_http_whatever_a_client_says_of_the_protocol(api: Api) -> None:
    for _ in range(2):
        api("POST", "/projects", {"name": f"p{_}"})
    headers = {"X-Forwarded-Proto": "javascript"}
    assert api("GET", "/ada?limit=1", **headers).body["next"].startswith("http://")
    headers = {"X-Forwarded-Proto": "https"}
    assert api("GET", "/ada?limit=1", **headers).body["next"].startswith("https://")


def test_who_am_i(api: Api) -> None:
    assert api.ok("GET", "/users/") == {
        "username": "ada",
        "email": "ada@example.com",
        "is_superuser": False,
    }


def test_a_superuser_creates_users_whose_token_is_shown_once_and_kept_as_a_hash(api: Api) -> None:
    created = api("POST", "/users/", {"username": "eve", "email": None}, as_="root")
    assert created.status == 201
    token = created.body["token"]

    assert api.ok("GET", "/users", as_=token)["username"] == "eve"
    assert "token" not in api.ok("GET", "/users", as_=token)
    assert token not in repr(api.services.written())
    assert token_sha256(token) in repr(api.services.written())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"username": "a b"},
        {"username": "users"},
        {"username": "ada"},
        {"username": 5},
        {"username": "eve@example.com"},
        {"username": "eve", "email": "x"},
        {"username": "eve", "is_superuser": "yes"},
    ],
    ids=str,
)
def test_users_need_sensible_names(api: Api, fields: Any) -> None:
    answer = api("POST", "/users", fields, as_="root")
    assert answer.status == 400
    assert all(isinstance(sentences, list) for sentences in answer.body.values())


def test_others_create_no_users(api: Api) -> None:
    assert api("POST", "/users", {"username": "eve"}).status == 403


def test_projects_are_public_unless_said_otherwise(api: Api) -> None:
    created = api("POST", "/projects/", {"name": "new", "description": None, "tags": None})
    assert created.status == 201
    assert (created.body["owner"], created.body["is_public"]) == ("ada", True)
    assert created.body["unique_name"] == "ada.new"
    assert api.ok("GET", "/ada/new/", as_="bob")["name"] == "new"


def test_a_project_twice_is_refused(api: Api) -> None:
    answer = api("POST", "/projects", {"name": "vision"})
    assert (answer.status, answer.body) == (400, ["A project with name `vision` already exists."])


def test_strangers_read_what_is_public_and_change_nothing(api: Api) -> None:
    api.ok("POST", "/ada/vision/builds", FIELDS)
    api.ok("POST", "/ada/secret/builds", FIELDS)

    assert api("GET", "/ada/vision/builds/1", as_="bob").status == 200
    assert api("GET", "/ada/secret/builds/1", as_="bob").status == 403
    assert api("POST", "/ada/vision/builds", FIELDS, as_="bob").status == 403
    assert api("PATCH", "/ada/vision/builds/1", {}, as_="bob").status == 403
    assert api("POST", "/ada/vision/builds/1/bookmark", as_="bob").status == 201
    assert api("POST", "/ada/secret/builds/1/bookmark", as_="bob").status == 403
    refused = api("DELETE", "/ada/vision/builds/1", as_="bob")
    assert refused.body == {"detail": "You do not have permission to perform this action."}
    assert api("DELETE", "/ada/vision/builds/1", as_="root").status == 204
    assert api("GET", "/ada/vision/builds/1", as_=None).status == 401


# Refusals that do not come from a view


def test_another_method_is_refused_in_the_apis_words(api: Api) -> None:
    answer = api("PUT", "/projects", {})
    assert (answer.status, answer.body) == (405, {"detail": 'Method "PUT" not allowed.'})


def test_every_answer_can_be_read_by_pages_of_other_origins(api: Api) -> None:
    for answer in (api("GET", "/users"), api("GET", "/users", as_=None), api("GET", "/ada/none")):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 9_999])
def test_bodies_that_cannot_be_read(api: Api, body: bytes) -> None:
    before = api.services.written()
    answer = api("POST", "/ada/vision/builds", body)
    assert answer.status == 400
    assert api.services.written() == before


def test_a_body_beyond_the_limit(api: Api) -> None:
    big = {"content": "x" * api.services.settings.max_body_bytes}
    assert api("POST", "/ada/vision/builds", big).status == 413


def test_too_many_requests_are_told_when_to_come_back(api: Api) -> None:
    api.services.settings = replace(api.services.settings, requests_per_minute=3)
    throttle._taken.clear()
    assert [api("GET", "/users").status for _ in range(4)] == [200, 200, 200, 429]
    answer = api("GET", "/users")
    assert answer.headers["Retry-After"] == "60"
    assert answer.body == {"detail": "Request was throttled. Expected available in 60 seconds."}
    throttle._taken.clear()


def test_a_form_is_read_as_fields(api: Api) -> None:
    """Published clients send some bodies as forms."""
    form = b"username=eve&email=eve%40example.com&email=e%2Bve%40example.com"
    created = api("POST", "/users", form, as_="root", Content_Type="application/x-www-form-urlencoded")
    assert (created.status, created.body["email"]) == (201, "e+ve@example.com")


def test_an_idempotency_key_is_the_callers_own(api: Api) -> None:
    """Else one would be answered with what another has made."""
    first = api.ok("POST", "/ada/vision/builds", FIELDS, Idempotency_Key="k")
    assert api.ok("POST", "/ada/vision/builds", FIELDS, as_="root", Idempotency_Key="k")["id"] != first["id"]
    assert api.ok("POST", "/ada/vision/builds", FIELDS, Idempotency_Key="k")["id"] == first["id"]


def test_links_name_the_host_and_scheme_that_the_caller_used(api: Api) -> None:
    """Behind the gateway a function is called by another name."""
    recorded = json.loads((Path(__file__).parents[1] / "events" / "get_build.json").read_text())
    address = "/api/v1/{owner}/{project}/builds"
    recorded["requestContext"] |= {
        "resourcePath": address,
        "path": "/api/v1/ada/vision/builds",
        "domainName": "builds.example.com",
    }
    recorded["pathParameters"] = {"owner": "ada", "project": "vision"}
    recorded["multiValueQueryStringParameters"] = {"limit": ["1"]}
    for _ in range(2):
        api.ok("POST", "/ada/vision/builds", FIELDS)

    page = json.loads(app(recorded, LambdaContext("api", 256, 28_000))["body"])
    assert page["next"] == "https://builds.example.com/api/v1/ada/vision/builds?limit=1&offset=1"

    offer = api.ok("POST", "/ada/vision/repo/upload/offers", Host="here.test", X_Forwarded_Proto="https")
    assert offer["complete"].startswith("https://here.test/api/v1/ada/vision/repo/upload/offers/")
    assert api.ok("GET", "/ada?limit=1", Host="here.test")["next"].startswith("http://here.test/api/v1/ada?")
