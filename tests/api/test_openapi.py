"""The OpenAPI document says what is served, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from app import app
from chalicelib import schemas
from chalicelib.domain.build import Status
from tests.api.conftest import Api, document


def test_the_document_is_valid_and_needs_no_token(api: Api) -> None:
    served = api.ok("GET", "/openapi.json", as_=None)
    assert served["openapi"].startswith("3.1")
    assert served["servers"][0]["url"].endswith("/api/v1")
    validate(served)
    assert served | {"servers": document()["servers"]} == document()


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
        if path.startswith("/api/v1/")
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
        ("PUT", "/{owner}/{project}/secrets/{secret}"): "value",
        ("PUT", "/{owner}/{project}/hooks/{hook}"): "url",
        ("POST", "/{owner}/{project}/builds/{build_id}/_reconcile"): "status",
    }
    by_attempts = {f"/{{owner}}/{{project}}/builds/{{build_id}}/{name}" for name in ("_materials", "_login", "_report")}
    described = marked(api.ok("GET", "/openapi.json"))
    assert {described.pop(("POST", path)) for path in by_attempts} == {"attempt"}
    of_many = [f"/{{owner}}/{{project}}/builds/{verb}" for verb in ("archive", "bookmark", "delete", "restore", "stop")]
    assert {described.pop(("POST", path)) for path in of_many} == {"ids"}
    assert described == needed
    for (method, path), field in needed.items():
        place = path.format(owner="ada", project="vision", build_id=elsewhere, secret="x", hook="x")
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


def fields(name: str) -> list[tuple[str, int]]:
    """The fields of a body whose length the document bounds, with that bound."""
    found = []
    for field, schema in document()["components"]["schemas"][name]["properties"].items():
        for option in schema.get("anyOf", [schema]):
            if "maxLength" in option:
                found.append((field, option["maxLength"]))
    return found


BODIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "NewProjectFields": ("POST", "/projects", {"name": "new"}),
    "ProjectFields": ("PATCH", "/ada/vision", {}),
    "BuildFields": ("POST", "/ada/vision/builds", {"is_managed": False}),
    "BuildChanges": ("PATCH", "/ada/vision/builds/1", {}),
    "StatusFields": ("POST", "/ada/vision/builds/1/statuses", {"status": "running"}),
    "SecretFields": ("PUT", "/ada/vision/secrets/token", {}),
    "CodeReferenceFields": ("POST", "/ada/vision/builds/1/coderef", {}),
}


@pytest.mark.parametrize(
    ("body", "field", "bound"), [(body, *each) for body in BODIES for each in fields(body)], ids=str
)
def test_a_text_may_be_as_long_as_the_document_says_and_no_longer(api: Api, body: str, field: str, bound: int) -> None:
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    method, path, needed = BODIES[body]

    api.ok(method, path, {**needed, field: "x" * bound})
    refused = api(method, path, {**needed, field: "x" * (bound + 1)})

    assert (refused.status, list(refused.body)) == (400, [field])


def test_fields_of_a_body_have_no_defaults_and_those_of_an_answer_are_all_required() -> None:
    components = document()["components"]["schemas"]
    assert not [name for name in components if '"default"' in json.dumps(components[name])]
    assert components["BuildFields"]["required"] == []
    assert components["NewProjectFields"]["required"] == ["name"]
    assert components["ProjectDetail"]["required"] == list(components["ProjectDetail"]["properties"])


def test_times_statuses_and_numbers_are_typed() -> None:
    build = document()["components"]["schemas"]["Build"]["properties"]
    assert build["created_at"] == {"type": "string", "format": "date-time"}
    assert build["last_status"] == {"$ref": "#/components/schemas/Status"}
    assert document()["components"]["schemas"]["Status"]["enum"] == sorted(Status)
    assert build["id"] == {"type": "integer", "minimum": 1}


def test_parameters_are_typed_and_bounded_as_they_are_read(api: Api) -> None:
    schema_of = {
        (each["in"], each["name"]): each["schema"]
        for operations in document()["paths"].values()
        for operation in operations.values()
        for each in operation["parameters"]
    }
    bounds = (schema_of["query", "limit"]["maximum"], schema_of["query", "offset"]["maximum"])
    assert bounds == (schemas.MAX_LIMIT, schemas.MAX_OFFSET)
    assert schema_of["path", "build_id"]["type"] == "integer"
    create = document()["paths"]["/{owner}/{project}/builds"]["post"]["parameters"]
    assert create[-1]["name"] == "Idempotency-Key"
    body = {"is_managed": False}
    for key, status in (("~" * 128, 201), ("~" * 129, 400), ("", 400), ("ü", 400)):
        assert bool(re.search(create[-1]["schema"]["pattern"], key)) == (status == 201)
        assert api("POST", "/ada/vision/builds", body, Idempotency_Key=key).status == status


def test_every_operation_has_a_tag_and_only_refusals_that_fit_it() -> None:
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            assert operation["tags"], path
            statuses = set(operation["responses"])
            assert ("413" in statuses) == ("requestBody" in operation or "{offer_id}" in path), path
            assert not (method == "get" and "409" in statuses), path
            assert ("404" in statuses) == ("{" in path), path


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/ada/vision/builds", {"name": "no spaces"}),
        ("POST", "/ada/vision/builds", {"ttl": "soon"}),
        ("POST", "/ada/vision/builds", b"{"),
        ("GET", "/ada/vision/builds?query=nonsense", None),
    ],
    ids=str,
)
def test_a_400_is_as_its_schema_says(api: Api, method: str, path: str, body: Any) -> None:
    answer = api(method, path, body)
    content = document()["components"]["responses"]["BAD_REQUEST"]["content"]
    schema = content["application/json"]["schema"] | {"components": document()["components"]}
    assert answer.status == 400
    Draft202012Validator(schema).validate(answer.body)
