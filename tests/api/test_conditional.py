"""Asking again costs little: an answer has a tag, and who has it already gets none of it again."""

from __future__ import annotations

import json

import pytest

from chalicelib.usecases import execution
from tests.api.conftest import Api
from tests.factories import KEY, SPEC
from tests.usecases.conftest import end_with_an_image

BUILDS = "/ada/vision/builds"
PATHS = [f"{BUILDS}/1", f"{BUILDS}/1/statuses", BUILDS, "/ada/vision", "/ada"]


@pytest.fixture
def made(api: Api) -> Api:
    api.ok("POST", BUILDS, {"content": json.dumps(SPEC)})
    return api


@pytest.mark.parametrize("path", PATHS)
def test_what_is_known_is_not_sent_again(made: Api, path: str) -> None:
    first = made("GET", path)
    tag = first.headers["ETag"]
    assert tag.startswith('W/"')
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = made("GET", path, If_None_Match=known)
        assert (again.status, again.body, again.headers["ETag"]) == (304, "", tag)
    assert made("GET", path, If_None_Match='W/"other"').body == first.body


@pytest.mark.parametrize("path", PATHS[:3])
def test_a_change_changes_the_tag(made: Api, path: str) -> None:
    tag = made("GET", path).headers["ETag"]
    made.ok("POST", f"{BUILDS}/1/stop")
    again = made("GET", path, If_None_Match=tag)
    assert (again.status, again.headers["ETag"] != tag) == (200, True)


def test_a_tag_is_of_what_the_caller_sees(made: Api) -> None:
    made.ok("POST", f"{BUILDS}/1/bookmark")
    tag = made("GET", PATHS[0]).headers["ETag"]
    assert made("GET", PATHS[0], as_="bob", If_None_Match=tag).status == 200
    kept = made("GET", PATHS[0]).headers
    assert (kept["Cache-Control"], kept["Vary"]) == ("private, no-cache", "Authorization")


def test_a_refusal_and_a_write_have_none(made: Api) -> None:
    assert "ETag" not in made("GET", f"{BUILDS}/9").headers
    assert "ETag" not in made("PATCH", f"{BUILDS}/1", {"description": "d"}).headers
    tag = made("GET", PATHS[0]).headers["ETag"]
    assert made("GET", PATHS[0], as_=None, If_None_Match=tag).status == 401


def test_a_build_says_when_to_ask_again_until_it_has_ended(made: Api) -> None:
    first = made("GET", PATHS[0])
    assert first.headers["Retry-After"] == "2"
    assert made("GET", PATHS[0], If_None_Match=first.headers["ETag"]).headers["Retry-After"] == "2"
    execution.process(made.services, KEY)
    end_with_an_image(made.services, KEY)
    execution.process(made.services, KEY)
    ended = made("GET", PATHS[0])
    assert (ended.body["last_status"], "Retry-After" in ended.headers) == ("succeeded", False)
