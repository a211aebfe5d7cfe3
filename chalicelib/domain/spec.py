"""A build specification: what people write into `content` or `config`, checked field by field.

Two layouts are in use. Since Polyaxon 0.5 the fields stand at the top level of a text (`content`);
before, they stood under `build` in a JSON object (`config`), as they do in polyaxonfiles of other kinds
(experiment, job, group). All become the same Spec, and are given back. Texts are never rendered as templates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from msgspec import Struct

from chalicelib.domain import document as document_rules
from chalicelib.domain.build import CODEBUILD, EKS, PLATFORMS
from chalicelib.domain.environment import Environment, parse_environment
from chalicelib.domain.record import replace
from chalicelib.errors import checked, list_of, quoted, refuse, require

MAX_STEPS = 200
MAX_VALUE = 4_096  # characters of one step, image or value; Docker reads lines up to 64 KB
MAX_TAGS = 50
MAX_IMAGE_TAGS = 5
MAX_SECRETS = 20  # of one build
# The secret with which a project's code is fetched; no step gets it.
GIT_TOKEN = "git-token"  # noqa: S105 - a name
MAX_TAG = 64

ONLY_BUILDS = (
    "Slipway builds images and runs nothing else: put what an image is made of (`image`, `build_steps` …) under "
    "`build`, or beside `version: 1` and `kind: build`, and POST it as `content` to …/builds/."
)
BACKENDS = ("native", "kaniko", "other", CODEBUILD, EKS)
_CODE = ("image", "dockerfile", "ref", "context", "commit", "branch")
_RUN = ("build_steps", "env_vars", "build_args", "secrets", "lang_env", "nocache", "image_tags", "platforms")
_BUILD = _CODE + _RUN
SLUG = re.compile(r"[-a-zA-Z0-9_]{1,128}")
_CONTROL = re.compile("[\0-\x08\n-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ENV_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_ARG_NAME = re.compile(r"(?!BUILDKIT_)[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_SECRET_ID = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}")
_LANG = re.compile(r"[a-zA-Z0-9_.@-]{1,64}")
_IMAGE_TAG = re.compile(r"(?=.*[^0-9])[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MAX_REVISION = 255  # characters
# What `git check-ref-format --branch` refuses.
_NO_REVISION = re.compile(r"[\0-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(?:^|/)\.|\.lock(?:/|$)|^[-/]|[./]$|^@$")
_HEREDOC = re.compile(r"(?<!<)<<(?!<)")  # BuildKit takes even `1<<2` for one; `<<<` is harmless
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
# In a text of several lines: the end of one that goes on, with comments and blank lines after it.
_JOINT = re.compile(r"\\[ \t]*\n(?:[ \t]*(?:#.*)?\n)*")
_LOG_LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")


class Spec(Struct, frozen=True):
    """A valid specification; exactly one of `image` and `dockerfile` is set."""

    document: dict[str, Any]  # as received; of `kind: build` in the top-level layout
    image: str | None = None
    dockerfile: str | None = None
    context: str | None = None
    build_steps: tuple[str, ...] = ()
    env_vars: tuple[tuple[str, str], ...] = ()
    build_args: tuple[tuple[str, str], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()  # the id of a mount, and the project's secret that it shows
    lang_env: str | None = None
    image_tags: tuple[str, ...] = ()
    platform: str | None = None
    nocache: bool = False
    commit: str | None = None
    branch: str | None = None
    backend: str | None = None
    tags: tuple[str, ...] = ()
    environment: Environment = Environment()

    @property
    def config(self) -> dict[str, Any]:
        """The layout of Polyaxon 0.2: the build's own fields under `build`, as other kinds have them."""
        if "build" in self.document:
            return self.document
        build = {key: value for key, value in self.document.items() if key in _BUILD}
        rest = {key: value for key, value in self.document.items() if key not in _BUILD}
        return {"build": build, **rest}


def parse_content(document: object) -> Spec:
    """The Spec of a document in either layout; of a polyaxonfile of another kind, that of its `build` section: what
    stands beside the section is of no build. Raises Invalid with one sentence per fault."""
    if not isinstance(document, Mapping):
        refuse("A build specification must be a mapping with `version`, `kind` and the fields of the build.")
    document_rules.check(document)
    kind, section = document.get("kind"), document.get("build")
    require(is_slug(kind), "`kind` must be `build`, or another of Polyaxon's kinds with a `build` section.")
    if kind == "build":
        return _parse(document) if section is None else _parse_nested(document)
    if not isinstance(section, Mapping):
        refuse(f"This is a polyaxonfile of kind `{kind}` without a `build` section. {ONLY_BUILDS}")
    return replace(_parse({"version": document.get("version"), "kind": "build", **section}), document=dict(document))


def parse_config(document: object) -> Spec:
    """The Spec of a document with a `build` section. Raises Invalid."""
    if isinstance(document, Mapping) and not isinstance(document.get("build"), Mapping):
        refuse("`config` needs a `build` section with the fields of the build.")
    return parse_content(document)


