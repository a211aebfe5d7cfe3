"""One request for many builds: each has its own result, which is what its own route would have answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chalicelib.domain.record import replace
from chalicelib.errors import Unavailable
from chalicelib.usecases import execution
from tests.api.conftest import Api
from tests.factories import SPEC

BUILDS = "/ada/vision/builds"
SINGLE = {
    "stop": ("POST", "/stop"),
    "archive": ("POST", "/archive"),
    "restore": ("POST", "/restore"),
    "delete": ("DELETE", ""),
    "bookmark": ("POST", "/bookmark"),
}


@pytest.fixture
def made(api: Api) -> Api:
    for _ in range(3):
        api.ok("POST", BUILDS, {"content": json.dumps(SPEC)})
    return api


def of_many(api: Api, verb: str, *ids: int, **more: Any) -> list[tuple[int, int, str | None]]:
    answer = api.ok("POST", f"{BUILDS}/{verb}", {"ids": ids}, **more)
    assert answer["count"] == len(answer["results"])
    return [(each["id"], each["status"], each["detail"]) for each in answer["results"]]


@pytest.mark.parametrize("verb", SINGLE)
def test_each_result_is_what_its_own_route_answers(made: Api, verb: str) -> None:
    method, path = SINGLE[verb]
    alone = made(method, f"{BUILDS}/1{path}")
    missing = made(method, f"{BUILDS}/77{path}")

    found = of_many(made, verb, 2, 77, 3)

    assert found == [
        (2, alone.status, None),
        (77, missing.status, missing.body["detail"]),
        (3, alone.status, None),
    ]
    seen = [made("GET", f"{BUILDS}/{number}").body for number in (1, 2, 3)]
    facts = [(each.get("last_status"), each.get("bookmarked"), each.get("detail")) for each in seen]
    assert len(set(facts)) == 1


def test_one_that_fails_keeps_no_other_from_it(made: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [*made.services.records.builds]:  # to stop one that was started takes a message
        execution.process(made.services, key)
    announce = made.services.queue.announce

    def announce_but_two(key: Any, after_seconds: int = 0) -> None:
        if key.id == 2:
            raise Unavailable("The queue does not answer.")
        if key.id == 3:
            raise ZeroDivisionError
        announce(key, after_seconds)

    monkeypatch.setattr(made.services.queue, "announce", announce_but_two)
    assert of_many(made, "stop", 3, 2, 1) == [
        (3, 500, "Internal error; it has been logged."),
        (2, 503, "The queue does not answer."),
        (1, 200, None),
    ]


def test_a_build_that_is_named_twice_is_one(made: Api) -> None:
    assert of_many(made, "archive", 1, 1) == [(1, 200, None)]
    assert made.ok("GET", BUILDS)["count"] == 2


@pytest.mark.parametrize(
    "body",
    [None, {}, {"ids": []}, {"ids": [*range(1, 102)]}, {"ids": ["1"]}, {"ids": [0]}, {"ids": [True]}, {"ids": 1}],
)
def test_bounds_are_checked_before_anything_is_done(made: Api, body: Any) -> None:
    before = made.services.written()
    answer = made("POST", f"{BUILDS}/stop", body)
    assert (answer.status, [*answer.body]) in ((400, ["ids"]), (400, ["non_field_errors"]))
    assert made.services.written() == before


def test_a_project_that_is_not_the_callers_is_refused_as_a_whole(made: Api) -> None:
    assert made("POST", f"{BUILDS}/stop", {"ids": [1]}, as_="bob").status == 403
    assert made("POST", "/ada/none/builds/stop", {"ids": [1]}).status == 404
    assert of_many(made, "bookmark", 1, as_="bob") == [(1, 201, None)]


def test_each_build_counts_as_a_request(made: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.services, "settings", replace(made.services.settings, requests_per_minute=20))
    found = of_many(made, "bookmark", *range(1, 31))
    assert [status for _, status, _ in found] == [201] * 3 + [404] * 16 + [429] * 11
    assert str(found[-1][2]).startswith("Request was throttled.")


def test_lines_say_what_was_done_to_which_build(made: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chalicelib.web")
    of_many(made, "archive", 1, 2)
    told = [vars(each) for each in caplog.records if "outcome" in vars(each)]
    assert [(each["build"], each["outcome"]) for each in told] == [("ada/vision/1", 200), ("ada/vision/2", 200)]
