"""Makes the OpenAPI document from the routes and the types in `schemas`, before the service is packaged or started."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import msgspec

from chalicelib import page, schemas, settings
from chalicelib.domain.query import MAX_QUERY
from chalicelib.usecases.logs import CURSOR, LogPage
from chalicelib.web import Route
from infra import cli, request_bodies

Json = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFUSALS = {
    HTTPStatus.BAD_REQUEST: "The request is not valid; the body says what to change.",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it is unknown or has expired.",
    HTTPStatus.FORBIDDEN: "The caller may not do this.",
    HTTPStatus.NOT_FOUND: "The resource does not exist, or the caller may not know of it.",
    HTTPStatus.CONFLICT: "Too many concurrent changes of the same resource; try again.",
    HTTPStatus.GONE: "The build or its attempt has ended, or was deleted; do not repeat the request.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The idempotency key was used with another request before; use a new one.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests; `Retry-After` says when to try again.",
    HTTPStatus.SERVICE_UNAVAILABLE: "A service that Slipway needs does not answer; try again.",
}
_ANYWHERE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_QUERIES = ["status:running|scheduled, created_at:>=2024-03-01"]
_RETRIED = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Detail(msgspec.Struct):
    """An error message."""

    detail: str


class Parameters(msgspec.Struct):
    """The parameters of all routes: in paths, queries and headers."""

    owner: schemas.Name
    user: schemas.Name
    project: schemas.Name
    build_id: schemas.BuildId
    status_uuid: schemas.Name
    offer_id: schemas.Name
    token_id: schemas.Name
    secret: schemas.Name
    hook: schemas.Name
    component: Literal["cli", "platform", "lib", "chart", "slipway"]
    limit: Annotated[
        int, msgspec.Meta(ge=1, le=schemas.MAX_LIMIT, description=f"Rows; {schemas.DEFAULT_LIMIT} if not given.")
    ]
    offset: Annotated[int, msgspec.Meta(ge=0, le=schemas.MAX_OFFSET, description="Rows before this page.")]
    sort: Annotated[str, msgspec.Meta(description="Fields; `-` in front reverses one.", examples=["-updated_at"])]
    query: Annotated[
        str, msgspec.Meta(max_length=MAX_QUERY, description="`,` is and, `|` or, `~` not.", examples=_QUERIES)
    ]
    commit: Annotated[str, msgspec.Meta(description="The commit of an upload; the latest if not given.")]
    cursor: Annotated[
        str, msgspec.Meta(pattern=f"^({CURSOR.pattern})$", description="Where to begin: 0, or the cursor of an answer.")
    ]
    idempotency_key: schemas.Key = msgspec.field(name="Idempotency-Key")
    if_none_match: Annotated[str, msgspec.Meta(description="The `ETag` of a former answer.")] = msgspec.field(
        name="If-None-Match"
    )


def publish() -> None:
    """Writes the document where the service reads it, which puts its address and version into it, and the schema of
    the messages of the queue."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # the app wants one when it is imported
    from app import ROUTES

    cli.write(page.FOLDER / page.OPENAPI, json.dumps(document(ROUTES, "../v1", settings.UNKNOWN_VERSION)))
    cli.write(page.FOLDER / "requests-schema.json", json.dumps(requests_schema()))


def document(routes: Sequence[Route], server: str, version: str) -> Json:
    """OpenAPI 3.1 for the routes. `server` is the address of the API, `version` that of Slipway."""
    answered = {kind for route in routes for _, kind in _answers(route)} | {Detail}
    schema_of, components = _schemas(answered - {type(None), str, LogPage, schemas.Redirect})
    for component in components.values():
        if "properties" in component:  # an answer has all its fields
            component["required"] = list(component["properties"])
    taken, more = _schemas({_taken(route) for route in routes} - {None, bytes})
    events, more_components = _schemas({schemas.BuildEvent})
    (parameters,) = _schemas({Parameters})[1].values()
    paths: Json = {}
    for route in routes:
        for method in route.methods:
            operation = _operation(route, method, parameters["properties"], schema_of | taken)
            paths.setdefault(route.path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Slipway", "version": version, "description": "Builds container images; Polyaxon's v0 API."},
        "servers": [{"url": server}],
        "paths": paths,
        "webhooks": {"build": {"post": _webhook(events[schemas.BuildEvent])}},
        "components": {
            "schemas": more_components | components | more | {"Faults": _FAULTS},
            "responses": {status.name: _refusal(status) for status in _REFUSALS},
            "securitySchemes": {"token": _TOKEN, "attempt": _ATTEMPT},
        },
        "security": [{"token": []}],
    }


