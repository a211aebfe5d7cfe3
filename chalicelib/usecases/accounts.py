"""Who is asking, and the users and projects they have."""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from chalicelib.domain.build import Project, Token, User, may_read, token_sha256
from chalicelib.domain.spec import checked_tags, has_control_characters, is_slug
from chalicelib.errors import AlreadyExists, Forbidden, Invalid, NotFound, Unauthenticated
from chalicelib.ports import Services

# First segments of the API's paths: a user of that name could not be reached.
RESERVED_USERS = frozenset(
    {"users", "superusers", "versions", "log_handler", "projects", "bookmarks", "archives"}
    | {"activitylogs", "historylogs", "searches", "cluster", "nodes", "catalogs"}
)
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,189}\.[^@\s.]{2,}")
MAX_DESCRIPTION = 4_096


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
    return user


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
    now = services.now()
    token = token or secrets.token_hex(32)
    user = User(name=name, created_at=now, email=email, is_superuser=is_superuser)
    expires_at = now + timedelta(days=services.settings.token_lifetime_days)
    try:
        services.accounts.add_user(user, Token(token_sha256(token), name, expires_at))
    except AlreadyExists as exc:
        raise Invalid({"username": ["The name is a reserved word or already taken."]}) from exc
    return NewUser(user, token, expires_at)


def ensure_superuser(services: Services, name: str, *, token: str | None = None) -> str:
    """A superuser of that name and a token of it: for who runs the service, not for its API."""
    known = services.accounts.user(name)
    if known is None:
        return register(services, name, is_superuser=True, token=token).token
    token = token or secrets.token_hex(32)
    expires_at = services.now() + timedelta(days=services.settings.token_lifetime_days)
    services.accounts.add_token(Token(token_sha256(token), name, expires_at))
    return token


def create_project(services: Services, caller: User, fields: dict[str, Any]) -> Project:
    """A project of the caller's. Raises Invalid."""
    name, description = fields.get("name"), fields.get("description")
    is_public, tags = fields.get("is_public"), fields.get("tags")
    faults: dict[str, list[str]] = {}
    if not is_slug(name):
        faults["name"] = ["Enter a valid 'slug': letters, digits, hyphens and underscores, at most 128."]
    if description is not None and not is_description(description):
        faults["description"] = [f"Must be a text of at most {MAX_DESCRIPTION} characters."]
    if is_public is not None and not isinstance(is_public, bool):
        faults["is_public"] = ["Must be true or false."]
    try:
        unique_tags = checked_tags(tags or [])
    except Invalid as fault:
        faults["tags"] = fault.sentences()
    if faults:
        raise Invalid(faults)
    now = services.now()
    project = Project(
        owner=caller.name,
        name=str(name),
        uuid=uuid.uuid4().hex,
        created_at=now,
        updated_at=now,
        description=description,
        tags=unique_tags,
        is_public=is_public is not False,
    )
    try:
        services.store.add_project(project)
    except AlreadyExists as exc:
        raise Invalid([f"A project with name `{name}` already exists."]) from exc
    return project


def open_project(services: Services, caller: User, owner: str, name: str) -> Project:
    """A project the caller may see. Raises NotFound, Forbidden."""
    project = services.store.project(owner, name)
    if project is None:
        raise NotFound
    if not may_read(caller, owner, project.is_public):
        raise Forbidden
    return project


def is_description(text: object) -> bool:
    """Whether `text` can be a description: any lines, of bounded length."""
    return (
        isinstance(text, str)
        and len(text) <= MAX_DESCRIPTION
        and not has_control_characters(re.sub(r"[\r\n]", "", text))
    )
