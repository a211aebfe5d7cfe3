"""Image registries over their HTTP API: a scheme, and credentials, which are a fixed login or ECR's."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, Protocol

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


class Credentials(Protocol):
    """Who we are to a registry. Both raise Unavailable."""

    def authorization(self) -> Mapping[str, str]:
        """The headers of a request, none where no login is needed."""

    def make_repository(self, name: str) -> None:
        """Makes a repository if the registry wants that before the first push."""


class HttpRegistry:
    """`Registry` over http or https."""

    def __init__(self, scheme: Literal["http", "https"], credentials: Credentials) -> None:
        self._scheme, self._credentials = scheme, credentials
        self._http = urllib3.PoolManager(retries=urllib3.Retry(2, backoff_factor=0.2), timeout=_TIMEOUT)

    def prepare(self, image: str) -> None:
        self._credentials.make_repository(_parts(image)[1])

    def digest(self, image: str) -> str | None:
        host, repository, tag = _parts(image)
        url = f"{self._scheme}://{host}/v2/{repository}/manifests/{tag}"
        headers = {"Accept": _MANIFESTS, **self._credentials.authorization()}
        try:
            answer = self._http.request("HEAD", url, headers=headers)
        except urllib3.exceptions.HTTPError as exc:
            raise Unavailable("The image registry did not answer.") from exc
        if answer.status == 404:
            return None
        digest = answer.headers.get("Docker-Content-Digest")
        if answer.status != 200 or digest is None:
            raise Unavailable(f"The image registry answered {answer.status}.")
        return digest


class FixedLogin:
    """`Credentials` that stay: user:password, or None where no login is needed."""

    def __init__(self, login: str | None) -> None:
        encoded = base64.b64encode((login or "").encode()).decode()
        self._headers = {"Authorization": f"Basic {encoded}"} if login else {}

    def authorization(self) -> Mapping[str, str]:
        return self._headers

    def make_repository(self, name: str) -> None:
        """The first push makes it."""


class EcrCredentials:
    """`Credentials` of ECR: a token of ours. Repositories get tags that cannot be moved."""

    def __init__(self, client: Any = None) -> None:
        import boto3

        self._ecr: Any = client or boto3.client("ecr")

    def authorization(self) -> Mapping[str, str]:
        with answered("ECR"):
            token = self._ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        assert base64.b64decode(token).startswith(b"AWS:")
        return {"Authorization": f"Basic {token}"}

    def make_repository(self, name: str) -> None:
        with answered("ECR"), suppress(self._ecr.exceptions.RepositoryAlreadyExistsException):
            self._ecr.create_repository(
                repositoryName=name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )


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
