"""What a build asks and reports over HTTP."""

from __future__ import annotations

import logging
from urllib.parse import urlencode

import pytest

from chalicelib.domain.build import Build, BuildKey, Push
from chalicelib.domain.materials import attempt_secret
from chalicelib.usecases import execution, throttle
from tests.api.conftest import Answer, Api
from tests.factories import DIGEST, SPEC

BUILD = "/ada/vision/builds/1"


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    throttle._taken.clear()


@pytest.fixture
def build(api: Api) -> Build:
    """One that its executor has started."""
    api.ok("POST", "/ada/vision/builds", {"content": str(SPEC)})
    key = BuildKey("ada", "vision", 1)
    execution.process(api.services, key)
    return api.services.records.builds[key]


def secret(api: Api, build: Build) -> str:
    return attempt_secret(api.services.deployment_secrets.build_key(), build.uuid, build.attempt)


def ask(api: Api, build: Build, what: str, **told: str) -> Answer:
    """As the shell steps ask: by a form."""
    form = urlencode({"attempt": build.attempt, **told}).encode()
    headers = {
        "Authorization": f"Build {secret(api, build)}",
        "Content_Type": "application/x-www-form-urlencoded",
    }
    return api("POST", f"{BUILD}/{what}", form, as_=None, **headers)


def test_an_attempt_gets_its_materials_as_plain_lines(api: Api, build: Build) -> None:
    answer = ask(api, build, "_materials")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert all(len(line.split(" ")) == 2 for line in answer.body.splitlines())
    assert "Dockerfile " in answer.body


def test_after_the_report_of_its_code_only_logins_and_reports_are_left(api: Api, build: Build) -> None:
    assert ask(api, build, "_report", fetched="1").status == 200
    answer = ask(api, build, "_materials")
    assert (answer.status, answer.body) == (
        410,
        {"detail": "This attempt has its code; its secret opens no materials any more."},
    )
    assert ask(api, build, "_login").status == 200
    assert ask(api, build, "_report", digest=DIGEST).status == 200
    assert api.services.records.builds[build.key].pushes == (Push(1, DIGEST),)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Build", 401),
        ("Build a b", 401),
        ("Bearer x", 401),
        ("token ada", 401),
        ("Build x", 403),
        ("Build \xe9\xff", 403),
    ],
    ids=str,
)
def test_who_does_not_show_the_secret_gets_nothing(api: Api, build: Build, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header}
    for what in ("_materials", "_login", "_report"):
        assert api("POST", f"{BUILD}/{what}", {"attempt": 1}, as_=None, **headers).status == status


def test_a_build_that_is_not_there_is_answered_as_a_wrong_secret_is(api: Api, build: Build) -> None:
    path = BUILD.replace("/1", "/99")
    answers = [
        api("POST", f"{each}/_login", {"attempt": 1}, as_=None, Authorization="Build x") for each in (path, BUILD)
    ]
    assert answers[0] == answers[1]


def test_a_body_that_is_too_large_is_refused(api: Api, build: Build) -> None:
    huge = "x" * api.services.settings.max_body_bytes
    assert ask(api, build, "_report", dockerfile=huge).status == 413


def test_nothing_of_it_is_logged(api: Api, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    materials = ask(api, build, "_materials").body
    password = ask(api, build, "_login").body
    assert "login-1" in password
    logged = " ".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert "_materials" in logged
    for kept in (secret(api, build), "login-1", materials.split()[1]):
        assert kept not in logged
