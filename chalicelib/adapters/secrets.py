"""Secrets of projects in SSM's Parameter Store, encrypted: `<prefix>/<owner>/<project's uuid>/<name>`, and the
deployment's own in Secrets Manager.

The path has the project's uuid: a later project of the same name does not get the secrets of the former one.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import boto3
from botocore.config import Config

from chalicelib.adapters.aws import answered
from chalicelib.domain.project import Project
from chalicelib.errors import Busy, Invalid, NotFound, SlipwayError

_KIND = {"Type": "SecureString", "Tier": "Standard", "Overwrite": True}
_PAGE = 10  # names of one GetParameters
_ATTEMPTS = 4  # fit into the broker's timeout; builds ask again for minutes. The limit is 40 calls per second


class SsmSecrets:
    """`Secrets` as parameters of type SecureString."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
        self._ssm: Any = boto3.client("ssm", config=Config(retries=retries))

    def put(self, project: Project, name: str, value: str) -> None:
        with answered("The parameter store", refusal=_refusal):
            self._ssm.put_parameter(Name=f"{self._folder(project)}/{name}", Value=value, **_KIND)

    def names(self, project: Project) -> Sequence[str]:
        """SSM returns the values too, encrypted; they are not decrypted."""
        with answered("The parameter store", refusal=_refusal):
            pages = self._ssm.get_paginator("get_parameters_by_path").paginate(Path=self._folder(project))
            return sorted(each["Name"].rpartition("/")[2] for page in pages for each in page["Parameters"])

    def delete(self, project: Project, name: str) -> None:
        with answered("The parameter store", refusal=_refusal):
            self._ssm.delete_parameter(Name=f"{self._folder(project)}/{name}")

    def values(self, project: Project, names: Sequence[str]) -> Mapping[str, str]:
        folder = self._folder(project)
        found: dict[str, str] = {}
        for start in range(0, len(names), _PAGE):
            wanted = [f"{folder}/{name}" for name in names[start : start + _PAGE]]
            with answered("The parameter store", refusal=_refusal):
                answer = self._ssm.get_parameters(Names=wanted, WithDecryption=True)
            found |= {each["Name"].removeprefix(f"{folder}/"): each["Value"] for each in answer["Parameters"]}
        return found

    def _folder(self, project: Project) -> str:
        return f"{self._prefix}/{project.owner}/{project.uuid}"


def _refusal(code: str, _words: str) -> SlipwayError | None:
    """Never with SSM's message, which can contain the value."""
    match code:
        case "ParameterNotFound":
            return NotFound()
        case "ValidationException":
            return Invalid({"value": ["The parameter store refuses it; it must not contain `{{`."]})
        case "ParameterLimitExceeded":
            return Invalid(["The account's parameter store is full; ask the operator."])
        case "ThrottlingException" | "TooManyUpdates":
            return Busy("The parameter store asks us to wait; try again.")
    return None


class SecretsManager:
    """`DeploymentSecrets`; each is read once per process. `docker_hub` may be empty."""

    def __init__(self, build_key: str, docker_hub: str = "") -> None:
        self._build_key, self._docker_hub = build_key, docker_hub
        self._read = cache(self._asked)

    def build_key(self) -> bytes:
        return self._read(self._build_key).encode()

    def docker_hub_login(self) -> tuple[str, str] | None:
        if not self._docker_hub:
            return None
        login: dict[str, str] = json.loads(self._read(self._docker_hub))
        return login["username"], login["token"]

    def _asked(self, name: str) -> str:
        with answered("Secrets Manager"):
            client: Any = boto3.client("secretsmanager")
            return str(client.get_secret_value(SecretId=name)["SecretString"])