def _webhook(event: Json) -> Json:
    return {
        "operationId": "receive_build",
        "summary": "Receive build",
        "description": "What webhooks of a project receive at the end of a build, signed after Standard Webhooks, and"
        " what a bus of EventBridge has as `detail`, at each status.",
        "requestBody": {"required": True, "content": _json(event)},
        "responses": {"2XX": {"description": "Accepted; any other answer is repeated."}},
    }


def _answers(route: Route) -> Iterator[tuple[HTTPStatus, Any]]:
    """The statuses of success and the types of their bodies."""
    kind = get_type_hints(route.view)["return"]
    for each in get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,):
        if each in (schemas.Redirect, LogPage):
            yield HTTPStatus.FOUND, each
        if get_origin(each) is schemas.Created:
            yield HTTPStatus.CREATED, get_args(each)[0]
        elif each not in (schemas.Redirect, NoReturn):
            yield route.status, each


def requests_schema() -> Json:
    """The JSON Schema of the messages that the queue of requests takes."""
    schema_of, components = _schemas({kind for kinds in schemas.REQUESTS.values() for kind in kinds}, "#/$defs/{name}")
    messages = []
    for actions, kinds in schemas.REQUESTS.items():
        action = {"properties": {"action": {"enum": actions}}, "required": ["action"]}
        messages.append({"allOf": [action, *(schema_of[kind] for kind in kinds)]})
    return {"$schema": DIALECT, "title": "A request for Slipway", "anyOf": messages, "$defs": components}


def _taken(route: Route) -> Any:
    """The type of the request body."""
    return getattr(request_bodies, route.body) if isinstance(route.body, str) else route.body


def _operation(route: Route, method: str, parameters: Json, schema_of: dict[Any, Json]) -> Json:
    name = route.view.__name__
    captured = re.findall(r"{(\w+)}", route.path)
    responses = _responses(route, method, schema_of)
    headers = [*route.headers, *(["If-None-Match"] if "304" in responses else [])]
    places = [("path", captured), ("query", route.query), ("header", headers)]
    operation: Json = {
        "operationId": name if method == route.methods[0] else f"{name}_{method.lower()}",
        "summary": name.replace("_", " ").capitalize(),
        "description": route.view.__doc__ or "",
        "tags": [_tag(route.path)],
        "parameters": [
            {"name": each, "in": place, "required": place == "path", "schema": parameters[each]}
            for place, names in places
            for each in names
        ],
        "responses": responses,
    }
    if route.body is not None:
        content = _ARCHIVE if route.body is bytes else _json(schema_of[_taken(route)])
        operation["requestBody"] = {"required": True, "content": content}
    if route.caller != "user":
        operation["security"] = [{"attempt": []}] if route.caller == "build" else [{}, {"token": []}]
    return operation


_RETRY_AFTER: Json = {"Retry-After": {"schema": {"type": "integer"}}}
_LOCATION: Json = {"Location": {"schema": {"type": "string", "format": "uri"}}}
_LOG_HEADERS: Json = {
    "X-Slipway-Next-Cursor": {"schema": {"type": "string"}},
    "X-Slipway-Log-Complete": {"schema": {"type": "string", "enum": ["true", "false"]}},
}


