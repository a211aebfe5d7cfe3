"""The tags that builds ask for: the newest build that succeeded with one has it, whoever comes when."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from unittest import mock

import pytest

from chalicelib.domain.build import CODEBUILD, TAGS_MOVED_WITHIN, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Invalid
from chalicelib.usecases import builds, execution, logs
from tests.factories import make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, Create, end_with_an_image, stored, tick
from tests.usecases.test_interruptions import dies, dying, ends_at_every_call


def started(services: FakeServices, create: Create, *tags: str) -> BuildKey:
    """A build that asks for these tags runs."""
    build = {**NESTED["build"], "image_tags": list(tags)}  # type: ignore[dict-item]
    key = create(config={**NESTED, "build": build})
    execution.process(services, key)
    return key


def succeeds(services: FakeServices, key: BuildKey) -> None:
    services.push(stored(services, key), f"sha256:{key.id:064x}")
    services.codebuild.end(services.codebuild.run_of(key), Outcome.SUCCEEDED)
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(key).handle])


def holder(services: FakeServices, key: BuildKey, tag: str) -> str | None:
    """The digest that a tag of the build's repository names."""
    found = services.registry.find(f"{stored(services, key).image.rpartition(':')[0]}:{tag}")
    return None if found is None else found.digest


def test_a_success_moves_its_tags_at_once(services: FakeServices, create: Create) -> None:
    first, second = started(services, create, "latest", "v1"), started(services, create, "latest")

    succeeds(services, first)
    assert holder(services, first, "latest") == holder(services, first, "v1") == stored(services, first).image_digest
    succeeds(services, second)
    assert holder(services, first, "latest") == stored(services, second).image_digest
    assert holder(services, first, "v1") == stored(services, first).image_digest


def test_a_success_without_tags_moves_none(services: FakeServices, create: Create) -> None:
    key = started(services, create)
    succeeds(services, key)
    assert not stored(services, key).image_tags_moved


def test_who_moves_a_tag_reads_newer_builds_alone(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [started(services, create, "latest") for _ in range(3)]
    succeeds(services, keys[0])
    succeeds(services, keys[1])
    build, get = stored(services, keys[1]), mock.Mock(wraps=services.builds.get)
    monkeypatch.setattr(services.builds, "get", get)

    execution.move_tags(services, build)

    assert {call.args for call in get.call_args_list} == {(keys[2],)}


@pytest.mark.parametrize("order", [*permutations((0, 1, 2))])
def test_the_newest_that_succeeded_has_the_tag_whoever_ends_first(
    services: FakeServices, create: Create, order: tuple[int, ...]
) -> None:
    keys = [started(services, create, "latest") for _ in order]

    for number in order:
        succeeds(services, keys[number])

    assert holder(services, keys[0], "latest") == stored(services, keys[2]).image_digest


def test_a_build_that_fails_moves_nothing(services: FakeServices, create: Create) -> None:
    first, second = started(services, create, "latest"), started(services, create, "latest")
    succeeds(services, first)
    services.codebuild.end(services.codebuild.run_of(second), Outcome.TIMED_OUT)
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(second).handle])

    assert stored(services, second).last_status is Status.FAILED
    assert holder(services, first, "latest") == stored(services, first).image_digest


