"""Webhooks of a project: who may set them, and how their receivers are told for a day."""

from __future__ import annotations

import json
import logging
from base64 import b64decode
from typing import Any

import pytest

from chalicelib.domain.build import Status
from chalicelib.domain.project import Hook, Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.errors import Forbidden, Invalid, NotFound, Unavailable
from chalicelib.ports import Delivery
from chalicelib.serializers import announcement
from chalicelib.usecases import cleanup, hooks, projects, secrets
from chalicelib.usecases.hooks import MAX_HOOKS, TRY_AGAIN_AFTER
from tests.factories import make_build, make_project, make_user
from tests.fakes import FakeServices

URL = "https://receiver.test/builds?team=vision"
ADA = make_user()
LAST = len(TRY_AGAIN_AFTER) + 1


@pytest.fixture
def project(services: FakeServices) -> Project:
    services.projects.add(make_project())
    return make_project()


@pytest.fixture
def hook(services: FakeServices, project: Project) -> Hook:
    made, _ = hooks.put(services, ADA, "ada", "vision", "deploy", URL)
    return made


def stored(services: FakeServices) -> list[Hook]:
    project = services.projects.get("ada", "vision")
    assert project is not None
    return [*project.hooks]


def ended(hook: Hook) -> Delivery:
    build = make_build(Status.SUCCEEDED)
    return Delivery(ProjectKey("ada", "vision"), hook.id, announcement(build, build.history[-1]))


def fails(services: FakeServices, delivery: Delivery, tries: int = 1) -> None:
    with pytest.raises(Unavailable, match="ada/vision, webhook deploy: The receiver answered 500"):
        hooks.deliver(services, delivery, "receipt", tries)


def test_a_webhook_has_a_secret_that_is_told_once_and_stored_apart(services: FakeServices, project: Project) -> None:
    made, secret = hooks.put(services, ADA, "ada", "vision", "deploy", URL)
    assert len(b64decode(secret.removeprefix("whsec_"))) == 32
    assert stored(services) == [made]
    assert secret not in repr(services.records.projects)
    assert services.secrets.stored == {(project.uuid, "hooks/deploy"): secret}
    assert secrets.names(services, ADA, "ada", "vision") == []  # no build may mount it


def test_putting_it_again_replaces_address_and_secret(services: FakeServices, hook: Hook) -> None:
    before = dict(services.secrets.stored)
    made, _ = hooks.put(services, ADA, "ada", "vision", "deploy", "https://other.test")
    assert stored(services) == [made] and made.id != hook.id
    assert services.secrets.stored.keys() == before.keys() and services.secrets.stored != before


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "receiver.test/builds",
        "http://receiver.test/builds",
        "https://user:password@receiver.test/",
        "https://receiver.test/#fragment",
        "https://receiver.test/a b",
        "https://receiver.test\\@10.0.0.1/",
        "https://receiver.test/\n",
        "https://[::1]/",
        "https://receiver.test:0/",
        "ftp://receiver.test/",
        "https:///builds",
        f"https://receiver.test/{'x' * 500}",
    ],
)
def test_an_address_is_https_with_a_host_and_nothing_odd(services: FakeServices, project: Project, url: object) -> None:
    with pytest.raises(Invalid):
        hooks.put(services, ADA, "ada", "vision", "deploy", url)
    assert stored(services) == [] and services.secrets.stored == {}


def test_http_is_for_hosts_that_the_operator_named(services: FakeServices, project: Project) -> None:
    services.settings = replace(services.settings, private_hook_hosts="ci.lan 127.0.0.1")
    hooks.put(services, ADA, "ada", "vision", "deploy", "http://127.0.0.1:8080/builds")
    with pytest.raises(Invalid):
        hooks.put(services, ADA, "ada", "vision", "other", "http://127.0.0.10:8080/builds")


def test_a_project_has_a_bounded_number_of_them(services: FakeServices, project: Project) -> None:
    for number in range(MAX_HOOKS):
        hooks.put(services, ADA, "ada", "vision", f"h{number}", URL)
    with pytest.raises(Invalid, match="10 webhooks"):
        hooks.put(services, ADA, "ada", "vision", "more", URL)
    hooks.put(services, ADA, "ada", "vision", "h0", URL)  # which is there
    assert len(services.secrets.stored) == MAX_HOOKS


def test_they_are_the_owners_business(services: FakeServices, hook: Hook) -> None:
    """Also of a public project: addresses may hold secrets."""
    eve = make_user("eve")
    with pytest.raises(Forbidden):
        hooks.put(services, eve, "ada", "vision", "deploy", URL)
    with pytest.raises(Forbidden):
        hooks.test(services, eve, "ada", "vision", "deploy")
    with pytest.raises(Forbidden):
        hooks.delete(services, eve, "ada", "vision", "deploy")
    assert stored(services) == [hook]


def test_what_was_deleted_is_gone_with_its_secret(services: FakeServices, hook: Hook) -> None:
    hooks.delete(services, ADA, "ada", "vision", "deploy")
    assert stored(services) == [] and services.secrets.stored == {}
    for act in (hooks.delete, hooks.test):
        with pytest.raises(NotFound):
            act(services, ADA, "ada", "vision", "deploy")


def test_a_purge_of_the_project_forgets_their_secrets_however_often_it_begins(
    services: FakeServices, hook: Hook
) -> None:
    hooks.put(services, ADA, "ada", "vision", "other", URL)
    projects.archive(services, ADA, "ada", "vision", delete=True)
    gone = services.projects.get("ada", "vision")
    assert gone is not None
    services.secrets.delete(gone, "hooks/deploy")  # a cleanup ended here
    services.clock.forward(minutes=61)
    assert cleanup.cleanup(services).projects == 1
    assert services.secrets.stored == {}


