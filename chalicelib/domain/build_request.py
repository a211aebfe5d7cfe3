"""Parses and checks requests for builds, and for changes of builds."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from chalicelib.domain import document
from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, Build
from chalicelib.domain.record import replace
from chalicelib.domain.spec import Spec, checked_tags, has_control_characters, is_slug, parse_config, parse_content
from chalicelib.errors import Invalid, require

MAX_TEXT = 4_096  # characters of a description or readme
MAX_BACKEND, MAX_NODE = 16, 256  # characters
MAX_KEY = 128  # characters of an idempotency key
# Words of the API's paths and of Polyaxon: names of builds and projects must not be one of them.
_THINGS = ("user", "superuser", "admin", "project", "job", "experiment", "group", "notebook", "tensorboard")
_WORDS = ("version", "token", "bookmark", "archive", "cluster", "node", "catalog", "repo", "setting", "log")
RESERVED_NAMES = frozenset(
    {*_THINGS, *_WORDS, *(f"{word}s" for word in _THINGS + _WORDS)}
    | {"data", "status", "statuses", "search", "searches", "activitylogs", "historylogs", "log_handler"}
    | {"login", "logout", "api", "healthz", "builds"}
)
RESERVED_FAULT = "The name is a reserved word or already taken."


class BuildRequest(Struct, frozen=True):
    """A valid request for a build."""

    name: str | None
    description: str | None
    tags: tuple[str, ...]
    backend: str
    is_managed: bool
    nocache: bool
    reuse: bool | None
    spec: Spec | None
    content: str | None


def parse_request(fields: dict[str, Any]) -> BuildRequest:
    """Parses the fields of a body. Raises Invalid."""
    tags, is_managed = checked_fields(fields, (), "backend", "is_managed", "nocache", "reuse"), fields.get("is_managed")
    ttl = fields.get("ttl")
    require(isinstance(ttl, bool | None) or re.fullmatch(r"[0-9]+", str(ttl)), "ttl must be an integer.")
    spec, content = _specification(fields)
    if spec is None and is_managed is not False:
        raise Invalid({"non_field_errors": ["Build expects a `content`."]})
    return BuildRequest(
        name=fields.get("name") or None,
        description=fields.get("description"),
        tags=tags or (spec.tags if spec else ()),
        backend=(spec and spec.backend) or fields.get("backend") or "native",
        is_managed=is_managed is not False,
        nocache=fields.get("nocache") is True or (spec is not None and spec.nocache),
        reuse=fields.get("reuse"),
        spec=spec,
        content=content,
    )


def checked_fields(fields: Mapping[str, Any], known_tags: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """Checks name, description, tags and the fields `names` of a body. Returns the tags of a build or project that had
    `known_tags` before. Raises Invalid."""
    name, tags = fields.get("name") or None, fields.get("tags") or []
    faults: dict[str, list[str]] = {}
    if name is not None and not is_slug(name):
        faults["name"] = ["Enter a valid 'slug': letters, digits, hyphens and underscores, at most 128."]
    elif name in RESERVED_NAMES:
        faults["name"] = [RESERVED_FAULT]
    for field in ("description", *names):
        is_good, sentence = _FIELDS[field]
        if fields.get(field) is not None and not is_good(fields[field]):
            faults[field] = [sentence]
    if fields.get("merge") is True and isinstance(tags, list):
        tags = [*known_tags, *tags]
    try:
        checked = checked_tags(tags)
    except Invalid as invalid:
        faults["tags"] = invalid.sentences()
    if faults:
        raise Invalid(faults)
    return checked if "tags" in fields else known_tags


def _specification(fields: dict[str, Any]) -> tuple[Spec | None, str | None]:
    """The spec of a request and its text, from `content` or the older `config`. Raises Invalid."""
    content, config = fields.get("content"), fields.get("config")
    if isinstance(content, dict):
        content = json.dumps(content)
    if content is not None and not isinstance(content, str):
        raise Invalid({"content": ["Must be a specification: an object, or its text as YAML or JSON."]})
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
    """The build with the changes of a request. Raises Invalid."""
    tags = checked_fields(fields, build.tags, "backend", "is_managed", "dockerfile", "node_scheduled")
    given: dict[str, Any] = {"name": fields.get("name") or None, "description": fields.get("description")}
    build = replace(build, tags=tags, **{field: text for field, text in given.items() if field in fields})
    backend, node = fields.get("backend"), fields.get("node_scheduled")
    if build.is_managed:  # its state is what Slipway has seen; the client's values are stored apart
        return replace(
            build, reported_node=node or build.reported_node, reported_backend=backend or build.reported_backend
        )
    return replace(build, node_scheduled=node or build.node_scheduled, backend=backend or build.backend)


def checked_key(key: object) -> str:
    """An idempotency key, checked. Raises Invalid."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise Invalid([f"An idempotency key must be 1 to {MAX_KEY} printable ASCII characters."])
    return key


def _is_text(text: object) -> bool:
    """Any lines, of bounded length."""
    return isinstance(text, str) and len(text) <= MAX_TEXT and not has_control_characters(re.sub(r"[\r\n]", "", text))


def _is_backend(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_BACKEND and not has_control_characters(name)


# For each field: whether a value other than null is valid, and the sentence if it is not.
_TEXT = (_is_text, f"Must be a text of at most {MAX_TEXT} characters.")
_FLAG = (lambda flag: isinstance(flag, bool), "Must be true or false.")
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("description", "readme"), _TEXT),
    **dict.fromkeys(("is_managed", "is_public", "nocache", "reuse"), _FLAG),
    "backend": (_is_backend, f"Must be a string of at most {MAX_BACKEND} characters."),
    "node_scheduled": (
        lambda it: isinstance(it, str) and len(it) <= MAX_NODE,
        f"Must be a string of at most {MAX_NODE} characters.",
    ),
    "dockerfile": (
        lambda it: isinstance(it, str) and len(it.encode()) <= MAX_DOCKERFILE_BYTES,
        f"Must be a text of at most {MAX_DOCKERFILE_BYTES} bytes.",
    ),
}
