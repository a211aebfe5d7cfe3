"""Reads texts of specifications, in JSON or YAML, within bounds."""

import json
import math
from collections.abc import Mapping
from typing import Any

from chalicelib.errors import Invalid, refuse, require

MAX_YAML_BYTES = 64 * 1024
MAX_NODES = 5_000  # YAML aliases can make a small text expand without end
MAX_DEPTH = 20


def read(text: str) -> object:
    """The value of a text in JSON or YAML. Raises Invalid. YAML is bounded before and during reading, because PyYAML
    takes seconds for about 100 KB, and copies the fields of merge keys."""
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise Invalid(["The specification is nested too deeply."]) from exc
    except ValueError:
        pass  # then it should be YAML
    fits = len(text.encode()) <= MAX_YAML_BYTES
    require(fits, f"A specification in YAML can have {MAX_YAML_BYTES} bytes; send larger ones as JSON.")
    import yaml  # loaded only here: the published command line sends JSON

    class PlainLoader(yaml.SafeLoader):
        """Reads YAML of bounded size, without merge keys; a value that looks like a date is a text."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        nodes = depth = 0  # aliases count as nodes

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            self.nodes += 1
            self.depth += 1
            require(self.nodes <= MAX_NODES, "The specification is too large.")
            require(self.depth <= MAX_DEPTH, "The specification is nested too deeply.")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise Invalid(["The specification has a merge key (`<<`): write out the fields it stands for."])
            super().flatten_mapping(node)

    try:
        return yaml.load(text, PlainLoader)  # noqa: S506 - it is a SafeLoader  # nosec B506
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
        # PyYAML does not convert all errors of its constructors, such as the KeyError of `!!bool x`.
        where = getattr(exc, "problem_mark", None)
        place = f" near line {where.line + 1}" if where else ""
        raise Invalid([f"The specification is neither JSON nor YAML{place}."]) from exc


def check(document: Any) -> None:
    """Raises Invalid when the document is too deep or too large, or contains values that JSON does not have."""
    nodes, level = 1, [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            if isinstance(node, Mapping):
                below += [*node.keys(), *node.values()]
            elif isinstance(node, list | tuple):
                below += node
            elif isinstance(node, str) and any("\ud800" <= char <= "\udfff" for char in node):
                refuse("The specification contains text that is not valid UTF-8.")
            elif isinstance(node, int) and not -(2**63) <= node < 2**63:
                refuse("The specification contains a number that is too large.")
            elif isinstance(node, float) and not math.isfinite(node):
                refuse("The specification contains a number that is not finite.")
            elif not isinstance(node, str | int | float | None):
                refuse(f"The specification contains a {type(node).__name__}; only JSON's types are allowed.")
            if nodes + len(below) > MAX_NODES:
                refuse("The specification is too large.")
        if not below:
            return
        nodes, level = nodes + len(below), below
    refuse("The specification is nested too deeply.")
