"""What this stack changes of moto: transactions without copies of tables, and models that are forgotten."""

from __future__ import annotations

import gc
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from moto.dynamodb.models.dynamo_type import Item

from infra.local import aws

TABLE = "of-transactions"
KEYS = ("pk", "sk")


@pytest.fixture
def dynamodb(on_aws: None) -> Any:
    client = boto3.client("dynamodb")
    client.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[
            {"AttributeName": name, "KeyType": kind} for name, kind in zip(KEYS, ("HASH", "RANGE"), strict=True)
        ],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in KEYS],
    )
    yield client
    client.delete_table(TableName=TABLE)


def key(name: str) -> dict[str, Any]:
    return {"pk": {"S": "p"}, "sk": {"S": name}}


def row(name: str, value: str) -> dict[str, Any]:
    return {**key(name), "value": {"S": value}}


def rows(dynamodb: Any) -> dict[str, str]:
    return {
        each["sk"]["S"]: each["value"]["S"] for each in dynamodb.scan(TableName=TABLE, ConsistentRead=True)["Items"]
    }


def operations(*, fails: bool) -> list[dict[str, Any]]:
    """One of each kind; the last one's condition decides."""
    changed = {
        "UpdateExpression": "SET #v = :v",
        "ExpressionAttributeNames": {"#v": "value"},
        "ExpressionAttributeValues": {":v": {"S": "changed"}},
    }
    condition = "attribute_not_exists(pk)" if fails else "attribute_exists(pk)"
    return [
        {"Put": {"TableName": TABLE, "Item": row("new", "put")}},
        {"Put": {"TableName": TABLE, "Item": row("replaced", "put")}},
        {"Update": {"TableName": TABLE, "Key": key("updated"), **changed}},
        {"Update": {"TableName": TABLE, "Key": key("made"), **changed}},
        {"Delete": {"TableName": TABLE, "Key": key("deleted")}},
        {"ConditionCheck": {"TableName": TABLE, "Key": key("judge"), "ConditionExpression": condition}},
    ]


def test_a_transaction_is_done_whole_or_not_at_all(dynamodb: Any) -> None:
    for name in ("replaced", "updated", "deleted", "judge", "bystander"):
        dynamodb.put_item(TableName=TABLE, Item=row(name, "first"))
    before = rows(dynamodb)

    with pytest.raises(ClientError) as refusal:
        dynamodb.transact_write_items(TransactItems=operations(fails=True))
    assert refusal.value.response["Error"]["Code"] == "TransactionCanceledException"
    codes = [each["Code"] for each in refusal.value.response["CancellationReasons"]]
    assert codes == ["None"] * 5 + ["ConditionalCheckFailed"]
    assert rows(dynamodb) == before

    dynamodb.transact_write_items(TransactItems=operations(fails=False))
    assert rows(dynamodb) == {
        "new": "put",
        "replaced": "put",
        "updated": "changed",
        "made": "changed",
        "judge": "first",
        "bystander": "first",
    }


def test_nothing_is_remembered_of_what_was_read_and_refused(dynamodb: Any) -> None:
    for number in range(20):
        dynamodb.put_item(TableName=TABLE, Item=row(str(number), "x"))
    before = items()
    for _ in range(3):
        rows(dynamodb)
        with pytest.raises(ClientError):
            dynamodb.transact_write_items(
                TransactItems=[
                    *operations(fails=True)[:-1],
                    {
                        "ConditionCheck": {
                            "TableName": TABLE,
                            "Key": key("0"),
                            "ConditionExpression": "attribute_not_exists(pk)",
                        }
                    },
                ]
            )
    assert items() == before


def items() -> int:
    """How many of moto's models of items there are in this process."""
    gc.collect()
    return sum(isinstance(each, Item) for each in gc.get_objects())


def test_calls_of_this_process_need_no_connection(
    local_aws: aws.Moto, dynamodb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_aws.take_calls_of(dynamodb)
    other = boto3.client("dynamodb", endpoint_url="http://127.0.0.1:1")
    local_aws.take_calls_of(other)

    with monkeypatch.context() as alone:
        alone.setattr(URLLib3Session, "send", None)
        dynamodb.put_item(TableName=TABLE, Item=row("a", "ä"))
        with pytest.raises(dynamodb.exceptions.ConditionalCheckFailedException):
            dynamodb.delete_item(TableName=TABLE, Key=key("a"), ConditionExpression="attribute_not_exists(pk)")
        with pytest.raises(TypeError, match="NoneType"):
            other.get_item(TableName=TABLE, Key=key("a"))

    assert rows(boto3.client("dynamodb")) == {"a": "ä"}
