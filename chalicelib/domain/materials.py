"""What a build shows to get what is its own, and the form in which it gets it."""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Mapping

from chalicelib.domain.build import Build, Source


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
