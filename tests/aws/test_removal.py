"""What goes with a deployment, and what a first deployment that failed leaves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from infra.aws import removal
from tests.aws import stack
from tests.aws.conftest import Deployed

NOW = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.mark.slow
def test_a_teardown_leaves_nothing_and_what_is_of_others(deployed: Deployed) -> None:
    table, bucket = deployed.stack.outputs["Table"], deployed.stack.outputs["Bucket"]
    s3, ecr = boto3.client("s3"), boto3.client("ecr")
    for text in (b"one", b"another version"):
        s3.put_object(Bucket=bucket, Key="code/x", Body=text)
    s3.delete_object(Bucket=bucket, Key="code/x")
    for name in ("slipway/ada/vision-1", "slipway-cache/ada/vision-1", "slipway2/of-others"):
        ecr.create_repository(repositoryName=name)

    slept: list[float] = []
    removal.teardown(stack.NAME, lambda _: None, slept.append)

    left = {each["repositoryName"] for each in ecr.describe_repositories()["repositories"]}
    assert left == {"slipway2/of-others"}  # the stack's own goes with the stack
    assert bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}
    assert table not in boto3.client("dynamodb").list_tables()["TableNames"]
    assert stack.NAME not in {each["StackName"] for each in boto3.client("cloudformation").describe_stacks()["Stacks"]}
    assert slept == [60]  # then SQS gives the queues' names again


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Stubber]]:
    """CloudFormation and DynamoDB that answer what a test says, in the order that it says."""
    clients = {name: boto3.client(name, region_name="us-east-1") for name in ("cloudformation", "dynamodb")}
    stubs = {name: Stubber(client) for name, client in clients.items()}
    monkeypatch.setattr(boto3, "client", clients.__getitem__)
    for each in stubs.values():
        each.activate()
    yield stubs
    for each in stubs.values():
        each.assert_no_pending_responses()


def described(status: str, **more: Any) -> dict[str, Any]:
    return {"Stacks": [{"StackName": "s", "CreationTime": NOW, "StackStatus": status, **more}]}


def test_a_first_deployment_that_failed_is_removed_with_the_table_that_protects_itself(
    answers: dict[str, Stubber],
) -> None:
    cloudformation, dynamodb = answers["cloudformation"], answers["dynamodb"]
    cloudformation.add_response("describe_stacks", described("ROLLBACK_FAILED"))
    resource = {"ResourceType": "AWS::DynamoDB::Table", "Timestamp": NOW, "ResourceStatus": "DELETE_FAILED"}
    resources = [{**resource, "LogicalResourceId": "Table", "PhysicalResourceId": "s-Table-1"}]
    cloudformation.add_response("describe_stack_resources", {"StackResources": resources})
    unprotected = {"TableName": "s-Table-1", "DeletionProtectionEnabled": False}
    dynamodb.add_response("update_table", {}, unprotected)
    dynamodb.add_response("describe_table", {"Table": {"TableStatus": "ACTIVE"}}, {"TableName": "s-Table-1"})
    cloudformation.add_response("delete_stack", {}, {"StackName": "s"})
    cloudformation.add_response("describe_stacks", described("DELETE_COMPLETE"))
    removal.clear("s", lambda _: None)


@pytest.mark.parametrize(
    "answer",
    [
        described("CREATE_COMPLETE"),
        described("UPDATE_ROLLBACK_FAILED", LastUpdatedTime=NOW),
        described("DELETE_FAILED", LastUpdatedTime=NOW),
    ],
)
def test_a_stack_that_was_ever_complete_is_left_alone(answers: dict[str, Stubber], answer: dict[str, Any]) -> None:
    answers["cloudformation"].add_response("describe_stacks", answer)
    removal.clear("s", lambda _: None)


def test_without_a_stack_nothing_is_done(answers: dict[str, Stubber]) -> None:
    answers["cloudformation"].add_client_error("describe_stacks", "ValidationError", "Stack with id s does not exist")
    removal.clear("s", lambda _: None)
