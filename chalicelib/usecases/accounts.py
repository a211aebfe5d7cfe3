"""Users, tokens and authentication."""

import logging
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn

from msgspec import Struct

from chalicelib.domain.build import BuildKey
from chalicelib.domain.build_request import RESERVED_FAULT
from chalicelib.domain.record import replace
from chalicelib.domain.spec import has_control_characters, is_slug
from chalicelib.domain.user import Token, User, token_sha256
from chalicelib.errors import AlreadyExists, Forbidden, Invalid, NotFound, Unauthenticated, Unavailable
from chalicelib.ports import Given, Services
from chalicelib.usecases.conflicts import isolated, retry_on_conflict

log = logging.getLogger(__name__)
MAX_TOKENS = 100  # of a user, at once
MAX_TOKEN_NAME = 64
# First segments of the API's paths: a user of that name could not be reached.
RESERVED_USERS = frozenset(
    {"users", "superusers", "versions", "log_handler", "projects", "bookmarks", "archives"}
    | {"activitylogs", "historylogs", "searches", "cluster", "nodes", "catalogs", "cleanup"}
)
# A token that another process makes just before a revocation may have a later time, by that process's clock.
CLOCKS_DIFFER = timedelta(seconds=2)
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}\.[^@\s.]{2,}")


class NewUser(Struct, frozen=True):
    user: User
    token: str  # shown once; only its hash is stored
    expires_at: datetime


def authenticate(services: Services, token: str, opening: BuildKey | None = None) -> User:
    """The user with this token, from this process's memory if it is there. The build `opening`, which the request only
    shows, is read in the same call. Raises Unauthenticated."""
    known = services.accounts.token(token_sha256(token))
    user = _holder(services, known, services.accounts.user(known.user, opening) if known else None)
    today = services.now().date()
    if known is not None and known.used_on != today:
        try:
            services.accounts.note_use(known, today)
        except Unavailable as error:
            log.warning("The last use of a token of user %s could not be stored: %s", user.name, error)
    return user


def _authenticated_now(services: Services, token: str) -> tuple[User, Token, Given]:
    """The caller of a write and its token, never from the cache, and the records that must not change until then."""
    known = services.accounts.fresh_token(token_sha256(token))
    user = services.accounts.fresh_user(known.record.user) if known else None
    holder = _holder(services, known.record if known else None, user.record if user else None)
    assert known is not None and user is not None
    return holder, known.record, [known, user]


def _holder(services: Services, token: Token | None, user: User | None) -> User:
    """The user, if the token is valid. Raises Unauthenticated."""
    if token is None:
        raise Unauthenticated("Invalid token.")
    if token.expires_at <= services.now():
        raise Unauthenticated("Token expired")
    if user is None:
        raise Unauthenticated("User inactive or deleted.")
    if user.has_revoked(token):
        raise Unauthenticated("Invalid token.")
    return user


def refuse_password_login() -> NoReturn:
    """Password login is not supported. Raises Invalid, as clients expect it for a wrong password."""
    sentence = "Unable to log in with provided credentials: log in with a token, `polyaxon login --token=…`."
    raise Invalid({"non_field_errors": [sentence]})


@retry_on_conflict
def create_user(services: Services, token: str, fields: dict[str, Any]) -> NewUser:
    """Creates a user and a token. Raises Unauthenticated, Invalid, Forbidden unless `token` is a superuser's."""
    caller, _, given = _authenticated_now(services, token)
    if not caller.is_superuser:
        raise Forbidden
    username, email = fields.get("username"), fields.get("email")
    is_superuser = fields.get("is_superuser") or False
    faults: dict[str, list[str]] = {}
    if not is_slug(username):
        faults["username"] = ["Enter letters, digits, hyphens and underscores, at most 128."]
    elif username in RESERVED_USERS:
        faults["username"] = [RESERVED_FAULT]
    if email is not None and not (isinstance(email, str) and _EMAIL.fullmatch(email)):
        faults["email"] = ["Enter a valid email address, or none."]
    if not isinstance(is_superuser, bool):
        faults["is_superuser"] = ["Must be true or false."]
    if faults:
        raise Invalid(faults)
    return register(services, User(str(username), services.now(), email, is_superuser), given=given)


def register(services: Services, user: User, *, token: str | None = None, given: Given = ()) -> NewUser:
    """Stores a user with a token, by default a random one of 64 hexadecimal digits. Raises Invalid, and Conflict when
    records of `given` have changed."""
    text, stored = _new_token(services, user, token)
    try:
        services.accounts.add_user(user, stored, given)
    except AlreadyExists as exc:
        raise Invalid({"username": [RESERVED_FAULT]}) from exc
    return NewUser(user, text, stored.expires_at)


