"""Users and their tokens, and what a user may do."""

import hashlib
from dataclasses import dataclass
from datetime import date, datetime


@dataclass(frozen=True, slots=True)
class User:
    name: str
    created_at: datetime
    email: str | None = None
    is_superuser: bool = False
    tokens_revoked_at: datetime | None = None  # tokens made until then are void


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token: never the token itself."""

    sha256: str
    user: str
    created_at: datetime
    expires_at: datetime
    name: str = ""
    renewable_until: datetime | None = None  # a token that is made with this one ends by then
    used_on: date | None = None  # last day of use, in UTC

    @property
    def id(self) -> str:
        """Its name among the user's tokens in the API: the first digits of its hash, which open nothing."""
        return self.sha256[:16]


def token_sha256(token: str) -> str:
    """The only form in which a token is stored or looked up."""
    return hashlib.sha256(token.encode()).hexdigest()


def may_read(user: User, owner: str, is_public: bool) -> bool:
    return is_public or may_write(user, owner)


def may_write(user: User, owner: str) -> bool:
    return user.is_superuser or user.name == owner
