"""The deployment's own secrets, in Secrets Manager."""

import json
from functools import cache
from typing import Any

import boto3

from chalicelib.adapters.aws import answered


class SecretsManager:
    """`DeploymentSecrets`; read once by a process. `docker_hub` may be empty."""

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
