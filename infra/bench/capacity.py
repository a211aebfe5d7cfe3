"""What calls to DynamoDB consume.

Write units are those that the emulator reports; tests compare them with `update_units`, DynamoDB's rule. Read units
are computed here from the answers by DynamoDB's rules (4 KB each, half for eventually consistent reads), because no
emulator reports them correctly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from botocore.client import BaseClient

_KB, _KB4 = 1024, 4096
_WRITES = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems")


@dataclass
class Meter:
    """Every call to AWS within a `with` block, and what those to DynamoDB consumed."""

    calls: list[tuple[str, float, float]] = field(default_factory=list)  # operation, read and write units

    def __enter__(self) -> Meter:
        make = self._make = BaseClient._make_api_call

        def counted(client: Any, operation: str, params: dict[str, Any]) -> Any:
            if client.meta.service_model.service_name != "dynamodb":
                self.calls.append((operation, 0, 0))
                return make(client, operation, params)
            asked = _whole(params)
            answer = make(client, operation, {**asked, "ReturnConsumedCapacity": "TOTAL"})
            consumed = answer.get("ConsumedCapacity", [])
            totals = consumed if isinstance(consumed, list) else [consumed]
            written = sum(each["CapacityUnits"] for each in totals) if operation in _WRITES else 0
            self.calls.append((operation, read_units(operation, asked, answer), written))
            return answer

        BaseClient._make_api_call = counted
        return self

    def __exit__(self, *_: object) -> None:
        BaseClient._make_api_call = self._make

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _, _ in self.calls]

    @property
    def read(self) -> float:
        return sum(units for _, units, _ in self.calls)

    @property
    def written(self) -> float:
        return sum(units for _, _, units in self.calls)


def _whole(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters, changed so that the call reads whole items: DynamoDB charges for these in any case."""
    whole = {name: value for name, value in params.items() if name != "ProjectionExpression"}
    if wanted := params.get("ProjectionExpression"):
        names: dict[str, str] = params["ExpressionAttributeNames"]
        whole["ExpressionAttributeNames"] = {
            short: name for short, name in names.items() if short not in wanted.split(", ")
        }
    return whole


def read_units(operation: str, asked: dict[str, Any], answer: dict[str, Any]) -> float:
    """The read units of a call, from its parameters and its answer."""
    if operation == "GetItem":
        return max(math.ceil(size_of(answer.get("Item", {})) / _KB4), 1) * (1 if asked.get("ConsistentRead") else 0.5)
    if operation == "BatchGetItem":
        (table,) = asked["RequestItems"].values()
        found = [item for items in answer["Responses"].values() for item in items]
        missing = len(table["Keys"]) - len(found)
        units = sum(math.ceil(size_of(item) / _KB4) for item in found) + missing
        return units * (1 if table.get("ConsistentRead") else 0.5)
    if operation == "Query":
        read = sum(size_of(item) for item in answer.get("Items", []))
        return max(math.ceil(read / _KB4), 1) * (1 if asked.get("ConsistentRead") else 0.5)
    return 0


def update_units(before: Mapping[str, Any], after: Mapping[str, Any], indexes: Sequence[Mapping[str, Any]]) -> int:
    """The write units of an update: one for each started KB of the larger item, and of each entry that is put into
    one of the indexes (from `DescribeTable`) or removed. A changed key of an index removes one entry and puts one.

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html, "Write capacity units"
    """
    units = max(_kilobytes(before), _kilobytes(after))
    for index in indexes:
        keys = [each["AttributeName"] for each in index["KeySchema"]]
        names = {"pk", "sk", *keys, *index["Projection"].get("NonKeyAttributes", ())}
        old, new = (
            {name: item[name] for name in names if name in item} if all(key in item for key in keys) else {}
            for item in (before, after)
        )
        if any(old.get(key) != new.get(key) for key in keys):
            units += sum(_kilobytes(entry) for entry in (old, new) if entry)
        elif old != new:
            units += max(_kilobytes(old), _kilobytes(new))
    return units


def _kilobytes(item: Mapping[str, Any]) -> int:
    return math.ceil(size_of(item) / _KB)


def size_of(item: Mapping[str, Any]) -> int:
    """Bytes of the names and the values; a number has one byte for each two digits, and one more."""
    total = 0
    for name, value in item.items():
        ((kind, text),) = value.items()
        size = len(text.lstrip("-0.")) // 2 + 1 if kind == "N" else len("".join(text).encode())
        total += len(name.encode()) + size
    return total
