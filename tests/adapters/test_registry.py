"""What a Registry promises: the fake and registries over HTTP alike; and ECR's own ways."""

from __future__ import annotations

import base64
import json
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug import Request, Response

from chalicelib.adapters.registry import (
    EcrLogins,
    EcrRegistry,
    HttpRegistry,
    session_policy,
)
from chalicelib.domain.build import Image
from chalicelib.domain.project import image_reference
from chalicelib.domain.repositories import cache_repository, image_parts
from chalicelib.errors import Unavailable
from chalicelib.ports import Registry, RegistryLogins
from chalicelib.settings import read
from infra.bench.serving import served
from infra.local.machine.signed_logins import SignedLogins
from tests.factories import DIGEST, NOW, make_project
from tests.fakes import FakeRegistry, FakeRegistryLogins

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
IMAGE = f"{HOST}/slipway/ada/vision-01234567:7"
MOVABLE = ("latest", "v*")
ROLE = "arn:aws:iam::123456789012:role/registry"


class EcrOverHttp(EcrRegistry):
    scheme = "http"


@dataclass
class _Http:
    """A registry's HTTP API: answers by path, what was asked, and manifests with their types, which are taken."""

    host: str = ""
    answers: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    immutable: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def answer(self, request: Request) -> Response:
        self.asked.append((request.method, request.path, dict(request.headers)))
        if request.method == "PUT" and request.path not in self.immutable:
            self.answers[request.path] = 200, {"Docker-Content-Digest": DIGEST}
            self.manifests[request.path] = request.get_data(), request.content_type or ""
            return Response(status=201)
        status, headers = self.answers.get(request.path, (404, {}))
        body, kind = self.manifests.get(request.path, (b"", ""))
        return Response(body, status=status, headers=headers, content_type=kind)


@pytest.fixture
def http() -> Iterator[_Http]:
    api = _Http()
    with served(api.answer) as api.host:
        yield api


@pytest.fixture(params=["fake", "plain", "ECR"])
def registry(request: pytest.FixtureRequest, http: _Http) -> tuple[Registry, str]:
    """A registry with one image, and the image's repository."""
    repository = f"{http.host}/ada/vision-{uuid.uuid4().hex[:8]}"
    if request.param == "fake":
        fake = FakeRegistry()
        fake.prepare(f"{repository}:1")
        fake.push(f"{repository}:1")
        return fake, repository
    path = f"/v2/{repository.partition('/')[2]}/manifests/1"
    http.answers[path] = (200, {"Docker-Content-Digest": DIGEST})
    if request.param == "plain":
        return HttpRegistry(), repository
    request.getfixturevalue("on_aws")
    return EcrOverHttp(MOVABLE), repository


def test_an_image_has_the_digest_its_registry_says(registry: tuple[Registry, str]) -> None:
    answers, repository = registry

    assert answers.find(f"{repository}:1") == Image(DIGEST)


def test_an_image_that_is_not_there_has_none(registry: tuple[Registry, str]) -> None:
    answers, repository = registry

    assert answers.find(f"{repository}:2") is None
    assert answers.find(f"{repository}-other:1") is None


def test_an_image_gets_a_tag_more_as_often_as_it_is_asked_for(registry: tuple[Registry, str]) -> None:
    answers, repository = registry
    answers.prepare(f"{repository}:1")

    for _ in range(2):
        answers.tag(f"{repository}:1", "latest")

    assert answers.find(f"{repository}:latest") == Image(DIGEST)
    with pytest.raises(Unavailable):
        answers.tag(f"{repository}:2", "latest")
    assert answers.find(f"{repository}:latest") == Image(DIGEST)


def test_a_base_in_the_registry_of_images_has_a_digest_if_it_is_the_projects_own(
    registry: tuple[Registry, str],
) -> None:
    answers, repository = registry

    assert answers.base_digest(f"{repository}:1", f"{repository}:2", ()) == DIGEST
    assert answers.base_digest(f"{repository}:3", f"{repository}:2", ()) is None
    assert answers.base_digest(f"{repository}:1", f"{repository}-other:2", ()) is None
    assert answers.base_digest("example.com/python:3", f"{repository}:2", ["docker.io"]) is None, (
        "it is not among those to ask"
    )


