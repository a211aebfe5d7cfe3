"""Two processes with a memory each: what one has revoked, the other still remembers."""

from __future__ import annotations

from typing import Any

import pytest

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.domain.user import Token, token_sha256
from tests.api.conftest import Api
from tests.factories import NOW, after, make_user


@pytest.fixture
def processes(api: Api, dynamodb_table: Records) -> list[DynamoAccounts]:
    """Both know the superuser root and eve, who is one as well; each one's token is the own name."""
    processes = [DynamoAccounts(remember_seconds=3600) for _ in range(2)]
    for name in ("root", "eve", "ada"):
        user = make_user(name, is_superuser=name != "ada")
        processes[0].add_user(user, Token(token_sha256(name), name, NOW, after(3600)))
    return processes


def in_process(api: Api, accounts: DynamoAccounts) -> Api:
    api.services.accounts = accounts  # type: ignore[assignment]
    return api


RIGHTS: list[tuple[str, str, Any]] = [
    ("POST", "/users/eve/tokens", None),
    ("POST", "/users/ada/tokens", None),
    ("DELETE", "/users/ada/tokens", None),
    ("POST", "/users", {"username": "mallory", "is_superuser": True}),
]


@pytest.mark.parametrize(("method", "path", "fields"), RIGHTS, ids=lambda part: str(part))
def test_a_revoked_token_that_is_still_remembered_gives_and_takes_no_rights(
    api: Api, processes: list[DynamoAccounts], method: str, path: str, fields: Any
) -> None:
    first, second = processes
    assert in_process(api, first)("GET", "/users", as_="eve").status == 200
    assert in_process(api, second)("DELETE", "/users/eve/tokens", as_="root").status == 204
    in_process(api, first)
    assert api("GET", "/users", as_="eve").status == 200, "remembered"

    answer = api(method, path, fields, as_="eve")

    assert (answer.status, answer.body) == (401, {"detail": "Invalid token."})
    assert api("GET", "/users", as_="eve").status == 401, "no longer remembered"
    assert first.fresh_user("mallory") is None
    assert api("GET", "/users", as_="ada").status == 200


@pytest.mark.parametrize(("method", "path", "fields"), RIGHTS, ids=lambda part: str(part))
def test_a_good_token_gives_and_takes_rights(
    api: Api, processes: list[DynamoAccounts], method: str, path: str, fields: Any
) -> None:
    answer = in_process(api, processes[1])(method, path, fields, as_="eve")
    assert answer.status in (201, 204)
    if answer.status == 201:
        assert in_process(api, processes[0])("GET", "/users", as_=answer.body["token"]).status == 200
