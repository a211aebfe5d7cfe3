"""What a build shows to get what is its own, and the form in which it gets it."""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping


def attempt_secret(key: bytes, uuid: str, attempt: int) -> str:
    """What an attempt of a build shows: the same whenever it is asked for, so that it is stored nowhere."""
    return hmac.new(key, f"{uuid}/{attempt}".encode(), hashlib.sha256).hexdigest()


def text_of(materials: Mapping[str, str]) -> str:
    """A line for each material, `name base64`: busybox can read that, and no JSON."""
    return "".join(f"{name} {b64encode(text.encode()).decode()}\n" for name, text in materials.items())
