"""Reads of moto's tables in less time.

For each query, moto compares and sorts all items of a table, which takes longer with each item; here the keys are
sorted once, and each write moves those of its item. moto copies the items of an answer, and compares each of their
values with AWS's model; here they are written as they are, which is safe because requests to DynamoDB go one by one.
"""

from __future__ import annotations

import copy
import json
from base64 import b64encode
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from moto import backends
from moto.core import responses
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.dynamodb.models.table import RESULT_SIZE_LIMIT, Table
from moto.dynamodb.responses import DynamoHandler

Place = tuple[str, ...]  # sort key in the table or an index, then the item's keys
_LAST = "\U0010ffff"
# The first and the last of the sorted places that a condition on the sort key selects.
_BOUNDS: dict[str | None, Callable[[Sequence[Place], list[str]], tuple[int, int]]] = {
    None: lambda places, _: (0, len(places)),
    "=": lambda places, key: (bisect_left(places, (key[0],)), bisect_right(places, (key[0], _LAST))),
    "<": lambda places, key: (0, bisect_left(places, (key[0],))),
    "<=": lambda places, key: (0, bisect_right(places, (key[0], _LAST))),
    ">": lambda places, key: (bisect_right(places, (key[0], _LAST)), len(places)),
    ">=": lambda places, key: (bisect_left(places, (key[0],)), len(places)),
    "BETWEEN": lambda places, keys: (bisect_left(places, (keys[0],)), bisect_right(places, (keys[1], _LAST))),
    "BEGINS_WITH": lambda places, key: (bisect_left(places, (key[0],)), bisect_left(places, (key[0] + _LAST,))),
}
_table: Any = Table
_dynamodb: Any = DynamoDBBackend
_handler: Any = DynamoHandler
_backends: Any = backends
_responses: Any = responses
_moto_query, _moto_put = _table.query, _table.put_item
_moto_delete, _moto_update = _table.delete_item, _dynamodb.update_item
_moto_serialized = _handler.serialized
READS = ("GetItem", "BatchGetItem", "Query")


class SortedKeys:
    """The keys of a table's items, sorted as in the table (index None) and in each of its indexes."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._attributes: dict[str | None, tuple[str, str]] = {None: (table.hash_key_attr, table.range_key_attr)}
        for index in table.all_indexes():
            names = {part["KeyType"]: part["AttributeName"] for part in index.schema}
            self._attributes[index.name] = names["HASH"], names["RANGE"]
        self._partitions = defaultdict[tuple[str | None, str], list[Place]](list)
        self._placed: dict[tuple[Any, Any], list[tuple[tuple[str | None, str], Place]]] = {}
        self.changed = {(pk, sk) for pk, items in table.items.items() for sk in items}

    def partition(self, index: str | None, value: str) -> list[Place]:
        """The places in a partition, after all changes."""
        for key in self.changed:
            for partition, place in self._placed.pop(key, ()):
                places = self._partitions[partition]
                del places[bisect_left(places, place)]
            if (item := self._table.get_item(*key)) is not None:
                self._placed[key] = list(self._places(item))
                for partition, place in self._placed[key]:
                    insort(self._partitions[partition], place)
        self.changed.clear()
        return self._partitions[index, value]

    def place(self, index: str | None, attributes: dict[str, dict[str, str]]) -> Place:
        """Where an item with these attributes is, or was."""
        pk, sk = self._attributes[None]
        return tuple(attributes[name]["S"] for name in (self._attributes[index][1], pk, sk))

    def _places(self, item: Any) -> Iterator[tuple[tuple[str | None, str], Place]]:
        attributes = {name: value.to_json() for name, value in item.attrs.items() if value.type == "S"}
        for index, (partition, sort) in self._attributes.items():
            if partition in attributes and sort in attributes:
                yield (index, attributes[partition]["S"]), self.place(index, attributes)


def _keys(table: Any) -> SortedKeys:
    if "sorted_keys" not in vars(table):
        table.sorted_keys = SortedKeys(table)
    keys: SortedKeys = table.sorted_keys
    return keys


def _query(
    table: Any,
    hash_key: Any,
    comparison: str | None,
    values: list[Any],
    limit: int | None,
    start: dict[str, Any] | None,
    ascending: bool,
    projections: Any,
    index_name: str | None = None,
    consistent_read: bool = False,
    filter_expression: Any = None,
    **more: Any,
) -> Any:
    """As moto's, for tables and indexes that have a partition key and a sort key, both texts."""
    keys = _keys(table)
    partition = hash_key or more["hash_key_conditions"][0][1]
    first, last = _BOUNDS[comparison](places := keys.partition(index_name, partition.value), [v.value for v in values])
    if start is not None and ascending:
        first = max(first, bisect_right(places, keys.place(index_name, start)))
    elif start is not None:
        last = min(last, bisect_left(places, keys.place(index_name, start)))
    found: list[Any] = []
    size, end = 0, None
    for at in range(first, last) if ascending is not False else range(last - 1, first - 1, -1):
        _, pk, sk = places[at]
        item = table.get_item(DynamoType({"S": pk}), DynamoType({"S": sk}))
        size += item.size()
        if len(found) == limit or size > RESULT_SIZE_LIMIT:
            end = table._get_last_evaluated_key(found[-1], index_name)
            break
        found.append(item)
    results, index = found, table.get_index(index_name) if index_name else None
    if index is not None and index.projection["ProjectionType"] != "ALL":
        names = {*index.projection.get("NonKeyAttributes", ()), *index.table_key_attrs}
        results = [_only(item, names | {part["AttributeName"] for part in index.schema}) for item in found]
    if filter_expression is not None:
        results = [item for item in results if filter_expression.expr(item)]
    if projections:
        names = {name for (name,) in projections}  # Slipway asks for no parts of attributes
        results = [_only(item, names) for item in results]
    return results, len(found), end


def _only(item: Any, names: set[str]) -> Any:
    """The item with these attributes alone."""
    part = copy.copy(item)
    part.attrs = {name: value for name, value in item.attrs.items() if name in names}
    return part


def _serialized(handler: Any, action: Any) -> Any:
    """The status, headers and body of moto's answer to `action`."""
    if handler._get_action() not in READS or not isinstance(action.result, dict):  # an exception is no dict
        return _moto_serialized(handler, action)
    body = json.dumps(action.result, default=lambda value: b64encode(value).decode())
    return 200, {"Content-Type": "application/x-amz-json-1.0", **handler.response_headers}, body


def _put(table: Any, *given: Any, **more: Any) -> Any:
    item = _moto_put(table, *given, **more)
    _keys(table).changed.add((item.hash_key, item.range_key))
    return item


def _delete(table: Any, hash_key: Any, range_key: Any) -> Any:
    _keys(table).changed.add((hash_key, range_key))
    return _moto_delete(table, hash_key, range_key)


def _update(backend: Any, table_name: str, key: dict[str, Any], *given: Any, **more: Any) -> Any:
    table = backend.get_table(table_name)
    _keys(table).changed.add(backend.get_keys_value(table, key))
    return _moto_update(backend, table_name, key, *given, **more)


def replace_reads() -> None:
    """Replaces moto's reads in this process."""
    _table.query, _table.put_item, _table.delete_item, _dynamodb.update_item = _query, _put, _delete, _update
    _handler.serialized = _serialized
    # moto looks these up for each request, the second on the disk
    _responses.method_names_from_class = cache(_responses.method_names_from_class)
    modules = tuple(_backends.list_of_moto_modules())
    _backends.list_of_moto_modules = lambda: modules