def _parse_nested(document: Mapping[str, Any]) -> Spec:
    """The Spec of the 0.2 layout, whose Dockerfiles always set the en_US locale. The locale is made explicit as
    `lang_env`, so that both layouts mean the same from here on."""
    nested = dict(document)
    build = nested.pop("build")
    if not isinstance(build, Mapping):
        refuse("`build` must be a mapping with the fields of the build.")
    stray = [str(key) for key in nested if key in _BUILD]
    require(not stray, f"Where there is a `build` section, {quoted(stray)} belongs into it.")
    spec = _parse({**nested, **build})
    if spec.lang_env is None and spec.image is not None:
        return replace(spec, lang_env="en_US.UTF-8")
    return spec


def is_slug(name: object) -> TypeGuard[str]:
    """Whether `name` is 1 to 128 letters, digits, hyphens and underscores: as every name here."""
    return isinstance(name, str) and SLUG.fullmatch(name) is not None


def checked_tags(tags: object) -> tuple[str, ...]:
    """Tags without repetition, in their order. Raises Invalid, whose sentences are not grouped by field."""
    if not isinstance(tags, list) or not all(isinstance(tag, str) and 0 < len(tag) <= MAX_TAG for tag in tags):
        refuse(f"`tags` must be a list of strings of 1 to {MAX_TAG} characters.")
    unique = tuple(dict.fromkeys(tags))
    require(len(unique) <= MAX_TAGS, f"`tags` must have at most {MAX_TAGS} entries.")
    require(not any(map(has_control_characters, unique)), "`tags` must not contain control characters.")
    return unique


def has_control_characters(text: str) -> bool:
    """Characters that would end or garble a line (tabs are fine), or that cannot be stored as UTF-8."""
    return _CONTROL.search(text) is not None


def confined_path(text: object) -> bool:
    """Whether it is a path that cannot leave its folder: relative, without `..`, backslashes or control characters."""
    if not isinstance(text, str) or "\\" in text or has_control_characters(text):
        return False
    return text != "" and not text.startswith("/") and ".." not in text.split("/")


def _parse(document: Mapping[str, Any]) -> Spec:
    unknown = [str(key) for key in document if key not in ("version", "kind", *_RULES)]
    require(not unknown, f"{quoted(unknown)} is not a field of a build; remove it.")
    version = document.get("version")
    require(version == 1 and not isinstance(version, bool), "`version` must be 1.")
    require(document["kind"] == "build", "`kind` of a `build` section must be `build`, if it is there.")
    found = checked(document, _RULES)
    require(("image" in found) != ("dockerfile" in found), "Exactly one of `image` and `dockerfile` is needed.")
    fields = {name: value for name, value in found.items() if name in Spec.__struct_fields__}
    return Spec(dict(document), platform=found.get("platforms"), **fields)


# Rules of single fields: each returns the value as the Spec holds it, or raises Invalid.


def _line(name: str, value: Any) -> str:
    """Text that becomes part of one Dockerfile line and must not be able to start another, or a flag."""
    if not isinstance(value, str) or not value.strip():
        refuse(f"`{name}` must be a non-empty string.")
    require(len(value) <= MAX_VALUE, f"`{name}` must have at most {MAX_VALUE} characters.")
    require(not has_control_characters(value), f"`{name}` must be a single line without control characters.")
    if value.rstrip().endswith("\\"):
        refuse(f"`{name}` must not end with a backslash, which would join it with the next line.")
    return value


def _image(name: str, value: Any) -> str:
    image = _line(name, value)
    require(not {" ", "\t"} & {*image}, "`image` must not contain spaces.")
    require(image[0].isalnum() and image.isascii(), "`image` must start with a letter or digit and be ASCII.")
    host, *ports = image.split("@")[0].split(":")
    is_reference = host and (len(ports) < 2 or (len(ports) == 2 and ports[0].find("/") > 0))
    require(is_reference, "`image` must look like `name`, `name:tag` or `host:port/name:tag`.")
    require(not {"$", "#"} & {*image}, "`image` must not contain `$` or `#`.")
    return image


def _step(name: str, value: Any) -> str:
    """A command. YAML's block scalars end with a line end and may go on after a backslash, as in Dockerfiles."""
    if isinstance(value, str) and len(value) <= MAX_VALUE:
        value = _JOINT.sub("", value.replace("\r\n", "\n").strip("\n"))
        if "\n" in value:
            refuse(f"`{name}` has several lines: make each a step, or end all but the last with `&& \\`.")
    step = _line(name, value)
    if step.lstrip().startswith("--"):
        refuse(f"`{name}` must not start with `--`: flags of RUN are not allowed, only commands.")
    if _HEREDOC.search(step):
        refuse(f"`{name}` must not contain a here-document (`<<`), which would swallow the lines after it.")
    return step


def _env_var(name: str, value: Any) -> tuple[str, str]:
    require(isinstance(value, list | tuple) and len(value) == 2, f"`{name}` must be a pair [NAME, value].")
    key, scalar = value
    if not isinstance(key, str) or not _ENV_NAME.fullmatch(key):
        refuse(f"`{name}`: the name must be letters, digits and underscores, not starting with a digit.")
    return key, _scalar(name, scalar)


