"""The OpenAPI document of the API, made of its routes and of the types in `schemas`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from chalicelib import schemas

BINARY = bytes  # as what a route takes: an archive, plain or as part `repo` of a form
TEXT = str  # as what a route answers: plain text
_REFUSALS = {
    "400": "The request says something that cannot be done; the body says what to change.",
    "401": "Without a token that is known and has not expired.",
    "403": "The caller may not do this.",
    "404": "There is no such thing.",
    "409": "Too many others are changing the same thing; try again.",
    "413": "The body is too large.",
    "429": "Too many requests; `Retry-After` says when to come back.",
    "503": "A service behind does not answer; try again.",
}


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of one route where it is declared."""

    name: str
    methods: Sequence[str]
    path: str  # below the API's prefix
    status: int
    answers: Any  # a type of `schemas`, TEXT, or None for an empty body
    takes: Any  # a type of `schemas`, BINARY, or None
    asks: Mapping[str, str]  # parameters of its query, and their types
    anonymous: bool


def document(routes: Sequence[Route], server: str) -> dict[str, Any]:
    """OpenAPI 3.1 for the routes; `server` is the address their paths are below."""
    types = {type_ for route in routes for type_ in (route.answers, route.takes)} - {None, BINARY, TEXT}
    ordered = sorted(types | {schemas.Detail}, key=str)
    described, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(ordered, described, strict=True))
    paths: dict[str, Any] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        for method in route.methods:
            operations[method.lower()] = _operation(route, method, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Slipway",
            "version": "1",
            "description": "Builds container images; Polyaxon's v0 API.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`token` and the key",
                }
            },
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, method: str, schema_of: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name if method == route.methods[0] else f"{route.name}_{method.lower()}",
        "summary": route.name.replace("_", " ").strip().capitalize(),
        "responses": {str(route.status): _answer(route.answers, schema_of)}
        | {status: _refusal(status, text) for status, text in _REFUSALS.items()},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}}
        for name, kind in route.asks.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.takes is BINARY:
        content: dict[str, Any] = {
            "application/gzip": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"repo": {"type": "string", "format": "binary"}},
                    "required": ["repo"],
                }
            },
        }
        operation["requestBody"] = {"required": True, "content": content}
    elif route.takes is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": schema_of[route.takes]}}}
    if route.anonymous:
        operation["security"] = [{}, {"token": []}]
    return operation


def _answer(answers: Any, schema_of: dict[Any, Any]) -> dict[str, Any]:
    if answers is None:
        return {"description": "Done; there is no body."}
    if answers is TEXT:
        return {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"description": "Done.", "content": {"application/json": {"schema": schema_of[answers]}}}


def _refusal(status: str, text: str) -> dict[str, Any]:
    if status == "400":  # fields with their faults, a list of faults, or a detail
        schema: dict[str, Any] = {"type": ["object", "array"]}
    elif status == "404":  # a text where a log is missing
        schema = {"type": ["object", "string"]}
    else:
        schema = {"$ref": "#/components/schemas/Detail"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}
