"""`?query=` and `?sort=` for lists of builds, in Polyaxon's syntax.

query = expression, expression, ...   all must match
expression = field:condition          split at the first colon; times contain colons
condition = [~] value | a|b|c | %like% | <value | <=value | >value | >=value | from..to
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from chalicelib.domain.build import Build
from chalicelib.errors import Invalid, checked, refuse, require

MAX_QUERY = 1_000  # characters
MAX_EXPRESSIONS = 20
SORTS = ("created_at", "updated_at", "started_at", "finished_at")

Predicate = Callable[[Build], bool]
_Test = Callable[[Any], bool]
_NUMBER = re.compile(r"[0-9]{1,18}")
_COMPARISON = re.compile(r"(<=|>=|=<|=>|<|>)(.*)", re.S)
# The `+` of an offset arrives as a blank if the client has not encoded it.
_MOMENT = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:[T ](\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(?:Z|([+ -]\d\d:?\d\d))?)?"
)

# The fields, each with its kind (value, number, text, time or list) and the way to read it from a build.
_FIELDS: dict[str, tuple[str, Callable[[Build], Any]]] = {
    "id": ("number", lambda build: build.key.id),
    "name": ("text", lambda build: build.name),
    "description": ("text", lambda build: build.description),
    "status": ("value", lambda build: str(build.last_status)),
    "commit": ("value", lambda build: build.commit),
    "backend": ("value", lambda build: build.backend),
    "tags": ("list", lambda build: build.tags),
    # Users and projects have no numbers: ids in a query are names, too.
    **dict.fromkeys(("user", "user.username", "user.id"), ("value", lambda build: build.user)),
    **dict.fromkeys(("project", "project.name", "project.id"), ("value", lambda build: build.key.project)),
    **{name: ("time", operator.attrgetter(name)) for name in SORTS},
}


def parse_query(text: str) -> Predicate | None:
    """The predicate of a query; None for an empty one. Raises Invalid with one sentence per fault."""
    if not text:
        return None
    require(len(text) <= MAX_QUERY, f"Query is not valid: it has more than {MAX_QUERY} characters.")
    expressions = [part.strip() for part in text.split(",") if part.strip()]
    require(expressions, "Query is not valid: it has no expression like `field:value`.")
    is_short = len(expressions) <= MAX_EXPRESSIONS
    require(is_short, f"Query is not valid: it has more than {MAX_EXPRESSIONS} expressions.")
    by_itself = {expression: expression for expression in expressions}
    predicates = checked(by_itself, dict.fromkeys(expressions, _expression)).values()
    return lambda build: all(holds(build) for holds in predicates)


def sorted_builds(builds: Sequence[Build], sort: str) -> list[Build]:
    """The builds in the order of `sort`, by default the latest change first. Builds without a value come last. Unknown
    fields are ignored."""
    ordered = list(builds)
    # Sorting is stable, so it starts with the last field.
    for name in reversed(_sort_fields(sort)):
        read = operator.attrgetter(name.lstrip("-"))
        present = [build for build in ordered if read(build) is not None]
        absent = [build for build in ordered if read(build) is None]
        ordered = sorted(present, key=read, reverse=name.startswith("-")) + absent
    return ordered


def is_default_order(sort: str) -> bool:
    return _sort_fields(sort) == ["-updated_at"]


def _sort_fields(sort: str) -> list[str]:
    names = [name.strip() for name in sort[:MAX_QUERY].split(",")]
    return [name for name in names if name.removeprefix("-") in SORTS] or ["-updated_at"]


def _expression(_: str, expression: str) -> Predicate:
    name, colon, condition = (part.strip() for part in expression.partition(":"))
    require(colon and name and condition, f"`{expression[:100]}` is not an expression like `field:value`.")
    require(name in _FIELDS, f"`{name[:64]}` cannot be queried; there are {', '.join(sorted(_FIELDS))}.")
    negated, condition = condition.startswith("~"), condition.removeprefix("~").strip()
    require(condition, f"`{expression[:100]}` has no value.")
    kind, read = _FIELDS[name]
    if kind == "time" and (compared := _COMPARISON.fullmatch(condition)):
        # A missing time is neither before nor after another, negated or not.
        compares = _compared(name, compared[1], compared[2].strip())
        return lambda build: read(build) is not None and compares(read(build)) is not negated
    test = _test(name, kind, condition)
    return lambda build: test(read(build)) is not negated


def _test(name: str, kind: str, condition: str) -> _Test:
    """The test of a field's value: false for a missing value. Raises Invalid for a wrong condition."""
    if kind == "time":
        return _time_test(name, condition)
    if _COMPARISON.match(condition) or (kind != "text" and ".." in condition):
        refuse(f"`{name}` cannot be compared; say `{name}:value` or `{name}:a|b`.")
    wanted = [part.strip() for part in condition.split("|")]
    require("" not in wanted, f"`{name}:{condition[:64]}` has an empty alternative.")
    if kind == "text" and len(wanted) == 1 and "%" in condition:
        return _like(name, condition)
    if kind == "list":
        return lambda values: any(each in values for each in wanted)
    if kind == "number":
        require(all(map(_NUMBER.fullmatch, wanted)), f"`{name}` must be a number.")
        numbers = [int(each) for each in wanted]
        return lambda value: value in numbers
    return lambda value: value in wanted


def _like(name: str, condition: str) -> _Test:
    piece = condition.strip("%").lower()
    require(piece and "%" not in piece, f"`{name}:{condition[:64]}` must be `%end`, `start%` or `%part%`.")
    if not condition.startswith("%"):
        return lambda value: (value or "").lower().startswith(piece)
    if not condition.endswith("%"):
        return lambda value: (value or "").lower().endswith(piece)
    return lambda value: piece in (value or "").lower()


def _time_test(name: str, condition: str) -> _Test:
    require("|" not in condition, f"`{name}` takes no alternatives; say `{name}:from..to`.")
    parts = [part.strip() for part in condition.split("..")]
    is_range = len(parts) <= 2 and "" not in parts
    require(is_range, f"`{name}:{condition[:64]}` must be one time, or `from..to`.")
    start, end = _moment(name, parts[0])[0], _moment(name, parts[-1])[1]
    return lambda at: at is not None and start <= at < end


def _compared(name: str, sign: str, text: str) -> _Test:
    start, end = _moment(name, text)
    bound = start if sign in ("<", ">=", "=>") else end  # a day ends when the next one begins
    return (lambda at: at < bound) if "<" in sign else (lambda at: at >= bound)


def _moment(name: str, text: str) -> tuple[datetime, datetime]:
    """The start and the end of the day, minute or second that `text` names, in UTC. Raises Invalid."""
    match = _MOMENT.fullmatch(text) if text.isascii() else None
    if match is None:
        refuse(f"`{name}` must be a time such as 2024-03-01, 2024-03-01 10:30:00 or 2024-03-01T10:30:00.25Z.")
    *parts, fraction, offset = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    length = {3: timedelta(days=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[len(numbers)]
    if fraction:
        numbers.append(int(fraction[:6].ljust(6, "0")))
        length = timedelta(microseconds=10 ** max(6 - len(fraction), 0))
    try:
        zone = datetime.strptime(offset.replace(" ", "+"), "%z").tzinfo if offset else UTC
        start = datetime(*numbers, tzinfo=zone)  # type: ignore[arg-type,misc]
        return start, start + length
    except (ValueError, OverflowError) as exc:
        raise Invalid([f"`{text}` is not a time."]) from exc
