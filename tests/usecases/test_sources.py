"""Where a project's code comes from, and what a build takes of it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.domain.build import Source
from chalicelib.domain.spec import parse_content
from chalicelib.errors import Forbidden, Invalid, NotFound, TooLarge
from chalicelib.usecases import builds, sources
from tests.factories import NOW, SETTINGS, SPEC, make_archive, make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import FILES, stored, upload

ADA = make_user()
URL = "https://git.test/x"


@pytest.fixture
def place(services: FakeServices) -> FakeServices:
    services.projects.add(make_project())
    return services


def source(services: FakeServices, **changes: Any) -> tuple[Source | None, str | None, str | None]:
    project = services.projects.get("ada", "vision")
    assert project is not None
    spec = {name: value for name, value in {**SPEC, **changes}.items() if value is not None}
    return sources.source_of(services, project, parse_content(spec))


def test_the_same_code_is_kept_once(place: FakeServices) -> None:
    assert upload(place) == upload(place)
    assert len(place.sources.archives) == 1


def test_a_build_takes_the_newest_upload_and_its_special_files(place: FakeServices) -> None:
    sha256 = upload(place)
    taken, commit, dockerfile = source(place)
    assert (taken, commit) == (Source(code_sha256=sha256, uploaded_at=NOW), sha256[:40])
    assert "COPY build/requirements.txt /code\n" in str(dockerfile)
    assert "COPY build/setup.sh /code\n" in str(source(place, context="app")[2])


def test_a_dockerfile_of_the_code_is_taken_as_it_is(place: FakeServices) -> None:
    upload(place)
    assert source(place, image=None, dockerfile="app/Dockerfile")[2] == "FROM x\n"
    with pytest.raises(Invalid, match="no file"):
        source(place, image=None, dockerfile="Dockerfile")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
def test_linked_dockerfiles_and_contexts_are_followed(place: FakeServices, kind: bytes) -> None:
    packed = io.BytesIO(gzip.decompress(make_archive(FILES)))
    with tarfile.open(fileobj=packed, mode="a") as tar:
        for name, of_kind, target in (("Dockerfile", kind, "app/Dockerfile"), ("now", tarfile.SYMTYPE, "app")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = of_kind, target
            tar.addfile(member)
    sources.upload(place, ADA, "ada", "vision", gzip.compress(packed.getvalue()))
    assert source(place, image=None, dockerfile="Dockerfile")[2] == "FROM x\n"
    assert source(place, image=None, dockerfile="now/Dockerfile")[2] == "FROM x\n"
    assert "COPY build/setup.sh /code\n" in str(source(place, context="now")[2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-8] + b"\1\2\3\4" + good[-4:],
        lambda good: good[:-4],
        lambda good: good[: len(good) // 2],
        lambda good: good + b"garbage",
        lambda good: good + gzip.compress(b"garbage"),
    ],
    ids=["checksum", "cut at its end", "cut", "garbage behind", "more behind"],
)
def test_a_damaged_archive_does_not_replace_good_code(place: FakeServices, damage: Callable[[bytes], bytes]) -> None:
    sha256 = upload(place)
    with pytest.raises(Invalid):
        sources.upload(place, ADA, "ada", "vision", damage(make_archive({"a": "newer"})))
    assert source(place)[1] == sha256[:40]


@pytest.mark.parametrize(
    "asked",
    [{"image": None, "dockerfile": "D"}, {"context": "a"}, {"commit": "abc"}, {"branch": "main"}],
    ids=str,
)
def test_without_code_nothing_can_be_asked_of_it(place: FakeServices, asked: dict[str, Any]) -> None:
    assert source(place)[0] is None
    with pytest.raises(Invalid, match="the project has none"):
        source(place, **asked)


def test_another_commit_than_the_uploaded_one_is_refused(place: FakeServices) -> None:
    sha256 = upload(place)
    assert source(place, commit=sha256[:40])[1] == sha256[:40]
    with pytest.raises(Invalid, match="has one commit"):
        source(place, commit="abc")


def test_git_is_checked_out_where_the_build_runs(place: FakeServices) -> None:
    assert sources.use_git(place, ADA, "ada", "vision", {"git_url": URL})[1] is True
    assert sources.use_git(place, ADA, "ada", "vision", {"git_url": URL})[1] is False
    assert source(place)[0] == Source(git_url=URL, git_revision="origin/HEAD")
    assert source(place, branch="main")[0] == Source(git_url=URL, git_revision="origin/main")
    assert source(place, commit="abc")[1] == "abc"


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "x",
        "http://a/b",
        "git@a:b",
        "ssh://a/b",
        "https://u:p@a/b",
        "https://a",
        "https://a/b?c",
        "file:///x",
        "https://a/b c",
        "https://a:x/b",
        "ext::sh -c x",
        "--upload-pack=x",
        "https://a/b\n",
    ],
)
def test_only_plain_https_addresses_are_code(place: FakeServices, url: Any) -> None:
    with pytest.raises(Invalid):
        sources.use_git(place, ADA, "ada", "vision", {"git_url": url})


def test_code_comes_from_one_place_only(place: FakeServices) -> None:
    upload(place)
    with pytest.raises(Forbidden):
        sources.use_git(place, ADA, "ada", "vision", {"git_url": URL})

    place.projects.add(make_project(name="other"))
    sources.use_git(place, ADA, "ada", "other", {"git_url": URL})
    with pytest.raises(Forbidden):
        sources.upload(place, ADA, "ada", "other", make_archive(FILES))


def test_an_address_can_be_corrected_until_a_build_was_made(place: FakeServices) -> None:
    sources.use_git(place, ADA, "ada", "vision", {"git_url": URL + "y"})
    assert sources.use_git(place, ADA, "ada", "vision", {"git_url": URL})[1] is True
    builds.create(place, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    with pytest.raises(Invalid, match=f"had their code from {URL}: DELETE that address first"):
        sources.use_git(place, ADA, "ada", "vision", {"git_url": URL + "y"})


def test_an_address_can_be_deleted_and_builds_keep_theirs(place: FakeServices) -> None:
    sources.use_git(place, ADA, "ada", "vision", {"git_url": URL})
    built = builds.create(place, ADA, "ada", "vision", {"content": json.dumps(SPEC)}).build
    for _ in range(2):
        sources.forget_git(place, ADA, "ada", "vision")
    assert source(place)[0] is None
    kept = stored(place, built.key).source
    assert kept is not None
    assert kept.git_url == URL
    upload(place)
    assert source(place)[1] is not None


def test_an_offered_upload_becomes_the_code_when_completed(place: FakeServices) -> None:
    offer = sources.offer(place, ADA, "ada", "vision")
    with pytest.raises(NotFound):
        sources.complete(place, ADA, "ada", "vision", offer.id)
    place.sources.upload(offer, make_archive(FILES))
    assert sources.complete(place, ADA, "ada", "vision", offer.id).code is not None
    with pytest.raises(NotFound):
        sources.complete(place, ADA, "ada", "vision", "../other")


def test_an_offered_upload_beyond_the_limit_is_refused(place: FakeServices) -> None:
    from chalicelib.domain.record import replace

    place.settings = replace(SETTINGS, max_upload_bytes=10)
    offer = sources.offer(place, ADA, "ada", "vision")
    place.sources.upload(offer, make_archive(FILES))
    with pytest.raises(TooLarge):
        sources.complete(place, ADA, "ada", "vision", offer.id)


def test_code_can_be_fetched_again(place: FakeServices) -> None:
    with pytest.raises(NotFound):
        sources.download_url(place, ADA, "ada", "vision", None)
    sha256 = upload(place)
    assert sha256 in sources.download_url(place, ADA, "ada", "vision", None)
    assert sha256 in sources.download_url(place, ADA, "ada", "vision", sha256[:40])
    builds.create(place, ADA, "ada", "vision", {"content": json.dumps(SPEC)})
    assert upload(place, {"a": "newer"}) != sha256
    assert sha256 in sources.download_url(place, ADA, "ada", "vision", sha256[:40])  # a build has it
    place.projects.add(make_project(name="other"))
    with pytest.raises(NotFound):
        sources.download_url(place, ADA, "ada", "other", sha256[:40])
    with pytest.raises(NotFound):
        sources.download_url(place, ADA, "ada", "vision", "abc")
