"""Image registries over their HTTP API: ECR and a plain one answer alike."""

from __future__ import annotations

import base64
from typing import Any

import urllib3

from chalicelib.errors import Unavailable

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TIMEOUT = urllib3.Timeout(connect=2, read=10)


class PlainRegistry:
    """`Registry` without login over http: the one on this machine."""

    scheme = "http"

    def __init__(self) -> None:
        self._http = urllib3.PoolManager(retries=urllib3.Retry(2, backoff_factor=0.2), timeout=_TIMEOUT)

    def prepare(self, image: str) -> None:
        """Repositories come into being with the first push."""

    def digest(self, image: str) -> str | None:
        host, repository, tag = _parts(image)
        url = f"{self.scheme}://{host}/v2/{repository}/manifests/{tag}"
        try:
            answer = self._http.request("HEAD", url, headers={"Accept": _MANIFESTS, **self._login()})
        except urllib3.exceptions.HTTPError as exc:
            raise Unavailable("The image registry did not answer.") from exc
        if answer.status == 404:
            return None
        digest = answer.headers.get("Docker-Content-Digest")
        if answer.status != 200 or digest is None:
            raise Unavailable(f"The image registry answered {answer.status}.")
        return digest

    def _login(self) -> dict[str, str]:
        return {}


class EcrRegistry(PlainRegistry):
    """`Registry` on ECR: repositories are made before their first use, with tags that cannot be moved."""

    scheme = "https"

    def __init__(self, client: Any = None) -> None:
        super().__init__()
        import boto3

        self._ecr: Any = client or boto3.client("ecr")

    def prepare(self, image: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        _, repository, _ = _parts(image)
        try:
            self._ecr.create_repository(
                repositoryName=repository,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "RepositoryAlreadyExistsException":
                raise Unavailable("ECR did not make the repository.") from exc
        except BotoCoreError as exc:
            raise Unavailable("ECR did not answer.") from exc

    def _login(self) -> dict[str, str]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            token = self._ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        except (BotoCoreError, ClientError) as exc:
            raise Unavailable("ECR did not answer.") from exc
        assert base64.b64decode(token).startswith(b"AWS:")
        return {"Authorization": f"Basic {token}"}


def _parts(image: str) -> tuple[str, str, str]:
    """Host, repository and tag of a reference that `image_reference` made."""
    name, _, tag = image.rpartition(":")
    host, _, repository = name.partition("/")
    return host, repository, tag
