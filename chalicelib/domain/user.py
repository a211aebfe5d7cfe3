"""Users, tokens and rights."""

import hashlib
from datetime import date, datetime

from msgspec import Struct


class User(Struct, frozen=True):
    name: str
    created_at: datetime
    email: str | None = None
    is_superuser: bool = False
    tokens_revoked_at: datetime | None = None  # tokens made until then are not valid

    def has_revoked(self, token: "Token") -> bool:
        return self.tokens_revoked_at is not None and token.created_at <= self.tokens_revoked_at


class Token(Struct, frozen=True):
    """The record of a token, which never contains the token itself."""

    sha256: str
    user: str
    created_at: datetime
    expires_at: datetime
    name: str = ""
    renewable_until: datetime | None = None  # tokens made with this one expire by then
    used_on: date | None = None  # last day of use, in UTC

    @property
    def id(self) -> str:
        """The token's id in the API: the first digits of its hash, which cannot be used to log in."""
        return self.sha256[:16]


def token_sha256(token: str) -> str:
    """The hash by which a token is stored and found."""
    return hashlib.sha256(token.encode()).hexdigest()


def may_read(user: User, owner: str, is_public: bool) -> bool:
    return is_public or may_write(user, owner)


def may_write(user: User, owner: str) -> bool:
    return user.is_superuser or user.name == owner
