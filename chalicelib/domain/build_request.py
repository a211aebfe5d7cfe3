"""Requests for a build, and for changes of one, checked field by field."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from chalicelib.domain import document
from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, Build
from chalicelib.domain.spec import Spec, checked_tags, has_control_characters, is_slug, parse_config, parse_content
from chalicelib.errors import Invalid

MAX_TEXT = 4_096  # characters of a description or readme
MAX_BACKEND, MAX_NODE = 16, 256  # characters
MAX_KEY = 128  # characters of an idempotency key
# Words of the API's own paths and of Polyaxon's things: as names of builds and projects they would mislead.
_THINGS = ("user", "superuser", "admin", "project", "job", "experiment", "group", "notebook", "tensorboard")
_WORDS = ("version", "token", "bookmark", "archive", "cluster", "node", "catalog", "repo", "setting", "log")
RESERVED_NAMES = frozenset(
    {*_THINGS, *_WORDS, *(f"{word}s" for word in _THINGS + _WORDS)}
    | {"data", "status", "statuses", "search", "searches", "activitylogs", "historylogs", "log_handler"}
    | {"login", "logout", "api", "healthz", "builds"}
)
RESERVED_FAULT = "The name is a reserved word or already taken."
SLUG_FAULT = "Enter a valid 'slug': letters, digits, hyphens and underscores, at most 128."


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """A valid request for a build."""

    name: str | None
    description: str | None
    tags: tuple[str, ...]
    backend: str
    is_managed: bool
    spec: Spec | None
    content: str | None


def parse_request(fields: dict[str, Any]) -> BuildRequest:
    """The request for a build that the fields of a body make. Raises Invalid."""
    name, description, backend = fields.get("name") or None, fields.get("description"), fields.get("backend")
    is_managed = fields.get("is_managed")
    faults = _field_faults(name, description, fields.get("tags"), backend, is_managed)
    if faults:
        raise Invalid(faults)
    _check_ttl(fields.get("ttl"))
    spec, content = _specification(fields)
    if spec is None and is_managed is not False:
        raise Invalid({"non_field_errors": ["Build expects a `content`."]})
    return BuildRequest(
        name=name,
        description=description,
        tags=checked_tags(fields.get("tags") or []) or (spec.tags if spec else ()),
        backend=(spec and spec.backend) or backend or "native",
        is_managed=is_managed is not False,
        spec=spec,
        content=content,
    )


def _field_faults(name: Any, description: Any, tags: Any, backend: Any, is_managed: Any) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    if name is not None and (fault := name_fault(name)):
        faults["name"] = [fault]
    if description is not None and not is_text(description):
        faults["description"] = [f"Must be a text of at most {MAX_TEXT} characters."]
    if backend is not None and not (
        isinstance(backend, str) and len(backend) <= MAX_BACKEND and not has_control_characters(backend)
    ):
        faults["backend"] = [f"Must be a string of at most {MAX_BACKEND} characters."]
    if is_managed is not None and not isinstance(is_managed, bool):
        faults["is_managed"] = ["Must be true or false."]
    try:
        checked_tags(tags or [])
    except Invalid as fault:
        faults["tags"] = fault.sentences()
    return faults


def _check_ttl(ttl: Any) -> None:
    if ttl is None or (isinstance(ttl, int) and ttl >= 0):
        return
    if not (isinstance(ttl, str) and ttl.isascii() and ttl.isdigit()):
        raise Invalid(["ttl must be an integer."])


def _specification(fields: dict[str, Any]) -> tuple[Spec | None, str | None]:
    """The spec of a request and its text in the top-level layout, from `content` or the older `config`."""
    content, config = fields.get("content"), fields.get("config")
    if content is not None and not isinstance(content, str):
        raise Invalid({"content": ["Must be the text of a specification, as YAML or JSON."]})
    if content and content.strip():
        return parse_content(document.read(content)), content
    if config is None:
        return None, None
    if isinstance(config, str):
        config = document.read(config)
    spec = parse_config(config)
    whole = dict(spec.document)
    if spec.lang_env and "build" not in whole:
        whole.setdefault("lang_env", spec.lang_env)  # what the older layout implied
    return spec, json.dumps(whole)


def changed(build: Build, fields: dict[str, Any]) -> Build:
    """The build with what a request may change of it. Raises Invalid."""
    name, description = fields.get("name") or None, fields.get("description")
    tags, backend, node = fields.get("tags") or [], fields.get("backend"), fields.get("node_scheduled")
    if fields.get("merge") is True and "tags" in fields and isinstance(tags, list):
        tags = [*build.tags, *tags]
    faults = _field_faults(name, description, tags, backend, fields.get("is_managed"))
    dockerfile = fields.get("dockerfile")
    if dockerfile is not None and not (
        isinstance(dockerfile, str) and len(dockerfile.encode()) <= MAX_DOCKERFILE_BYTES
    ):
        faults["dockerfile"] = [f"Must be a text of at most {MAX_DOCKERFILE_BYTES} bytes."]
    if node is not None and not (isinstance(node, str) and len(node) <= MAX_NODE):
        faults["node_scheduled"] = [f"Must be a string of at most {MAX_NODE} characters."]
    if faults:
        raise Invalid(faults)
    given: dict[str, Any] = {"name": name, "description": description, "tags": checked_tags(tags)}
    build = replace(build, **{field: value for field, value in given.items() if field in fields})
    if build.is_managed:  # what happens to it is ours to say; the client's words are kept beside
        return replace(
            build, reported_node=node or build.reported_node, reported_backend=backend or build.reported_backend
        )
    return replace(build, node_scheduled=node or build.node_scheduled, backend=backend or build.backend)


def name_fault(name: Any) -> str | None:
    """Why a build or project cannot be called so; None if it can."""
    if not is_slug(name):
        return SLUG_FAULT
    return RESERVED_FAULT if name in RESERVED_NAMES else None


def checked_key(key: object) -> str:
    """A key under which something is done once. Raises Invalid."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise Invalid([f"An idempotency key must be 1 to {MAX_KEY} printable ASCII characters."])
    return key


def is_text(text: object) -> bool:
    """Whether `text` can be a description: any lines, of bounded length."""
    return isinstance(text, str) and len(text) <= MAX_TEXT and not has_control_characters(re.sub(r"[\r\n]", "", text))
