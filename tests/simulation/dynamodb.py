"""DynamoDB as its API documents it, for one table in memory: calls and expressions that PynamoDB sends.

The contract tests of the table's ports hold it to what the emulators do. Pages are short, so that every list
has several. With moto in its place a call takes five to nine times as long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any

from chalicelib.adapters.dynamodb.keys import Key
from chalicelib.adapters.dynamodb.table import Item
from tests.simulation.http_calls import Answer, Refused, Request

Json = dict[str, Any]
Row = Mapping[str, Mapping[str, Any]]  # an attribute's type (S, N or SS) and text or texts, by name
Test = Callable[[Row, Json, Json], bool]  # of a row, with the names and values of a request
PAGE = 4  # rows of a query
AT_ONCE = 16  # of one BatchGetItem; the others are answered as not processed
TOKEN_SECONDS = 600  # a transaction repeated with its token is done once


@dataclass
class Table:
    """Rows are replaced, never changed."""

    rows: dict[Key, Row] = field(default_factory=dict)


class DynamoDB:
    """`seconds` is the clock; `wait` lets others go on while a transaction is at work."""

    def __init__(self, seconds: Callable[[], float], wait: Callable[[], None]) -> None:
        self.table = Table()
        self._seconds, self._wait = seconds, wait
        self._done: dict[str, float] = {}  # tokens of transactions, and when they were done
        self._at_work: set[Key] = set()  # rows of transactions

    def answer_request(self, request: Request, former: Mapping[str, Any] | None = None) -> Answer:
        """Reads that may lag see the `former` table, if it is given. Raises Refused."""
        rows = self.table.rows if former is None else former.get("rows", {})
        return Answer.of_json(self._answer(request.operation, json.loads(request.body), rows))

    def _answer(self, operation: str, request: Json, seen: Mapping[Key, Row]) -> Json:
        match operation:
            case "GetItem":
                row = seen.get(_key(request["Key"]))
                return {"Item": row} if row else {}
            case "BatchGetItem":
                return self._batch_get(request, seen)
            case "Query":
                return _query(request, seen)
            case "PutItem" | "UpdateItem" | "DeleteItem":
                kind = operation.removesuffix("Item")
                if _key_of(kind, request) in self._at_work:
                    raise Refused("TransactionConflictException")
                if not self._holds(kind, request):
                    raise Refused("ConditionalCheckFailedException")
                self._write(kind, request)
                return {"Attributes": self.table.rows.get(_key_of(kind, request), {})}
            case "TransactWriteItems":
                return self._transact(request)
        raise AssertionError(operation)

    def _batch_get(self, request: Json, seen: Mapping[Key, Row]) -> Json:
        ((name, asked),) = request["RequestItems"].items()
        wanted = sorted(asked["Keys"], key=_key)  # PynamoDB asks for a set
        now, later = wanted[:AT_ONCE], wanted[AT_ONCE:]
        found = [seen[_key(each)] for each in now if _key(each) in seen]
        rest = {name: {**asked, "Keys": later}} if later else {}
        return {"Responses": {name: found}, "UnprocessedKeys": rest}

    def _transact(self, request: Json) -> Json:
        token, writes = (
            request["ClientRequestToken"],
            [next(iter(each.items())) for each in request["TransactItems"]],
        )
        if self._seconds() - self._done.get(token, -TOKEN_SECONDS) < TOKEN_SECONDS:
            return {}
        keys = {_key_of(*write) for write in writes}
        assert len(keys) == len(writes), "one transaction writes a row once"
        if keys & self._at_work:
            self._cancel(["TransactionConflict" if _key_of(*write) in self._at_work else "None" for write in writes])
        self._at_work |= keys
        try:
            self._wait()
        finally:
            self._at_work -= keys
        codes = ["None" if self._holds(*write) else "ConditionalCheckFailed" for write in writes]
        if set(codes) != {"None"}:
            self._cancel(codes)
        for write in writes:
            self._write(*write)
        self._done[token] = self._seconds()
        return {}

    def _cancel(self, codes: list[str]) -> None:
        raise Refused("TransactionCanceledException", CancellationReasons=[{"Code": code} for code in codes])

    def _holds(self, kind: str, write: Json) -> bool:
        row = self.table.rows.get(_key_of(kind, write), {})
        return _condition(write.get("ConditionExpression"))(row, *_placeholders(write))

    def _write(self, kind: str, write: Json) -> None:
        rows, key = self.table.rows, _key_of(kind, write)
        match kind:
            case "Put":
                rows[key] = write["Item"]
            case "Delete":
                rows.pop(key, None)
            case "Update":
                rows[key] = _updated({**write["Key"], **rows.get(key, {})}, write)


def _key(row: Row) -> Key:
    return row["pk"]["S"], row["sk"]["S"]


def _key_of(kind: str, write: Json) -> Key:
    return _key(write["Item"] if kind == "Put" else write["Key"])


def _placeholders(request: Json) -> tuple[Json, Json]:
    return request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})


@cache
def _index(name: str | None) -> tuple[str, str, frozenset[str] | None]:
    """Names of an index's hash key and range key, and of what it has of each row (None: all)."""
    if name is None:
        return "pk", "sk", None
    schema = Item._indexes[name]._get_schema()
    hash_key, range_key = (key["AttributeName"] for key in schema["key_schema"])
    more = schema["projection"].get("NonKeyAttributes", ())
    return hash_key, range_key, frozenset({"pk", "sk", hash_key, range_key, *more})


