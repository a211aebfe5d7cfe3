"""What goes with a deployment, and what a first deployment that failed leaves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from chalicelib.domain.project import image_reference
from chalicelib.domain.repositories import rights
from infra.aws import removal
from tests.aws import stack
from tests.aws.conftest import Deployed
from tests.factories import make_project

NOW = datetime(2026, 11, 27, tzinfo=UTC)


@pytest.mark.slow
def test_a_teardown_leaves_nothing_and_what_is_of_others(deployed: Deployed) -> None:
    table, bucket = deployed.stack.outputs["Table"], deployed.stack.outputs["Bucket"]
    s3, ecr, ssm = boto3.client("s3"), boto3.client("ecr"), boto3.client("ssm")
    for text in (b"one", b"another version"):
        s3.put_object(Bucket=bucket, Key="code/x", Body=text)
    s3.delete_object(Bucket=bucket, Key="code/x")
    image = image_reference("host/slipway", make_project(), 1)
    others = {  # of deployments whose prefixes are `slipway2` and `slipway/dev`, and of nobody
        *("slipway2/ada/vision-0123abcd", "slipway2-cache/ada/vision-0123abcd", "slipway2-tools"),
        *("slipway/dev/ada/vision-0123abcd", "slipway/dev-cache/ada/vision-0123abcd", "slipway/dev-tools"),
        "slipway/base",
    }
    for name in (*rights(image).own, *others):
        ecr.create_repository(repositoryName=name)
    for number in range(12):  # SSM gives ten at once
        deployed.services.secrets.put(make_project(), f"secret-{number}", "s3cret")
    of_others = {f"/slipway/{name}/ada/0123/secret" for name in (f"{stack.NAME}2", "slipway", "local")}
    for name in of_others:
        ssm.put_parameter(Name=name, Value="s3cret", Type="SecureString")

    slept: list[float] = []
    removal.teardown(stack.NAME, lambda _: None, slept.append)

    left = {each["repositoryName"] for each in ecr.describe_repositories()["repositories"]}
    assert left == others  # the stack's own goes with the stack
    assert {each["Name"] for each in ssm.describe_parameters()["Parameters"]} == of_others
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


def failed(name: str, reason: str, status: str = "CREATE_FAILED") -> dict[str, Any]:
    stack_of_it = {"StackId": "arn:s", "EventId": name, "StackName": "s", "Timestamp": NOW}
    about = {"LogicalResourceId": name, "ResourceType": "AWS::SQS::Queue", "ResourceStatus": status}
    return {**stack_of_it, **about, "ResourceStatusReason": reason}


def described(status: str, **more: Any) -> dict[str, Any]:
    return {"Stacks": [{"StackName": "s", "CreationTime": NOW, "StackStatus": status, **more}]}


def test_a_first_deployment_that_failed_is_removed_with_the_table_that_protects_itself(
    answers: dict[str, Stubber],
) -> None:
    cloudformation, dynamodb = answers["cloudformation"], answers["dynamodb"]
    cloudformation.add_response("describe_stacks", described("ROLLBACK_FAILED"))
    late = [failed("Rolled", "in order", "DELETE_COMPLETE"), failed("HookQueue", "Resource creation cancelled")]
    cloudformation.add_response("describe_stack_events", {"StackEvents": late, "NextToken": "1"}, {"StackName": "s"})
    early = [failed("LogQueue", "The name is taken."), failed("LogDeadQueue", "Access denied.")]
    cloudformation.add_response("describe_stack_events", {"StackEvents": early}, {"StackName": "s", "NextToken": "1"})
    resource = {"ResourceType": "AWS::DynamoDB::Table", "Timestamp": NOW, "ResourceStatus": "DELETE_FAILED"}
    resources = [{**resource, "LogicalResourceId": "Table", "PhysicalResourceId": "s-Table-1"}]
    cloudformation.add_response("describe_stack_resources", {"StackResources": resources})
    unprotected = {"TableName": "s-Table-1", "DeletionProtectionEnabled": False}
    dynamodb.add_response("update_table", {}, unprotected)
    dynamodb.add_response("describe_table", {"Table": {"TableStatus": "ACTIVE"}}, {"TableName": "s-Table-1"})
    cloudformation.add_response("delete_stack", {}, {"StackName": "s"})
    cloudformation.add_response("describe_stacks", described("DELETE_COMPLETE"))
    said: list[str] = []
    removal.clear("s", said.append)
    assert said == [
        "The first deployment of s failed:",
        "  LogDeadQueue (AWS::SQS::Queue): Access denied.",
        "  LogQueue (AWS::SQS::Queue): The name is taken.",
        "What it left is deleted, some minutes …",
    ]


def test_of_many_failures_the_first_are_printed_which_are_the_causes(answers: dict[str, Stubber]) -> None:
    cloudformation = answers["cloudformation"]
    cloudformation.add_response("describe_stacks", described("ROLLBACK_COMPLETE"))
    events = [failed(f"Q{number}", "x" * 2_000) for number in range(50, 0, -1)]  # the newest comes first
    cloudformation.add_response("describe_stack_events", {"StackEvents": events})
    cloudformation.add_response("describe_stack_resources", {"StackResources": []})
    cloudformation.add_response("delete_stack", {})
    cloudformation.add_response("describe_stacks", described("DELETE_COMPLETE"))
    said: list[str] = []
    removal.clear("s", said.append)
    assert [line.split()[0] for line in said[1:-1]] == [f"Q{number}" for number in range(1, 11)]


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
