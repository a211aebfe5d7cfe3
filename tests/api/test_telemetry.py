"""The log as Lambda writes it: lines of JSON, fields, and metrics in them. Traces: tests/aws."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from awslambdaric.lambda_runtime_log_utils import JsonFormatter

from chalicelib import telemetry
from chalicelib.domain.build import Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.errors import Busy
from tests.api.conftest import Api, call
from tests.factories import KEY, SPEC

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Lines:
    """What was logged since it was asked last, by the runtime's own formatter."""
    caplog.set_level(logging.INFO)  # as the template has it
    root, written = logging.getLogger(), io.StringIO()
    handler = logging.StreamHandler(written)
    handler.terminator = ""  # the formatter ends lines
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "slipway-test-Dispatch")
    monkeypatch.setenv("SLIPWAY_STACK", "slipway-test")
    telemetry.start()

    def take() -> list[dict[str, Any]]:
        text = written.getvalue()
        written.seek(0)
        written.truncate()
        return [json.loads(line) for line in text.splitlines()]

    return take


def metrics(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Every metric that CloudWatch would make of the lines, as its documents say how."""
    found: dict[str, float] = {}
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert directive["Namespace"] == "Slipway"
            assert directive["Dimensions"] == [["Stack"]]
            assert line["Stack"] == "slipway-test"
            for metric in directive["Metrics"]:
                assert metric["Unit"] == ("Seconds" if metric["Name"].endswith("Seconds") else "Count")
                found[metric["Name"]] = found.get(metric["Name"], 0) + line[metric["Name"]]
    return found


def test_a_request_is_a_line_with_its_build_and_duration(api: Api, lines: Lines) -> None:
    api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})
    api.ok("GET", "/ada/vision/builds/1")
    line = lines()[-1]
    assert line["message"] == "GET /api/v1/{owner}/{project}/builds/{build_id} answered status 200"
    assert (line["owner"], line["project"], line["build"]) == ("ada", "vision", "ada/vision/1")
    assert (line["status"], line["level"]) == (200, "INFO")
    assert line["duration_ms"] >= 0


def test_lines_of_one_request_are_not_about_the_build_of_another(api: Api, lines: Lines) -> None:
    api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})
    api.ok("GET", "/ada/vision/builds/1")
    api.ok("GET", "/ada/vision/builds")
    assert "build" not in lines()[-1]


def test_a_build_is_measured_from_its_submission_to_its_end(api: Api, lines: Lines) -> None:
    api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})
    executor = api.services.codebuild
    executor.fail_next.append(Busy())
    call("dispatch", "dispatch")
    api.services.clock.forward(seconds=31)
    call("reconcile", "schedule")
    run = executor.run_of(KEY)
    api.services.clock.forward(seconds=9)
    executor.enter(run, Status.SCHEDULED, Status.BUILDING, Status.RUNNING)
    api.services.clock.forward(seconds=20)
    executor.end(run, Outcome.FAILED, "no disk")
    api.services.clock.forward(minutes=6)
    call("reconcile", "schedule")

    written = lines()
    assert metrics(written) == {
        "Retries": 1,
        "Submissions": 1,
        "Failed": 1,
        "QueuedSeconds": 40,
        "BuildingSeconds": 380,  # until it was seen
        "Reconciled": 2,
    }
    (ended,) = [line for line in written if line.get("status") == "failed"]
    assert ended["message"] == "Build ada/vision/1 is failed in its attempt 2"
    assert (ended["build"], ended["executor"], ended["attempt"]) == ("ada/vision/1", "codebuild", 2)
    assert ended["duration_seconds"] > 0


def test_conflicts_overdue_builds_and_cleanups_are_counted(api: Api, lines: Lines) -> None:
    services = api.services
    api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})
    services.records.before_write.append(lambda: services.builds.save(services.records.builds[KEY]))
    api.ok("PATCH", "/ada/vision/builds/1", {"description": "x"})
    assert metrics(lines()) == {"Conflicts": 1}

    call("dispatch", "dispatch")
    services.clock.forward(minutes=180)
    call("reconcile", "schedule")
    assert metrics(lines())["GivenUp"] == 1

    services.clock.forward(minutes=6)
    call("reconcile", "schedule")
    call("keep_log", "keep_log")
    services.clock.forward(minutes=6)
    call("keep_log", "keep_log")
    api.ok("DELETE", "/ada/vision/builds/1")
    services.clock.forward(minutes=61)
    call("clean_up", "schedule")
    assert metrics(lines())["BuildsPurged"] == 1


def test_what_is_nothing_is_not_measured(api: Api, lines: Lines) -> None:
    """A metric costs by the month in which it was sent."""
    call("reconcile", "schedule")
    call("clean_up", "schedule")
    assert not [line for line in lines() if "_aws" in line]


def test_each_change_is_one_line_that_says_who_and_what(api: Api, lines: Lines) -> None:
    api.ok("POST", "/ada/vision/builds", {"content": json.dumps(SPEC)})
    api.ok("POST", "/ada/vision/builds/1/stop")
    api.ok("POST", "/users/ada/tokens", as_="root")
    api("POST", "/ada/vision/builds/1/stop", as_="a-token-that-is-wrong")
    api.ok("GET", "/ada/vision/builds/1")
    told = [line for line in lines() if "action" in line]
    assert [(each["action"], each.get("by"), each["status"]) for each in told] == [
        ("create_build", "ada", 201),
        ("stop_build", "ada", 200),
        ("issue_token", "root", 201),
        ("stop_build", None, 401),
    ]
    assert told[1]["build"] == "ada/vision/1"
    assert told[2]["user"] == "ada"


def test_no_line_has_a_token(api: Api, lines: Lines) -> None:
    made = api.ok("POST", "/users", {"username": "eve"}, as_="root")
    api("GET", "/ada/vision", as_=made["token"])
    api("GET", "/ada/vision", as_="a-token-that-is-wrong")
    api.ok("POST", "/users/eve/tokens", as_="root")
    text = json.dumps(lines())
    assert text.count("duration_ms") == 4
    assert made["token"] not in text
    assert "a-token-that-is-wrong" not in text


def test_elsewhere_than_in_lambda_lines_stay_as_they_are(
    api: Api, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    call("clean_up", "schedule")
    assert caplog.messages == ["Purged 0 builds, 0 projects, 0 uploads."]
    assert capsys.readouterr() == ("", "")
