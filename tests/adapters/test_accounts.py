"""What Accounts promise: the fake and DynamoDB alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pytest

from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, token_sha256
from chalicelib.errors import AlreadyExists, Conflict
from chalicelib.ports import Accounts, Given
from tests.factories import NOW, after, make_user
from tests.fakes import FakeAccounts

SECRET, OTHER = token_sha256("secret"), token_sha256("other")


@pytest.fixture(params=["fake", "DynamoDB", "DynamoDB, remembered"])
def accounts(request: pytest.FixtureRequest) -> Accounts:
    if request.param == "fake":
        return FakeAccounts()
    request.getfixturevalue("dynamodb_table")
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


def test_tokens_of_a_user_are_listed_and_dropped_one_by_one(accounts: Accounts) -> None:
    secret = Token(SECRET, "ada", NOW, after(60))
    other = Token(OTHER, "ada", after(1), after(61), "ci", after(100))
    accounts.add_user(make_user(), secret)
    accounts.add_token(other)
    accounts.add_token(Token(token_sha256("eve"), "eve", NOW, after(60)))
    assert sorted(accounts.tokens("ada"), key=lambda each: each.created_at) == [secret, other]

    for _ in range(2):
        accounts.drop_token(secret)

    assert accounts.tokens("ada") == [other]
    assert accounts.token(SECRET) is None
    assert accounts.tokens("nobody") == []


def test_the_day_of_its_use_stands_apart_from_what_writes_compare(accounts: Accounts) -> None:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))
    known = accounts.fresh_token(SECRET)
    assert known is not None

    accounts.note_use(known.record, NOW.date())

    used = replace(known.record, used_on=NOW.date())
    assert accounts.token(SECRET) == used
    assert accounts.tokens("ada") == [used]
    accounts.drop_token(known.record, [known])  # as it was read before
    accounts.note_use(known.record, NOW.date())
    assert accounts.fresh_token(SECRET) is None


def test_a_token_that_has_changed_is_not_dropped(accounts: Accounts) -> None:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))
    known = accounts.fresh_token(SECRET)
    assert known is not None
    accounts.add_token(Token(SECRET, "ada", NOW, after(61)))
    with pytest.raises(Conflict):
        accounts.drop_token(known.record, [known])
    assert accounts.fresh_token(SECRET) is not None


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


CHANGES: list[Callable[[Accounts], None]] = [
    lambda accounts: accounts.save_user(make_user(tokens_revoked_at=after(1))),
    lambda accounts: accounts.add_token(Token(SECRET, "ada", NOW, after(61))),
]
WRITES: list[Callable[[Accounts, Given], None]] = [
    lambda accounts, given: accounts.add_token(Token(OTHER, "ada", NOW, after(60)), given),
    lambda accounts, given: accounts.save_user(make_user(email="new@example.org"), given),
    lambda accounts, given: accounts.add_user(make_user("bob"), Token(OTHER, "bob", NOW, after(60)), given),
]


def given_of(accounts: Accounts) -> Given:
    accounts.add_user(make_user(), Token(SECRET, "ada", NOW, after(60)))
    user, token = accounts.fresh_user("ada"), accounts.fresh_token(SECRET)
    assert user is not None
    assert token is not None
    assert (user.record, token.record) == (make_user(), Token(SECRET, "ada", NOW, after(60)))
    return [user, token]


@pytest.mark.parametrize("write", WRITES, ids=["token", "change of a user", "user"])
def test_what_is_given_and_unchanged_stands_in_no_write_s_way(
    accounts: Accounts, write: Callable[[Accounts, Given], None]
) -> None:
    write(accounts, given_of(accounts))
    assert accounts.token(OTHER) or accounts.user("ada") == make_user(email="new@example.org")


@pytest.mark.parametrize("change", CHANGES, ids=["user changed", "token changed"])
@pytest.mark.parametrize("write", WRITES, ids=["token", "change of a user", "user"])
def test_nothing_is_written_once_what_is_given_has_changed(
    accounts: Accounts, change: Callable[[Accounts], None], write: Callable[[Accounts, Given], None]
) -> None:
    given = given_of(accounts)
    change(accounts)
    known = accounts.user("ada")
    with pytest.raises(Conflict):
        write(accounts, given)
    assert accounts.user("ada") == known
    assert accounts.user("bob") is None
    assert accounts.token(OTHER) is None


def test_what_is_read_anew_is_what_others_have_written(accounts: Accounts) -> None:
    given_of(accounts)
    assert accounts.fresh_user("bob") is None
    assert accounts.fresh_token(OTHER) is None
    other = accounts if isinstance(accounts, FakeAccounts) else type(accounts)(remember_seconds=0)  # type: ignore[call-arg]
    other.save_user(make_user(tokens_revoked_at=after(1)))
    fresh = accounts.fresh_user("ada")
    assert fresh is not None
    assert fresh.record == make_user(tokens_revoked_at=after(1))
    assert accounts.user("ada") == fresh.record, "which is remembered from now on"


def test_a_user_that_an_older_version_has_written_can_be_given(dynamodb_table: Records) -> None:
    """The text in the table need not be the one that this version would write."""
    revoked_at = after(1)
    fields = {"created_at": NOW, "name": "ada", "tokens_revoked_at": revoked_at}
    Item("U#ada", "U", data=json.dumps(fields, default=datetime.isoformat)).save()
    accounts = DynamoAccounts(remember_seconds=3600)
    user = accounts.fresh_user("ada")
    assert user is not None
    assert user.record == make_user(tokens_revoked_at=revoked_at)
    accounts.add_token(Token(OTHER, "ada", NOW, after(60)), [user])
    accounts.save_user(make_user(), [user])
    with pytest.raises(Conflict):
        accounts.add_token(Token(SECRET, "ada", NOW, after(60)), [user])


def test_a_process_remembers_so_many_users_and_tokens_and_then_forgets_them(
    dynamodb_table: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chalicelib.adapters.dynamodb.accounts.CACHE_SIZE", 3)
    accounts, other = DynamoAccounts(remember_seconds=3600), DynamoAccounts(remember_seconds=0)
    changed = make_user(email="ada@example.org")
    other.save_user(make_user())
    accounts.user("ada")
    other.save_user(changed)
    for name in ("bob", "eve"):
        accounts.user(name)
    assert accounts.user("ada") == make_user()

    accounts.token(SECRET)
    assert accounts.user("ada") == changed


def test_requests_of_a_minute_are_counted_together(accounts: Accounts) -> None:
    assert [accounts.count_requests("ada", NOW, 10) for _ in range(3)] == [10, 20, 30]
    assert accounts.count_requests("ada", after(60), 10) == 10
    assert accounts.count_requests("bob", NOW, 10) == 10