def test_a_receiver_is_told_by_its_secret(services: FakeServices, hook: Hook) -> None:
    hooks.deliver(services, ended(hook), "receipt", 1)
    ((url, secret, told),) = services.webhooks.told
    assert (url, told) == (URL, ended(hook).announcement)
    assert secret in services.secrets.stored.values()
    assert stored(services) == [hook]  # nothing is written for what is as ever


def test_the_message_is_hidden_before_its_receiver_is_told(services: FakeServices, hook: Hook) -> None:
    """Whatever ends the function while it waits: it is told again at the right time."""
    services.webhooks.failure = "The receiver answered 500."
    for tries in range(1, LAST + 1):
        fails(services, ended(hook), tries)
    assert services.hook_queue.hidden == [("receipt", seconds) for seconds in TRY_AGAIN_AFTER]
    assert 20 * 3600 < sum(TRY_AGAIN_AFTER) <= 24 * 3600
    assert max(TRY_AGAIN_AFTER) < 12 * 3600  # SQS takes no more


def test_a_failure_is_shown_since_when_it_is_so(services: FakeServices, hook: Hook) -> None:
    services.webhooks.failure = "The receiver answered 500."
    fails(services, ended(hook))
    first = services.now()
    services.clock.forward(minutes=1)
    fails(services, ended(hook), 2)
    (shown,) = stored(services)
    assert (shown.failure, shown.updated_at, shown.is_disabled) == ("The receiver answered 500.", first, False)

    services.webhooks.failure = None
    services.clock.forward(minutes=5)
    hooks.deliver(services, ended(hook), "receipt", 3)
    (shown,) = stored(services)
    assert (shown.failure, shown.updated_at) == (None, services.now())


def test_after_the_last_try_the_webhook_is_disabled_until_it_is_put_again(services: FakeServices, hook: Hook) -> None:
    services.webhooks.failure = "The receiver answered 500."
    fails(services, ended(hook))
    fails(services, ended(hook), LAST)  # SQS puts the message aside then
    (shown,) = stored(services)
    assert (shown.failure, shown.is_disabled) == ("The receiver answered 500.", True)

    services.webhooks.failure = None
    hooks.deliver(services, ended(hook), "receipt", 1)  # what still waited is dropped
    assert services.webhooks.told == []
    made, _ = hooks.put(services, ADA, "ada", "vision", "deploy", URL)
    assert (made.is_disabled, made.failure) == (False, None)


def test_one_that_was_replaced_or_deleted_meanwhile_is_not_told(services: FakeServices, hook: Hook) -> None:
    hooks.put(services, ADA, "ada", "vision", "deploy", "https://other.test")
    hooks.deliver(services, ended(hook), "receipt", 1)
    hooks.delete(services, ADA, "ada", "vision", "deploy")
    hooks.deliver(services, ended(hook), "receipt", 1)
    services.records.projects.clear()
    hooks.deliver(services, ended(hook), "receipt", 1)
    assert services.webhooks.told == []


def test_what_a_receiver_answers_too_late_disables_nobody_else(
    services: FakeServices, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The webhook was replaced while the old receiver was asked for the last time."""
    services.webhooks.failure = "The receiver answered 500."
    made: list[Hook] = []
    real = services.webhooks.send

    def send(*given: Any) -> None:
        made.append(hooks.put(services, ADA, "ada", "vision", "deploy", "https://other.test")[0])
        real(*given)

    monkeypatch.setattr(services.webhooks, "send", send)
    fails(services, ended(hook), LAST)
    assert stored(services) == made


def test_one_without_its_secret_is_called_when_it_has_been_put(services: FakeServices, hook: Hook) -> None:
    """As when putting it ended between its two writes: no call is lost, and the reason is shown."""
    secret = dict(services.secrets.stored)
    services.secrets.stored.clear()
    with pytest.raises(Unavailable, match="has no secret"):
        hooks.deliver(services, ended(hook), "receipt", 1)
    assert services.webhooks.told == []
    assert [each.failure for each in stored(services)] == ["The webhook has no secret; put it again."]

    services.secrets.stored.update(secret)
    hooks.deliver(services, ended(hook), "receipt", 2)
    assert len(services.webhooks.told) == 1
    assert [each.failure for each in stored(services)] == [None]


def test_a_test_is_sent_once_and_always_noted(services: FakeServices, hook: Hook) -> None:
    for failure in (None, "The receiver answered 500.", None):
        services.clock.forward(minutes=1)
        services.webhooks.failure = failure
        hooks.test(services, ADA, "ada", "vision", "deploy")
        hooks.deliver(services, services.hook_queue.sent.pop(), "receipt", 1)  # no error: it does not come again
        (shown,) = stored(services)
        assert (shown.failure, shown.updated_at) == (failure, services.now())
    (_, _, told), _ = services.webhooks.told
    said = json.loads(told.text)
    assert (said["id"], said["type"], said["data"]) == (told.id, "test", None)


def test_no_line_of_the_log_and_no_message_has_the_secret(
    services: FakeServices, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made, secret = hooks.put(services, ADA, "ada", "vision", "deploy", URL)
    hooks.test(services, ADA, "ada", "vision", "deploy")
    services.webhooks.failure = "The receiver answered 500."
    fails(services, ended(made))
    assert secret not in caplog.text
    assert secret not in repr(services.hook_queue.sent)
    assert secret not in repr(services.records.projects)
