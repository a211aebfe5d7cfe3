from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chalice.local import LambdaContext
from chalice.test import Client

from app import ROUTES, app
from chalicelib import settings
from chalicelib.domain.user import Token, token_sha256
from infra import openapi
from tests.factories import NOW, after, make_project, make_user
from tests.fakes import FakeServices

DAYS = 24 * 3600
EVENTS = Path(__file__).parents[1] / "events"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any  # parsed where it is JSON, else text


@dataclass(frozen=True)
class Api:
    """The API over the fakes; paths are below /api/v1. Callers are named by their tokens. What is answered
    must have a status that the OpenAPI document names, unless `is_described` is false."""

    services: FakeServices
    is_described: bool = True

    def __call__(
        self,
        method: str,
        path: str,
        fields: Any = None,
        *,
        as_: str | None = "ada",
        root: str | None = None,
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if as_ is not None:
            sent.setdefault("Authorization", f"token {as_}")
        if fields is not None:
            sent.setdefault("Content-Type", "application/json")
        body = fields if isinstance(fields, bytes) else b"" if fields is None else json.dumps(fields).encode()
        answer = Client(app).http.request(method, f"{'/api/v1' if root is None else root}{path}", sent, body)
        if self.is_described and root is None and (statuses := described(method, path)):
            assert answer.status_code in statuses, f"{method} {path}: {answer.status_code} is not described"
        text = answer.body.decode()
        is_json = answer.headers.get("Content-Type") == "application/json" and text
        return Answer(answer.status_code, answer.headers, json.loads(text) if is_json else text)

    def ok(self, method: str, path: str, fields: Any = None, **more: Any) -> Any:
        """The body of an answer that must be a success."""
        answer = self(method, path, fields, **more)
        assert answer.status < 300, answer
        return answer.body


def call(function: str, event: str) -> Any:
    """Invokes a function with a recorded event."""
    recorded = json.loads((EVENTS / f"{event}.json").read_text())
    return app.handler_map[function](recorded, LambdaContext(function, 256, 60_000))


@cache
def described(method: str, path: str) -> frozenset[int]:
    """The statuses that the OpenAPI document names for a request, and 500; none where no operation is."""
    paths = {
        template: re.sub(r"{\w+}", "[^/?]+", template) + r"/?(\?.*)?"
        for template, operations in document()["paths"].items()
        if method.lower() in operations
    }
    found = [template for template, pattern in paths.items() if re.fullmatch(pattern, path)]
    if not found:
        return frozenset()
    responses = document()["paths"][min(found, key=lambda each: each.count("{"))][method.lower()]["responses"]
    return frozenset({*map(int, responses), 500})


@cache
def document() -> dict[str, Any]:
    openapi.publish()
    return openapi.document(ROUTES, "http://api.test/api/v1", settings.version())


@pytest.fixture
def api(installed: FakeServices) -> Api:
    """With ada, her public project `vision`, the private one `secret`; bob, and the superuser root. Each
    one's token is the own name."""
    document()  # the service reads it from a file
    for name in ("ada", "bob", "root"):
        user = make_user(name, is_superuser=name == "root", email=f"{name}@example.com")
        installed.accounts.add_user(user, Token(token_sha256(name), name, NOW, after(30 * DAYS)))
    installed.projects.add(make_project())
    installed.projects.add(make_project(name="secret", is_public=False))
    return Api(installed)