def _build_args(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or len(value) > MAX_STEPS:
        refuse(f"`{name}` must be a mapping of at most {MAX_STEPS} names to values.")
    if not all(isinstance(key, str) and _ARG_NAME.fullmatch(key) for key in value):
        refuse(f"Names in `{name}` are at most 128 letters, digits, `_`; first no digit, no `BUILDKIT_`.")
    return tuple((key, _scalar(f"{name}.{key}", each)) for key, each in value.items())


def _secrets(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    secrets = list_of(_secret, "entries like `{id: …, from: …}`", MAX_SECRETS)(name, value)
    require(len(dict(secrets)) == len(secrets), f"`{name}` must not have an id twice.")
    return secrets  # type: ignore[no-any-return]


def _secret(name: str, value: Any) -> tuple[str, str]:
    require(isinstance(value, Mapping) and set(value) == {"id", "from"}, f"`{name}` must have `id` and `from`.")
    identity, source = value["id"], value["from"]
    if not isinstance(identity, str) or not _SECRET_ID.fullmatch(identity):
        refuse(f"`{name}.id` must be at most 64 letters, digits, `_`, `.`, `-`; first no `.` or `-`.")
    if not is_slug(source) or source == GIT_TOKEN:
        refuse(f"`{name}.from` must name a secret of the project; `{GIT_TOKEN}` is for fetching code only.")
    return identity, source


def _scalar(name: str, value: Any) -> str:
    """A value: any text of one line, even an empty one, because it reaches the engine quoted or as an argument."""
    require(isinstance(value, str | int | float), f"`{name}`: the value must be a string or a number.")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if len(text) > MAX_VALUE or has_control_characters(text):
        refuse(f"`{name}` must be a line of at most {MAX_VALUE} characters without control ones.")
    return text


def _must(be: str, holds: Callable[[Any], object]) -> Callable[[str, Any], Any]:
    """The rule of a value that must `be` so, which it is where that `holds`."""

    def check(name: str, value: Any) -> Any:
        require(holds(value), f"`{name}` must be {be}.")
        return value

    return check


_path = _must("a relative path inside the code, without `..`", lambda path: confined_path(path) and len(path) <= 512)
_lang = _must("a locale such as `C.UTF-8`", lambda name: isinstance(name, str) and _LANG.fullmatch(name))
_backend = _must(f"one of {quoted(BACKENDS)}", lambda name: name in BACKENDS)


def _image_tags(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_IMAGE_TAGS:
        refuse(f"`{name}` must be a list of at most {MAX_IMAGE_TAGS} tags.")
    if not all(isinstance(tag, str) and _IMAGE_TAG.fullmatch(tag) for tag in value):
        refuse(f"`{name}` are at most 128 letters, digits, `_`, `.`, `-` each, and no numbers: builds have those.")
    return tuple(dict.fromkeys(value))


def _platform(name: str, value: Any) -> str:
    if not isinstance(value, list) or len(value) != 1:
        refuse(f"`{name}` must have one entry: an image of several platforms is not built here; post a build for each.")
    require(value[0] in PLATFORMS, f"`{name}` may be {' or '.join(PLATFORMS)}.")
    return str(value[0])


def _boolean(name: str, value: Any) -> bool:
    word = str(value).lower() if isinstance(value, bool | int | str) else ""
    require(word in _YES + _NO, f"`{name}` must be true or false.")
    return word in _YES


def _revision(name: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(f"`{name}` must be a text: write it in quotes.")
    if not 0 < len(value) <= MAX_REVISION or _NO_REVISION.search(value) or has_control_characters(value):
        refuse(f"`{name}` must be the hash of a commit or a name that git allows, at most {MAX_REVISION} characters.")
    return value


def _logging(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or set(value) - {"level", "formatter"}:
        refuse(f"`{name}` may have `level` and `formatter`.")
    require(value.get("level", "INFO") in _LOG_LEVELS, f"`{name}.level` must be one of {quoted(_LOG_LEVELS)}.")


_RULES: dict[str, Callable[[str, Any], Any]] = {
    "image": _image,
    "dockerfile": _path,
    "context": _path,
    "build_steps": list_of(_step, "commands", MAX_STEPS),
    "env_vars": list_of(_env_var, "[NAME, value] pairs", MAX_STEPS),
    "build_args": _build_args,
    "secrets": _secrets,
    "lang_env": _lang,
    "image_tags": _image_tags,
    "platforms": _platform,
    "nocache": _boolean,
    "commit": _revision,
    "branch": _revision,
    "backend": _backend,
    "tags": lambda _, tags: checked_tags(tags),
    "environment": parse_environment,
    "name": _must("letters, digits, hyphens and underscores, at most 128", is_slug),
    "description": _must("a string", lambda text: isinstance(text, str)),
    "logging": _logging,
    "ref": lambda *_: refuse("`ref` cannot be resolved here; give `image` or `dockerfile`."),
}
