"""Requests from the queue: the same rules as over REST, once however often they are delivered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, token_sha256
from chalicelib.errors import Unavailable
from chalicelib.usecases import automation, builds, projects
from chalicelib.web import queued_request
from tests.factories import NOW, SPEC, after, make_project, make_user
from tests.fakes import Died, FakeServices

CREATE = {"version": 1, "action": "create", "owner": "ada", "project": "vision", "content": json.dumps(SPEC)}


@pytest.fixture
def automated(services: FakeServices) -> FakeServices:
    robot = make_user("robot", is_superuser=True)
    services.accounts.add_user(robot, Token(token_sha256("r"), "robot", NOW, after(60)))
    services.projects.add(make_project())
    return services


def send(services: FakeServices, message_id: str = "m-1", **fields: Any) -> None:
    automation.handle(services, json.dumps({**CREATE, **fields}), message_id, queued_request)


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


ANSWERS = "arn:aws:sqs:eu-west-1:123456789012:answers"


def test_a_message_may_name_a_queue_for_the_reply(automated: FakeServices) -> None:
    automated.settings = replace(
        automated.settings, reply_queues=f"arn:aws:sqs:eu-west-1:123456789012:others {ANSWERS}"
    )
    send(automated, "m-1", reply_to=ANSWERS)
    send(automated, "m-2", reply_to=ANSWERS, idempotency_key="nightly")
    send(automated, "m-3", reply_to=ANSWERS, action="rebuild", build=1)
    replies = [(build.reply_to, build.reply_about) for build in automated.records.builds.values()]
    assert replies == [(ANSWERS, "m-1"), (ANSWERS, "nightly"), (ANSWERS, "m-3")]


@pytest.mark.parametrize("allowed", ["", f"{ANSWERS}-of-others"])
@pytest.mark.parametrize("named", [ANSWERS, "", f"{ANSWERS}-of-others arn:x"])
def test_a_reply_goes_to_no_queue_that_the_operator_did_not_name(
    automated: FakeServices, allowed: str, named: str
) -> None:
    automated.settings = replace(automated.settings, reply_queues=allowed)
    send(automated, reply_to=named)
    assert automated.records.builds == {}
    ((_, reasons),) = automated.dead_letters.letters
    assert reasons == ["No replies are sent to the queue of `reply_to`."]


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
        ("{", "JSON parse error"),
        ("[]", "non_field_errors: The body must be a JSON object."),
        ('{"action": "\\ud800"}', "JSON parse error - a lone surrogate"),
        ("[" * 100_000, "JSON parse error"),
        ("{}", "`action` must be one of `create`, `rebuild`, `stop`, `archive`, `restore`, `delete`."),
        ({"action": ["create"]}, "`action` must be one of"),
        ({"version": 2}, "version: Invalid"),
        ({"version": True}, "version: Expected `int`, got `bool`"),
        ({"action": "explode"}, "`action` must be one of"),
        ({"owner": "a/b"}, "owner: Expected `str` matching regex"),
        ({"project": "none"}, "There is no such project or build."),
        ({"action": "stop", "build": 9}, "There is no such project or build."),
        ({"action": "stop", "build": "1"}, "build: Expected `int`, got `str`"),
        ({"content": "{version: 1, kind: build, image: a b}"}, "`image` must not contain spaces."),
        ({"content": None}, "non_field_errors: Build expects a `content`."),
        ({"idempotency_key": "x" * 129}, "idempotency_key: Expected `str`"),
        ({"user": ["eve"]}, "user: Expected `str"),
        ({"user": "e\nve"}, "user: Expected `str"),
        ({"action": "archive"}, "non_field_errors: Object missing required field `build`."),
        ({"action": "rebuild", "build": 9}, "There is no such project or build."),
    ],
    ids=str,
)
def test_what_can_never_succeed_is_put_aside_with_its_reason(automated: FakeServices, body: Any, reason: str) -> None:
    text = body if isinstance(body, str) else json.dumps({**CREATE, **body})
    automation.handle(automated, text, "m-1", queued_request)

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


def build_of(services: FakeServices, number: int = 1) -> Build:
    return services.records.builds[BuildKey("ada", "vision", number)]


def test_a_build_is_archived_restored_and_deleted(automated: FakeServices) -> None:
    send(automated)
    for message_id, action in enumerate(("archive", "restore", "delete")):
        send(automated, f"change-{message_id}", action=action, build=1)
        build = build_of(automated)
        assert (build.archived_at is None, build.deleted_at is None) == (action == "restore", action != "delete")
    assert automated.dead_letters.letters == []


def test_a_build_is_made_again_once(automated: FakeServices) -> None:
    send(automated)
    for _ in range(2):
        send(automated, "m-2", action="rebuild", build=1, nocache=True, user="eve")
    again = build_of(automated, 2)
    assert (again.rebuild_of, again.nocache, again.on_behalf_of) == (1, True, "eve")
    assert len(automated.records.builds) == 2


def test_a_rebuild_that_another_delivery_makes_meanwhile_is_no_dead_letter_when_its_build_is_deleted(
    automated: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(automated)
    request, open_build = {"action": "rebuild", "build": 1}, automated.builds.open

    def open_late(*about: Any) -> Any:
        monkeypatch.undo()
        send(automated, "m-2", **request)
        send(automated, "m-3", action="delete", build=1)
        return open_build(*about)

    monkeypatch.setattr(automated.builds, "open", open_late)
    send(automated, "m-2", **request)

    assert automated.dead_letters.letters == []
    assert len(automated.records.builds) == 2


def test_a_specification_may_be_an_object(automated: FakeServices) -> None:
    send(automated, content=SPEC)
    body = automated.builds.body(BuildKey("ada", "vision", 1))
    assert body is not None
    assert json.loads(str(body.content)) == SPEC


def test_a_late_repetition_does_not_undo_what_came_after_it(automated: FakeServices) -> None:
    send(automated)
    send(automated, "m-2", action="archive", build=1)
    send(automated, "m-3", action="restore", build=1)
    send(automated, "m-2", action="archive", build=1)
    assert build_of(automated).archived_at is None


@pytest.mark.parametrize("action", ["stop", "archive", "restore", "delete"])
def test_a_change_whose_doer_ended_before_noting_it_is_done_again_and_no_dead_letter(
    automated: FakeServices, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    def end(*_: Any) -> None:
        raise Died

    send(automated)
    with monkeypatch.context() as ending:
        ending.setattr(automated.builds, "note", end)
        with pytest.raises(Died):
            send(automated, "m-2", action=action, build=1)
    if action in ("stop", "restore"):  # then its project goes
        projects.archive(automated, make_user(), "ada", "vision")
    send(automated, "m-2", action=action, build=1)
    assert automated.dead_letters.letters == []


def test_what_was_done_for_a_user_is_no_dead_letter_after_he_lost_his_rights(automated: FakeServices) -> None:
    boss = make_user("boss", is_superuser=True)
    automated.accounts.add_user(boss, Token(token_sha256("boss"), "boss", NOW, after(60)))
    messages = [("m-1", {}), ("m-2", {"action": "rebuild", "build": 1}), ("m-3", {"action": "archive", "build": 1})]
    for message_id, fields in messages:
        send(automated, message_id, user="boss", **fields)
    automated.accounts.save_user(replace(boss, is_superuser=False))

    for message_id, fields in messages:
        send(automated, message_id, user="boss", **fields)
    assert automated.dead_letters.letters == []
    assert len(automated.records.builds) == 2
    send(automated, "m-4", user="boss", action="restore", build=1)
    assert [reasons for _, reasons in automated.dead_letters.letters] == [["The user may not do this."]]


@pytest.mark.parametrize(
    ("action", "reason"),
    [("stop", "There is no"), ("archive", "There is no"), ("restore", "There is no"), ("rebuild", "There is no")],
)
def test_what_cannot_be_done_to_a_deleted_build_is_a_dead_letter(
    automated: FakeServices, action: str, reason: str
) -> None:
    """Unless nothing is left to do: a deleted build is stopped and hidden."""
    send(automated)
    send(automated, "m-2", action="delete", build=1)
    send(automated, "m-3", action=action, build=1)
    letters = [reasons[0] for _, reasons in automated.dead_letters.letters]
    assert [each.startswith(reason) for each in letters] == ([True] if action in ("restore", "rebuild") else [])


def test_a_refusal_is_logged_in_words_that_steer_no_terminal(
    automated: FakeServices, caplog: pytest.LogCaptureFixture
) -> None:
    send(automated, "m-7", action="explode")
    send(automated, "m-8", content=f'{{version: 1, kind: build, image: x, "\\e[2J{"y" * 5_000}": 1}}')
    first, second = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert first.startswith("Request m-7 from the queue was refused: `action` must be one of `create`")
    assert second.isprintable()
    assert len(second) < 1_100


def test_a_key_with_another_request_is_a_dead_letter(automated: FakeServices) -> None:
    send(automated, idempotency_key="k")
    send(automated, message_id="m-2", idempotency_key="k", description="another")
    ((_, reasons),) = automated.dead_letters.letters
    assert reasons == ["This idempotency key came with another request before; use a new one."]


def test_so_is_one_with_another_change(automated: FakeServices) -> None:
    send(automated)
    send(automated, "m-2", action="archive", build=1, idempotency_key="k")
    send(automated, "m-3", action="restore", build=1, idempotency_key="k")
    ((_, reasons),) = automated.dead_letters.letters
    assert reasons == ["This idempotency key came with another request before; use a new one."]
    assert build_of(automated).archived_at is not None