class _Hub:
    """A public registry that wants a token, in the place of urllib3's pool: what it was asked, and what it says."""

    def __init__(self, **said: Any) -> None:
        self.asked: list[str] = []
        self.challenge = 'Bearer realm="https://auth.test/token",service="hub",scope="repository:library/python:pull"'
        self.token, self.status = b'{"token": "open"}', 200
        vars(self).update(said)

    def request(self, method: str, url: str, *, headers: dict[str, str], retries: object, **more: Any) -> Any:
        assert (retries, more.pop("timeout") < 2) == (False, True)
        self.asked.append(f"{method} {url}")
        if url == "https://auth.test/token":
            assert more == {"fields": {"service": "hub", "scope": "repository:library/python:pull"}}
            return SimpleNamespace(status=200, data=self.token)
        if headers.get("Authorization") != "Bearer open":
            return SimpleNamespace(status=401, headers={"WWW-Authenticate": self.challenge})
        return SimpleNamespace(status=self.status, headers={"Docker-Content-Digest": DIGEST})


def asked(hub: _Hub, reference: str = "python") -> str | None:
    registry = HttpRegistry("AWS:secret")
    registry._http = hub  # type: ignore[assignment]
    return registry.base_digest(reference, f"{HOST}/ada/vision-0000:1", ["docker.io"])


def test_a_public_base_is_asked_for_with_a_token_that_anybody_gets() -> None:
    hub = _Hub()
    manifest = "HEAD https://registry-1.docker.io/v2/library/python/manifests/latest"

    assert asked(hub) == DIGEST
    assert hub.asked == [manifest, "GET https://auth.test/token", manifest]


@pytest.mark.parametrize("said", [{"status": 404}, {"token": b"<html>"}, {"token": b"{}"}], ids=str)
def test_a_base_whose_registry_says_no_has_no_digest(said: dict[str, Any]) -> None:
    assert asked(_Hub(**said)) is None


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("python", ("docker.io", "library/python", "latest")),
        ("team/tool:2", ("docker.io", "team/tool", "2")),
        ("localhost/a", ("localhost", "a", "latest")),
        ("host:5000/a/b:1", ("host:5000", "a/b", "1")),
        (f"ghcr.io/a/b:1@{DIGEST}", ("ghcr.io", "a/b", DIGEST)),
    ],
)
def test_images_are_named_as_engines_read_them(reference: str, parts: tuple[str, str, str]) -> None:
    assert image_parts(reference) == parts


def test_preparing_and_forgetting_repeat(registry: tuple[Registry, str]) -> None:
    answers, repository = registry

    for _ in range(2):
        answers.prepare(f"{repository}:1")
        answers.prepare(f"{repository}:2")
    for _ in range(2):
        answers.forget_cache(f"{repository}:1")
    assert answers.find(f"{repository}:1") == Image(DIGEST)


# Logins of builds


@pytest.fixture(params=["fake", "plain", "ECR"])
def logins(request: pytest.FixtureRequest) -> RegistryLogins:
    if request.param == "fake":
        return FakeRegistryLogins()
    if request.param == "plain":
        return SignedLogins("AWS:secret", lambda: datetime.now(UTC))
    request.getfixturevalue("on_aws")
    return EcrLogins(ROLE)


def test_a_login_is_for_the_images_registry(logins: RegistryLogins) -> None:
    login = logins.mint(IMAGE)

    assert (login.host, login.username) == (HOST, "AWS")


def test_a_login_does_not_show_in_what_is_printed(logins: RegistryLogins) -> None:
    login = logins.mint(IMAGE)

    assert login.password and login.password not in repr(login)


def test_two_plain_logins_differ_and_neither_has_the_registrys_own() -> None:
    logins = SignedLogins("AWS:secret", lambda: NOW)
    first, second = (logins.mint(IMAGE).password for _ in range(2))

    assert first != second
    assert "secret" not in base64.urlsafe_b64decode(first.partition(".")[0]).decode()


# Over HTTP


@pytest.mark.parametrize(
    ("status", "headers"),
    [(500, {}), (503, {"Docker-Content-Digest": DIGEST}), (401, {}), (200, {})],
    ids=["500", "503", "401", "200 without a digest"],
)
def test_any_other_answer_is_no_answer(http: _Http, status: int, headers: dict[str, str]) -> None:
    http.answers["/v2/a/b/manifests/1"] = (status, headers)

    with pytest.raises(Unavailable):
        HttpRegistry().find(f"{http.host}/a/b:1")


MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("manifest", "layer_bytes"),
    [
        ({"layers": [{"size": 23, "digest": "sha256:ab"}, {"size": 5}]}, (23, 5)),
        ({"layers": []}, ()),
        ({"manifests": [{"size": 400}]}, None),  # an index: of several images
        ({"layers": [{"size": -1}]}, None),
        ({"layers": [{"size": 10**18}]}, None),
        ({"layers": [{"size": "5"}]}, None),
        ({"layers": [{"size": 1}] * 128}, None),
        ("", None),
    ],
)
def test_the_sizes_of_layers_are_those_of_the_manifest(
    http: _Http, manifest: object, layer_bytes: tuple[int, ...] | None
) -> None:
    """Which anybody who may push writes."""
    http.answers["/v2/a/b/manifests/1"] = (200, {"Docker-Content-Digest": DIGEST})
    http.manifests["/v2/a/b/manifests/1"] = json.dumps(manifest).encode(), MANIFEST_TYPE

    found = HttpRegistry().find(f"{http.host}/a/b:1")

    assert found == Image(DIGEST, layer_bytes)


def test_a_tag_is_moved_by_putting_the_same_manifest_again(http: _Http) -> None:
    manifest = b'{"layers": [{"size": 5}] }'
    http.answers["/v2/a/b/manifests/1"] = (200, {"Docker-Content-Digest": DIGEST})
    http.manifests["/v2/a/b/manifests/1"] = manifest, MANIFEST_TYPE
    registry = HttpRegistry("AWS:secret")

    registry.tag(f"{http.host}/a/b:1", "v1.2")

    assert http.manifests["/v2/a/b/manifests/v1.2"] == (manifest, MANIFEST_TYPE)
    assert all("Authorization" in headers for _, _, headers in http.asked)
    http.answers["/v2/a/b/manifests/v1.2"] = (400, {})
    http.immutable = {"/v2/a/b/manifests/v1.2"}
    with pytest.raises(Unavailable):
        registry.tag(f"{http.host}/a/b:1", "v1.2")


def test_nobody_listening_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with pytest.raises(Unavailable):
        HttpRegistry().find(f"127.0.0.1:{port}/a/b:1")


def test_every_kind_of_manifest_is_accepted_without_login(http: _Http) -> None:
    HttpRegistry().find(f"{http.host}/a/b:1")

    ((method, path, headers),) = http.asked
    assert (method, path) == ("GET", "/v2/a/b/manifests/1")
    assert "application/vnd.oci.image.index.v1+json" in headers["Accept"]
    assert "application/vnd.docker.distribution.manifest.v2+json" in headers["Accept"]
    assert "Authorization" not in headers


# ECR


@pytest.fixture
def ecr(on_aws: None) -> Any:
    import boto3

    return boto3.client("ecr")


@pytest.mark.parametrize("is_there", [False, True], ids=["a new one", "one of an older version"])
def test_ecr_repositories_have_tags_that_cannot_be_moved_but_for_some(ecr: Any, is_there: bool) -> None:
    name = f"ada/vision-{uuid.uuid4().hex}"
    if is_there:
        ecr.create_repository(
            repositoryName=name, imageTagMutability="IMMUTABLE", imageScanningConfiguration={"scanOnPush": True}
        )

    EcrRegistry(MOVABLE, ecr).prepare(f"{HOST}/{name}:1")

    (repository,) = ecr.describe_repositories(repositoryNames=[name])["repositories"]
    assert repository["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
    assert [each["filter"] for each in repository["imageTagMutabilityExclusionFilters"]] == list(MOVABLE)
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}


def test_ecr_caches_have_tags_that_move_and_forget_what_is_old(ecr: Any) -> None:
    name = f"ada/vision-{uuid.uuid4().hex}"
    registry, image = EcrRegistry(MOVABLE, ecr), f"{HOST}/slipway/{name}:1"
    registry.prepare(image)

    (cache,) = ecr.describe_repositories(repositoryNames=[f"slipway-cache/{name}"])["repositories"]
    assert cache["imageTagMutability"] == "MUTABLE"
    policy = ecr.get_lifecycle_policy(repositoryName=f"slipway-cache/{name}")["lifecyclePolicyText"]
    rules = [each["selection"] for each in json.loads(policy)["rules"]]
    assert [(each["tagStatus"], each["countNumber"]) for each in rules] == [("untagged", 7), ("any", 90)]

    registry.forget_cache(image)
    names = [each["repositoryName"] for each in ecr.describe_repositories()["repositories"]]
    assert f"slipway/{name}" in names and f"slipway-cache/{name}" not in names


