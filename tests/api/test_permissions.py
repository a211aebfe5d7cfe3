"""Who may do what, for every route there is: a route without a row here fails the test."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app import app
from chalicelib.domain.user import token_sha256
from tests.api.conftest import Api, described
from tests.factories import SPEC, make_archive

# What a route needs: read, write (owner or superuser), mark (as read), self (one's own, or superuser),
# list (one's own; others see an empty page), superuser, token (anybody known), anonymous, attempt (the secret
# of a build's attempt, which no user has).
NEEDS = {
    "GET /healthz": "anonymous",
    "GET /api/ui": "anonymous",
    "HEAD /api/ui": "anonymous",
    "GET /api/ui/{file}": "anonymous",
    "HEAD /api/ui/{file}": "anonymous",
    "GET /openapi.json": "anonymous",
    "GET /versions/{component}": "anonymous",
    "GET /log_handler": "anonymous",
    "POST /users/token": "anonymous",
    "GET /cleanup": "superuser",
    "GET /users": "token",
    "POST /users": "superuser",
    "POST /users/{user}/tokens": "self",
    "GET /users/{user}/tokens": "self",
    "DELETE /users/{user}/tokens": "self",
    "DELETE /users/{user}/tokens/{token_id}": "self",
    "POST /projects": "token",
    "GET /{owner}": "token",
    "GET /bookmarks/{user}/projects": "list",
    "GET /bookmarks/{user}/builds": "list",
    "GET /archives/{user}/builds": "list",
    "GET /{owner}/{project}": "read",
    "PATCH /{owner}/{project}": "write",
    "PUT /{owner}/{project}": "write",
    "DELETE /{owner}/{project}": "write",
    "POST /{owner}/{project}/archive": "write",
    "POST /{owner}/{project}/restore": "write",
    "POST /{owner}/{project}/bookmark": "read",
    "DELETE /{owner}/{project}/unbookmark": "read",
    "PUT /{owner}/{project}/repo/upload": "write",
    "POST /{owner}/{project}/repo/upload": "write",
    "POST /{owner}/{project}/repo/upload/offers": "write",
    "POST /{owner}/{project}/repo/upload/offers/{offer_id}": "write",
    "POST /{owner}/{project}/repo/external": "write",
    "DELETE /{owner}/{project}/repo/external": "write",
    "POST /{owner}/{project}/experiments": "write",
    "POST /{owner}/{project}/dockerfile": "write",
    "POST /{owner}/{project}/groups": "write",
    "POST /{owner}/{project}/jobs": "write",
    "GET /{owner}/{project}/repo/download": "read",
    "GET /{owner}/{project}/secrets": "write",
    "PUT /{owner}/{project}/secrets/{secret}": "write",
    "DELETE /{owner}/{project}/secrets/{secret}": "write",
    "GET /{owner}/{project}/hooks": "write",
    "PUT /{owner}/{project}/hooks/{hook}": "write",
    "DELETE /{owner}/{project}/hooks/{hook}": "write",
    "POST /{owner}/{project}/hooks/{hook}/test": "write",
    "GET /{owner}/{project}/builds": "read",
    "POST /{owner}/{project}/builds": "write",
    "POST /{owner}/{project}/builds/invalidate": "write",
    **{f"POST /{{owner}}/{{project}}/builds/{verb}": "write" for verb in ("archive", "delete", "restore", "stop")},
    "POST /{owner}/{project}/builds/bookmark": "read",
    "GET /{owner}/{project}/builds/{build_id}": "read",
    "PATCH /{owner}/{project}/builds/{build_id}": "write",
    "PUT /{owner}/{project}/builds/{build_id}": "write",
    "DELETE /{owner}/{project}/builds/{build_id}": "write",
    "POST /{owner}/{project}/builds/{build_id}/archive": "write",
    "POST /{owner}/{project}/builds/{build_id}/restore": "write",
    "POST /{owner}/{project}/builds/{build_id}/stop": "write",
    "POST /{owner}/{project}/builds/{build_id}/rebuild": "write",
    "POST /{owner}/{project}/builds/{build_id}/invalidate": "write",
    "POST /{owner}/{project}/builds/{build_id}/bookmark": "read",
    "DELETE /{owner}/{project}/builds/{build_id}/unbookmark": "read",
    "GET /{owner}/{project}/builds/{build_id}/statuses": "read",
    "POST /{owner}/{project}/builds/{build_id}/statuses": "write",
    "GET /{owner}/{project}/builds/{build_id}/statuses/{status_uuid}": "read",
    "GET /{owner}/{project}/builds/{build_id}/steps": "read",
    "GET /{owner}/{project}/builds/{build_id}/logs": "read",
    "POST /{owner}/{project}/builds/{build_id}/logs": "write",
    "GET /{owner}/{project}/builds/{build_id}/logs/stream": "read",
    "GET /{owner}/{project}/builds/{build_id}/coderef": "read",
    "POST /{owner}/{project}/builds/{build_id}/coderef": "write",
    "POST /{owner}/{project}/builds/{build_id}/_heartbeat": "write",
    "POST /{owner}/{project}/builds/{build_id}/_reconcile": "write",
    "POST /{owner}/{project}/builds/{build_id}/_materials": "attempt",
    "POST /{owner}/{project}/builds/{build_id}/_login": "attempt",
    "POST /{owner}/{project}/builds/{build_id}/_report": "attempt",
}
ROUTES = sorted(f"{method} {path.removeprefix('/api/v1')}" for path in app.routes for method in app.routes[path])
BODIES: dict[str, Any] = {
    "POST /{owner}/{project}/builds": {"content": json.dumps(SPEC)},
    "POST /{owner}/{project}/builds/{build_id}/statuses": {"status": "building"},
    **{
        f"POST /{{owner}}/{{project}}/builds/{verb}": {"ids": [1]}
        for verb in ("archive", "bookmark", "delete", "restore", "stop")
    },
    "POST /{owner}/{project}/builds/{build_id}/_reconcile": {"status": "building"},
    "POST /{owner}/{project}/builds/{build_id}/logs": "a line",
    "POST /{owner}/{project}/repo/external": {"git_url": "https://git.test/x"},
    "PUT /{owner}/{project}/repo/upload": make_archive({"a": "b"}),
    "POST /{owner}/{project}/repo/upload": make_archive({"a": "b"}),
    "PUT /{owner}/{project}/secrets/{secret}": {"value": "v"},
    "PUT /{owner}/{project}/hooks/{hook}": {"url": "https://receiver.test"},
    "POST /users": {"username": "eve"},
    "POST /projects": {"name": "new"},
}
FORBIDDEN = {"detail": "You do not have permission to perform this action."}


def is_beside_the_api(route: str) -> bool:
    return route.partition(" ")[2].startswith(("/healthz", "/api/ui"))


def test_every_route_has_a_row() -> None:
    assert sorted(NEEDS) == ROUTES


def expected(need: str, caller: str | None, project: str) -> int | None:
    """The refusal, or None for anything but 401 and 403."""
    if need == "attempt":
        return 401
    if caller is None:
        return None if need == "anonymous" else 401
    if caller in ("ada", "root") and need != "superuser":
        return None
    return {
        "write": 403,
        "read": 403 if project == "secret" else None,
        "self": 403,
        "superuser": None if caller == "root" else 403,
    }.get(need)


@pytest.mark.parametrize("route", [each for each in ROUTES if not is_beside_the_api(each)])
def test_403_is_described_where_somebody_is_refused_and_nowhere_else(route: str) -> None:
    method, _, path = route.partition(" ")
    refuses = NEEDS[route] in ("read", "write", "mark", "self", "superuser", "attempt")
    assert (403 in described(method, path)) == refuses


@pytest.mark.parametrize("project", ["vision", "secret"])
@pytest.mark.parametrize("caller", [None, "ada", "bob", "root"], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_the_matrix(api: Api, route: str, caller: str | None, project: str) -> None:
    built = api.ok("POST", f"/ada/{project}/builds", {"is_managed": False})
    row = api.ok("GET", f"/ada/{project}/builds/1/statuses")["results"][0]
    assert built["id"] == 1
    method, _, pattern = route.partition(" ")
    path = pattern.format(
        owner="ada",
        project=project,
        user="ada",
        build_id=1,
        status_uuid=row["uuid"],
        token_id=api.services.accounts.by_hash[token_sha256("ada")].id,
        offer_id="x",
        secret="token",
        hook="ci",
        component="cli",
        file="index.html",
    )
    before = api.services.written()
    root = "" if is_beside_the_api(route) else None
    answer = api(method, path, BODIES.get(route), as_=caller, root=root)

    refusal = expected(NEEDS[route], caller, project)
    if refusal is None:
        assert answer.status not in (401, 403), answer
        assert answer.status < 500
    else:
        assert answer.status == refusal, answer
        assert api.services.written() == before
        if refusal == 403:
            assert answer.body == FORBIDDEN


@pytest.mark.parametrize("path", ["/bookmarks/ada/builds", "/bookmarks/ada/projects", "/archives/ada/builds"])
def test_lists_of_others_are_empty(api: Api, path: str) -> None:
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    api.ok("POST", "/ada/vision/builds/1/bookmark")
    api.ok("POST", "/ada/vision/bookmark")
    api.ok("POST", "/ada/vision/builds/2/archive")

    assert api.ok("GET", path)["count"] == 1
    assert api.ok("GET", path, as_="root")["count"] == 1
    assert api.ok("GET", path, as_="bob") == {"count": 0, "next": None, "previous": None, "results": []}
    assert api("GET", path.replace("ada", "nobody")).status == 404


def test_revoked_tokens_are_void_and_a_new_one_is_not(api: Api) -> None:
    api.services.clock.forward(seconds=1)
    assert api("DELETE", "/users/ada/tokens", as_="ada").status == 204
    assert api("GET", "/users", as_="ada").status == 401

    api.services.clock.forward(seconds=1)
    issued = api("POST", "/users/ada/tokens", as_="root")
    assert issued.status == 201
    assert api.ok("GET", "/users", as_=issued.body["token"])["username"] == "ada"
    assert api("DELETE", "/users/nobody/tokens", as_="root").status == 404


def test_a_bookmark_shows_nothing_that_became_private(api: Api) -> None:
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    api.ok("POST", "/ada/vision/builds/1/bookmark", as_="bob")
    api.ok("POST", "/ada/vision/bookmark", as_="bob")
    api.ok("PATCH", "/ada/vision", {"is_public": False})

    assert api.ok("GET", "/bookmarks/bob/builds", as_="bob")["results"] == []
    assert api.ok("GET", "/bookmarks/bob/projects", as_="bob")["results"] == []
