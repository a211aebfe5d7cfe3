"""Image registries over their HTTP API, and logins to them for builds."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import urllib3

from chalicelib.adapters.aws import answered
from chalicelib.domain.build import Image
from chalicelib.domain.cleanup import CACHED_DAYS, UNTAGGED_DAYS
from chalicelib.domain.repositories import image_parts, rights
from chalicelib.errors import Unavailable
from chalicelib.ports import RegistryLogin

_OCI, _DOCKER = "application/vnd.oci.image", "application/vnd.docker.distribution.manifest"
_MANIFESTS = f"{_OCI}.index.v1+json, {_OCI}.manifest.v1+json, {_DOCKER}.list.v2+json, {_DOCKER}.v2+json"
_TIMEOUT = urllib3.Timeout(connect=2, read=10)
BASE_SECONDS = 1.5  # for one of up to three answers about each of `domain.reuse.MAX_BASES`
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
_CHALLENGE = re.compile(r'(realm|service|scope)="([^"]*)"')
LOGIN_SECONDS = 3600  # the longest session when a role assumes another role
PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
PUSH = ("ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage")
MOST_IMAGES = 100_000  # of a repository: ECR's own quota


class _Layer(msgspec.Struct):
    size: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class _Manifest(msgspec.Struct):
    """The manifest of one image. Registries accept at most 4 MB; no engine runs an image with more layers."""

    layers: Annotated[tuple[_Layer, ...], msgspec.Meta(max_length=127)]


class HttpRegistry:
    """`Registry` over http, with a fixed login user:password, or none."""

    scheme = "http"

    def __init__(self, login: str = "") -> None:
        encoded = base64.b64encode(login.encode()).decode()
        self._login = {"Authorization": f"Basic {encoded}"} if login else {}
        self._http = urllib3.PoolManager(retries=urllib3.Retry(2, backoff_factor=0.2), timeout=_TIMEOUT)

    def prepare(self, image: str) -> None:
        """Does nothing: the first push makes the repository."""

    def forget_cache(self, image: str) -> None:
        """Does nothing: on one machine, engines do not cache layers in the registry."""

    def find(self, image: str) -> Image | None:
        answer = self._ask("GET", image, {"Accept": _MANIFESTS})
        if answer.status == 404:
            return None
        digest = answer.headers.get("Docker-Content-Digest")
        if answer.status != 200 or digest is None:
            raise Unavailable(f"The image registry answered {answer.status}.")
        with suppress(msgspec.MsgspecError):
            layers = msgspec.json.decode(answer.data, type=_Manifest).layers
            return Image(digest, tuple(layer.size for layer in layers))
        return Image(digest)

    def base_digest(self, reference: str, image: str, hosts: Collection[str]) -> str | None:
        host, repository, tag = image_parts(reference)
        if host == image.partition("/")[0]:
            found = self.find(f"{host}/{repository}:{tag}") if rights(image).reach(repository) else None
            return found.digest if found else None
        if host not in hosts:
            return None
        url = f"https://{_API_HOSTS.get(host, host)}/v2/{repository}/manifests/{tag}"
        once: dict[str, Any] = {"retries": False, "timeout": BASE_SECONDS}  # a user waits for the answer
        answer = self._request("HEAD", url, {"Accept": _MANIFESTS}, **once)
        if answer.status == 401:  # public images, too, need a token
            asked = dict(_CHALLENGE.findall(answer.headers.get("WWW-Authenticate", "")))
            given = self._request("GET", asked.pop("realm", "https://"), {}, fields=asked, **once)
            with suppress(msgspec.MsgspecError):
                token = msgspec.json.decode(given.data, type=dict[str, Any]).get("token", "")
                answer = self._request("HEAD", url, {"Accept": _MANIFESTS, "Authorization": f"Bearer {token}"}, **once)
        return answer.headers.get("Docker-Content-Digest") if answer.status == 200 else None

    def tag(self, image: str, tag: str) -> None:
        found = self._ask("GET", image, {"Accept": _MANIFESTS})
        if found.status == 200:  # the same manifest has the same digest
            kind = {"Content-Type": found.headers["Content-Type"]}
            found = self._ask("PUT", f"{image.rpartition(':')[0]}:{tag}", kind, found.data)
        if found.status != 201:
            raise Unavailable(f"The image registry answered {found.status}.")

    def _ask(self, method: str, image: str, headers: Mapping[str, str], body: bytes | None = None) -> Any:
        host, repository, tag = image_parts(image)
        url = f"{self.scheme}://{host}/v2/{repository}/manifests/{tag}"
        return self._request(method, url, {**headers, **self._authorization()}, body=body)

    def _request(self, method: str, url: str, headers: Mapping[str, str], **more: Any) -> Any:
        try:
            return self._http.request(method, url, headers=headers, **more)
        except urllib3.exceptions.HTTPError as exc:
            raise Unavailable("The image registry did not answer.") from exc

    def _authorization(self) -> Mapping[str, str]:
        return self._login


class EcrRegistry(HttpRegistry):
    """`Registry` on ECR. Tags of its repositories are immutable, except those that match a pattern of `movable`. Each
    build sets the lifecycle policy of its repository again, so that changed settings take effect."""

    scheme = "https"

    def __init__(self, movable: Sequence[str], client: Any = None, lifecycle: str | None = None) -> None:
        """`lifecycle` is the lifecycle policy of repositories of images, made by `image_lifecycle`."""
        import boto3

        super().__init__()
        self._ecr: Any = client or boto3.client("ecr")
        self._lifecycle = lifecycle
        self._tags = {
            "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": each} for each in movable],
        }

    def prepare(self, image: str) -> None:
        images, cache = rights(image).own
        exists, scanned = self._ecr.exceptions.RepositoryAlreadyExistsException, {"scanOnPush": True}
        with answered("ECR"):
            try:
                self._ecr.create_repository(repositoryName=images, imageScanningConfiguration=scanned, **self._tags)
            except exists:  # its setting may be older
                self._ecr.put_image_tag_mutability(repositoryName=images, **self._tags)
            if self._lifecycle:
                self._ecr.put_lifecycle_policy(repositoryName=images, lifecyclePolicyText=self._lifecycle)
            else:
                with suppress(self._ecr.exceptions.LifecyclePolicyNotFoundException):
                    self._ecr.delete_lifecycle_policy(repositoryName=images)
            with suppress(exists):
                self._ecr.create_repository(repositoryName=cache, imageTagMutability="MUTABLE")
            policy = _lifecycle(({"tagStatus": "untagged"}, 0, UNTAGGED_DAYS), ({"tagStatus": "any"}, 0, CACHED_DAYS))
            self._ecr.put_lifecycle_policy(repositoryName=cache, lifecyclePolicyText=policy)

    def forget_cache(self, image: str) -> None:
        with answered("ECR", ignored=["RepositoryNotFoundException"]):
            self._ecr.delete_repository(repositoryName=rights(image).own[1], force=True)

    def _authorization(self) -> Mapping[str, str]:
        with answered("ECR"):
            token = self._ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        return {"Authorization": f"Basic {token}"}


def image_lifecycle(count: int, days: int, protected: Sequence[str]) -> str | None:
    """ECR's lifecycle policy, in JSON, that keeps the newest `count` images of a repository, or those of the last
    `days`; None if both are 0, which keeps all. An image that one rule selects is ignored by all later rules: so
    count and age cannot be combined, and a rule for each prefix in `protected` comes first to protect such tags."""
    if not count and not days:
        return None
    protecting = [
        ({"tagStatus": "tagged", "tagPrefixList": [each]}, MOST_IMAGES, 0) for each in dict.fromkeys(protected)
    ]
    return _lifecycle(*protecting, ({"tagStatus": "any"}, count, days))


def _lifecycle(*rules: tuple[Mapping[str, Any], int, int]) -> str:
    """A lifecycle policy. A rule has the images that it selects, and how many, or those of how many days, stay."""
    made = []
    for number, (tags, count, days) in enumerate(rules, 1):
        newest = {"countType": "imageCountMoreThan", "countNumber": count}
        young = {"countType": "sinceImagePushed", "countUnit": "days", "countNumber": days}
        selection = {**tags, **(newest if count else young)}
        made.append({"rulePriority": number, "selection": selection, "action": {"type": "expire"}})
    return json.dumps({"rules": made})


class EcrLogins:
    """`RegistryLogins` on ECR: sessions of `role`, narrowed to one project."""

    def __init__(self, role: str) -> None:
        self._role = role

    def mint(self, image: str) -> RegistryLogin:
        import boto3

        host, _, _ = image_parts(image)
        with answered("ECR, asked for the build's login,"):
            lent = boto3.client("sts").assume_role(
                RoleArn=self._role,
                RoleSessionName="slipway-build",
                Policy=session_policy(self._role, image),
                DurationSeconds=LOGIN_SECONDS,
            )["Credentials"]
            ecr = boto3.client(
                "ecr",
                aws_access_key_id=lent["AccessKeyId"],
                aws_secret_access_key=lent["SecretAccessKey"],
                aws_session_token=lent["SessionToken"],
            )
            token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        username, _, password = base64.b64decode(token).decode().partition(":")
        return RegistryLogin(host, username, password)  # valid as long as the session, not for the token's 12 hours


def session_policy(role: str, image: str) -> str:
    """`domain.repositories.rights` as the IAM policy, in JSON, of a session of `role`.

    A session may do what both the role and the policy allow. So only the role lists the base repositories, and the
    length of this policy depends only on the names of prefix and project: STS allows 2,048 characters.
    """
    granted, host = rights(image), image_parts(image)[0]
    partition = role.split(":")[1]
    account, _, _, region, *_ = host.split(".")

    def arns(names: Iterable[str]) -> list[str]:
        return [f"arn:{partition}:ecr:{region}:{account}:repository/{name}" for name in names]

    statements: list[dict[str, Any]] = [
        {"Action": "ecr:GetAuthorizationToken", "Resource": "*"},
        {"Action": [*PULL, *PUSH], "Resource": arns(granted.own)},
        {"Action": PULL, "NotResource": arns(granted.closed)},
    ]
    allowed = [{"Effect": "Allow", **each} for each in statements]
    return json.dumps({"Version": "2012-10-17", "Statement": allowed}, separators=(",", ":"))
