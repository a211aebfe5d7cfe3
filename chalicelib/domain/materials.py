"""The secrets of attempts, and the materials of builds: files, also with secrets of the project, whose values are never
part of a record."""

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
MIN_MASKED_BYTES = 4  # shorter texts occur in many words
_SPECIAL, _ESCAPED = re.compile(r"[\\/.*^$[]"), r"\\\g<0>"  # in sed's basic expressions


def attempt_secret(key: bytes, uuid: str, attempt: int) -> str:
    """The secret of an attempt of a build. It is computed, always the same, and never stored."""
    return hmac.new(key, f"{uuid}/{attempt}".encode(), hashlib.sha256).hexdigest()


def labels_of(build: Build) -> dict[str, str]:
    """OCI labels of the image that are known before git is fetched. They contain neither the build's id nor its time,
    so that equal inputs make equal images."""
    source = build.source or Source()
    labels = {
        "source": source.git_url,
        "revision": build.commit if source.uploaded_at else None,
        "version": next(iter(build.image_tags), None),
        "created": source.uploaded_at and f"{source.uploaded_at:%Y-%m-%dT%H:%M:%SZ}",
    }
    return {f"org.opencontainers.image.{name}": value for name, value in labels.items() if value}


def text_of(materials: Mapping[str, str]) -> str:
    """A line `name base64` for each material; busybox can read this, but not JSON."""
    return "".join(f"{name} {b64encode(text.encode()).decode()}\n" for name, text in materials.items())


def checked_value(name: str, value: object) -> str:
    """The value of the secret `name`, checked. Raises Invalid, never with the value."""
    if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_SECRET_BYTES or "\0" in value:
        raise Invalid({"value": [f"Must be a text of 1 to {MAX_SECRET_BYTES} bytes, without NUL."]})
    if name == GIT_TOKEN and has_control_characters(value):
        raise Invalid({"value": ["A git token must be one line: the token, or user:token."]})
    return value


def git_credential(token: str) -> str:
    """A token, or `user:token`, in the format of git's credential helpers. Most hosts accept a token with any user."""
    user, _, password = token.rpartition(":")
    return f"username={user or 'x-access-token'}\npassword={password}\n"


def masks(values: Iterable[str]) -> str:
    """A sed script that replaces each line of these values by `***`, if it has at least four bytes."""
    lines = {line.removesuffix("\r") for value in values for line in value.split("\n")}
    long = [line for line in lines if len(line.encode()) >= MIN_MASKED_BYTES]
    long.sort(key=lambda line: (-len(line), line))  # longest first: one may be a part of another
    return "".join(f"s/{_SPECIAL.sub(_ESCAPED, line)}/***/g\n" for line in long)
