"""What Accounts promise: the fake and DynamoDB alike."""

from __future__ import annotations

import pytest

from chalicelib.domain.build import Token, token_sha256
from chalicelib.errors import AlreadyExists
from chalicelib.ports import Accounts
from tests.factories import NOW, after, make_user
from tests.fakes import FakeAccounts

SECRET, OTHER = token_sha256("secret"), token_sha256("other")


@pytest.fixture(params=["fake", "DynamoDB", "DynamoDB, remembered"])
def accounts(request: pytest.FixtureRequest) -> Accounts:
    if request.param == "fake":
        return FakeAccounts()
    request.getfixturevalue("dynamodb_table")
    from chalicelib.adapters.dynamodb import DynamoAccounts

    return DynamoAccounts(remember_seconds=0 if request.param == "DynamoDB" else 3600)


def test_a_user_is_read_as_it_was_added(accounts: Accounts) -> None:
    user = make_user(email="ada@example.org", is_superuser=True)
    token = Token(SECRET, "ada", NOW, after(60))

    accounts.add_user(user, token)

    for _ in range(2):
        assert accounts.user("ada") == user
        assert accounts.token(SECRET) == token


def test_who_is_not_there(accounts: Accounts) -> None:
    for _ in range(2):
        assert accounts.user("ada") is None
        assert accounts.token(SECRET) is None


def test_a_name_is_taken_once_and_brings_no_second_token(accounts: Accounts) -> None:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))

    with pytest.raises(AlreadyExists):
        accounts.add_user(make_user(is_superuser=True), Token(OTHER, "ada", NOW, after(60)))

    assert accounts.user("ada") == make_user()
    assert accounts.token(OTHER) is None


def test_somebody_unknown_until_now_is_known_once_added(accounts: Accounts) -> None:
    assert accounts.user("ada") is None
    assert accounts.token(SECRET) is None

    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))

    assert accounts.user("ada") == make_user()
    assert accounts.token(SECRET) is not None


def test_a_token_of_the_same_hash_is_replaced(accounts: Accounts) -> None:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))
    assert accounts.token(SECRET) == Token(SECRET, "ada", NOW, after(60))

    accounts.add_token(Token(SECRET, "ada", NOW, after(120)))
    accounts.add_token(Token(OTHER, "ada", NOW, after(90)))

    assert accounts.token(SECRET) == Token(SECRET, "ada", NOW, after(120))
    assert accounts.token(OTHER) == Token(OTHER, "ada", NOW, after(90))


def test_a_changed_user_is_read_at_once_in_the_same_process(accounts: Accounts) -> None:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))
    assert accounts.user("ada") == make_user()
    accounts.save_user(make_user(tokens_revoked_at=after(1)))
    assert accounts.user("ada") == make_user(tokens_revoked_at=after(1))


def test_requests_of_a_minute_are_counted_together(accounts: Accounts) -> None:
    assert [accounts.take("ada", NOW, 10) for _ in range(3)] == [10, 20, 30]
    assert accounts.take("ada", after(60), 10) == 10
    assert accounts.take("bob", NOW, 10) == 10
