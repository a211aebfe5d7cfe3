"""The stream of one machine: what requests to DynamoDB change of builds, as AWS would tell it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from chalicelib.adapters.dynamodb import records
from chalicelib.domain.build import Build
from infra.local import aws
from infra.local.stream import Stream, record
from tests.factories import make_build

TABLE = "of-a-stream"
Write = Callable[..., None]


@pytest.fixture
def stream() -> Stream:
    return Stream(aws.REGION)


@pytest.fixture
def write(on_aws: None, stream: Stream) -> Any:
    """Makes a request while the stream watches."""
    client: Any = boto3.client("dynamodb")
    client.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
    )

    def write(operation: str, call: str, **request: Any) -> None:
        with stream.watching(operation, io.BytesIO(json.dumps(request).encode())):
            getattr(client, call)(**request)

    yield write
    client.delete_table(TableName=TABLE)


def key(pk: str, sk: str = "000000000001") -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def put(pk: str, value: str) -> dict[str, Any]:
    return {"TableName": TABLE, "Item": key(pk) | {"version": {"N": value}}}


def told(stream: Stream) -> list[tuple[str, Any, Any]]:
    """Kind, and the versions before and after."""
    return [
        (
            each["eventName"],
            each["dynamodb"].get("OldImage", {}).get("version"),
            each["dynamodb"]["NewImage"]["version"],
        )
        for each in stream.read(0)
    ]


def test_each_change_of_a_build_is_told_once_with_both_images(stream: Stream, write: Write) -> None:
    write("PutItem", "put_item", **put("B#ada/vision", "1"))
    add = {"UpdateExpression": "ADD version :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
    write("UpdateItem", "update_item", TableName=TABLE, Key=key("B#ada/vision"), **add)
    write("TransactWriteItems", "transact_write_items", TransactItems=[{"Put": put("B#ada/vision", "3")}])
    one, two, three = {"N": "1"}, {"N": "2"}, {"N": "3"}
    assert told(stream) == [("INSERT", None, one), ("MODIFY", one, two), ("MODIFY", two, three)]


def test_other_rows_and_what_changes_nothing_are_not_told(stream: Stream, write: Write) -> None:
    """As the template's filter, and as DynamoDB."""
    write("PutItem", "put_item", **put("P#ada/vision", "1"))
    write("PutItem", "put_item", **put("B#ada/vision", "1"))
    stream.read(0)
    write("PutItem", "put_item", **put("B#ada/vision", "1"))
    with pytest.raises(ClientError):
        write("PutItem", "put_item", **put("B#ada/vision", "2"), ConditionExpression="attribute_not_exists(pk)")
    write("DeleteItem", "delete_item", TableName=TABLE, Key=key("B#ada/vision"))
    assert told(stream) == []


def test_the_product_reads_what_it_tells() -> None:
    build: Build = make_build()
    new = records.encode_build(build).serialize()
    assert records.decode_change(record(1, aws.REGION, new, None)["dynamodb"]) == (None, build)
    assert records.decode_change(record(2, aws.REGION, new, new)["dynamodb"]) == (build, build)
