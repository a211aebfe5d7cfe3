"""What is deployed, as written and as packaged for this machine."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from chalice.package import YAMLTemplateSerializer
from samtranslator.translator.transform import transform

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.record import replace
from chalicelib.ports import Services
from chalicelib.usecases import accounts
from chalicelib.wiring import AwsServices
from infra.aws.package import MACHINES, ROOT, TEMPLATE, THIS_PYTHON
from infra.bench.runtime import Lambda
from infra.local import aws
from infra.local.codebuild.api import CodeBuild
from tests.adapters.attempts import AttemptApi, attempt_api
from tests.aws import stack

FUNCTIONS = (
    "announce",
    "api_handler",
    "broker",
    "deliver",
    "dispatch",
    "keep_log",
    "on_request",
    "on_codebuild_event",
    "reconcile",
    "clean_up",
)
HERE, ELSEWHERE = sorted(MACHINES, key=lambda name: MACHINES[name] != platform.machine())


@dataclass(frozen=True)
class Packaged:
    folder: Path

    @property
    def archive(self) -> Path:
        return self.folder / "deployment.zip"

    @property
    def template(self) -> Path:
        return self.folder / "sam.yaml"


@pytest.fixture(scope="session")
def written() -> dict[str, Any]:
    """infra/aws/template.yaml."""
    return dict(YAMLTemplateSerializer().load_template(TEMPLATE.read_text()))


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    folder = tmp_path_factory.mktemp("package")
    pack(folder, HERE)
    return Packaged(folder)


@pytest.fixture(scope="session")
def transformed(packaged: Packaged) -> dict[str, Any]:
    """The packaged template as CloudFormation makes it of the serverless one, its conditions and parameters
    still in it."""
    return transformed_with(packaged, {})


def transformed_with(packaged: Packaged, parameters: dict[str, str]) -> dict[str, Any]:
    """The same for a deployment with these parameters; the others have their defaults."""
    template = yaml.safe_load(packaged.template.read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://{Bucket}/{Key}".format(**stack.CODE)

    class NoManagedPolicies:
        def load(self) -> dict[str, str]:
            return {}

    defaults = {name: each.get("Default") for name, each in template["Parameters"].items()}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_DEFAULT_REGION", aws.REGION)  # its partition is all that is asked for
        return dict(transform(copy.deepcopy(template), defaults | parameters, NoManagedPolicies()))


def pack(folder: Path, architecture: str, python: str = THIS_PYTHON) -> None:
    """`make package`, but for this Python, which then runs the functions, and without Node; apart, because routes
    are declared by the environment that `app` is imported in."""
    options = ["--any-page", "--arch", architecture, "--python", python]
    command = [sys.executable, "-m", "infra.aws", "package", *options, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)  # what it prints is shown when a test fails


def policy(function: str) -> list[dict[str, Any]]:
    """The statements of a function's policy, as written."""
    document = json.loads((ROOT / ".chalice" / f"policy-{function}.json").read_text())
    return list(document["Statement"])


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


EVENTS = ROOT / "tests" / "events"
KEY = BuildKey("ada", "vision", 1)
ENDED = ("SUCCEEDED", "FAILED", "FAULT", "STOPPED")
NO_ENGINE = {"SLIPWAY_ENGINE": "none"}  # every build fails, soon and for a known reason


@dataclass(frozen=True)
class Deployed:
    stack: stack.Stack
    lambda_: Lambda
    services: Services  # as the functions see them
    endpoints: dict[str, str]
    codebuild: CodeBuild
    variables: dict[str, str]  # of CodeBuild's project
    rings: list[dict[str, Any]]  # events that CodeBuild sent
    api: AttemptApi  # that builds ask

    def call(self, resource: str, handler: str, event: Any) -> Any:
        """Starts a function anew, as a cold start does, and invokes it."""
        environment = {**self.stack.environment(resource), **self.endpoints}
        with self.lambda_.start(f"app.{handler}", environment) as function:
            return function.invoke(event)

    def until_ended(self, handle: str | None) -> None:
        """Waits until CodeBuild has told of the end of a build."""
        assert handle is not None
        deadline = time.monotonic() + 60
        while not any(
            event["detail"]["build-id"].endswith(handle) and event["detail"].get("build-status") in ENDED
            for event in list(self.rings)
        ):
            assert time.monotonic() < deadline, self.rings
            time.sleep(0.05)

    def build(self, number: int = 1) -> Build:
        build = self.find(number)
        assert build is not None
        return build

    def find(self, number: int) -> Build | None:
        return self.services.builds.get(replace(KEY, id=number))


def recorded(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture
def attempts() -> Iterator[AttemptApi]:
    """Stands for the API where builds ask it: what they tell goes nowhere."""
    with attempt_api({"Dockerfile": "FROM x\n", "config.json": "{}"}) as api:
        yield api


@pytest.fixture
def deployed(
    request: pytest.FixtureRequest,
    packaged: Packaged,
    transformed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Deployed]:
    """The stack, with the template's parameters that a test gives."""
    moto = aws.Moto()
    moto.start()
    endpoints = {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": moto.url}
    for name, value in endpoints.items():
        monkeypatch.setenv(name, value)
    aws.create_secret(stack.BUILD_KEY, "a key")
    created = stack.create(transformed, packaged.archive.read_bytes(), getattr(request, "param", {}))
    boto3.client("logs").create_log_group(logGroupName=f"/aws/codebuild/{stack.NAME}-builds")
    rings: list[dict[str, Any]] = []
    variables = dict(NO_ENGINE)
    codebuild = CodeBuild(
        {f"{stack.NAME}-builds": variables},
        logs=boto3.client("logs"),
        deliver=rings.append,
        state=tmp_path / "builds",
    )
    endpoints["AWS_ENDPOINT_URL_CODEBUILD"] = codebuild.start()
    api = request.getfixturevalue("attempts")
    endpoints["SLIPWAY_API_URL"] = api.url
    for name, value in {**created.environment("Dispatch"), **endpoints}.items():
        monkeypatch.setenv(name, value)
    services = AwsServices()
    accounts.ensure_superuser(services, "ada", token="ada")
    accounts.ensure_superuser(services, "automation")
    lambda_ = Lambda(packaged.archive, tmp_path)
    yield Deployed(created, lambda_, services, endpoints, codebuild, variables, rings, api)
    codebuild.close()
    moto.close()
