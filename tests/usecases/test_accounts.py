"""Users and their tokens."""

from __future__ import annotations

import pytest

from chalicelib.domain.build import token_sha256
from chalicelib.errors import Forbidden, Invalid, NotFound, Unauthenticated
from chalicelib.usecases import accounts
from tests.factories import make_user
from tests.fakes import FakeServices

ROOT = make_user("root", is_superuser=True)


def test_who_holds_the_token_is_the_user(services: FakeServices) -> None:
    new = accounts.create_user(services, ROOT, {"username": "ada", "email": "ada@example.com"})
    assert accounts.authenticate(services, new.token) == new.user
    assert (new.user.name, new.user.email, new.user.is_superuser) == ("ada", "ada@example.com", False)


def test_a_token_is_long_and_kept_as_a_hash_only(services: FakeServices) -> None:
    tokens = {accounts.register(services, name).token for name in ("ada", "bob")}
    assert {len(token) for token in tokens} == {64}
    assert services.accounts.tokens.keys() == {token_sha256(token) for token in tokens}
    assert not any(token in repr(services.written()) for token in tokens)


def test_a_token_lives_as_long_as_the_setting_says_and_no_longer(services: FakeServices) -> None:
    new = accounts.register(services, "ada")
    services.clock.forward(days=services.settings.token_lifetime_days, seconds=-1)
    accounts.authenticate(services, new.token)

    services.clock.forward(seconds=1)
    assert services.now() == new.expires_at
    with pytest.raises(Unauthenticated, match="Token expired"):
        accounts.authenticate(services, new.token)


def test_a_token_nobody_was_given_is_invalid(services: FakeServices) -> None:
    new = accounts.register(services, "ada")
    for token in ("", "nobody", new.token[:-1], token_sha256(new.token)):
        with pytest.raises(Unauthenticated, match=r"Invalid token\."):
            accounts.authenticate(services, token)


def test_a_token_whose_user_is_gone_is_not_taken(services: FakeServices) -> None:
    new = accounts.register(services, "ada")
    del services.accounts.users["ada"]
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, new.token)


def test_revoking_ends_all_tokens_until_now_and_none_made_later(services: FakeServices) -> None:
    first = accounts.register(services, "ada")
    second = accounts.issue_token(services, first.user, "ada")
    services.clock.forward(seconds=1)
    accounts.revoke_tokens(services, first.user, "ada")
    services.clock.forward(seconds=1)
    third = accounts.issue_token(services, ROOT, "ada")

    for void in (first, second):
        with pytest.raises(Unauthenticated):
            accounts.authenticate(services, void.token)
    assert accounts.authenticate(services, third.token).name == "ada"


def test_a_name_is_given_once_and_its_first_owner_keeps_everything(services: FakeServices) -> None:
    accounts.register(services, "ada")
    before = services.written()
    with pytest.raises(Invalid) as refusal:
        accounts.create_user(services, ROOT, {"username": "ada", "is_superuser": True})

    assert refusal.value.reasons == {"username": ["The name is a reserved word or already taken."]}
    assert services.written() == before


def test_every_fault_of_a_new_user_is_told_at_once(services: FakeServices) -> None:
    with pytest.raises(Invalid) as refusal:
        accounts.create_user(services, ROOT, {"username": "a b", "email": "x", "is_superuser": "yes"})
    assert isinstance(refusal.value.reasons, dict)
    assert refusal.value.reasons.keys() == {"username", "email", "is_superuser"}


@pytest.mark.parametrize("name", sorted(accounts.RESERVED_USERS))
def test_first_segments_of_paths_are_no_names(services: FakeServices, name: str) -> None:
    with pytest.raises(Invalid):
        accounts.create_user(services, ROOT, {"username": name})


def test_users_manage_themselves_and_nobody_else(services: FakeServices) -> None:
    ada, bob = (accounts.register(services, name).user for name in ("ada", "bob"))
    with pytest.raises(Forbidden):
        accounts.create_user(services, ada, {"username": "eve"})
    for manage in (accounts.issue_token, accounts.revoke_tokens):
        manage(services, ada, "ada")
        manage(services, ROOT, "bob")
        with pytest.raises(Forbidden):
            manage(services, bob, "ada")
        with pytest.raises(Forbidden):
            manage(services, bob, "nobody")  # who is there is not told to everybody
        with pytest.raises(NotFound):
            manage(services, ROOT, "nobody")


def test_the_first_superuser_is_made_once_and_given_a_token_each_time(services: FakeServices) -> None:
    tokens = [accounts.ensure_superuser(services, "root") for _ in range(2)]
    tokens.append(accounts.ensure_superuser(services, "root", token="chosen-token"))

    assert tokens[2] == "chosen-token"
    assert len(set(tokens)) == 3
    users = [accounts.authenticate(services, token) for token in tokens]
    assert [(user.name, user.is_superuser) for user in users] == [("root", True)] * 3
    assert list(services.accounts.users) == ["root"]


def test_nobody_becomes_superuser_by_being_there_already(services: FakeServices) -> None:
    accounts.register(services, "root")
    with pytest.raises(Forbidden, match="no superuser"):
        accounts.ensure_superuser(services, "root")
