"""The first superuser of a deployment."""

from __future__ import annotations

import os

import boto3

from chalicelib import wiring
from chalicelib.usecases import accounts

_OF_OUTPUT = {
    "Table": "SLIPWAY_TABLE",
    "Bucket": "SLIPWAY_BUCKET",
    "DispatchQueueUrl": "SLIPWAY_DISPATCH_QUEUE_URL",
    "RequestsDeadQueueUrl": "SLIPWAY_DEAD_LETTER_QUEUE_URL",
    "BuildProject": "SLIPWAY_CODEBUILD_PROJECT",
    "Registry": "SLIPWAY_REGISTRY",
}


def bootstrap(stack: str, name: str) -> tuple[str, str]:
    """The API's URL, and a new token of a superuser, who is made if there is none of that name; also makes
    the user that requests of the queue act as. Raises botocore's ClientError without such a stack."""
    described = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in described["Outputs"]}
    parameters = {each["ParameterKey"]: each["ParameterValue"] for each in described["Parameters"]}
    os.environ.update({variable: outputs[output] for output, variable in _OF_OUTPUT.items()})
    os.environ.update(
        {"SLIPWAY_REGISTRY_KIND": "ecr", "SLIPWAY_TOKEN_LIFETIME_DAYS": parameters["TokenLifetimeDays"]}
    )
    services = wiring.AwsServices()
    if automation := parameters["AutomationUser"]:
        accounts.ensure_superuser(services, automation)  # its token is thrown away: nobody logs in as it
    return outputs["Url"], accounts.ensure_superuser(services, name)