def test_a_tick_moves_what_was_not_moved_and_takes_nothing_back(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = started(services, create, "latest", "v1"), started(services, create, "latest")
    monkeypatch.setattr(execution, "move_tags", lambda *_: None)  # its function ended before
    succeeds(services, first)
    monkeypatch.undo()
    succeeds(services, second)

    services.clock.forward(minutes=6)
    tick(services)

    assert holder(services, first, "v1") == stored(services, first).image_digest
    assert holder(services, first, "latest") == stored(services, second).image_digest
    assert [stored(services, key).image_tags_moved for key in (first, second)] == [True, True]


def test_an_end_between_any_two_calls_is_made_good(services: FakeServices, create: Create) -> None:
    def story(calls: int) -> bool:
        first, second = started(services, create, "latest"), started(services, create, "latest")
        succeeds(services, first)
        end_with_an_image(services, second)
        handle = services.codebuild.run_of(second).handle
        died = dies(lambda: execution.observe(dying(services, calls), CODEBUILD, [handle]))
        services.clock.forward(minutes=6)
        tick(services)
        services.clock.forward(minutes=1)
        tick(services)

        assert stored(services, second).last_status is Status.SUCCEEDED
        assert holder(services, second, "latest") == stored(services, second).image_digest
        assert stored(services, second).image_tags_moved
        return died

    ends_at_every_call(story)


def test_a_registry_that_refuses_a_tag_for_a_day_is_left_alone(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = started(services, create, "latest")
    services.registry.refuses_tags = True
    succeeds(services, key)
    assert stored(services, key).last_status is Status.SUCCEEDED  # the image is there

    services.clock.forward(minutes=1)
    tick(services)
    assert stored(services, key).check_at is not None
    services.clock.now += TAGS_MOVED_WITHIN + timedelta(minutes=15)
    tick(services)

    assert (stored(services, key).check_at, stored(services, key).image_tags_moved) == (None, False)


def test_an_older_build_gives_no_tag_to_a_newer_one_that_was_deleted(services: FakeServices, create: Create) -> None:
    older, newer = started(services, create, "latest"), started(services, create, "latest")
    services.registry.refuses_tags = True
    succeeds(services, newer)
    builds.archive(services, make_user(), newer, delete=True)
    services.registry.refuses_tags = False

    succeeds(services, older)

    assert holder(services, older, "latest") == stored(services, older).image_digest


def test_a_registry_that_refuses_a_tag_does_not_keep_the_log_waiting(services: FakeServices, create: Create) -> None:
    key = started(services, create, "latest")
    services.registry.refuses_tags = True
    succeeds(services, key)
    services.logs.write(stored(services, key).log or "", "a line")

    services.clock.forward(minutes=6)
    tick(services)

    assert stored(services, key).stored_log_bytes is not None
    for refuses in (True, False):
        services.registry.refuses_tags = refuses
        services.clock.forward(minutes=16)
        tick(services)
    assert holder(services, key, "latest") == stored(services, key).image_digest
    assert stored(services, key).check_at is None


def test_who_follows_a_build_without_a_log_does_not_wait_for_its_tags(services: FakeServices, create: Create) -> None:
    key = started(services, create, "latest")
    services.registry.refuses_tags = True
    succeeds(services, key)
    services.builds.save(replace(stored(services, key), log=None))

    assert logs.read(services, make_user(), key, "0").is_complete
    assert stored(services, key).check_at is not None


def test_a_deleted_build_does_not_wait_for_its_tags(services: FakeServices, create: Create) -> None:
    key = started(services, create, "latest")
    services.registry.refuses_tags = True
    succeeds(services, key)
    builds.archive(services, make_user(), key, delete=True)
    services.registry.refuses_tags = False

    services.clock.forward(minutes=6)
    tick(services)

    assert stored(services, key).check_at is None  # the cleanup may purge it
    assert holder(services, key, "latest") is None


@pytest.mark.parametrize("tag", ["latest", "v", "v1.2", "main", "develop", "release-1"])
def test_tags_within_the_patterns_are_allowed(services: FakeServices, create: Create, tag: str) -> None:
    assert stored(services, started(services, create, tag)).image_tags == (tag,)


@pytest.mark.parametrize("tag", ["latest2", "Latest", "1v", "release", "main-1"])
def test_tags_outside_them_are_not(services: FakeServices, create: Create, tag: str) -> None:
    with pytest.raises(Invalid):
        started(services, create, tag)


def test_a_tag_outside_the_patterns_is_refused_in_words(services: FakeServices, create: Create) -> None:
    with pytest.raises(Invalid) as refusal:
        started(services, create, "latest", "nightly")

    assert refusal.value.sentences() == [
        "`image_tags` may not have nightly; allowed here are latest, v*, main, dev*, release-*."
    ]
    elsewhere = {**NESTED, "build": {"image": "x", "image_tags": ["nightly"]}}
    made = builds.create(services, make_user(), "ada", "vision", {"config": elsewhere, "is_managed": False})
    assert made.build.image_tags == ()  # nobody makes its image here
