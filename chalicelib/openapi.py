"""The OpenAPI document of the API, made of its routes and of the types in `schemas`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec

from chalicelib import schemas

Json = dict[str, Any]
Schemas = dict[Any, Json]  # by the types that they describe
_REFUSALS = {
    HTTPStatus.BAD_REQUEST: "The request says something that cannot be done; the body says what to change.",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it is unknown or has expired.",
    HTTPStatus.FORBIDDEN: "The caller may not do this.",
    HTTPStatus.NOT_FOUND: "There is no such thing.",
    HTTPStatus.CONFLICT: "Too many others are changing the same thing; try again.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests; `Retry-After` says when to come back.",
    HTTPStatus.SERVICE_UNAVAILABLE: "A service behind does not answer; try again.",
}
_ANYWHERE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRIED = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Route:
    """What is known of one route where it is declared."""

    view: Callable[..., Any]  # its annotation says what is answered
    methods: Sequence[str]
    path: str  # below the API's prefix
    status: HTTPStatus  # of a success, unless the type of the answer has its own
    body: Any  # a type of `schemas`; bytes for an archive, plain or as part `repo` of a form; None
    query: Any  # a type of `schemas` whose fields are optional parameters, or None
    headers: Any  # likewise
    refusals: Sequence[HTTPStatus]  # beside those that follow from the rest
    anonymous: bool

    def answers(self) -> Iterator[tuple[HTTPStatus, Any]]:
        """Statuses of success and the types of their bodies, from the view's annotation."""
        for kind in _members(get_type_hints(self.view)["return"]):
            if kind is schemas.Redirect:
                yield HTTPStatus.FOUND, kind
            elif get_origin(kind) is schemas.Created:
                yield HTTPStatus.CREATED, get_args(kind)[0]
            elif kind is not NoReturn:
                yield self.status, kind


def document(routes: Sequence[Route], server: str) -> Json:
    """OpenAPI 3.1 for the routes; `server` is the address their paths are below."""
    answered = {kind for route in routes for _, kind in route.answers()} | {schemas.Detail}
    schema_of, components = _schemas(answered - {type(None), schemas.Text, schemas.Redirect})
    for component in components.values():
        if "properties" in component:  # an answer has all its fields
            component["required"] = list(component["properties"])
    taken, more = _schemas({route.body for route in routes} - {None, bytes})
    paths: Json = {}
    for route in routes:
        for method in route.methods:
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, method, schema_of | taken)
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
            "schemas": components | more | {"Faults": _FAULTS},
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "Authorization", "description": _HEADER}
            },
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, method: str, schema_of: Schemas) -> Json:
    name = route.view.__name__
    operation: Json = {
        "operationId": name if method == route.methods[0] else f"{name}_{method.lower()}",
        "summary": name.replace("_", " ").capitalize(),
        "tags": [_tag(route.path)],
        "responses": _responses(route, method, schema_of),
    }
    if route.view.__doc__:
        operation["description"] = route.view.__doc__
    captured = re.findall(r"{(\w+)}", route.path)
    parameters = [each for each in _parameters(schemas.PathParameters, "path") if each["name"] in captured]
    parameters += [*_parameters(route.query, "query"), *_parameters(route.headers, "header")]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = _ARCHIVE if route.body is bytes else _json(schema_of[route.body])
        operation["requestBody"] = {"required": True, "content": content}
    if route.anonymous:
        operation["security"] = [{}, {"token": []}]
    return operation


def _responses(route: Route, method: str, schema_of: Schemas) -> Json:
    responses: Json = {}
    answers = list(route.answers())
    for status, kind in answers:
        found = responses.setdefault(str(int(status)), {"description": status.phrase})
        if kind is schemas.Redirect:
            found["headers"] = {"Location": {"schema": {"type": "string", "format": "uri"}}}
        elif kind is schemas.Text:
            found["content"] = {"text/plain": {"schema": {"type": "string"}}}
            found["headers"] = {"X-Slipway-Next-Cursor": {"schema": {"type": "integer"}}}
        elif kind is not type(None):
            others = [schema_of[other] for at, other in answers if at == status]
            found["content"] = _json(others[0] if len(others) == 1 else {"anyOf": others})
    detail = schema_of[schemas.Detail]
    for status in _refused(route, method, has_answer=bool(answers)):
        schema = detail
        if status == HTTPStatus.BAD_REQUEST:
            schema = {"anyOf": [detail, {"type": "array", "items": {"type": "string"}}, _FAULTS_REFERENCE]}
        elif status == HTTPStatus.NOT_FOUND and any(kind is schemas.Text for _, kind in answers):
            schema = {"anyOf": [detail, {"type": "string"}]}  # a text where a log is missing
        refusal = responses[str(int(status))] = {"description": _REFUSALS[status], "content": _json(schema)}
        if status in _RETRIED:
            refusal["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return responses


def _refused(route: Route, method: str, *, has_answer: bool) -> list[HTTPStatus]:
    """What a route may refuse with, by what it takes and where it is."""
    statuses = {*_ANYWHERE, *route.refusals}
    if route.body is not None:
        statuses |= {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
    if route.query is not None or not has_answer:
        statuses.add(HTTPStatus.BAD_REQUEST)
    if "{" in route.path:
        statuses.add(HTTPStatus.NOT_FOUND)
    if "{project}" in route.path or route.path.startswith("/users/{user}"):
        statuses.add(HTTPStatus.FORBIDDEN)
    if method != "GET" and not route.anonymous:
        statuses.add(HTTPStatus.CONFLICT)
    return sorted(statuses)


def _schemas(kinds: Iterable[Any]) -> tuple[Schemas, Json]:
    """The schemas of types, and the components that they refer to, without defaults: generators take a field
    that has one for a field that is always there."""
    ordered = sorted(kinds, key=str)
    described, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    for component in components.values():
        if "enum" in component:
            component["type"] = "string"
        for field in component.get("properties", {}).values():
            field.pop("default", None)
    return dict(zip(ordered, described, strict=True)), components


def _parameters(kind: Any, place: str) -> Iterator[Json]:
    """Parameters of a path, query or header, from the fields of a type."""
    if kind is None:
        return
    (component,) = msgspec.json.schema_components([kind])[1].values()
    for name, schema in component["properties"].items():
        yield {"name": name, "in": place, "required": place == "path", "schema": schema}


def _tag(path: str) -> str:
    words = path.split("/")
    if "repo" in words:
        return "code"
    known = [word for word in ("builds", "projects", "users") if word in words]
    return known[0] if known else "projects" if "{owner}" in words else "service"


def _members(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


_HEADER = "The word `token` and the key: `Authorization: token 0123abc…`."
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"repo": _FILE}, "required": ["repo"]}
_ARCHIVE = {"application/gzip": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}
_FAULTS = {
    "title": "Faults",
    "description": "Sentences that say what to change, by field.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}},
}
_FAULTS_REFERENCE = {"$ref": "#/components/schemas/Faults"}
