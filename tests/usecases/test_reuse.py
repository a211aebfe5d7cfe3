"""Builds that take the image of an equal one."""

from __future__ import annotations

import pytest

from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.record import replace
from chalicelib.usecases import builds, execution, projects
from tests.factories import DIGEST, SPEC, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, Create, end_with_an_image, stored, tick, upload

ADA = make_user()
BASE = SPEC["image"]


@pytest.fixture
def made(services: FakeServices, create: Create) -> Build:
    """A build that has succeeded, and may be reused."""
    services.registry.bases[BASE] = "sha256:base"
    key = create(reuse=True)
    finish(services, key)
    return stored(services, key)


def finish(services: FakeServices, key: BuildKey) -> None:
    execution.process(services, key)
    end_with_an_image(services, key)
    execution.process(services, key)
    services.queue.take()


def why(services: FakeServices, key: BuildKey) -> str:
    build = stored(services, key)
    assert (build.last_status, build.reused_from) == (Status.CREATED, None)
    return str(build.history[0].message)


def test_an_equal_build_succeeds_at_once_with_the_same_image(
    services: FakeServices, create: Create, made: Build
) -> None:
    assert made.history[0].message == (
        "No image was reused. No valid build of the project is equal to it and has its image."
    )
    build = stored(services, create(reuse=True))

    assert (build.last_status, build.reused_from) == (Status.SUCCEEDED, made.key.id)
    assert (build.image, build.image_digest, build.layer_bytes) == (made.image, DIGEST, made.layer_bytes)
    assert (build.history[-1].message, build.duration_seconds) == (
        "It has the image of build 1, which is made of the same.",
        0,
    )
    assert services.queue.take() == []
    execution.process(services, build.key)
    assert len(services.codebuild.runs) == 1, "nothing ran"


def test_tags_move_to_the_image_that_is_reused(services: FakeServices, create: Create) -> None:
    services.registry.bases[BASE] = "sha256:base"
    content = {**NESTED, "build": {**NESTED["build"], "image_tags": ["latest"]}}  # type: ignore[dict-item]
    first = create(config=content, reuse=True)
    finish(services, first)
    second = stored(services, create(config=content, reuse=True))
    services.clock.forward(minutes=6)
    tick(services)
    assert second.reused_from == first.id
    assert stored(services, second.key).image_tags_moved
    assert stored(services, second.key).check_at is None


def test_a_project_may_ask_for_reuse_and_a_build_may_refuse_it(
    services: FakeServices, create: Create, made: Build
) -> None:
    projects.update(services, ADA, "ada", "vision", {"reuse": True})
    assert stored(services, create()).reused_from == made.key.id
    refused = stored(services, create(reuse=False))
    assert (refused.reused_from, refused.history[0].message) == (None, None)


def test_who_does_not_ask_gets_a_build_of_its_own(services: FakeServices, create: Create, made: Build) -> None:
    assert stored(services, create()).last_status is Status.CREATED
    assert stored(services, create(is_managed=False, reuse=True)).last_status is Status.CREATED


@pytest.mark.parametrize("change", ["code", "base", "archived", "deleted", "invalidated", "no image", "other image"])
def test_what_makes_another_image_or_took_the_first_away_prevents_it(
    services: FakeServices, create: Create, made: Build, change: str
) -> None:
    match change:
        case "code":
            upload(services)
        case "base":
            services.registry.bases[BASE] = "sha256:moved"
        case "archived" | "deleted":
            builds.archive(services, ADA, made.key, delete=change == "deleted")
        case "invalidated":
            builds.invalidate(services, ADA, made.key)
            finish(services, create())  # afresh
        case "no image":
            del services.registry.images[made.image]
        case "other image":
            services.registry.images[made.image] = "sha256:other"
    assert "No valid build of the project is equal" in why(services, create(reuse=True))


def test_a_build_that_failed_or_runs_is_not_reused(services: FakeServices, create: Create) -> None:
    services.registry.bases[BASE] = "sha256:base"
    create(reuse=True)
    assert "No valid build" in why(services, create(reuse=True))


def test_a_build_without_cached_layers_runs_and_may_be_reused(services: FakeServices, create: Create) -> None:
    services.registry.bases[BASE] = "sha256:base"
    fresh = create(config={**NESTED, "build": {**NESTED["build"], "nocache": True}}, reuse=True)  # type: ignore[dict-item]
    assert "without cached layers" in why(services, fresh)
    finish(services, fresh)
    assert stored(services, create(reuse=True)).reused_from == fresh.id


def test_a_base_that_nobody_knows_is_named(services: FakeServices, create: Create) -> None:
    assert why(services, create(reuse=True)) == f"No image was reused. No registry says what `{BASE}` is."
    services.registry.is_down = True
    assert "did not answer" in why(services, create(reuse=True))


def test_a_digest_in_the_dockerfile_is_taken_at_its_word(services: FakeServices, create: Create) -> None:
    fixed = {**NESTED, "build": {"image": f"{BASE}@{DIGEST}"}}
    first = create(config=fixed, reuse=True)
    finish(services, first)
    assert stored(services, create(config=fixed, reuse=True)).reused_from == first.id


def test_images_of_other_projects_are_out_of_reach(services: FakeServices, create: Create, made: Build) -> None:
    projects.create(services, ADA, {"name": "other", "reuse": True})
    other = builds.create(services, ADA, "ada", "other", {"config": NESTED}).build
    assert other.reused_from is None
    from_another = {**NESTED, "build": {"image": made.image}}
    services.queue.take()
    private = builds.create(services, ADA, "ada", "other", {"config": from_another}).build
    assert f"No registry says what `{made.image}` is." in str(private.history[0].message)


def test_the_newest_equal_builds_alone_are_asked_for(services: FakeServices, create: Create, made: Build) -> None:
    for _ in range(builds.MAX_EQUAL):
        newer = stored(services, create(reuse=True))
        services.builds.save(replace(newer, image_digest="sha256:lost"))
    assert "No valid build" in why(services, create(reuse=True))
