"""Users and their tokens."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from functools import partial

import pytest

from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, User, token_sha256
from chalicelib.errors import Forbidden, Invalid, NotFound, Unauthenticated, Unavailable
from chalicelib.ports import Given
from chalicelib.usecases import accounts
from tests.factories import NOW
from tests.fakes import FakeServices

ROOT = "token-of-root"


@pytest.fixture
def services(services: FakeServices) -> FakeServices:
    """With a superuser, whose token is `ROOT`."""
    accounts.ensure_superuser(services, "root", token=ROOT)
    return services


def register(services: FakeServices, name: str, *, is_superuser: bool = False) -> accounts.NewUser:
    return accounts.register(services, User(name, services.now(), is_superuser=is_superuser))


def test_who_holds_the_token_is_the_user(services: FakeServices) -> None:
    new = accounts.create_user(services, ROOT, {"username": "ada", "email": "ada@example.com"})
    assert accounts.authenticate(services, new.token) == new.user
    assert (new.user.name, new.user.email, new.user.is_superuser) == ("ada", "ada@example.com", False)


def test_a_token_is_long_and_kept_as_a_hash_only(services: FakeServices) -> None:
    tokens = {register(services, name).token for name in ("ada", "bob")}
    assert {len(token) for token in tokens} == {64}
    assert services.accounts.by_hash.keys() == {token_sha256(token) for token in (*tokens, ROOT)}
    assert not any(token in repr(services.written()) for token in tokens)


def test_a_token_lives_as_long_as_the_setting_says_and_no_longer(services: FakeServices) -> None:
    new = register(services, "ada")
    services.clock.forward(days=services.settings.token_lifetime_days, seconds=-1)
    accounts.authenticate(services, new.token)

    services.clock.forward(seconds=1)
    assert services.now() == new.expires_at
    with pytest.raises(Unauthenticated, match="Token expired"):
        accounts.authenticate(services, new.token)


def test_a_token_nobody_was_given_is_invalid(services: FakeServices) -> None:
    new = register(services, "ada")
    for token in ("", "nobody", new.token[:-1], token_sha256(new.token)):
        with pytest.raises(Unauthenticated, match=r"Invalid token\."):
            accounts.authenticate(services, token)


def test_a_token_whose_user_is_gone_is_not_taken(services: FakeServices) -> None:
    new = register(services, "ada")
    del services.accounts.users["ada"]
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, new.token)


def test_revoking_ends_all_tokens_until_now_and_none_made_later(services: FakeServices) -> None:
    first = register(services, "ada")
    second = accounts.issue_token(services, first.token, "ada", {})
    services.clock.forward(seconds=1)
    accounts.revoke_tokens(services, first.token, "ada")
    services.clock.forward(seconds=1)
    third = accounts.issue_token(services, ROOT, "ada", {})

    for void in (first, second):
        with pytest.raises(Unauthenticated):
            accounts.authenticate(services, void.token)
    assert accounts.authenticate(services, third.token).name == "ada"


def test_a_token_issued_right_after_a_revocation_is_good(services: FakeServices) -> None:
    register(services, "ada")
    accounts.revoke_tokens(services, ROOT, "ada")
    services.clock.forward(seconds=-1)  # the other process's clock is behind
    new = accounts.issue_token(services, ROOT, "ada", {})
    assert accounts.authenticate(services, new.token).name == "ada"


@pytest.mark.parametrize("asked", [0, 1, 2], ids=["one more token", "revoking", "a new user"])
@pytest.mark.parametrize("ending", ["revoked", "expired", "gone", "user gone"])
def test_a_token_that_ends_meanwhile_gives_and_takes_no_rights(services: FakeServices, asked: int, ending: str) -> None:
    """The end comes between what is read and what is written."""
    eve = register(services, "eve", is_superuser=True)
    register(services, "ada")

    def end() -> None:
        known = services.accounts.by_hash[token_sha256(eve.token)]
        match ending:
            case "revoked":
                accounts.revoke_tokens(services, ROOT, "eve")
            case "expired":
                services.accounts.add_token(replace(known, expires_at=services.now()))
            case "gone":
                del services.accounts.by_hash[known.sha256]
            case _:
                del services.accounts.users["eve"]
        before.append(services.written())

    before: list[object] = []
    services.accounts.before_write.append(end)
    actions: list[Callable[[], object]] = [
        lambda: accounts.issue_token(services, eve.token, "ada", {}),
        lambda: accounts.revoke_tokens(services, eve.token, "ada"),
        lambda: accounts.create_user(services, eve.token, {"username": "mallory"}),
    ]
    with pytest.raises(Unauthenticated):
        actions[asked]()
    assert [services.written()] == before


def test_a_token_that_is_issued_while_they_are_revoked_is_void_or_new(services: FakeServices) -> None:
    ada = register(services, "ada")
    services.clock.forward(seconds=1)

    def revoke_by_a_clock_that_is_behind() -> None:
        services.clock.forward(seconds=-1)
        accounts.revoke_tokens(services, ROOT, "ada")
        services.clock.forward(seconds=1)

    issued: list[accounts.NewUser] = []
    services.accounts.before_write.append(lambda: issued.append(accounts.issue_token(services, ROOT, "ada", {})))
    services.accounts.before_write.append(revoke_by_a_clock_that_is_behind)
    with pytest.raises(Unauthenticated):
        accounts.issue_token(services, ada.token, "ada", {})

    (inner,) = issued  # issued anew after the revocation, which came first
    assert accounts.authenticate(services, inner.token).name == "ada"


def test_a_token_that_was_just_issued_by_a_clock_ahead_is_revoked(services: FakeServices) -> None:
    ada = register(services, "ada")
    services.clock.forward(seconds=1)
    newest = accounts.issue_token(services, ada.token, "ada", {})
    services.clock.forward(seconds=-1)
    accounts.revoke_tokens(services, ROOT, "ada")
    services.clock.forward(seconds=10)
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, newest.token)


def test_tokens_are_listed_by_name_and_revoked_one_by_one(services: FakeServices) -> None:
    ada = register(services, "ada")
    services.clock.forward(seconds=1)
    ci = accounts.issue_token(services, ada.token, "ada", {"name": "ci"})
    first, second = accounts.tokens(services, ada.token, "ada")
    assert (first.name, second.name, second.created_at) == ("", "ci", services.now())

    accounts.revoke_token(services, ada.token, "ada", second.id)

    assert accounts.tokens(services, ada.token, "ada") == [first]
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, ci.token)
    with pytest.raises(NotFound):
        accounts.revoke_token(services, ada.token, "ada", second.id)
    accounts.revoke_token(services, ada.token, "ada", first.id)  # the one that is shown
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, ada.token)


def test_tokens_of_others_are_neither_seen_nor_revoked(services: FakeServices) -> None:
    ada, eve = register(services, "ada"), register(services, "eve")
    (hers,) = accounts.tokens(services, ada.token, "ada")
    with pytest.raises(Forbidden):
        accounts.revoke_token(services, eve.token, "ada", hers.id)
    with pytest.raises(NotFound):
        accounts.revoke_token(services, eve.token, "eve", hers.id)
    assert accounts.authenticate(services, ada.token).name == "ada"


def test_what_is_no_good_any_more_is_not_listed(services: FakeServices) -> None:
    ada = register(services, "ada")
    services.clock.forward(days=services.settings.token_lifetime_days)
    accounts.ensure_superuser(services, "root", token=ROOT)
    new = accounts.issue_token(services, ROOT, "ada", {})
    assert len(accounts.tokens(services, new.token, "ada")) == 1
    accounts.revoke_tokens(services, new.token, "ada")
    assert accounts.tokens(services, ROOT, "ada") == []
    with pytest.raises(Unauthenticated):
        accounts.tokens(services, ada.token, "ada")


def test_the_last_day_of_use_is_noted_once_a_day(services: FakeServices) -> None:
    ada = register(services, "ada")
    noted: list[date] = []
    note = services.accounts.note_use

    def note_and_count(token: Token, day: date) -> None:
        noted.append(day)
        note(token, day)

    services.accounts.note_use = note_and_count  # type: ignore[method-assign]
    for _ in range(3):
        accounts.authenticate(services, ada.token)
    services.clock.forward(days=1)
    accounts.authenticate(services, ada.token)

    assert noted == [NOW.date(), NOW.date() + timedelta(days=1)]
    (token,) = accounts.tokens(services, ada.token, "ada")
    assert token.used_on == noted[-1]


def test_a_request_is_answered_although_its_day_cannot_be_noted(services: FakeServices) -> None:
    def fail(token: Token, day: date) -> None:
        raise Unavailable("The database did not answer; try again.")

    ada = register(services, "ada")
    services.accounts.note_use = fail  # type: ignore[method-assign]
    assert accounts.authenticate(services, ada.token).name == "ada"


def test_a_token_does_not_renew_itself_for_ever(services: FakeServices) -> None:
    began, token = services.now(), register(services, "ada").token
    ends_at = began + timedelta(days=services.settings.token_renewal_days)
    with pytest.raises(Unauthenticated, match="Token expired"):
        for _ in range(40):  # every 29 days
            services.clock.forward(days=services.settings.token_lifetime_days - 1)
            new = accounts.issue_token(services, token, "ada", {})
            assert services.now() < new.expires_at <= ends_at
            token = new.token
    assert services.now() >= ends_at
    accounts.ensure_superuser(services, "root", token=ROOT)
    fresh = accounts.issue_token(services, ROOT, "ada", {})  # a superuser gives another year
    assert fresh.expires_at == services.now() + timedelta(days=services.settings.token_lifetime_days)


def test_a_user_has_so_many_tokens(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_TOKENS", 2)
    ada = register(services, "ada").token
    accounts.issue_token(services, ada, "ada", {})
    with pytest.raises(Invalid) as refusal:
        accounts.issue_token(services, ada, "ada", {})
    assert "revoke one" in refusal.value.sentences()[0]
    accounts.revoke_tokens(services, ada, "ada")
    assert services.accounts.tokens("ada") == []  # nor do their rows pile up
    services.clock.forward(seconds=3)
    accounts.issue_token(services, ROOT, "ada", {})


def test_a_revocation_stands_although_rows_are_left(services: FakeServices) -> None:
    ada = register(services, "ada").token

    def fail(token: Token, given: Given = ()) -> None:
        raise Unavailable("The database did not answer; try again.")

    services.accounts.drop_token = fail  # type: ignore[method-assign]
    accounts.revoke_tokens(services, ada, "ada")
    with pytest.raises(Unauthenticated):
        accounts.authenticate(services, ada)
    assert accounts.tokens(services, ROOT, "ada") == []


@pytest.mark.parametrize("name", [3, "x" * 65, "a\nb"])
def test_a_name_that_no_token_can_have_is_refused(services: FakeServices, name: object) -> None:
    ada = register(services, "ada").token
    with pytest.raises(Invalid):
        accounts.issue_token(services, ada, "ada", {"name": name})
    assert len(services.accounts.tokens("ada")) == 1


def test_a_name_is_given_once_and_its_first_owner_keeps_everything(services: FakeServices) -> None:
    register(services, "ada")
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
    ada, bob = (register(services, name).token for name in ("ada", "bob"))
    with pytest.raises(Forbidden):
        accounts.create_user(services, ada, {"username": "eve"})
    for manage in (partial(accounts.issue_token, fields={}), accounts.revoke_tokens, accounts.tokens):
        manage(services, ROOT, "bob")
        ada = accounts.issue_token(services, ROOT, "ada", {}).token
        bob = accounts.issue_token(services, ROOT, "bob", {}).token
        manage(services, ada, "ada")
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
    register(services, "ada")
    with pytest.raises(Forbidden, match="not a superuser"):
        accounts.ensure_superuser(services, "ada")
