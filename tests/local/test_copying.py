"""BuildKit's image copied as `make bootstrap` has it done, by docker between repositories of a registry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import urllib3

from infra.aws.bootstrap import copying_buildspec
from infra.local.codebuild import buildspec
from infra.local.codebuild.buildspec import Ended, Phase
from infra.local.machine.engine import Engine
from infra.local.machine.registry import Registry

pytestmark = pytest.mark.engine
INDEX = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"


def test_a_copy_has_the_digest_of_the_original(engine: Engine, images: Registry, tmp_path: Path) -> None:
    if engine.name != "docker":
        pytest.skip("CodeBuild has docker")
    original, tools = f"{images.host}/moby/buildkit", f"{images.host}/slipway-tools"
    (tmp_path / "hello").write_text("hello")
    engine.build("FROM scratch\nCOPY hello /\n", tmp_path, f"{original}:one-platform")
    engine.run("push", f"{original}:one-platform")
    engine.run("buildx", "imagetools", "create", "--tag", f"{original}:v1", f"{original}:one-platform")
    digest = index_digest(images, original, "v1")

    spec = buildspec.parse(copying_buildspec())
    variables = {
        "PATH": os.environ["PATH"],
        **engine.environment,
        "SLIPWAY_ECR_HOST": "",
        "SLIPWAY_TOOLS_REPOSITORY": tools,
        "SLIPWAY_BUILDKIT_IMAGES": f"{original}:v1@{digest}",
    }
    said: list[str] = []
    phase = Phase(spec.commands["build"], tmp_path, variables, said.append)
    assert phase.wait(60) == Ended(0), said
    assert index_digest(images, tools, digest) == digest
    assert index_digest(images, tools, f"buildkit-{digest.removeprefix('sha256:')[:12]}") == digest


def index_digest(images: Registry, repository: str, reference: str) -> str:
    """As the registry answers for an index of platforms."""
    host, _, name = repository.partition("/")
    url = f"http://{host}/v2/{name}/manifests/{reference}"
    headers = {"Accept": INDEX, **urllib3.make_headers(basic_auth=images.login)}
    answer = urllib3.request("HEAD", url, headers=headers)
    assert answer.status == 200, reference
    assert answer.headers["Content-Type"] in INDEX.split(", ")
    return answer.headers["Docker-Content-Digest"]
