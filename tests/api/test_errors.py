"""Every error has its answer: a status, headers that say what to do, and a record if it is our fault."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from chalicelib import errors
from chalicelib.usecases import projects
from tests.api.conftest import Answer, Api

# By class: the status, and the headers beside those of all answers.
ANSWERS: dict[type[errors.SlipwayError], tuple[int, dict[str, str]]] = {
    errors.SlipwayError: (500, {}),
    errors.Invalid: (400, {}),
    errors.Malformed: (400, {}),
    errors.Unauthenticated: (401, {"WWW-Authenticate": "Token"}),
    errors.Forbidden: (403, {}),
    errors.NotFound: (404, {}),
    errors.NoLog: (
        404,
        {"X-Slipway-Next-Cursor": "0", "X-Slipway-Log-Complete": "false", "Retry-After": "2"},
    ),
    errors.Gone: (410, {}),
    errors.TooLarge: (413, {}),
    errors.Conflict: (409, {"Retry-After": "1"}),
    errors.AlreadyExists: (409, {}),
    errors.KeyReused: (422, {}),
    errors.Throttled: (429, {"Retry-After": "7"}),
    errors.ExecutorRefused: (502, {}),
    errors.Busy: (503, {"Retry-After": "5"}),
    errors.Unavailable: (503, {"Retry-After": "5"}),
}


def derived(kind: type[errors.SlipwayError]) -> Iterator[type[errors.SlipwayError]]:
    for each in kind.__subclasses__():
        yield each
        yield from derived(each)


def example(kind: type[errors.SlipwayError]) -> errors.SlipwayError:
    arguments: dict[type[errors.SlipwayError], Any] = {errors.Invalid: ["why"], errors.Throttled: 7}
    return kind(next((arguments[base] for base in kind.__mro__ if base in arguments), "why"))


def answer_to(api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Answer:
    """Of a view in which this happens."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(projects, "open_project", fail)
    return replace(api, is_described=False)("GET", "/ada/vision")


def test_every_error_of_ours_is_in_the_table() -> None:
    ours = {kind for kind in derived(errors.SlipwayError) if kind.__module__.startswith("chalicelib.")}
    assert {errors.SlipwayError, *ours} == set(ANSWERS)


@pytest.mark.parametrize("is_derived", [False, True], ids=["itself", "derived"])
@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_an_error_is_answered_by_its_class(
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[errors.SlipwayError],
    is_derived: bool,
) -> None:
    status, headers = ANSWERS[kind]
    answer = answer_to(api, monkeypatch, example(type("Special", (kind,), {}) if is_derived else kind))

    assert answer.status == status
    assert "why" in str(answer.body) or kind is errors.Throttled
    for name in ("WWW-Authenticate", "Retry-After"):
        assert answer.headers.get(name) == headers.get(name)
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [bool(record.exc_info) for record in records] == ([True] if status >= 500 else [])


def test_what_nobody_expected_is_a_500_that_hides_the_reason_and_logs_it_once(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = answer_to(api, monkeypatch, ZeroDivisionError("a secret"))

    assert (answer.status, answer.headers["Content-Type"]) == (500, "application/json")
    assert answer.body == {"detail": "Internal error; it has been logged."}
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
