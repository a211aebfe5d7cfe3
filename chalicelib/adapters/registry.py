"""Image registries over their HTTP API: ECR and a plain one answer alike."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import urllib3

from chalicelib.adapters.aws import answered
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
    """`Registry` over http: the one on this machine. `login` is user:password, empty where none is needed."""

    scheme = "http"

    def __init__(self, login: str = "") -> None:
        encoded = base64.b64encode(login.encode()).decode()
        self._authorization = {"Authorization": f"Basic {encoded}"} if login else {}
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
        return self._authorization


class EcrRegistry(PlainRegistry):
    """`Registry` on ECR: repositories are made before their first use, with tags that cannot be moved."""

    scheme = "https"

    def __init__(self, client: Any = None) -> None:
        super().__init__()
        import boto3

        self._ecr: Any = client or boto3.client("ecr")

    def prepare(self, image: str) -> None:
        _, repository, _ = _parts(image)
        with answered("ECR"), suppress(self._ecr.exceptions.RepositoryAlreadyExistsException):
            self._ecr.create_repository(
                repositoryName=repository,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )

    def _login(self) -> dict[str, str]:
        with answered("ECR"):
            token = self._ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        assert base64.b64decode(token).startswith(b"AWS:")
        return {"Authorization": f"Basic {token}"}


class EcrLogin:
    """Makes logins that may push to one repository (and use one cache), whatever else the role may do."""

    def __init__(self, role: str, cache_repository: str = "") -> None:
        self._role, self._cache_repository = role, cache_repository

    def docker_config(self, image: str) -> str:
        """Docker's configuration (config.json) with a login for the repository of `image`, good for up to
        12 hours. Raises Unavailable."""
        import boto3

        host, _, _ = _parts(image)
        policy = login_policy(self._role, image, self._cache_repository)
        with answered("ECR, asked for the build's login,"):
            lent = boto3.client("sts").assume_role(
                RoleArn=self._role, RoleSessionName="slipway-build", Policy=policy, DurationSeconds=3600
            )["Credentials"]
            ecr = boto3.client(
                "ecr",
                aws_access_key_id=lent["AccessKeyId"],
                aws_secret_access_key=lent["SecretAccessKey"],
                aws_session_token=lent["SessionToken"],
            )
            token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        return json.dumps({"auths": {host: {"auth": token}}})


def login_policy(role: str, image: str, cache_repository: str = "") -> str:
    """What a session of a role may do that is narrowed to one repository: an IAM policy as JSON."""
    partition = role.split(":")[1]
    repositories = [name for name in (image.rpartition(":")[0], cache_repository) if name]
    use = [f"ecr:{action}" for action in _USE]
    return json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"},
                {
                    "Effect": "Allow",
                    "Action": use,
                    "Resource": [_arn(partition, name) for name in repositories],
                },
            ],
        }
    )


_USE = (
    "BatchCheckLayerAvailability",
    "BatchGetImage",
    "GetDownloadUrlForLayer",
    "InitiateLayerUpload",
    "UploadLayerPart",
    "CompleteLayerUpload",
    "PutImage",
)


def _arn(partition: str, repository: str) -> str:
    """The ARN of `<account>.dkr.ecr.<region>.amazonaws.com/<name>`; its partition is `aws`, or China's or
    another."""
    host, _, name = repository.partition("/")
    account, _, _, region, *_ = host.split(".")
    return f"arn:{partition}:ecr:{region}:{account}:repository/{name}"


def _parts(image: str) -> tuple[str, str, str]:
    """Host, repository and tag of a reference that `image_reference` made."""
    name, _, tag = image.rpartition(":")
    host, _, repository = name.partition("/")
    return host, repository, tag
