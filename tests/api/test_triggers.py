"""What else wakes the service, by events as AWS sends them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chalice.local import LambdaContext

from app import app
from chalicelib.domain.build import Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.record import replace
from tests.api.conftest import EVENTS, Api, call
from tests.factories import KEY, SPEC

CODEBUILD_ID = "slipway-builds:8745a7a9-c340-456a-9166-edf953571bEX"


def recorded(name: str) -> Any:
    return json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture
def build(api: Api) -> Any:
    return api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})


def test_a_batch_is_answered_with_the_messages_that_failed(api: Api, build: Any) -> None:
    answer = call("dispatch", "dispatch")

    assert answer == {"batchItemFailures": [{"itemIdentifier": "2e1424d4-f796-459a-8184-9c92662be6da"}]}
    assert api.ok("GET", "/ada/vision/builds/1")["last_status"] == "scheduled"


@pytest.mark.parametrize("event", ["codebuild_phase_change", "codebuild_state_change"])
def test_an_event_only_says_where_to_look(api: Api, build: Any, event: str) -> None:
    """Both events are believed nothing: the executor says that the build has failed."""
    call("dispatch", "dispatch")
    executor = api.services.codebuild
    run = executor.run_of(KEY)
    executor.forget(run)
    run.handle = CODEBUILD_ID
    executor.runs[CODEBUILD_ID] = run
    executor.enter(run, Status.SCHEDULED, Status.BUILDING)
    executor.end(run, Outcome.FAILED, "no disk")

    call("on_codebuild_event", event)
    call("on_codebuild_event", event)

    rows = api.ok("GET", "/ada/vision/builds/1/statuses")["results"]
    assert [row["status"] for row in rows] == ["created", "scheduled", "building", "failed"]
    assert rows[-1]["message"] == "no disk"


def test_the_schedule_starts_what_got_lost(api: Api, build: Any) -> None:
    api.services.clock.forward(minutes=6)
    call("reconcile", "schedule")
    assert api.ok("GET", "/ada/vision/builds/1")["last_status"] == "scheduled"


def test_a_cleanup_returns_its_counts(api: Api) -> None:
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    api.ok("DELETE", "/ada/vision/builds/1")
    api.services.clock.forward(minutes=61)
    assert call("clean_up", "schedule") == {"builds": 1, "projects": 0, "uploads": 0}


def test_the_last_try_to_keep_a_log_is_known_by_its_count(api: Api, build: Any) -> None:
    """Lambda gives a message that failed again, and counts."""
    call("dispatch", "dispatch")
    services = api.services
    services.codebuild.end(services.codebuild.run_of(KEY), Outcome.FAILED)
    services.clock.forward(minutes=6)
    call("reconcile", "schedule")
    services.clock.forward(minutes=6)
    services.logs.write(f"logs:{services.codebuild.run_of(KEY).handle}", "one")
    services.logs.fails_after_lines = 0
    event = recorded("keep_log")
    answers = []
    for count in (1, 2, 3):
        event["Records"][0]["attributes"]["ApproximateReceiveCount"] = str(count)
        services.clock.forward(minutes=30)
        answers.append(app.handler_map["keep_log"](event, LambdaContext("keep_log", 256, 60_000)))

    again = {"batchItemFailures": [{"itemIdentifier": event["Records"][0]["messageId"]}]}
    assert answers == [again, again, {"batchItemFailures": []}]
    (text,) = services.log_archive.texts.values()
    assert text.startswith("… cut here")


def test_changes_of_builds_are_told_in_their_order(api: Api) -> None:
    api.services.settings = replace(api.services.settings, event_bus="default")
    assert call("announce", "changes") == {"batchItemFailures": []}
    types = [told.type for told in api.services.event_bus.told]
    assert types == ["build.created", "build.scheduled", "build.building"]


def test_changes_come_again_from_the_first_that_failed_on(api: Api) -> None:
    """Those behind it must wait: the order of a build's changes is kept."""
    services = api.services
    services.settings = replace(services.settings, event_bus="default")
    services.event_bus.takes = 1
    numbers = [record["dynamodb"]["SequenceNumber"] for record in recorded("changes")["Records"]]
    assert call("announce", "changes") == {"batchItemFailures": [{"itemIdentifier": numbers[2]}]}
    services.event_bus.takes = 0
    assert call("announce", "changes") == {"batchItemFailures": [{"itemIdentifier": numbers[0]}]}


def test_a_record_that_nobody_can_read_is_named_and_nothing_behind_it_is_touched(api: Api) -> None:
    services = api.services
    services.settings = replace(services.settings, event_bus="default")
    event = recorded("changes")
    event["Records"][0]["dynamodb"]["NewImage"]["history"]["S"] = "[{"
    answer = app.handler_map["announce"](event, LambdaContext("announce", 256, 60_000))
    assert answer == {"batchItemFailures": [{"itemIdentifier": event["Records"][0]["dynamodb"]["SequenceNumber"]}]}
    assert services.event_bus.told == []