def _query(request: Json, rows: Mapping[Key, Row]) -> Json:
    hash_key, range_key, projected = _index(request.get("IndexName"))
    names, values = _placeholders(request)

    def place(row: Row) -> tuple[str, ...]:
        return row[hash_key]["S"], row[range_key]["S"], *_key(row)

    matches = _condition(request["KeyConditionExpression"])
    there = (row for row in rows.values() if hash_key in row and range_key in row)
    is_up = request.get("ScanIndexForward", True)
    found = sorted((row for row in there if matches(row, names, values)), key=place, reverse=not is_up)
    if start := request.get("ExclusiveStartKey"):
        begin = place(start)
        found = [row for row in found if place(row) != begin and (place(row) > begin) == is_up]
    page = found[: min(request.get("Limit", PAGE), PAGE)]
    is_shown = _condition(request.get("FilterExpression"))
    shown = [row for row in page if is_shown(row, names, values)]
    answer: Json = {"Count": len(shown), "ScannedCount": len(page)}
    if len(page) < len(found):
        keys = ("pk", "sk", hash_key, range_key)
        answer["LastEvaluatedKey"] = {name: page[-1][name] for name in keys}
    if request.get("Select") != "COUNT":
        wanted = [names[each.strip()] for each in request.get("ProjectionExpression", "").split(",") if each]
        answer["Items"] = [
            {
                name: value
                for name, value in row.items()
                if (projected is None or name in projected) and (not wanted or name in wanted)
            }
            for row in shown
        ]
    return answer


# Expressions

_TOKEN = re.compile(r"\s*([#:]?\w+|<>|<=|>=|[(),=<>+-])")


@cache
def _condition(text: str | None) -> Test:
    if text is None:
        return lambda row, names, values: True
    tokens = iter([*_TOKEN.findall(text), ""])
    return _Parser(tokens).any_of()


class _Parser:
    """Of conditions, by recursive descent."""

    def __init__(self, tokens: Iterator[str]) -> None:
        self._tokens, self._next = tokens, next(tokens)

    def _take(self, expected: str | None = None) -> str:
        token = self._next
        assert expected in (None, token), f"{expected} is expected, not {token}"
        self._next = next(self._tokens, "")
        return token

    def any_of(self) -> Test:
        tests = [self.all_of()]
        while self._next == "OR":
            self._take()
            tests.append(self.all_of())
        return tests[0] if len(tests) == 1 else lambda *given: any(test(*given) for test in tests)

    def all_of(self) -> Test:
        tests = [self.one()]
        while self._next == "AND":
            self._take()
            tests.append(self.one())
        return tests[0] if len(tests) == 1 else lambda *given: all(test(*given) for test in tests)

    def one(self) -> Test:
        token = self._take()
        if token == "NOT":
            negated = self.one()
            return lambda *given: not negated(*given)
        if token == "(":
            test = self.any_of()
            self._take(")")
            return test
        if token in _FUNCTIONS:
            self._take("(")
            path, value = self._take(), ""
            if self._next == ",":
                self._take()
                value = self._take()
            self._take(")")
            function = _FUNCTIONS[token]
            return lambda row, names, values: function(row.get(names[path]), values.get(value))
        operator = self._take()
        low = self._take()
        if operator == "BETWEEN":
            self._take("AND")
            high = self._take()
            return lambda row, names, values: (
                _compares(row.get(names[token]), ">=", values[low])
                and _compares(row.get(names[token]), "<=", values[high])
            )
        return lambda row, names, values: _compares(row.get(names[token]), operator, values[low])


_FUNCTIONS: dict[str, Callable[[Any, Any], bool]] = {
    "attribute_exists": lambda stored, _: stored is not None,
    "attribute_not_exists": lambda stored, _: stored is None,
    "begins_with": lambda stored, given: stored is not None and stored["S"].startswith(given["S"]),
    "contains": lambda stored, given: stored is not None and given["S"] in stored["S"],
}


def _compares(stored: Any, operator: str, given: Any) -> bool:
    if stored is None or stored.keys() != given.keys():
        return operator == "<>"
    left, right = (Decimal(each["N"]) if "N" in each else each["S"] for each in (stored, given))
    return bool(
        {
            "=": left == right,
            "<>": left != right,
            "<": left < right,
            "<=": left <= right,
            ">": left > right,
            ">=": left >= right,
        }[operator]
    )


_ACTION = re.compile(r"(#\w+)(?: = (?:if_not_exists \((#\w+), (:\w+)\)|(:\w+))| (:\w+))?(?:, )?")


def _updated(row: dict[str, Mapping[str, Any]], update: Json) -> Row:
    """The row after an update's clauses, whose values are taken from the row before it."""
    names, values = _placeholders(update)
    before = dict(row)
    clauses = re.split(r" ?\b(SET|REMOVE|ADD|DELETE) ", update["UpdateExpression"])[1:]
    for clause, actions in zip(clauses[::2], clauses[1::2], strict=True):
        assert not _ACTION.sub("", actions), actions
        for path, other, default, value, added in _ACTION.findall(actions):
            name = names[path]
            match clause:
                case "SET":
                    row[name] = before.get(names.get(other, "")) or values[default or value]
                case "REMOVE":
                    row.pop(name, None)
                case "ADD" | "DELETE" if "SS" in values[added]:
                    old, given = {*before.get(name, {"SS": []})["SS"]}, {*values[added]["SS"]}
                    if left := old | given if clause == "ADD" else old - given:
                        row[name] = {"SS": sorted(left)}
                    else:
                        row.pop(name, None)
                case "ADD":
                    number = Decimal(before.get(name, {"N": "0"})["N"]) + Decimal(values[added]["N"])
                    row[name] = {"N": str(number)}
    return row
