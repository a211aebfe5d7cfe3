"""What is deployed, as written and as packaged for this machine."""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from chalice.package import YAMLTemplateSerializer
from samtranslator.translator.transform import transform

from infra.aws.package import MACHINES, ROOT, TEMPLATE, package

CODE = {"Bucket": "slipway-artifacts", "Key": "deployment.zip"}  # where a deployment would put it
FUNCTIONS = ("api_handler", "dispatch", "on_request", "on_codebuild_event", "reconcile", "clean_up")
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
    package(folder, HERE)
    return Packaged(folder)


@pytest.fixture(scope="session")
def transformed(packaged: Packaged) -> dict[str, Any]:
    """The packaged template as CloudFormation makes it of the serverless one, its conditions and parameters
    still in it."""
    template = yaml.safe_load(packaged.template.read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://{Bucket}/{Key}".format(**CODE)

    class NoManagedPolicies:
        def load(self) -> dict[str, str]:
            return {}

    defaults = {name: each.get("Default") for name, each in template["Parameters"].items()}
    return dict(transform(copy.deepcopy(template), defaults, NoManagedPolicies()))


def policy(function: str) -> list[dict[str, Any]]:
    """The statements of a function's policy, as written."""
    document = json.loads((ROOT / ".chalice" / f"policy-{function}.json").read_text())
    return list(document["Statement"])
