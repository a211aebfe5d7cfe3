"""Which builds can be equal to others, and to which."""

from __future__ import annotations

from typing import Any

import pytest

from chalicelib.domain.build import Source
from chalicelib.domain.record import replace
from chalicelib.domain.reuse import bases_of, recipe_of
from chalicelib.errors import Invalid
from tests.factories import NOW, make_body, make_build

UPLOAD = Source(code_sha256="a" * 64, uploaded_at=NOW)
STAGES = """
# FROM a comment
ARG VERSION=1
FROM --platform=linux/amd64 golang:1.22 AS Make
COPY --from=alpine:3 /etc/passwd /
RUN --mount=type=cache,target=/x \\
    --mount=type=bind,from=ghcr.io/team/tools:2,target=/t go build
from scratch
COPY --from=make /app /app
COPY --from=0 /b /b
FROM make
"""


def bases(dockerfile: str | None, source: Source | None = UPLOAD) -> list[str]:
    return bases_of(make_build(source=source), make_body(dockerfile=dockerfile))


def test_bases_are_what_the_dockerfile_names_but_its_own_stages() -> None:
    assert bases(STAGES) == ["golang:1.22", "alpine:3", "ghcr.io/team/tools:2"]
    assert bases("FROM python:3.12\r\nRUN echo $PATH\n") == ["python:3.12"]


@pytest.mark.parametrize(
    ("dockerfile", "why"),
    [
        (None, "only known where its code is fetched"),
        ("ARG V\nFROM python:$V", "names no image literally"),
        ("FROM --platform=$BUILDPLATFORM python:3", "names no image literally"),
        ("FROM python:3 AS", "names no image literally"),
        ("FROM python:3\nCOPY --from=$X /a /b", "names no image literally"),
        ("# syntax=docker/dockerfile:1\nFROM a", "Its Dockerfile has `# syntax=`"),
        ("# escape=`\nFROM a", "Its Dockerfile has `# escape=`"),
        ("FROM a\nRUN <<END\nFROM b\nEND", "Its Dockerfile has `<<`"),
        ("FROM a\nADD https://example.com/x /x", "Its Dockerfile has `ADD https://`"),
        ("\n".join(f"FROM a{number}" for number in range(6)), "more than 5 images"),
    ],
)
def test_what_may_differ_when_it_is_repeated_says_why(dockerfile: str | None, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        bases(dockerfile)


@pytest.mark.parametrize("revision", ["origin/HEAD", "origin/main", "v1", "a" * 39])
def test_code_of_git_is_fixed_by_a_whole_hash_alone(revision: str) -> None:
    source = Source(git_url="https://example.com/code", git_revision=revision)
    with pytest.raises(Invalid, match="branch or tag"):
        bases("FROM a", source)
    assert bases("FROM a", replace(source, git_revision="a" * 40)) == ["a"]


def recipe(digest: str = "sha256:1", platform: str = "linux/amd64", **changes: Any) -> str:
    build = make_build(source=changes.pop("source", UPLOAD), image_tags=changes.pop("image_tags", ()))
    body = make_body(build_args={"A": "1"}, secrets={"npm": "token"})
    return recipe_of(build, replace(body, **changes), platform, {"python:3": digest})


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:2"},
        {"platform": "linux/arm64"},
        {"dockerfile": "FROM a"},
        {"build_args": {"A": "2"}},
        {"secrets": {"npm": "other"}},
        {"source": None},
        {"source": replace(UPLOAD, code_sha256="b" * 64)},
        {"source": replace(UPLOAD, context="app")},
        {"image_tags": ("v1",)},  # a label of the image
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_goes_into_an_image_changes_its_recipe(change: dict[str, Any]) -> None:
    assert recipe(**change) != recipe() == recipe(content="other words")
