"""Checks the `environment` of a spec: resources, and the placement of the pod on a shared cluster.

Labels and annotations get a prefix, so that they cannot be confused with those of others. Nodes can be selected by
keys that the deployment allows. Fields that could give access to other users' secrets are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import Struct, field

from chalicelib.errors import Invalid, checked, list_of, quoted, refuse, require

PREFIX = "user.slipway/"
MAX_ENTRIES = 10  # they are part of the build's record, which must stay small
MAX_ANNOTATION = 200  # characters
AMOUNTS = ("cpu", "memory", "disk")  # in cores, MiB and MiB
_RESOURCES = (*AMOUNTS, "gpu", "tpu")
_WHICH = {"requests": "requests", "limits": "limits", "request": "requests", "limit": "limits"}  # Polyaxon had both
# CodeBuild's machines, the smallest first, with their AMOUNTS: its user guide, "on-demand environment types".
MACHINES = {
    "BUILD_GENERAL1_SMALL": (2, 4_096, 65_536),
    "BUILD_GENERAL1_MEDIUM": (4, 8_192, 131_072),
    "BUILD_GENERAL1_LARGE": (8, 16_384, 131_072),
    "BUILD_GENERAL1_XLARGE": (36, 73_728, 262_144),
    "BUILD_GENERAL1_2XLARGE": (72, 147_456, 843_776),
}
_NAMES = (
    *("resources", "labels", "annotations", "node_selector", "affinity", "tolerations", "service_account", "index"),
    *("image_pull_secrets", "max_restarts", "secret_refs", "config_map_refs", "data_refs", "artifact_refs"),
    *("configmap_refs", "persistence", "outputs"),
)
_IGNORED = ("resources", "max_restarts", "index")  # checked elsewhere, or without meaning for builds
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
# Values of texts for the pod: what they match, and in words.
_TEXTS = {
    "labels": (re.compile(f"({_NAME.pattern})?"), "are at most 63 letters, digits, `-`, `_` and `.`"),
    "annotations": (re.compile(f".{{0,{MAX_ANNOTATION}}}", re.S), f"have at most {MAX_ANNOTATION} characters"),
}
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_OPERATORS = ("Exists", "Equal")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class Placement(Struct, frozen=True):
    """The fields of the environment for the pod, in Kubernetes' terms."""

    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()


class Environment(Struct, frozen=True):
    """A spec's environment: the document as given, and its resources (`cpu` in cores; `memory`, `disk` in MiB)."""

    document: Mapping[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] | None = None


def parse_environment(name: str, value: Any) -> Environment:
    """Parses the environment in the field `name`: the resources, and the names of all other fields. Raises Invalid."""
    require(isinstance(value, Mapping), f"`{name}` must be a mapping.")
    unknown = [str(key) for key in value if key not in _NAMES]
    require(not unknown, f"`{name}` has no {quoted(unknown)}.")
    resources = {} if value.get("resources") is None else value["resources"]
    if not isinstance(resources, Mapping) or any(key not in _RESOURCES for key in resources):
        refuse(f"`{name}.resources` may have {quoted(_RESOURCES)}.")
    parsed: dict[str, Any] = {}
    for kind, given in resources.items():
        if given is None:
            continue
        is_known = isinstance(given, Mapping) and given.keys() <= _WHICH.keys()
        require(is_known, f"`{name}.resources.{kind}` may have `requests` and `limits`.")
        parsed[kind] = {
            _WHICH[which]: _amount(f"{name}.resources.{kind}.{which}", amount)
            for which, amount in given.items()
            if amount is not None
        }
    return Environment(dict(value), parsed or None)


def _amount(name: str, value: Any) -> float:
    """The number; a text like `0.5` is also taken, as in Polyaxon. Raises Invalid."""
    amount = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < 1e9:
        refuse(f"`{name}` must be a number (memory and disk in MiB).")
    return amount