def _responses(route: Route, method: str, schema_of: dict[Any, Json]) -> Json:
    answers = list(_answers(route))
    responses: Json = {}
    for status, kind in answers:
        found = responses.setdefault(str(int(status)), {"description": status.phrase})
        if kind is LogPage:
            found["headers"] = {**_LOG_HEADERS, **(_LOCATION if status == HTTPStatus.FOUND else _RETRY_AFTER)}
        if kind is schemas.Redirect:
            found["headers"] = _LOCATION
        elif kind in (str, LogPage) and status != HTTPStatus.FOUND:
            found["content"] = {"text/plain": {"schema": {"type": "string"}}}
        elif kind not in (type(None), LogPage):
            same = [schema_of[other] for at, other in answers if at == status]
            found["content"] = _json(same[0] if len(same) == 1 else {"anyOf": same})
    if method == "GET" and "content" in responses.get("200", {}):
        responses["304"] = {"description": "What `If-None-Match` names is the answer still."}
    for status in _refused(route, method):
        responses[str(int(status))] = {"$ref": f"#/components/responses/{status.name}"}
    if any(kind is LogPage for _, kind in answers):  # a text where a log is missing
        responses["404"] = _refusal(HTTPStatus.NOT_FOUND, {"type": "string"})
    return responses


def _refused(route: Route, method: str) -> list[HTTPStatus]:
    """The statuses of a route's errors, derived from its body, query, path and caller."""
    statuses = {*_ANYWHERE, *route.refusals}
    if route.body is not None:
        statuses |= {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE}
    if route.query:
        statuses.add(HTTPStatus.BAD_REQUEST)
    if "{" in route.path:
        statuses.add(HTTPStatus.NOT_FOUND)
    writes = method != "GET" and route.caller == "user"
    if writes:
        statuses.add(HTTPStatus.CONFLICT)
    if "{project}" in route.path or (_tag(route.path) == "users" and (writes or "{user}" in route.path)):
        statuses.add(HTTPStatus.FORBIDDEN)
    return sorted(statuses)


def _refusal(status: HTTPStatus, *others: Json) -> Json:
    """The OpenAPI response of an error. Its body is a Detail, or has one of the schemas `others`."""
    if status == HTTPStatus.BAD_REQUEST:
        others = ({"type": "array", "items": {"type": "string"}}, {"$ref": "#/components/schemas/Faults"})
    detail = {"$ref": "#/components/schemas/Detail"}
    content = _json({"anyOf": [detail, *others]} if others else detail)
    headers = _RETRY_AFTER if status in _RETRIED else {}
    return {"description": _REFUSALS[status], "content": content, "headers": headers}


def _schemas(kinds: Iterable[Any], template: str = "#/components/schemas/{name}") -> tuple[dict[Any, Json], Json]:
    """The schemas of types, and the components that they refer to. Defaults are removed: generators assume that a field
    with a default is always present."""
    ordered = sorted(kinds, key=str)
    described, components = msgspec.json.schema_components(ordered, ref_template=template)
    for component in components.values():
        if "enum" in component:
            component["type"] = "string"
        for field in component.get("properties", {}).values():
            field.pop("default", None)
            for option in field.get("anyOf", ()):  # the annotations of `X | None` belong to the field
                field.update((word, option.pop(word)) for word in ("description", "examples") if word in option)
    return dict(zip(ordered, described, strict=True)), components


def _tag(path: str) -> str:
    words = path.split("/")
    known = [word for word in ("repo", "builds", "projects", "users") if word in words]
    return known[0] if known else "projects" if "{owner}" in words else "service"


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


_KEY = {"type": "apiKey", "in": "header", "name": "Authorization"}
_TOKEN = {**_KEY, "description": "The word `token` or `bearer`, and the key: `Authorization: token 0123abc…`."}
_ATTEMPT = {**_KEY, "description": "The word `Build` and the secret of the build's attempt."}
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"repo": _FILE}, "required": ["repo"]}
_ARCHIVE = {"application/gzip": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}
_FAULTS = {
    "title": "Faults",
    "description": "Sentences that say what to change, by field.",
    "type": "object",
    "additionalProperties": {"type": "array", "items": {"type": "string"}},
}
