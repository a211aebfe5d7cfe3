"""Builds as people make, change and hide them, with others at it at the same time."""

from __future__ import annotations

import pytest

from chalicelib.domain.build import CODEBUILD, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from chalicelib.errors import Conflict, Forbidden, Invalid, KeyReused, NotFound, Unavailable
from chalicelib.ports import BuildView
from chalicelib.usecases import builds, conflicts, execution, schedule
from tests.factories import make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, Create, end_with_an_image, stored

ADA, BOB = make_user(), make_user("bob")
REQUEST = {"config": NESTED}


def test_two_creators_at_once_get_two_builds(services: FakeServices, create: Create) -> None:
    services.records.before_write.append(create)
    late = create(name="late")

    assert {key.id for key in services.records.builds} == {1, 2}
    assert late.id == 1, "it took its number first"
    assert set(services.queue.take()) == set(services.records.builds)
    project = services.projects.get("ada", "vision")
    assert project is not None
    assert (project.last_build_id, project.live_builds) == (2, 2)


def test_a_build_is_saved_before_it_is_announced(services: FakeServices, create: Create) -> None:
    """With the queue down nobody is told that all is well, and yet the build is not lost."""
    services.queue.is_down = True
    with pytest.raises(Unavailable):
        create()
    services.queue.is_down = False
    services.clock.forward(minutes=6)
    schedule.reconcile(services)

    (build,) = services.records.builds.values()
    assert build.last_status is Status.SCHEDULED


def test_the_same_request_again_is_the_same_build(services: FakeServices, create: Create) -> None:
    create()  # the project
    first, again = (
        builds.create(services, ADA, "ada", "vision", {"config": NESTED}, once="k").build.key for _ in range(2)
    )
    assert first == again
    services.clock.forward(days=15)
    assert builds.create(services, ADA, "ada", "vision", {"config": NESTED}, once="k").build.key != first


