"""The transformed stack in moto, as far as moto knows its resources."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3

NAME = "slipway-test"
CODE = {"Bucket": "slipway-artifacts", "Key": "deployment.zip"}  # where a deployment would put it
BUILD_KEY = "arn:aws:secretsmanager:us-east-1:123456789012:secret:build-key-abcdef"
# moto cannot create these from a template; test_template.py reads them there.
NOT_IN_MOTO = {
    "AWS::ApiGateway::Deployment",
    "AWS::ApiGateway::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::Dashboard",
    "AWS::CodeBuild::Project",
    "AWS::EKS::AccessEntry",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::EventSourceMapping",  # it would start containers
    "AWS::S3::BucketPolicy",
    "AWS::SecretsManager::Secret",
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

    def allowed(self, role: str) -> list[tuple[str, dict[str, Any]]]:
        """The statements of a role's policies, by the policy's name, with the ARNs of this stack."""
        iam, name = boto3.client("iam"), self.resources[role]
        statements = []
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            if isinstance(document, str):  # moto keeps those of roles so
                document = ast.literal_eval(document)
            for statement in document["Statement"]:
                given = statement["Resource"]
                resources = [_as_in_aws(each) for each in (given if isinstance(given, list) else [given])]
                statements.append((policy, {**statement, "Resource": resources}))
        return statements


def _as_in_aws(arn: str) -> str:
    """ARNs of log groups end so in AWS, but not in moto."""
    return f"{arn}:*" if ":log-group:" in arn and not arn.endswith(":*") else arn


def create(transformed: dict[str, Any], archive: bytes, parameters: Mapping[str, str]) -> Stack:
    """Creates it, where boto3's clients lead."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=CODE["Bucket"])
    s3.put_object(Bucket=CODE["Bucket"], Key=CODE["Key"], Body=archive)
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_stack(
        StackName=NAME,
        TemplateBody=json.dumps(for_moto(transformed)),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
    )
    described = cloudformation.describe_stacks(StackName=NAME)["Stacks"][0]
    assert described["StackStatus"] == "CREATE_COMPLETE", described
    resources = cloudformation.describe_stack_resources(StackName=NAME)["StackResources"]
    return Stack(
        {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in resources if "PhysicalResourceId" in each},
        {each["OutputKey"]: each["OutputValue"] for each in described["Outputs"]},
    )


def for_moto(transformed: dict[str, Any]) -> dict[str, Any]:
    """Without what moto does not know; references to it become names."""
    template = copy.deepcopy(transformed)
    gone = {name for name, each in template["Resources"].items() if each["Type"] in NOT_IN_MOTO}
    for name in gone:
        del template["Resources"][name]
    for each in template["Resources"].values():
        if each.get("DeletionPolicy") == "RetainExceptOnCreate":
            each["DeletionPolicy"] = "Retain"
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
        case {"Ref": "BuildKey"}:
            return BUILD_KEY
        case {"Fn::GetAtt": ["BuildProject", "Arn"]}:
            return f"arn:aws:codebuild:us-east-1:123456789012:project/{NAME}-builds"
    return {key: _renamed(each, gone) for key, each in value.items()}