def test_a_cache_whose_making_was_interrupted_gets_its_lifecycle_later(ecr: Any) -> None:
    name = f"ada/vision-{uuid.uuid4().hex}"
    ecr.create_repository(repositoryName=f"slipway-cache/{name}")
    EcrRegistry(MOVABLE, ecr).prepare(f"{HOST}/slipway/{name}:1")

    assert ecr.get_lifecycle_policy(repositoryName=f"slipway-cache/{name}")


def test_the_policy_of_a_login_fits_a_session_with_the_longest_names() -> None:
    """RegistryPrefix has at most 39 characters, so that names of caches fit ECR's 256."""
    prefix, region = "p" * 39, "us-gov-west-1"
    project = make_project(owner="o" * 128, name="n" * 128)
    host = f"123456789012.dkr.ecr.{region}.amazonaws.com"
    image = image_reference(f"{host}/{prefix}", project, 123_456)
    role = f"arn:aws-us-gov:iam::123456789012:role/{'r' * 64}"

    assert len(cache_repository(image).partition("/")[2]) <= 256
    assert len(session_policy(role, image)) <= 2048


def test_the_policy_of_a_login_names_the_projects_partition_region_and_account() -> None:
    host = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"
    policy = json.loads(session_policy("arn:aws-cn:iam::123456789012:role/x", f"{host}/slipway/ada/vision-1:7"))

    log_in, own, bases = policy["Statement"]
    arn = "arn:aws-cn:ecr:cn-north-1:123456789012:repository"
    assert (log_in["Action"], log_in["Resource"]) == ("ecr:GetAuthorizationToken", "*")
    assert own["Resource"] == [f"{arn}/slipway/ada/vision-1", f"{arn}/slipway-cache/ada/vision-1"]
    assert bases["NotResource"] == [f"{arn}/slipway/*", f"{arn}/slipway-cache/*"]


def test_ecr_is_logged_in_to(ecr: Any, http: _Http) -> None:
    EcrOverHttp(MOVABLE, ecr).find(f"{http.host}/a/b:1")

    scheme, _, credentials = http.asked[0][2]["Authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(credentials).startswith(b"AWS:")


def test_ecr_in_trouble_is_unavailable(ecr: Any) -> None:
    from botocore.stub import Stubber

    with Stubber(ecr) as script:
        script.add_client_error("create_repository", "ServerException")
        script.add_client_error("delete_repository", "ServerException")
        script.add_client_error("get_authorization_token", "ServerException")
        with pytest.raises(Unavailable):
            EcrRegistry(MOVABLE, ecr).prepare("host/a/b:1")
        with pytest.raises(Unavailable):
            EcrRegistry(MOVABLE, ecr).forget_cache("host/a/b:1")
        with pytest.raises(Unavailable):
            EcrRegistry(MOVABLE, ecr).find("host/a/b:1")


def test_a_plain_registry_is_logged_in_to_where_it_has_a_login(http: _Http) -> None:
    for login in ("", "AWS:secret"):
        HttpRegistry(login).find(f"{http.host}/a/b:1")

    without, with_login = (headers for _, _, headers in http.asked)
    assert "Authorization" not in without
    assert with_login["Authorization"] == f"Basic {base64.b64encode(b'AWS:secret').decode()}"


def test_the_login_of_a_plain_registry_does_not_show_in_the_settings() -> None:
    names = (
        "TABLE",
        "DISPATCH_QUEUE_URL",
        "LOG_QUEUE_URL",
        "HOOK_QUEUE_URL",
        "DEAD_LETTER_QUEUE_URL",
        "CODEBUILD_PROJECT",
        "BUCKET",
        "REGISTRY",
        "BUILD_KEY_SECRET",
    )
    given = {f"SLIPWAY_{name}": "x" for name in names}
    plain = given | {"SLIPWAY_REGISTRY_KIND": "plain", "SLIPWAY_REGISTRY_LOGIN": "AWS:hush"}

    assert read(plain).registry_login == "AWS:hush"
    assert "hush" not in repr(read(plain))
