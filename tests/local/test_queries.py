"""Reads have the answers of moto, and their work does not grow with the table."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.dynamodb.models import dynamodb_backends
from moto.dynamodb.models.dynamo_type import DynamoType
from moto.dynamodb.responses import DynamoHandler

from chalicelib.adapters.dynamodb.table import Item, use_table
from infra.local import queries
from infra.local.aws import ENVIRONMENT

INDEXES = {None: ("pk", "sk"), "recent": ("recent", "updated_at"), "active": ("active", "look_at")}
CONDITIONS = {None: 0, "=": 1, "<": 1, "<=": 1, ">": 1, ">=": 1, "BETWEEN": 2, "BEGINS_WITH": 1}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        use_table("queried")
        Item.create_table(billing_mode="PAY_PER_REQUEST")
        yield dynamodb_backends["123456789012"]["us-east-1"].get_table("queried")


def text(chance: random.Random) -> str:
    return "".join(chance.choices("abä", k=chance.randint(1, 3)))


def change(chance: random.Random, client: Any) -> None:
    key = {"pk": {"S": text(chance)[:1]}, "sk": {"S": text(chance)}}
    names = chance.sample(["recent", "updated_at", "active", "look_at", "data"], chance.randint(0, 5))
    match chance.choice(["put", "put", "update", "delete"]):
        case "put":
            client.put_item(TableName="queried", Item=key | {name: {"S": text(chance)[:1]} for name in names})
        case "update":
            client.update_item(
                TableName="queried",
                Key=key,
                UpdateExpression="SET active = :a, look_at = :b REMOVE recent",
                ExpressionAttributeValues={":a": {"S": text(chance)[:1]}, ":b": {"S": text(chance)}},
            )
        case _:
            client.delete_item(TableName="queried", Key=key)


def asked(chance: random.Random, start: Any, index: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    partition = DynamoType({"S": text(chance)[:1]})
    comparison = chance.choice(list(CONDITIONS))
    values = [DynamoType({"S": each}) for each in sorted(text(chance) for _ in range(CONDITIONS[comparison]))]
    limit, ascending = chance.choice([1, 3, 100]), chance.choice([True, False])
    more = {"index_name": index, "hash_key_conditions": [(INDEXES[index][0], partition)]}
    return (partition, comparison, values, limit, start, ascending, None), more


def test_every_query_is_answered_as_by_moto(table: Any) -> None:
    chance, client, found = random.Random(1), boto3.client("dynamodb"), 0
    for _ in range(400):
        change(chance, client)
        index = chance.choice(list(INDEXES))
        given, more = asked(chance, None, index)
        for _page in range(3):
            items, count, end = table.query(*given, **more)
            expected = queries._moto_query(table, *given, **more)
            assert (items, count) == expected[:2]
            assert end in (None, expected[2])
            if end is None and expected[2] is not None:  # moto's next page may be empty
                rest = (*given[:4], {name: value.to_json() for name, value in expected[2].items()}, *given[5:])
                assert queries._moto_query(table, *rest, **more)[0] == []
            found += count
            if end is None:
                break
            start = {name: value.to_json() for name, value in end.items()}
            given = (*given[:4], start, *given[5:])
    assert found > 300


def test_reads_have_the_answers_that_moto_writes(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For AWS's SDK, with values of every kind."""
    chance, client = random.Random(2), boto3.client("dynamodb")
    for _ in range(60):
        change(chance, client)
    values = {
        "n": {"N": "7"},
        "b": {"B": b"x"},
        "m": {"M": {"l": {"L": [{"S": "ä"}, {"NULL": True}]}}},
        "s": {"SS": ["a"]},
    }
    client.put_item(TableName="queried", Item={"pk": {"S": "a"}, "sk": {"S": "a"}, **values})
    keys = [{"pk": {"S": pk}, "sk": {"S": sk}} for pk in "ab" for sk in ("a", "b", "none")]
    condition = {"KeyConditionExpression": "pk = :p", "ExpressionAttributeValues": {":p": {"S": "a"}}}
    calls: list[Callable[[], Any]] = [
        *(partial(client.get_item, TableName="queried", Key=key) for key in keys),
        partial(client.batch_get_item, RequestItems={"queried": {"Keys": keys}}),
        partial(client.query, TableName="queried", **condition),
        partial(client.query, TableName="queried", Limit=1, ReturnConsumedCapacity="TOTAL", **condition),
    ]
    answers = [answer(call) for call in calls]
    monkeypatch.setattr(DynamoHandler, "serialized", queries._moto_serialized)
    assert answers == [answer(call) for call in calls]
    assert answers[0]["Item"]["m"] == values["m"]
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_item(TableName="none", Key=keys[0])


def answer(call: Callable[[], Any]) -> Any:
    found = call()
    headers = found.pop("ResponseMetadata")["HTTPHeaders"]
    return found | {"Content-Type": headers["content-type"]}


def test_a_page_reads_as_many_items_of_a_large_table_as_of_a_small_one(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    get_item = table.get_item

    def counted(*key: Any) -> Any:
        nonlocal read
        read += 1
        return get_item(*key)

    counts = []
    for count in (100, 2_000):
        for number in range(count):
            table.put_item({"pk": {"S": "p"}, "sk": {"S": f"{number:06}"}}, overwrite=True)
        partition = DynamoType({"S": "p"})
        table.query(partition, None, [], 1, None, True, None)  # sorts what came
        read = 0
        with monkeypatch.context() as patched:
            patched.setattr(table, "get_item", counted)
            patched.setattr(table, "all_items", None)
            assert len(table.query(partition, None, [], 20, None, False, None)[0]) == 20
        counts.append(read)
    assert counts == [21, 21]
