"""Who is asking: users and their tokens."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NoReturn

from chalicelib.domain.build import Token, User, token_sha256
from chalicelib.domain.spec import is_slug
from chalicelib.errors import AlreadyExists, Forbidden, Invalid, NotFound, Unauthenticated
from chalicelib.ports import Services

# First segments of the API's paths: a user of that name could not be reached.
RESERVED_USERS = frozenset(
    {"users", "superusers", "versions", "log_handler", "projects", "bookmarks", "archives"}
    | {"activitylogs", "historylogs", "searches", "cluster", "nodes", "catalogs"}
)
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}\.[^@\s.]{2,}")


@dataclass(frozen=True, slots=True)
class NewUser:
    user: User
    token: str  # shown once; only its hash is kept
    expires_at: datetime


def authenticate(services: Services, token: str) -> User:
    """The user whose token this is. Raises Unauthenticated."""
    known = services.accounts.token(token_sha256(token))
    if known is None:
        raise Unauthenticated("Invalid token.")
    if known.expires_at <= services.now():
        raise Unauthenticated("Token expired")
    user = services.accounts.user(known.user)
    if user is None:
        raise Unauthenticated("User inactive or deleted.")
    if user.tokens_revoked_at is not None and known.created_at <= user.tokens_revoked_at:
        raise Unauthenticated("Invalid token.")
    return user


def log_in() -> NoReturn:
    """Here is no log-in by password. Raises Invalid, as clients expect it of a wrong one."""
    sentence = "Unable to log in with provided credentials: log in with a token, `polyaxon login --token=…`."
    raise Invalid({"non_field_errors": [sentence]})


def create_user(services: Services, caller: User, fields: dict[str, Any]) -> NewUser:
    """A user with a first token. Raises Forbidden unless the caller is a superuser, Invalid."""
    if not caller.is_superuser:
        raise Forbidden
    username, email = fields.get("username"), fields.get("email")
    is_superuser = fields.get("is_superuser") or False
    faults: dict[str, list[str]] = {}
    if not is_slug(username):
        faults["username"] = ["Enter letters, digits, hyphens and underscores, at most 128."]
    elif username in RESERVED_USERS:
        faults["username"] = ["The name is a reserved word or already taken."]
    if email is not None and not (isinstance(email, str) and _EMAIL.fullmatch(email)):
        faults["email"] = ["Enter a valid email address, or none."]
    if not isinstance(is_superuser, bool):
        faults["is_superuser"] = ["Must be true or false."]
    if faults:
        raise Invalid(faults)
    return register(services, str(username), email=email, is_superuser=is_superuser)


def register(
    services: Services,
    name: str,
    *,
    email: str | None = None,
    is_superuser: bool = False,
    token: str | None = None,
) -> NewUser:
    """Stores a user with a token, by default a random one of 64 hexadecimal digits. Raises Invalid."""
    user = User(name=name, created_at=services.now(), email=email, is_superuser=is_superuser)
    text, kept = _new_token(services, name, token)
    try:
        services.accounts.add_user(user, kept)
    except AlreadyExists as exc:
        raise Invalid({"username": ["The name is a reserved word or already taken."]}) from exc
    return NewUser(user, text, kept.expires_at)


def ensure_superuser(services: Services, name: str, *, token: str | None = None) -> str:
    """A superuser of that name and a token of it: for who runs the service, not for its API."""
    known = services.accounts.user(name)
    if known is None:
        return register(services, name, is_superuser=True, token=token).token
    if not known.is_superuser:
        raise Forbidden(f"There is a user {name}, who is no superuser.")
    text, kept = _new_token(services, name, token)
    services.accounts.add_token(kept)
    return text


def issue_token(services: Services, caller: User, name: str) -> NewUser:
    """One more token for a user. Raises NotFound, Forbidden unless it is the caller's own or the caller is a
    superuser."""
    user = _manageable(services, caller, name)
    text, kept = _new_token(services, name)
    services.accounts.add_token(kept)
    return NewUser(user, text, kept.expires_at)


def revoke_tokens(services: Services, caller: User, name: str) -> None:
    """Makes all tokens that a user has until now void. Processes that have just seen one may take it for
    `account_memory_seconds` longer. Raises as `issue_token`."""
    user = _manageable(services, caller, name)
    services.accounts.save_user(replace(user, tokens_revoked_at=services.now()))


def _manageable(services: Services, caller: User, name: str) -> User:
    if not caller.is_superuser and caller.name != name:
        raise Forbidden
    user = services.accounts.user(name)
    if user is None:
        raise NotFound
    return user


def _new_token(services: Services, name: str, text: str | None = None) -> tuple[str, Token]:
    """A token's text, by default random, and what is kept of it."""
    text = text or secrets.token_hex(32)
    now = services.now()
    expires_at = now + timedelta(days=services.settings.token_lifetime_days)
    return text, Token(token_sha256(text), name, now, expires_at)
