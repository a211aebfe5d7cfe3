"""Makes the first superuser of a deployment, and the deployment's copies of BuildKit's images."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import boto3

from chalicelib import wiring
from chalicelib.settings import BUILDKIT
from chalicelib.usecases import accounts

_OF_OUTPUT = {
    "Table": "SLIPWAY_TABLE",
    "Bucket": "SLIPWAY_BUCKET",
    "DispatchQueueUrl": "SLIPWAY_DISPATCH_QUEUE_URL",
    "LogQueueUrl": "SLIPWAY_LOG_QUEUE_URL",
    "RequestsDeadQueueUrl": "SLIPWAY_DEAD_LETTER_QUEUE_URL",
    "BuildProject": "SLIPWAY_CODEBUILD_PROJECT",
    "Registry": "SLIPWAY_REGISTRY",
    "BuildKey": "SLIPWAY_BUILD_KEY_SECRET",
}
_POLL_SECONDS = 5
_LOG_IN = """# log_in: a failed login ends the build here, and its log names the registry
(
  refused() { printf 'ERROR: the login to %s failed\\n' "$1"; exit 1; }
  if [ -n "${SLIPWAY_ECR_HOST:-}" ]; then
    password=$(aws ecr get-login-password) || refused "$SLIPWAY_ECR_HOST"
    printf '%s' "$password" |
      docker login --username AWS --password-stdin "$SLIPWAY_ECR_HOST" || refused "$SLIPWAY_ECR_HOST"
  fi
  if [ -n "${SLIPWAY_DOCKER_HUB_TOKEN:-}" ]; then
    printf '%s' "$SLIPWAY_DOCKER_HUB_TOKEN" |
      docker login --username "${SLIPWAY_DOCKER_HUB_USERNAME:-}" --password-stdin || refused 'Docker Hub'
  fi
)
"""
_COPY = """# copy: with all platforms, so that the digest stays
for image in $SLIPWAY_BUILDKIT_IMAGES; do
  digest=${image##*@sha256:}
  docker buildx imagetools create --tag "$SLIPWAY_TOOLS_REPOSITORY:buildkit-${digest:0:12}" "$image" || exit 1
  docker buildx imagetools inspect "$SLIPWAY_TOOLS_REPOSITORY@sha256:$digest" >/dev/null || exit 1
done
"""


class CopyFailed(Exception):
    """The images could not be copied; the message says where to read why."""


@dataclass(frozen=True)
class Deployment:
    """A stack's outputs and parameters, by name."""

    outputs: Mapping[str, str]
    parameters: Mapping[str, str]


def deployment(stack: str) -> Deployment:
    """Raises botocore's ClientError without such a stack."""
    described = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    return Deployment(
        {each["OutputKey"]: each["OutputValue"] for each in described["Outputs"]},
        {each["ParameterKey"]: each["ParameterValue"] for each in described["Parameters"]},
    )


def first_superuser(of: Deployment, name: str) -> str:
    """A new token of a superuser, who is made if there is none of that name; also makes the user that
    requests of the queue act as."""
    os.environ.update({variable: of.outputs[output] for output, variable in _OF_OUTPUT.items()})
    os.environ.update(
        {"SLIPWAY_REGISTRY_KIND": "ecr", "SLIPWAY_TOKEN_LIFETIME_DAYS": of.parameters["TokenLifetimeDays"]}
    )
    services = wiring.AwsServices()
    if automation := of.parameters["AutomationUser"]:
        accounts.ensure_superuser(services, automation)  # its token is thrown away: nobody logs in as it
    return accounts.ensure_superuser(services, name)


def buildkit_images(of: Deployment) -> Collection[str]:
    """The images of BuildKit that this deployment uses, as far as they are pinned."""
    parameters = of.parameters
    images = {parameters["BuildKitImage"] or BUILDKIT["userns"]}
    if parameters["EksCluster"]:
        images.add(parameters["EksImage"] or BUILDKIT[parameters["EksProfile"]])
    return sorted(image for image in images if "@sha256:" in image)


def copy_images(
    of: Deployment,
    images: Collection[str],
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Has CodeBuild copy images into the deployment's repository of tools, where builds find them by their
    digests, and waits for the end. Raises CopyFailed."""
    codebuild: Any = boto3.client("codebuild")
    given = {
        "SLIPWAY_BUILDKIT_IMAGES": " ".join(images),
        "SLIPWAY_ECR_HOST": of.outputs["Registry"].partition("/")[0],
    }
    variables = [{"name": name, "value": value, "type": "PLAINTEXT"} for name, value in given.items()]
    if hub := of.parameters["DockerHubSecret"]:
        for name, key in (("USERNAME", "username"), ("TOKEN", "token")):
            secret = {"value": f"{hub}:{key}", "type": "SECRETS_MANAGER"}
            variables.append({"name": f"SLIPWAY_DOCKER_HUB_{name}", **secret})
    build = codebuild.start_build(
        projectName=of.outputs["BuildProject"],
        buildspecOverride=copying_buildspec(),
        serviceRoleOverride=of.outputs["CopyRole"],
        environmentVariablesOverride=variables,
    )["build"]
    phase = ""
    while build["buildStatus"] == "IN_PROGRESS":
        if build.get("currentPhase", phase) != phase:
            phase = build["currentPhase"]
            say(f"  {phase.lower()}")
        sleep(_POLL_SECONDS)
        build = codebuild.batch_get_builds(ids=[build["id"]])["builds"][0]
    if build["buildStatus"] != "SUCCEEDED":
        raise CopyFailed(
            f"CodeBuild's {build['id']} ended as {build['buildStatus']}; its log says why. "
            "Until BuildKit is copied, builds fetch it from Docker Hub."
        )


def copying_buildspec() -> str:
    """Logs in by the rights of the role, which no build has, then copies."""
    phases = {"build": {"commands": [_LOG_IN, _COPY]}}
    return json.dumps({"version": 0.2, "env": {"shell": "bash"}, "phases": phases})
