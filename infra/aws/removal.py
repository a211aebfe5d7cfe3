"""What `make teardown` removes, and what `make deploy` removes of a first deployment that failed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import boto3

from infra.aws.bootstrap import deployment

# Of a stack that was never complete: it cannot be updated, and nobody has used it.
NEVER_COMPLETE = {"CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED"}
QUEUE_NAME_SECONDS = 60  # until SQS gives a name again
MAX_EVENTS = 2_000  # of a stack; a first deployment has a few for each of about 100 resources
MAX_FAILURES = 10  # that are printed
_CONSEQUENCE = "Resource creation cancelled"  # because another one failed
_SECRETS = 10  # parameters of one call of SSM
Say = Callable[[str], None]


def clear(stack: str, say: Say) -> None:
    """Says why the first deployment of a stack failed, and deletes the stack with its table, which protects itself. Any
    other stack stays as it is."""
    cloudformation = boto3.client("cloudformation")
    try:
        (described,) = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    except cloudformation.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return
        raise
    if described["StackStatus"] not in NEVER_COMPLETE or "LastUpdatedTime" in described:
        return
    say(f"The first deployment of {stack} failed:")
    _say_failures(cloudformation, stack, say)
    say("What it left is deleted, some minutes …")
    resources = cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    for each in resources:
        if each["LogicalResourceId"] == "Table" and each["ResourceStatus"] != "DELETE_COMPLETE":
            _unprotect(each["PhysicalResourceId"])
    _delete_stack(cloudformation, stack)


def teardown(stack: str, say: Say, sleep: Callable[[float], None] = time.sleep) -> None:
    """Removes a deployment with all that it has made: images, secrets, code, logs and records. The stack is deleted
    last, so after an interruption the operator can call this again. Raises ClientError."""
    outputs = deployment(stack).outputs
    prefix = outputs["Registry"].partition("/")[2]
    say(f"Images of {prefix}/* and {prefix}-cache/* …")
    _delete_repositories(prefix)
    say("Secrets of projects …")
    _delete_secrets(f"/slipway/{stack}")
    say(f"Bucket {outputs['Bucket']} …")
    _delete_bucket(outputs["Bucket"])
    say(f"Table {outputs['Table']} …")
    _delete_table(outputs["Table"])
    say(f"Stack {stack}, some minutes …")
    _delete_stack(boto3.client("cloudformation"), stack)
    sleep(QUEUE_NAME_SECONDS)
    say("All is gone; the stage can be deployed again.")


def _say_failures(cloudformation: Any, stack: str, say: Say) -> None:
    """The first failures, which are the causes. CloudFormation gives the newest event first."""
    bound = {"MaxItems": MAX_EVENTS}
    pages = cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack, PaginationConfig=bound)
    events = [each for page in pages for each in page["StackEvents"] if each["ResourceStatus"].endswith("_FAILED")]
    causes = [each for each in reversed(events) if each.get("ResourceStatusReason") != _CONSEQUENCE]
    for each in causes[:MAX_FAILURES]:
        say(f"  {each['LogicalResourceId']} ({each['ResourceType']}): {each.get('ResourceStatusReason', 'no reason')}")


def _delete_repositories(prefix: str) -> None:
    """Those of projects, by the names that chalicelib/domain gives them. `<prefix>/dev` may be the prefix of another
    deployment: its repositories have more parts."""
    of_project = re.compile(rf"{re.escape(prefix)}(-cache)?/[^/]+/[^/]+-[0-9a-f]{{8}}")
    ecr: Any = boto3.client("ecr")
    names = [
        each["repositoryName"]
        for page in ecr.get_paginator("describe_repositories").paginate()
        for each in page["repositories"]
    ]
    for name in names:
        if of_project.fullmatch(name):
            ecr.delete_repository(repositoryName=name, force=True)


def _delete_secrets(folder: str) -> None:
    """All parameters below `folder`; chalicelib/adapters/secrets.py names them."""
    ssm: Any = boto3.client("ssm")
    pages = ssm.get_paginator("get_parameters_by_path").paginate(Path=folder, Recursive=True)
    names = [each["Name"] for page in pages for each in page["Parameters"]]
    for start in range(0, len(names), _SECRETS):
        ssm.delete_parameters(Names=names[start : start + _SECRETS])


def _delete_bucket(name: str) -> None:
    """With all versions of all that is in it."""
    bucket: Any = boto3.resource("s3").Bucket(name)
    if bucket.creation_date is None:
        return
    bucket.object_versions.delete()
    bucket.delete()


def _unprotect(table: str) -> bool:
    """Lets a table be deleted; False when there is none."""
    dynamodb: Any = boto3.client("dynamodb")
    try:
        dynamodb.update_table(TableName=table, DeletionProtectionEnabled=False)
        dynamodb.get_waiter("table_exists").wait(TableName=table)
    except dynamodb.exceptions.ResourceNotFoundException:
        return False
    return True


def _delete_table(name: str) -> None:
    dynamodb: Any = boto3.client("dynamodb")
    if _unprotect(name):
        dynamodb.delete_table(TableName=name)
        dynamodb.get_waiter("table_not_exists").wait(TableName=name)


def _delete_stack(cloudformation: Any, stack: str) -> None:
    cloudformation.delete_stack(StackName=stack)
    cloudformation.get_waiter("stack_delete_complete").wait(StackName=stack)
