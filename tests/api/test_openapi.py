"""The OpenAPI document says what is served, and nothing else."""

from __future__ import annotations

import re

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