def test_a_change_and_a_status_at_once_are_both_kept(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    run = services.codebuild.run_of(key)
    services.codebuild.enter(run, Status.SCHEDULED, Status.BUILDING)
    services.records.before_write.append(lambda: execution.observe(services, CODEBUILD, [run.handle]))
    builds.update(services, ADA, key, {"description": "mine", "tags": ["a"]})

    build = services.records.builds[key]
    assert (build.description, build.tags) == ("mine", ("a",))
    assert build.last_status is Status.BUILDING


def test_a_change_beside_others_that_never_end_is_given_up(services: FakeServices, create: Create) -> None:
    key, other = create(), "other"

    def others_write() -> None:
        services.builds.save(services.records.builds[key])

    for _ in range(conflicts.ATTEMPTS):
        services.records.before_write += [others_write, lambda: None]
    with pytest.raises(Conflict, match="try again"):
        builds.update(services, ADA, key, {"description": other})
    assert services.records.builds[key].description != other


def test_a_stop_and_an_end_at_once_keep_the_end(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    run = services.codebuild.run_of(key)
    services.codebuild.end(run, Outcome.FAILED, "no")
    services.queue.take()
    services.records.before_write.append(lambda: execution.observe(services, CODEBUILD, [run.handle]))
    builds.stop(services, ADA, key)

    assert services.records.builds[key].last_status is Status.FAILED
    assert services.queue.take() == []


def test_a_claim_and_a_stop_at_once_start_nothing(services: FakeServices, create: Create) -> None:
    key = create()
    services.records.before_write.append(lambda: builds.stop(services, ADA, key))
    execution.process(services, key)

    assert services.codebuild.runs == {}
    assert services.records.builds[key].last_status is Status.STOPPED


def test_a_build_deleted_before_it_was_started_never_starts(services: FakeServices, create: Create) -> None:
    key = create()
    builds.archive(services, ADA, key, delete=True)
    execution.process(services, key)

    assert services.codebuild.runs == {}
    with pytest.raises(NotFound):
        builds.get(services, ADA, key)


def test_a_build_deleted_twice_counts_once(services: FakeServices, create: Create) -> None:
    key, _ = create(), create()
    builds.archive(services, ADA, key, delete=True)
    with pytest.raises(NotFound):
        builds.archive(services, ADA, key, delete=True)

    page = builds.page(services, ADA, "ada", "vision", 0, 20)
    assert ([build.key.id for build in page.records], page.count) == ([2], 1)


def test_a_change_of_a_build_that_is_deleted_meanwhile_finds_nothing(services: FakeServices, create: Create) -> None:
    key = create()
    services.records.before_write.append(lambda: builds.archive(services, ADA, key, delete=True))
    with pytest.raises(NotFound):
        builds.update(services, ADA, key, {"description": "late"})


def test_a_name_is_free_again_after_its_build_was_renamed(services: FakeServices, create: Create) -> None:
    key = create(name="it")
    builds.update(services, ADA, key, {"name": "other"})
    assert services.records.builds[create(name="it")].name == "it"


def test_a_read_that_lags_refuses_nobody(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build was made, and its project made public, a moment ago."""
    key, read = create(), services.builds.open
    for before in (None, replace(make_project(), is_public=False)):

        def lagging(key: BuildKey, viewer: str, *, may_lag: bool = False) -> BuildView | None:
            opened = read(key, viewer)
            if may_lag and opened is not None:
                return replace(opened, project=before) if before else None  # noqa: B023 - called within this round
            return opened

        monkeypatch.setattr(services.builds, "open", lagging)
        assert builds.look(services, BOB, key) == read(key, "bob")


@pytest.mark.parametrize(("examined", "is_minimum"), [(1, True), (2, True), (3, False)])
def test_a_page_says_where_not_all_builds_were_looked_at(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch, examined: int, is_minimum: bool
) -> None:
    monkeypatch.setattr(builds, "MAX_EXAMINED", examined)
    for _ in range(2):
        create()
    page = builds.page(services, ADA, "ada", "vision", 0, 20, query="status:created")
    assert (page.count, page.is_minimum) == (min(examined, 2), is_minimum)
    assert not builds.page(services, ADA, "ada", "vision", 0, 20).is_minimum


def test_bookmarks_are_each_readers_own(services: FakeServices, create: Create) -> None:
    first, second = create(), create()
    builds.bookmark(services, BOB, first)
    builds.bookmark(services, BOB, first)

    assert builds.page(services, BOB, "ada", "vision", 0, 20).bookmarked == {first}
    assert builds.page(services, ADA, "ada", "vision", 0, 20).bookmarked == set()
    with pytest.raises(NotFound):
        builds.unbookmark(services, BOB, second)
    builds.unbookmark(services, BOB, first)
    builds.unbookmark(services, BOB, first)
    assert not builds.get(services, BOB, first).bookmarked


def test_readers_change_nothing(services: FakeServices, create: Create) -> None:
    key = create()
    before = services.written()
    for change in (builds.stop, builds.archive, builds.restore, builds.invalidate):
        with pytest.raises(Forbidden):
            change(services, BOB, key)
    with pytest.raises(Forbidden):
        builds.update(services, BOB, key, {"description": "bob's"})
    assert services.written() == before


def test_pages_are_cut_from_the_newest_change(services: FakeServices, create: Create) -> None:
    for _ in range(5):
        services.clock.forward(seconds=1)
        create()
    services.clock.forward(seconds=1)
    builds.update(services, ADA, BuildKey("ada", "vision", 2), {"description": "touched"})

    pages = [builds.page(services, ADA, "ada", "vision", offset, 2) for offset in (0, 2, 4, 6)]
    assert [[build.key.id for build in page.records] for page in pages] == [[2, 5], [4, 3], [1], []]
    assert {page.count for page in pages} == {5}


# Repeated requests


@pytest.mark.parametrize("fate", ["it waits", "it ended", "archived", "deleted"])
def test_a_repeated_request_is_answered_with_its_build_whatever_became_of_it(services: FakeServices, fate: str) -> None:
    services.projects.add(make_project())
    made = builds.create(services, ADA, "ada", "vision", REQUEST, once="k")
    if fate == "it ended":
        builds.stop(services, ADA, made.build.key)
    if fate in ("archived", "deleted"):
        builds.archive(services, ADA, made.build.key, delete=fate == "deleted")

    again = builds.create(services, ADA, "ada", "vision", REQUEST, once="k")

    assert (again.is_replay, again.build) == (True, services.builds.get(made.build.key))
    assert len(services.records.builds) == 1


def test_a_key_with_another_request_is_refused(services: FakeServices) -> None:
    services.projects.add(make_project())
    builds.create(services, ADA, "ada", "vision", REQUEST, once="k")
    with pytest.raises(KeyReused):
        builds.create(services, ADA, "ada", "vision", {**REQUEST, "description": "another"}, once="k")
    assert len(services.records.builds) == 1


@pytest.mark.parametrize("fate", ["it waits", "it is started", "it ended", "it runs elsewhere"])
def test_a_repeated_request_announces_a_build_that_nobody_may_have_heard_of(services: FakeServices, fate: str) -> None:
    services.projects.add(make_project())
    request = {**REQUEST, "is_managed": fate != "it runs elsewhere"}
    key = builds.create(services, ADA, "ada", "vision", request, once="k").build.key
    if fate == "it is started":
        execution.process(services, key)
    if fate == "it ended":
        builds.stop(services, ADA, key)
    services.queue.take()

    builds.create(services, ADA, "ada", "vision", request, once="k")
    assert services.queue.take() == ([key] if fate == "it waits" else [])


def test_two_requests_at_once_with_a_key_get_one_build(services: FakeServices) -> None:
    """The key is stored in the transaction that makes the build. So there is no time at which it is used, and nothing
    can be answered yet."""
    services.projects.add(make_project())
    answers: list[BuildView] = []

    def create() -> None:
        answers.append(builds.create(services, ADA, "ada", "vision", REQUEST, once="k"))

    services.records.before_write.append(create)
    create()
    assert [each.is_replay for each in answers] == [False, True]
    assert [each.build for each in answers] == [*services.records.builds.values()] * 2


# Invalidated layers


def test_after_an_invalidation_builds_are_made_afresh_until_one_has_succeeded(
    services: FakeServices, create: Create
) -> None:
    first = create()
    builds.invalidate(services, ADA, first)
    execution.process(services, first)
    end_with_an_image(services, first)  # with the layers of others
    execution.process(services, first)
    failing, fresh = create(), create()
    execution.process(services, failing)
    services.codebuild.end(services.codebuild.run_of(failing), Outcome.FAILED, "no")
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(failing).handle])
    assert services.records.builds[create()].nocache

    execution.process(services, fresh)
    services.push(services.records.builds[fresh])
    services.codebuild.end(services.codebuild.run_of(fresh), Outcome.SUCCEEDED)
    execution.observe(services, CODEBUILD, [services.codebuild.run_of(fresh).handle])

    made = [services.records.builds[key].nocache for key in (first, failing, fresh, create())]
    assert made == [False, True, True, False]


def test_a_build_that_was_made_afresh_by_its_own_wish_changes_nothing_of_the_project(
    services: FakeServices, create: Create
) -> None:
    key = create(config={**NESTED, "build": {"image": "python:3.7-slim", "nocache": True}})
    project = services.records.projects["ada", "vision"]
    execution.process(services, key)
    end_with_an_image(services, key)
    execution.process(services, key)
    assert stored(services, key).nocache
    assert services.records.projects["ada", "vision"] == project


def test_an_older_build_invalidated_later_makes_no_newer_layers_valid(services: FakeServices, create: Create) -> None:
    first = create()
    builds.invalidate(services, ADA, first)
    fresh, _ = create(), create()
    builds.invalidate_all(services, ADA, "ada", "vision")
    builds.invalidate(services, ADA, first)
    execution.process(services, fresh)
    end_with_an_image(services, fresh)
    execution.process(services, fresh)

    assert stored(services, fresh).last_status is Status.SUCCEEDED
    assert stored(services, create()).nocache, "the third build is newer than the fresh one"


def test_a_name_that_is_taken_away_is_free_again(services: FakeServices, create: Create) -> None:
    key = create(name="it")
    builds.update(services, ADA, key, {"name": None})
    assert services.records.builds[create(name="it")].name == "it"


def test_a_preview_is_the_dockerfile_that_a_create_would_build_and_stores_nothing(services: FakeServices) -> None:
    services.projects.add(make_project())
    shown = builds.preview(services, ADA, "ada", "vision", REQUEST)
    assert not services.records.builds
    made = builds.create(services, ADA, "ada", "vision", REQUEST)
    assert shown is not None
    assert shown == made.body.dockerfile

    refused = {"config": {**NESTED, "build": {"image": "two words"}}}
    for ask in (builds.preview, builds.create):
        with pytest.raises(Invalid) as error:
            ask(services, ADA, "ada", "vision", refused)
        assert "image" in str(error.value)
    with pytest.raises(Forbidden):
        builds.preview(services, BOB, "ada", "vision", REQUEST)


def test_a_preview_for_another_service_checks_the_specification_and_needs_no_code(services: FakeServices) -> None:
    """So a client learns what is wrong before it uploads."""
    services.projects.add(make_project())
    asked = {"config": {**NESTED, "build": {"dockerfile": "Dockerfile"}}}
    with pytest.raises(Invalid, match="need code"):
        builds.preview(services, ADA, "ada", "vision", asked)
    assert builds.preview(services, ADA, "ada", "vision", {**asked, "is_managed": False}) is None

    with pytest.raises(Invalid, match="steps"):
        wrong = {"config": {**NESTED, "build": {"dockerfile": "Dockerfile", "steps": []}}, "is_managed": False}
        builds.preview(services, ADA, "ada", "vision", wrong)


def test_a_refusal_takes_no_number(services: FakeServices, create: Create) -> None:
    for build in ({"image": "x", "image_tags": ["nope"]}, {"image": "x", "build_steps": ["a\nb"]}):
        with pytest.raises(Invalid):
            create(config={"version": 1, "kind": "build", "build": build})
    assert create().id == 1
