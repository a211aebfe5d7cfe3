"""Requests from the queue: the same rules as over REST, once however often they are delivered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib.domain.build import BuildKey, Status
from chalicelib.domain.user import Token, token_sha256
from chalicelib.errors import Unavailable
from chalicelib.usecases import automation, builds, projects
from tests.factories import NOW, SPEC, after, make_project, make_user
from tests.fakes import FakeServices

CREATE = {"version": 1, "action": "create", "owner": "ada", "project": "vision", "content": json.dumps(SPEC)}


@pytest.fixture
def automated(services: FakeServices) -> FakeServices:
    robot = make_user("robot", is_superuser=True)
    services.accounts.add_user(robot, Token(token_sha256("r"), "robot", NOW, after(60)))
    services.projects.add(make_project())
    return services


def send(services: FakeServices, message_id: str = "m-1", **fields: Any) -> None:
    automation.handle(services, json.dumps({**CREATE, **fields}), message_id)


def test_a_build_is_created_as_the_automation_user(automated: FakeServices) -> None:
    send(automated, user="eve", tags=["nightly"])

    (build,) = automated.records.builds.values()
    assert (build.user, build.on_behalf_of, build.tags) == ("robot", "eve", ("nightly",))
    assert automated.queue.take() == [build.key]


def test_a_message_that_names_a_user_has_that_users_rights(automated: FakeServices) -> None:
    for name in ("ada", "mallory"):
        automated.accounts.add_user(make_user(name), Token(token_sha256(name), name, NOW, after(60)))
    send(automated, "m-1", user="ada")
    send(automated, "m-2", user="mallory")
    send(automated, "m-3", user="mallory", action="stop", build=1)

    (build,) = automated.records.builds.values()
    assert (build.user, build.on_behalf_of, build.last_status) == ("ada", None, Status.CREATED)
    assert [reasons for _, reasons in automated.dead_letters.letters] == [["The user may not do this."]] * 2


def test_keys_of_the_queue_and_of_rest_never_meet(automated: FakeServices) -> None:
    """Nor do those of a user whose name looks like the queue."""
    rest = builds.create(
        automated, make_user("ada"), "ada", "vision", {"content": json.dumps(SPEC)}, once="ada:deploy-1"
    )
    send(automated, "m-1", idempotency_key="ada:deploy-1")
    send(automated, "m-2", idempotency_key="queue:deploy-1")
    builds.create(
        automated,
        make_user("queue", is_superuser=True),
        "ada",
        "vision",
        {"content": json.dumps(SPEC)},
        once="queue:deploy-1",
    )
    assert len(automated.records.builds) == 4
    assert rest.build.user == "ada"


def test_a_line_says_who_asked_for_what(automated: FakeServices, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", automation.log.name)
    send(automated, user="eve")
    (told,) = [vars(each) for each in caplog.records if each.name == automation.log.name]
    assert (told["action"], told["by"], told["on_behalf_of"]) == ("queue_create", "robot", "eve")
    assert told["build"] == "ada/vision/1"


def test_a_message_delivered_twice_creates_one_build_and_announces_it_again(automated: FakeServices) -> None:
    """Whoever created it may have died before announcing it."""
    send(automated)
    send(automated)

    assert len(automated.records.builds) == 1
    assert automated.queue.take() == [BuildKey("ada", "vision", 1)] * 2


def test_a_key_of_the_senders_holds_over_messages(automated: FakeServices) -> None:
    send(automated, "m-1", idempotency_key="nightly-2024-03-01")
    send(automated, "m-2", idempotency_key="nightly-2024-03-01")
    send(automated, "m-3", idempotency_key="nightly-2024-03-02")
    assert len(automated.records.builds) == 2


def test_a_key_is_forgotten_after_two_weeks(automated: FakeServices) -> None:
    send(automated)
    automated.clock.forward(days=14)
    send(automated)
    assert len(automated.records.builds) == 2


def test_two_deliveries_at_once_create_one_build(automated: FakeServices) -> None:
    automated.records.before_write.append(lambda: send(automated))
    send(automated)
    assert len(automated.records.builds) == 1


def test_a_build_is_stopped(automated: FakeServices) -> None:
    send(automated)
    send(automated, "m-2", action="stop", build=1)
    send(automated, "m-2", action="stop", build=1)
    (build,) = automated.records.builds.values()
    assert build.last_status is Status.STOPPED


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "The message is not JSON"),
        ("[]", "The message must be a JSON object."),
        ('"\\ud800"', "The message is not JSON"),
        ({"version": 2}, "`version` must be 1."),
        ({"version": True}, "`version` must be 1."),
        ({"action": "explode"}, "`action` must be `create` or `stop`."),
        ({"owner": "a/b"}, "`owner` and `project` must name a project."),
        ({"project": "none"}, "There is no such project or build."),
        ({"action": "stop", "build": 9}, "There is no such project or build."),
        ({"action": "stop", "build": "1"}, "`build` must be the id of a build."),
        ({"content": "{version: 1, kind: build, image: a b}"}, "`image` must not contain spaces."),
        ({"content": None}, "non_field_errors: Build expects a `content`."),
        ({"idempotency_key": "x" * 129}, "An idempotency key must be"),
        ({"user": ["eve"]}, "`user` must be a name of at most 128 characters."),
    ],
    ids=str,
)
def test_what_can_never_succeed_is_put_aside_with_its_reason(automated: FakeServices, body: Any, reason: str) -> None:
    text = body if isinstance(body, str) else json.dumps({**CREATE, **body})
    automation.handle(automated, text, "m-1")

    ((letter, reasons),) = automated.dead_letters.letters
    assert letter == text
    assert reasons[0].startswith(reason)
    assert automated.records.builds == {}


def test_what_may_succeed_later_comes_again(automated: FakeServices) -> None:
    automated.queue.is_down = True
    with pytest.raises(Unavailable):
        send(automated)
    assert automated.dead_letters.letters == []

    automated.queue.is_down = False
    send(automated)
    assert len(automated.records.builds) == 1
    assert len(automated.queue.take()) == 1


def test_without_an_automation_user_requests_wait(services: FakeServices) -> None:
    with pytest.raises(Unavailable):
        send(services)
    assert services.dead_letters.letters == []


@pytest.mark.parametrize("fate", ["archived", "deleted", "its project was deleted"])
@pytest.mark.parametrize("action", ["create", "stop"])
def test_a_message_that_comes_again_after_it_was_done_is_no_dead_letter(
    automated: FakeServices, action: str, fate: str
) -> None:
    send(automated)
    message = {"action": action, "build": 1} if action == "stop" else {}
    send(automated, message_id="m-2" if message else "m-1", **message)
    robot = automated.accounts.users["robot"]
    if fate == "its project was deleted":
        projects.archive(automated, robot, "ada", "vision", delete=True)
    else:
        builds.archive(automated, robot, BuildKey("ada", "vision", 1), delete=fate == "deleted")

    send(automated, message_id="m-2" if message else "m-1", **message)

    assert automated.dead_letters.letters == []
    assert len(automated.records.builds) == 1


def test_a_key_with_another_request_is_a_dead_letter(automated: FakeServices) -> None:
    send(automated, idempotency_key="k")
    send(automated, message_id="m-2", idempotency_key="k", description="another")
    ((_, reasons),) = automated.dead_letters.letters
    assert reasons == ["This idempotency key came with another request before; use a new one."]
