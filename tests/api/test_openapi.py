"""The OpenAPI document says what is served, and nothing else."""

from __future__ import annotations

import re
from typing import Any

from openapi_spec_validator import validate

from app import app
from tests.api.conftest import Api


def test_the_document_is_valid_and_needs_no_token(api: Api) -> None:
    document = api.ok("GET", "/openapi.json", as_=None)
    assert document["openapi"].startswith("3.1")
    assert document["servers"][0]["url"].endswith("/api/v1")
    validate(document)


def test_every_route_is_described(api: Api) -> None:
    described = {
        (method.upper(), path)
        for path, operations in api.ok("GET", "/openapi.json")["paths"].items()
        for method in operations
    }
    served = {
        (method, path.removeprefix("/api/v1"))
        for path in app.routes
        for method in app.routes[path]
        if path != "/healthz"
    }
    assert described == served


def test_names_of_operations_are_unique_and_parameters_are_described(api: Api) -> None:
    operations = [
        (path, operation)
        for path, by_method in api.ok("GET", "/openapi.json")["paths"].items()
        for operation in by_method.values()
    ]
    names = [operation["operationId"] for _, operation in operations]
    assert len(names) == len(set(names))
    for path, operation in operations:
        given = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert given == set(re.findall(r"{(\w+)}", path))


def test_what_a_body_needs_is_marked_and_asked_for(api: Api) -> None:
    elsewhere = api.ok("POST", "/ada/vision/builds", {"is_managed": False})["id"]
    needed = {
        ("POST", "/projects"): "name",
        ("POST", "/users"): "username",
        ("POST", "/{owner}/{project}/repo/external"): "git_url",
        ("POST", "/{owner}/{project}/builds/{build_id}/_reconcile"): "status",
    }
    assert marked(api.ok("GET", "/openapi.json")) == needed
    for (method, path), field in needed.items():
        place = path.format(owner="ada", project="vision", build_id=elsewhere)
        answer = api(method, place, {}, as_="root")
        assert (answer.status, list(answer.body)) == (400, [field]), place


def marked(document: Any) -> dict[tuple[str, str], str]:
    """The field that a body must have, by operation."""
    found = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {"content": {}})["content"]
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            schema = document["components"]["schemas"].get(reference.rpartition("/")[2], {})
            for field in schema.get("required", ()):
                found[method.upper(), path] = field
    return found
