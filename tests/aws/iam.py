"""Whether IAM policies allow an action: the part of AWS's evaluation that this project's policies use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from tests.aws.conftest import listed

Statement = Mapping[str, Any]


def allows(
    statements: Iterable[Statement], action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    """By a role's statements: at least one allows it and none denies it. Of a session, ask role and session
    policy both. `context` has the condition keys of the request."""
    effects = {each["Effect"] for each in statements if _applies(each, action, resource, context or {})}
    return effects == {"Allow"}


def _applies(statement: Statement, action: str, resource: str, context: Mapping[str, str]) -> bool:
    known = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
    assert statement.keys() <= known, statement
    return (
        _one_of(statement, "Action", action.lower(), lower=True)
        and _one_of(statement, "Resource", resource)
        and _holds(statement.get("Condition", {}), context)
    )


def _one_of(statement: Statement, name: str, value: str, *, lower: bool = False) -> bool:
    """Whether one of the patterns matches, or none of the opposite element's."""
    patterns = listed(statement[name] if name in statement else statement[f"Not{name}"])
    assert not any("${" in each or "[" in each for each in patterns), statement  # nothing is left to put in
    found = any(fnmatchcase(value, each.lower() if lower else each) for each in patterns)
    return found == (name in statement)


def _holds(condition: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    """A key that the request does not have matches nothing."""
    for operator, wanted in condition.items():
        assert operator in ("StringEquals", "StringLike", "ArnLike", "Bool"), operator
        for key, patterns in wanted.items():
            given, is_exact = context.get(key), operator in ("StringEquals", "Bool")
            if given is None or not any(
                given == each if is_exact else fnmatchcase(given, each) for each in listed(patterns)
            ):
                return False
    return True