def ensure_superuser(services: Services, name: str, *, token: str | None = None) -> str:
    """For operators, not for the API: a new token of the superuser of that name, who is created if missing."""
    known = services.accounts.fresh_user(name)
    if known is None:
        return register(services, User(name, services.now(), is_superuser=True), token=token).token
    if not known.record.is_superuser:
        raise Forbidden(f"The user {name} exists, but is not a superuser.")
    text, stored = _new_token(services, known.record, token)
    services.accounts.add_token(stored, [known])
    return text


def tokens(services: Services, token: str, name: str) -> Sequence[Token]:
    """The valid tokens of a user, oldest first. Raises as `issue_token`."""
    user, _, _ = _manageable(services, token, name)
    return sorted(_good(services, user), key=lambda each: each.created_at)


@retry_on_conflict
def issue_token(services: Services, token: str, name: str, fields: dict[str, Any]) -> NewUser:
    """Creates a token of a user. If `token` is the user's own, the new token expires no later than the time until which
    `token` can be renewed. Raises Unauthenticated, Invalid, NotFound; Forbidden if `token` belongs to neither the
    user nor a superuser."""
    label = fields.get("name") or ""
    if not isinstance(label, str) or len(label) > MAX_TOKEN_NAME or has_control_characters(label):
        raise Invalid({"name": [f"Enter at most {MAX_TOKEN_NAME} characters, without control characters."]})
    user, own, given = _manageable(services, token, name)
    if len(_good(services, user)) >= MAX_TOKENS:
        raise Invalid([f"A user has at most {MAX_TOKENS} tokens; revoke one: DELETE …/tokens/<id>."])
    text, stored = _new_token(services, user, name=label, renewed=own)
    services.accounts.add_token(stored, given)
    return NewUser(user, text, stored.expires_at)


def revoke_tokens(services: Services, token: str, name: str) -> None:
    """Revokes all tokens that a user has now. A process may accept a token from its cache for `account_memory_seconds`
    longer, but not in requests that change rights. Raises the errors of `issue_token`."""

    def write() -> datetime:
        user, _, given = _manageable(services, token, name)
        until = services.now() + CLOCKS_DIFFER
        services.accounts.save_user(replace(user, tokens_revoked_at=until), given)
        return until

    until = retry_on_conflict(write)()
    with isolated(f"user {name}"):  # they are revoked already; this only deletes their rows early
        for each in services.accounts.tokens(name):
            if each.created_at <= until:
                services.accounts.drop_token(each)


@retry_on_conflict
def revoke_token(services: Services, token: str, name: str, token_id: str) -> None:
    """Revokes one token, as `revoke_tokens` does with all. Raises NotFound for an unknown id."""
    user, _, given = _manageable(services, token, name)
    found = [each for each in services.accounts.tokens(user.name) if each.id == token_id]
    if not found:
        raise NotFound
    for each in found:
        services.accounts.drop_token(each, given)


def _good(services: Services, user: User) -> list[Token]:
    found = services.accounts.tokens(user.name)
    return [each for each in found if each.expires_at > services.now() and not user.has_revoked(each)]


def _manageable(services: Services, token: str, name: str) -> tuple[User, Token | None, Given]:
    """The user, if the caller may change its tokens; the caller's own token, if it is the user; and `given`."""
    caller, own, given = _authenticated_now(services, token)
    if caller.name == name:
        return caller, own, given
    if not caller.is_superuser:
        raise Forbidden
    user = services.accounts.fresh_user(name)
    if user is None:
        raise NotFound
    return user.record, None, [*given, user]


def _new_token(
    services: Services, user: User, text: str | None = None, *, name: str = "", renewed: Token | None = None
) -> tuple[str, Token]:
    """A token's text, by default random, and its record, whose time is later than the last revocation."""
    text = text or secrets.token_hex(32)
    now = services.now()
    if user.tokens_revoked_at is not None:
        now = max(now, user.tokens_revoked_at + timedelta(microseconds=1))
    renewal = timedelta(days=services.settings.token_renewal_days)
    renewable_until = (renewed.renewable_until if renewed else None) or now + renewal
    expires_at = min(now + timedelta(days=services.settings.token_lifetime_days), renewable_until)
    return text, Token(token_sha256(text), user.name, now, expires_at, name, renewable_until)
