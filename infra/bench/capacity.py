"""What calls to DynamoDB consume.

Write units are as the emulator answers them; `update_units` is DynamoDB's rule, which tests hold it to. Read
units are computed here by DynamoDB's rules (4 KB each, half for reads that may lag) from what was answered:
no emulator has them right.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chalicelib.adapters.dynamodb.table import client

_KB, _KB4 = 1024, 4096
_WRITES = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems")


@dataclass
class Meter:
    """Every call of the store's to DynamoDB within a `with` block, with what it consumed."""

    calls: list[tuple[str, float, float]] = field(default_factory=list)  # operation, read and write units
    _asked: threading.local = field(default_factory=threading.local)  # calls may go side by side

    def __enter__(self) -> Meter:
        events = client().meta.events
        events.register("provide-client-params.dynamodb", self._ask)
        events.register("after-call.dynamodb", self._answered)
        return self

    def __exit__(self, *_: object) -> None:
        events = client().meta.events
        events.unregister("provide-client-params.dynamodb", self._ask)
        events.unregister("after-call.dynamodb", self._answered)

    def _ask(self, params: dict[str, Any], model: Any, **_: Any) -> dict[str, Any]:
        """Asks for whole rows: that is what a read costs, however few attributes are wanted of them."""
        whole = {name: value for name, value in params.items() if name != "ProjectionExpression"}
        if wanted := params.get("ProjectionExpression"):
            names: dict[str, str] = params["ExpressionAttributeNames"]
            whole["ExpressionAttributeNames"] = {
                short: name for short, name in names.items() if short not in wanted.split(", ")
            }
        self._asked.params = whole
        return {**whole, "ReturnConsumedCapacity": "TOTAL"}

    def _answered(self, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        totals = consumed if isinstance(consumed, list) else [consumed]
        written = sum(each["CapacityUnits"] for each in totals) if model.name in _WRITES else 0
        self.calls.append((model.name, read_units(model.name, self._asked.params, parsed), written))

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _, _ in self.calls]

    @property
    def read(self) -> float:
        return sum(units for _, units, _ in self.calls)

    @property
    def written(self) -> float:
        return sum(units for _, _, units in self.calls)


def read_units(operation: str, asked: dict[str, Any], answer: dict[str, Any]) -> float:
    """What reading has cost, by the parameters of a call and its answer."""
    if operation == "GetItem":
        return max(math.ceil(_size(answer.get("Item", {})) / _KB4), 1) * (1 if asked.get("ConsistentRead") else 0.5)
    if operation == "BatchGetItem":
        (table,) = asked["RequestItems"].values()
        found = [item for items in answer["Responses"].values() for item in items]
        missing = len(table["Keys"]) - len(found)
        units = sum(math.ceil(_size(item) / _KB4) for item in found) + missing
        return units * (1 if table.get("ConsistentRead") else 0.5)
    if operation == "Query":
        read = sum(_size(item) for item in answer.get("Items", []))
        return max(math.ceil(read / _KB4), 1) * (1 if asked.get("ConsistentRead") else 0.5)
    return 0


def update_units(before: Mapping[str, Any], after: Mapping[str, Any], indexes: Sequence[Mapping[str, Any]]) -> int:
    """What an update has cost: a unit for each started KB of the larger item, and of each entry that is put
    into an index of `DescribeTable` or taken out of it. A changed key does both.

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
    return math.ceil(_size(item) / _KB)


def _size(item: Mapping[str, Any]) -> int:
    """Names and values; a number is one byte for two digits and one more."""
    total = 0
    for name, value in item.items():
        ((kind, text),) = value.items()
        size = len(text.lstrip("-0.")) // 2 + 1 if kind == "N" else len(text.encode())
        total += len(name.encode()) + size
    return total
