"""Webhooks over REST."""

from __future__ import annotations

import json
from typing import Any

from chalice.local import LambdaContext

from app import app
from tests.api.conftest import EVENTS, Api

HOOK = "/ada/vision/hooks/deploy"
URL = "https://receiver.test/builds"


def test_a_webhook_is_put_listed_tried_and_deleted(api: Api) -> None:
    made = api.ok("PUT", HOOK, {"url": URL})
    assert made.pop("secret").startswith("whsec_")
    assert made == {"name": "deploy", "url": URL, "failure": None, "updated_at": None, "is_disabled": False}
    assert api.ok("GET", "/ada/vision/hooks")["results"] == [made]

    assert api("POST", f"{HOOK}/test").status == 202
    (sent,) = api.services.hook_queue.sent
    assert sent.announcement.type == "test"

    assert api("DELETE", HOOK).status == 204
    assert api.ok("GET", "/ada/vision/hooks")["results"] == []
    assert api("DELETE", HOOK).status == api("POST", f"{HOOK}/test").status == 404


def test_an_address_that_is_refused_says_what_is_wanted(api: Api) -> None:
    answer = api("PUT", HOOK, {"url": "http://receiver.test"})
    assert (answer.status, answer.body) == (
        400,
        {"url": ["Must be like https://host/path, in at most 512 characters; http needs the operator's permission."]},
    )


def test_webhooks_are_shown_to_their_owner_alone(api: Api) -> None:
    """Of a public project too."""
    api.ok("PUT", HOOK, {"url": URL})
    assert api("GET", "/ada/vision/hooks", as_="bob").status == 403
    for path in ("/ada/vision", "/ada", "/ada/vision/builds"):
        assert "receiver.test" not in json.dumps(api.ok("GET", path))


def deliver(services: Any, tries: int) -> Any:
    """Has the function tell what the newest webhook is to be told."""
    event = json.loads((EVENTS / "hooks.json").read_text())
    hook = services.projects.get("ada", "vision").hooks[-1]
    body = json.loads(event["Records"][0]["body"])
    event["Records"][0]["body"] = json.dumps(body | {"hook": hook.id})
    event["Records"][0]["attributes"]["ApproximateReceiveCount"] = str(tries)
    return app.handler_map["deliver"](event, LambdaContext("deliver", 512, 30_000))


def test_a_message_that_was_not_taken_comes_again_and_its_last_failure_disables(api: Api) -> None:
    api.ok("PUT", HOOK, {"url": URL})
    services = api.services
    assert deliver(services, 1) == {"batchItemFailures": []}
    assert [told.type for _, _, told in services.webhooks.told] == ["build.succeeded"]

    services.webhooks.failure = "The receiver answered 500."
    again = {"batchItemFailures": [{"itemIdentifier": "5b7e1c02-9f31-4c7e-a3a5-0c1d8f3f6a11"}]}
    assert deliver(services, 2) == again
    assert deliver(services, 7) == again
    assert services.hook_queue.hidden == [("AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0h", seconds) for seconds in (60, 300)]
    (shown,) = api.ok("GET", "/ada/vision/hooks")["results"]
    assert (shown["failure"], shown["is_disabled"]) == ("The receiver answered 500.", True)