def placement(environment: Environment, node_keys: Collection[str] | None) -> Placement | None:
    """The Placement of an environment; None if it asks for nothing. Selectors and tolerations may name the keys
    `node_keys`; None for builds on CodeBuild, which have no pod. Raises Invalid with one sentence per fault, also for
    each field that is not supported, if it could affect where or how the build runs."""

    def refused(name: str, _: object) -> None:
        refuse(f"`{name}` is refused for builds on {'CodeBuild' if node_keys is None else 'EKS'}.")

    rules: dict[str, Callable[[str, Any], Any]] = {name: refused for name in _NAMES if name not in _IGNORED}
    if node_keys is None:
        del rules["labels"], rules["annotations"]  # nobody asks for them, and the image is the same
    else:
        toleration = partial(_toleration, node_keys=node_keys)
        rules["node_selector"] = partial(_selector, node_keys=node_keys)
        rules["tolerations"] = list_of(toleration, "tolerations", MAX_ENTRIES)
        rules |= {name: partial(_texts, pattern=pattern, words=words) for name, (pattern, words) in _TEXTS.items()}
    asked = {name: value for name, value in environment.document.items() if value}
    wanted = checked(asked, rules, "environment.")
    return Placement(**wanted) if wanted else None


def check_resources(resources: Mapping[str, Any] | None, most: Sequence[float]) -> None:
    """Raises Invalid, with one sentence per fault, for unavailable resources; `most` are the bounds of AMOUNTS."""
    faults = []
    for kind in ("gpu", "tpu"):
        if any(amounts(resources, kind)):
            faults.append(f"`environment.resources.{kind}`: builds have no {kind.upper()}s.")
    for kind, bound in zip(AMOUNTS, most, strict=True):
        request, limit = amounts(resources, kind)
        if 0 < limit < request:
            faults.append(f"`environment.resources.{kind}`: `requests` must not exceed `limits`.")
        if max(request, limit) > bound:
            faults.append(f"`environment.resources.{kind}`: a build gets {bound:g} at most here.")
    if faults:
        raise Invalid(faults)


def machine(resources: Mapping[str, Any] | None) -> str | None:
    """CodeBuild's smallest machine with these resources; None if none are asked for, or no machine has them."""
    wanted = [max(amounts(resources, kind)) for kind in AMOUNTS]
    fits = (name for name, has in MACHINES.items() if all(a <= b for a, b in zip(wanted, has, strict=True)))
    return next(fits, None) if any(wanted) else None


def amounts(resources: Mapping[str, Any] | None, kind: str) -> tuple[float, float]:
    """The request and the limit of a kind of resources; 0 means not given."""
    given = (resources or {}).get(kind) or {}
    return given.get("requests") or 0, given.get("limits") or 0


def _texts(name: str, value: Any, pattern: re.Pattern[str], words: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        refuse(f"`{name}` must be a mapping of at most {MAX_ENTRIES} names to texts.")
    for key, text in value.items():
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            refuse(f"Names in `{name}` are at most 63 letters, digits, `-`, `_` and `.`, without a prefix.")
        require(isinstance(text, str), f"`{name}.{key}` must be a text.")
        require(pattern.fullmatch(text), f"Values of `{name}` {words}.")
    return {PREFIX + key: text for key, text in value.items()}


def _selector(name: str, value: Any, node_keys: Collection[str]) -> dict[str, str]:
    require(isinstance(value, Mapping), f"`{name}` must be a mapping.")
    for key, text in value.items():
        _check_key(name, key, node_keys)
        _check_word(f"{name}.{key}", text)
    return dict(value)


def _toleration(name: str, value: Any, node_keys: Collection[str]) -> dict[str, str]:
    if not isinstance(value, Mapping) or set(value) - {"key", "operator", "value", "effect"}:
        refuse(f"`{name}` may have `key`, `operator`, `value` and `effect`.")
    given = {part: text for part, text in value.items() if text is not None}
    _check_key(name, given.get("key"), node_keys)  # without a key it would tolerate everything
    operator = given.setdefault("operator", "Equal")
    for part, allowed in (("operator", _OPERATORS), ("effect", _EFFECTS)):
        require(given.get(part, allowed[0]) in allowed, f"`{name}.{part}` must be one of {', '.join(allowed)}.")
    if (text := given.get("value", "")) != "":
        _check_word(f"{name}.value", text)
    require(operator == "Equal" or text == "", f"`{name}.value` must be left out where `operator` is Exists.")
    return given


def _check_key(name: str, key: Any, node_keys: Collection[str]) -> None:
    allowed = f"only {', '.join(sorted(node_keys))}" if node_keys else "none"
    require(key in node_keys, f"`{name}` may not name this key; this deployment allows {allowed}.")


def _check_word(name: str, text: Any) -> None:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        refuse(f"`{name}` must be a text of at most 63 letters, digits, `-`, `_` and `.`.")
