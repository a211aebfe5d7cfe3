"""Logins of builds for the registry of one machine."""

import base64
import hmac
import json
import secrets
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import asdict

from chalicelib.adapters.registry import LOGIN_SECONDS
from chalicelib.domain.repositories import rights
from chalicelib.ports import RegistryLogin


class SignedLogins:
    """`RegistryLogins` of a plain registry that shares a secret with us, its own login, and reads in the
    password what may be done with it: `registry_proxy`."""

    def __init__(self, registry_login: str, now: Callable[[], datetime]) -> None:
        self._user, self._key, self._now = registry_login.partition(":")[0], registry_login.encode(), now

    def mint(self, image: str) -> RegistryLogin:
        made_at = self._now()
        grant = {
            **asdict(rights(image)),
            "made_at": made_at.timestamp(),
            "expires_at": made_at.timestamp() + LOGIN_SECONDS,
            "id": secrets.token_hex(8),
        }
        text = base64.urlsafe_b64encode(json.dumps(grant).encode()).decode()
        signature = hmac.new(self._key, text.encode(), "sha256").hexdigest()
        return RegistryLogin(image.partition("/")[0], self._user, f"{text}.{signature}")
