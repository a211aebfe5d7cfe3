"""What is told of builds, once it is stored."""

from __future__ import annotations

import json

import pytest

from chalicelib.domain.build import Build, Status, StatusEntry
from chalicelib.domain.project import Hook
from chalicelib.domain.record import replace
from chalicelib.errors import Unavailable
from chalicelib.serializers import announcement
from chalicelib.usecases.announcements import announce
from tests.factories import DIGEST, NOW, make_build, make_project
from tests.fakes import FakeServices

ANSWERS = "arn:aws:sqs:eu-west-1:1:answers"
HOOK = Hook("deploy", "https://receiver.test/builds", "h-1")


@pytest.fixture
def telling(services: FakeServices) -> FakeServices:
    services.settings = replace(services.settings, event_bus="default")
    services.projects.add(make_project(hooks=(HOOK, Hook("off", "https://off.test", "h-2", is_disabled=True))))
    return services


def moved(build: Build, *statuses: Status) -> Build:
    """The build after these statuses."""
    count = len(build.history)
    rows = [StatusEntry(count + i, f"{count + i:032x}", each, NOW) for i, each in enumerate(statuses, 1)]
    return replace(build, history=(*build.history, *rows))


def test_each_status_is_told_once_on_the_bus(telling: FakeServices) -> None:
    created = make_build()
    running = moved(created, Status.SCHEDULED, Status.RUNNING)
    announce(telling, None, created, announcement)
    announce(telling, created, running, announcement)
    announce(telling, running, replace(running, handle="run-1"), announcement)
    announce(telling, running, moved(running, Status.SUCCEEDED), announcement)
    types = [told.type for told in telling.event_bus.told]
    assert types == ["build.created", "build.scheduled", "build.running", "build.succeeded"]


def test_without_a_bus_nothing_is_told_on_one(telling: FakeServices) -> None:
    telling.settings = replace(telling.settings, event_bus="")
    announce(telling, None, make_build(), announcement)
    assert telling.event_bus.told == []


def test_an_announcement_has_the_status_and_the_build(telling: FakeServices) -> None:
    before = make_build(Status.RUNNING, tags=("nightly",), image_digest=DIGEST)
    announce(telling, before, moved(before, Status.SUCCEEDED), announcement)
    told = json.loads(telling.event_bus.told[-1].text)
    assert (told["id"], told["type"], told["timestamp"]) == (f"{3:032x}", "build.succeeded", "2024-03-01T12:00:00Z")
    assert (told["data"]["status"]["id"], told["data"]["status"]["status"]) == (3, "succeeded")
    build = told["data"]["build"]
    assert (build["project"], build["id"], build["image_digest"]) == ("ada.vision", 1, DIGEST)
    assert build["tags"] == ["nightly"]


def test_a_change_that_comes_again_is_told_with_the_same_ids(telling: FakeServices) -> None:
    """The bus took one of two; whoever listens knows the first again by its id."""
    created = make_build()
    running = moved(created, Status.SCHEDULED, Status.RUNNING)
    telling.event_bus.takes = 1
    with pytest.raises(Unavailable):
        announce(telling, created, running, announcement)
    telling.event_bus.takes = 2
    announce(telling, created, running, announcement)
    ids = [told.id for told in telling.event_bus.told]
    assert ids == [running.history[1].uuid, running.history[1].uuid, running.history[2].uuid]


@pytest.mark.parametrize("end", ["succeeded", "failed", "stopped", "skipped", "upstream_failed"])
def test_webhooks_that_are_enabled_hear_of_the_end_alone(telling: FakeServices, end: str) -> None:
    created = make_build()
    running = moved(created, Status.SCHEDULED, Status.RUNNING)
    announce(telling, None, created, announcement)
    announce(telling, created, running, announcement)
    assert telling.hook_queue.sent == []
    announce(telling, running, moved(running, Status(end)), announcement)
    (sent,) = telling.hook_queue.sent
    assert (sent.project, sent.hook, sent.announcement.type) == (created.key.project_key, "h-1", f"build.{end}")


def test_a_reply_has_the_id_at_once_and_the_end_later(telling: FakeServices) -> None:
    created = make_build(reply_to=ANSWERS, reply_about="nightly")
    running = moved(created, Status.SCHEDULED, Status.RUNNING)
    announce(telling, None, created, announcement)
    ((queue, about, said),) = telling.replies.sent
    assert (queue, about, json.loads(said.text)["data"]["build"]["id"]) == (ANSWERS, "nightly", created.key.id)
    announce(telling, created, running, announcement)
    announce(telling, running, moved(running, Status.SUCCEEDED), announcement)
    assert [said.type for *_, said in telling.replies.sent] == ["build.created", "build.succeeded"]


def test_a_build_that_has_ended_at_once_gets_both_replies(telling: FakeServices) -> None:
    reused = moved(make_build(reply_to=ANSWERS, reply_about="nightly"), Status.SUCCEEDED)
    announce(telling, None, reused, announcement)
    assert [said.type for *_, said in telling.replies.sent] == ["build.created", "build.succeeded"]


def test_a_queue_that_was_deleted_keeps_no_other_from_its_announcement(telling: FakeServices) -> None:
    telling.replies.deleted.add(ANSWERS)
    before = make_build(reply_to=ANSWERS, reply_about="nightly")
    announce(telling, before, moved(before, Status.FAILED), announcement)
    assert [len(telling.event_bus.told), len(telling.hook_queue.sent), telling.replies.sent] == [1, 1, []]


def test_a_queue_that_does_not_answer_is_not_forgotten(telling: FakeServices) -> None:
    telling.hook_queue.is_down = True
    with pytest.raises(Unavailable):
        announce(telling, make_build(), moved(make_build(), Status.FAILED), announcement)


def test_the_builds_of_a_project_that_is_gone_are_told_on_the_bus_alone(telling: FakeServices) -> None:
    telling.records.projects.clear()
    announce(telling, make_build(), moved(make_build(), Status.STOPPED), announcement)
    assert len(telling.event_bus.told) == 1
    assert telling.hook_queue.sent == []
