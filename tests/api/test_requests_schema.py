"""The schema of the messages that the queue takes: what it allows is done, and nothing else."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from chalicelib import schemas
from chalicelib.errors import Invalid
from chalicelib.web import queued_request
from infra import openapi
from tests.api.conftest import Api
from tests.factories import SPEC

HEAD = {"version": 1, "owner": "ada", "project": "vision"}
CREATE = {**HEAD, "action": "create", "content": json.dumps(SPEC)}
STOP = {**HEAD, "action": "stop", "build": 1}
GOOD: list[dict[str, Any]] = [
    CREATE,
    {**CREATE, "content": SPEC},
    {**HEAD, "action": "create", "is_managed": False},
    {**CREATE, "user": "eve", "idempotency_key": "nightly 2024", "tags": ["a"], "name": None, "nocache": True},
    {**CREATE, "user": "", "idempotency_key": None, "ttl": "60", "of_the_sender": {"any": 1}},
    *({**STOP, "action": action} for action in ("stop", "archive", "restore", "delete", "rebuild")),
    {**STOP, "action": "rebuild", "nocache": None},
]
BAD: list[Any] = [
    {},
    {**CREATE, "version": 2},
    {**CREATE, "version": True},
    {**CREATE, "version": "1"},
    {**CREATE, "owner": "a/b"},
    {**CREATE, "project": None},
    {**CREATE, "action": "explode"},
    {**CREATE, "action": ["create"]},
    {**CREATE, "content": [1]},
    {**CREATE, "tags": "a"},
    {**CREATE, "nocache": "yes"},
    {**CREATE, "user": ["eve"]},
    {**CREATE, "user": "e\nve"},
    {**CREATE, "user": "x" * 129},
    {**CREATE, "idempotency_key": ""},
    {**CREATE, "idempotency_key": "ü"},
    {**HEAD, "action": "stop"},
    {**STOP, "build": "1"},
    {**STOP, "build": True},
    {**STOP, "build": 0},
    {**STOP, "build": 10**12},
    {**STOP, "action": "rebuild", "nocache": 1},
]


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(json.dumps(openapi.requests_schema()))


def test_it_is_served_to_anybody_and_valid(api: Api, schema: Any) -> None:
    served = api("GET", "/api/ui/requests-schema.json", as_=None, root="")
    assert served.headers["Content-Type"].startswith("application/json")
    assert json.loads(served.body) == schema
    Draft202012Validator.check_schema(schema)
    named = [action for each in schema["anyOf"] for action in each["allOf"][0]["properties"]["action"]["enum"]]
    assert named == [*chain(*schemas.REQUESTS)]


@pytest.mark.parametrize("message", GOOD, ids=str)
def test_what_it_allows_is_read(schema: Any, message: Any) -> None:
    assert list(Draft202012Validator(schema).iter_errors(message)) == []
    assert queued_request(json.dumps(message)) == message


@pytest.mark.parametrize("message", BAD, ids=lambda each: str(each)[-60:])
def test_what_it_does_not_allow_is_refused(schema: Any, message: Any) -> None:
    assert list(Draft202012Validator(schema).iter_errors(message)) != []
    with pytest.raises(Invalid):
        queued_request(json.dumps(message))
