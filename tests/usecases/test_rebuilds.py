"""A build that is made again: of the same specification and the same code, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.record import replace
from chalicelib.errors import Forbidden, Invalid, KeyReused, NotFound
from chalicelib.ports import BuildView
from chalicelib.usecases import builds, sources
from tests.factories import SPEC, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import Create, stored, upload

ADA = make_user()
COMMIT = "c0ffee" * 6 + "c0ff"


def rebuild(services: FakeServices, key: BuildKey, **fields: Any) -> Build:
    return builds.create(services, ADA, key.owner, key.project, fields, rebuild_of=key.id).build


def test_it_is_made_of_what_the_other_was_made_of(services: FakeServices, create: Create) -> None:
    """Not of the code that the project has by then."""
    upload(services)
    content = {**SPEC, "image_tags": ["latest"], "build_args": {"A": "1"}}
    key = create(config=None, content=json.dumps(content), description="d", tags=["t"], name="it")
    upload(services, {"other": "x"})

    again = rebuild(services, key)

    first, bodies = stored(services, key), services.records.bodies
    same = ("source", "commit", "backend", "description", "tags", "image_tags", "resources", "placement", "nocache")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
    assert bodies[again.key] == bodies[key]
    assert (again.rebuild_of, again.name, again.attempt, again.last_status) == (1, None, 0, "created")
    assert services.queue.take() == [key, again.key]


def test_the_older_layout_means_the_same_again(services: FakeServices, create: Create) -> None:
    key = create()
    again = rebuild(services, key)
    assert services.records.bodies[again.key].dockerfile == services.records.bodies[key].dockerfile


def test_it_uses_no_cached_layer_if_that_is_asked_for(services: FakeServices, create: Create) -> None:
    assert rebuild(services, create(), nocache=True).nocache
    with pytest.raises(Invalid, match="Must be true or false"):
        rebuild(services, BuildKey("ada", "vision", 1), nocache="yes")


def test_a_git_build_is_made_of_its_commit(services: FakeServices, create: Create) -> None:
    sources.use_git(services, ADA, "ada", "vision", {"git_url": "https://git.test/x"})
    key = create()
    unknown = rebuild(services, key)
    services.records.builds[key] = replace(stored(services, key), commit=COMMIT)
    known = rebuild(services, key)

    revisions = [each.source.git_revision for each in (unknown, known) if each.source]
    assert revisions == ["origin/HEAD", COMMIT]
    assert (unknown.commit, known.commit) == (None, COMMIT)


def test_a_repository_that_the_project_has_no_more_is_not_asked(services: FakeServices, create: Create) -> None:
    """Its host would be shown the token for another."""
    sources.use_git(services, ADA, "ada", "vision", {"git_url": "https://git.test/x"})
    key = create()
    sources.forget_git(services, ADA, "ada", "vision")
    with pytest.raises(Invalid, match="does not use any more"):
        rebuild(services, key)


def test_what_a_build_may_say_today_counts(services: FakeServices, create: Create) -> None:
    key = create(config=None, content=json.dumps({**SPEC, "image_tags": ["latest"]}))
    services.settings = replace(services.settings, movable_tags="main")
    with pytest.raises(Invalid, match="image_tags"):
        rebuild(services, key)
    assert len(services.records.builds) == 1


def test_a_build_that_ran_elsewhere_is_not_made_here(services: FakeServices, create: Create) -> None:
    with pytest.raises(Invalid, match="ran elsewhere"):
        rebuild(services, create(is_managed=False))


def test_nobody_makes_again_what_he_may_not_make_or_see(services: FakeServices, create: Create) -> None:
    key = create()
    with pytest.raises(Forbidden):
        builds.create(services, make_user("bob"), "ada", "vision", {}, rebuild_of=key.id)
    builds.archive(services, ADA, key)
    with pytest.raises(NotFound):
        rebuild(services, key)


def test_a_key_makes_one(services: FakeServices, create: Create) -> None:
    create(), create()

    def made(other: int, **fields: Any) -> BuildView:
        fields = {**fields, "rebuild_of": other}
        return builds.create(services, ADA, "ada", "vision", fields, once="ada:k", rebuild_of=other)

    assert made(1).build.key == made(1).build.key == BuildKey("ada", "vision", 3)
    assert made(1).is_replay
    for other in ({"other": 2}, {"other": 1, "nocache": True}):
        with pytest.raises(KeyReused):
            made(**other)
