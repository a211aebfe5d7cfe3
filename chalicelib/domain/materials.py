"""What a build shows to get what is its own, and the form in which it gets it: files, some of them secrets of its
project, whose values are never part of a record."""

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping

from chalicelib.domain.build import Build, Source
from chalicelib.domain.spec import GIT_TOKEN, has_control_characters
from chalicelib.errors import Invalid

MAX_SECRET_BYTES = 4_096  # SSM's standard tier takes no more
MAX_SECRETS = 50  # of a project
MIN_MASKED_BYTES = 4  # what is shorter stands in many words
_SPECIAL, _ESCAPED = re.compile(r"[\\/.*^$[]"), r"\\\g<0>"  # in sed's basic expressions


def attempt_secret(key: bytes, uuid: str, attempt: int) -> str:
    """What an attempt of a build shows: the same whenever it is asked for, so that it is stored nowhere."""
    return hmac.new(key, f"{uuid}/{attempt}".encode(), hashlib.sha256).hexdigest()


def labels_of(build: Build) -> dict[str, str]:
    """The labels of the image, as OCI names them, that are known before git is asked. They say what is built, and
    neither which build it is nor when it ran: equal inputs make equal images."""
    source = build.source or Source()
    labels = {
        "source": source.git_url,
        "revision": build.commit if source.uploaded_at else None,
        "version": next(iter(build.image_tags), None),
        "created": source.uploaded_at and f"{source.uploaded_at:%Y-%m-%dT%H:%M:%SZ}",
    }
    return {f"org.opencontainers.image.{name}": value for name, value in labels.items() if value}


def text_of(materials: Mapping[str, str]) -> str:
    """A line for each material, `name base64`: busybox can read that, and no JSON."""
    return "".join(f"{name} {b64encode(text.encode()).decode()}\n" for name, text in materials.items())


def checked_value(name: str, value: object) -> str:
    """The value of the secret `name`. Raises Invalid, which never says the value."""
    if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_SECRET_BYTES or "\0" in value:
        raise Invalid({"value": [f"Must be a text of 1 to {MAX_SECRET_BYTES} bytes, without NUL."]})
    if name == GIT_TOKEN and has_control_characters(value):
        raise Invalid({"value": ["A git token must be one line: the token, or user:token."]})
    return value


def git_credential(token: str) -> str:
    """A token, or `user:token`, as git's credential helpers say it. Most hosts take a token with any user."""
    user, _, password = token.rpartition(":")
    return f"username={user or 'x-access-token'}\npassword={password}\n"


def masks(values: Iterable[str]) -> str:
    """A script for sed that puts `***` for each line of these values that has at least four bytes."""
    lines = {line.removesuffix("\r") for value in values for line in value.split("\n")}
    long = [line for line in lines if len(line.encode()) >= MIN_MASKED_BYTES]
    long.sort(key=lambda line: (-len(line), line))  # one may be a part of another
    return "".join(f"s/{_SPECIAL.sub(_ESCAPED, line)}/***/g\n" for line in long)
