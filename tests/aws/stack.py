"""The transformed stack in moto, as far as moto knows its resources."""

from __future__ import annotations

import ast
import copy
import json
from dataclasses import dataclass
from typing import Any

import boto3

NAME = "slipway-test"
CODE = {"Bucket": "slipway-artifacts", "Key": "deployment.zip"}  # where a deployment would put it
# moto cannot create these from a template; test_template.py reads them there.
NOT_IN_MOTO = {
    "AWS::ApiGateway::Deployment",
    "AWS::ApiGateway::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::Dashboard",
    "AWS::CodeBuild::Project",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::EventSourceMapping",  # it would start containers
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
}


@dataclass(frozen=True)
class Stack:
    resources: dict[str, str]  # physical names by logical ones
    outputs: dict[str, str]

    def environment(self, function: str) -> dict[str, str]:
        """What a function finds in its environment."""
        found = boto3.client("lambda").get_function_configuration(FunctionName=self.resources[function])
        return {name: str(value) for name, value in found["Environment"]["Variables"].items()}

    def allowed(self, role: str) -> list[dict[str, Any]]:
        """The statements of a role's policies, with the ARNs of this stack."""
        iam = boto3.client("iam")
        name = self.resources[role]
        return [
            statement
            for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]
            for statement in ast.literal_eval(  # moto keeps it so
                iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            )["Statement"]
        ]


def create(transformed: dict[str, Any], archive: bytes) -> Stack:
    """Creates it, where boto3's clients lead."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=CODE["Bucket"])
    s3.put_object(Bucket=CODE["Bucket"], Key=CODE["Key"], Body=archive)
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(StackName=NAME, TemplateBody=json.dumps(for_moto(transformed)))
    described = cloudformation.describe_stacks(StackName=NAME)["Stacks"][0]
    assert described["StackStatus"] == "CREATE_COMPLETE", described
    resources = cloudformation.describe_stack_resources(StackName=NAME)["StackResources"]
    return Stack(
        {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for each in resources
            if "PhysicalResourceId" in each
        },
        {each["OutputKey"]: each["OutputValue"] for each in described["Outputs"]},
    )


def for_moto(transformed: dict[str, Any]) -> dict[str, Any]:
    """Without what moto does not know; references to it become names."""
    template = copy.deepcopy(transformed)
    gone = {name for name, each in template["Resources"].items() if each["Type"] in NOT_IN_MOTO}
    for name in gone:
        del template["Resources"][name]
    template["Resources"]["RestAPI"]["Properties"]["Name"] = NAME
    return dict(_renamed(template, gone))


def _renamed(value: Any, gone: set[str]) -> Any:
    if isinstance(value, list):
        return [_renamed(each, gone) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Ref": "BuildProject"}:
            return f"{NAME}-builds"
        case {"Fn::GetAtt": ["BuildProject", "Arn"]}:
            return f"arn:aws:codebuild:us-east-1:123456789012:project/{NAME}-builds"
    return {key: _renamed(each, gone) for key, each in value.items()}
