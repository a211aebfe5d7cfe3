"""What Lambda hands on is bounded, whatever texts an answer has: measured by Lambda's own encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller
from chalice.local import LambdaContext

from app import app
from chalicelib.domain.answer import MAX_ANSWER_BYTES
from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, MAX_TEXTS_BYTES, Build
from chalicelib.domain.record import replace
from tests.api.conftest import EVENTS, Api
from tests.factories import KEY, NOW, after, make_body, make_build

LINES = {
    "progress bars": "   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━ 12.3/45.6 MB 9.9 MB/s eta 0:00:04",
    "Cyrillic": "Устанавливаются пакеты, это может занять некоторое время: подождите",
    "ANSI colours": "\x1b[32m\x1b[1m ok \x1b[0m\x1b[31m no \x1b[0m\x1b[33m perhaps \x1b[0m",
    "JSON lines": json.dumps({"level": "info", "message": 'a "quoted" word', "path": "C:\\build"}),
    "control characters": "\x1b" * 60,
    "ships": "🚢" * 60,
    "one line": "x" * 6_500_000,
    "one line of controls": "\x01" * 6_500_000,
    "carriage returns": "10 %\r20 %\r" * 650_000,
}
RUNTIMES = ["AWS_Lambda_python3.11", "AWS_Lambda_python3.13"]  # the first escapes what is not ASCII


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str
    size: int  # as Lambda encodes it in the runtime where that is larger


Get = Callable[..., Answer]


@pytest.fixture
def get(api: Api, monkeypatch: pytest.MonkeyPatch) -> Get:
    """GET through the function, as API Gateway invokes it."""

    def call(resource: str, query: str = "", **places: str) -> Answer:
        event = json.loads((EVENTS / "get_build.json").read_text())
        places = {"owner": "ada", "project": "vision", "build_id": "1"} | places
        event["requestContext"] |= {"resourcePath": resource, "path": resource.format(**places)}
        event["multiValueQueryStringParameters"] = {name: [value] for name, value in parse_qsl(query)}
        event["pathParameters"] = {name: value for name, value in places.items() if name in resource}
        answer = app(event, LambdaContext("api", 1024, 28_000))
        sizes = []
        for runtime in RUNTIMES:
            monkeypatch.setenv("AWS_EXECUTION_ENV", runtime)
            sizes.append(len(LambdaMarshaller().marshal_response(answer)[0].encode()))
        return Answer(answer["statusCode"], answer["headers"], answer["body"], max(sizes))

    return call


BUILD = "/api/v1/{owner}/{project}/builds/{build_id}"


def add_build(api: Api, **changes: Any) -> Build:
    project = api.services.projects.get("ada", "vision")
    assert project is not None
    number = api.services.builds.next_id(project, NOW)
    return api.services.builds.add(make_build(number=number, **changes), make_body(), None)


def keep(api: Api, text: str) -> Build:
    """A build with this log, kept."""
    build = add_build(api, stored_log_bytes=len(text.encode()))
    api.services.log_archive.store(build, [text.encode()])
    return build


@pytest.mark.parametrize("kind", LINES)
def test_a_page_of_a_kept_log_can_be_sent_and_is_not_needlessly_short(api: Api, get: Get, kind: str) -> None:
    line = f"2024-03-01 12:00:00 UTC -- {LINES[kind]}\n"
    text = line * (6_500_000 // len(line.encode()) + 1)
    keep(api, text)

    page = get(BUILD + "/logs", "cursor=0")
    assert (page.status, page.size < MAX_ANSWER_BYTES) == (200, True)
    assert page.headers["X-Slipway-Log-Complete"] == "false"
    cut = int(page.headers["X-Slipway-Next-Cursor"].removeprefix("b"))
    assert page.body == text.encode()[:cut].decode()
    assert page.size > 900_000
    if len(line) < 1_000:
        assert page.body.endswith("\n")
        assert page.size > 5_800_000


@pytest.mark.parametrize("kind", LINES)
def test_a_page_of_a_growing_log_can_be_sent(api: Api, get: Get, kind: str) -> None:
    add_build(api, log="logs:x")
    text = LINES[kind]
    api.services.logs.write("logs:x", *[text] * min(200_000, 40_000_000 // len(text.encode())), "end")

    page = get(BUILD + "/logs")
    assert (page.status, page.size < MAX_ANSWER_BYTES) == (200, True)
    if kind in ("one line", "one line of controls", "carriage returns"):
        assert page.body.endswith("end\n")
        assert page.body.count("… (cut here: the line goes on)") == (0 if kind == "carriage returns" else 6)
        return
    cursor = page.headers["X-Slipway-Next-Cursor"]
    assert page.body.endswith(f"\n… the log goes on: ask for it with ?cursor={cursor}\n")
    assert page.size > 5_800_000
    assert not re.search("[\x00-\x08\x0b-\x1f]", page.body)


def test_a_kept_log_that_is_too_long_only_when_encoded_is_fetched_elsewhere(api: Api, get: Get) -> None:
    text = f"{LINES['Cyrillic']}\n" * 30_000
    build = keep(api, text)
    assert len(text.encode()) < api.services.settings.max_answer_bytes

    answer = get(BUILD + "/logs")
    assert (answer.status, answer.headers["Location"]) == (302, api.services.log_archive.url(build))


# Lists


def test_a_page_has_at_most_500_rows_whatever_is_asked(api: Api, get: Get) -> None:
    for _ in range(501):
        add_build(api)
    page = get("/api/v1/{owner}/{project}/builds", "limit=501")
    assert len(json.loads(page.body)["results"]) == 500


@pytest.mark.parametrize("character", ["码", "🚢"])
def test_a_page_of_a_list_that_is_too_large_is_shorter_and_the_next_goes_on_after_it(
    api: Api, get: Get, character: str
) -> None:
    for number in range(500):
        add_build(api, description=character * 4_096, updated_at=after(number))

    ids: list[int] = []
    query = "limit=500"
    while query:
        page = get("/api/v1/{owner}/{project}/builds", query)
        assert (page.status, page.size < MAX_ANSWER_BYTES) == (200, True)
        body = json.loads(page.body)
        assert body["count"] == 500
        ids += [row["id"] for row in body["results"]]
        query = urlsplit(body["next"] or "").query
    assert ids == list(range(500, 0, -1))


def test_lists_that_leave_out_rows_are_shortened_without_repeating_any(api: Api, get: Get) -> None:
    """Of bookmarks, those of deleted builds are counted and not shown."""
    api.services.settings = replace(api.services.settings, max_answer_bytes=3_000)
    for number in range(20):
        build = add_build(api, description="x" * 200, deleted_at=None if number % 3 else after(0))
        api.services.bookmarks.add("ada", build.key, after(number))

    ids: list[int] = []
    query = "limit=20"
    while query:
        body = json.loads(get("/api/v1/bookmarks/{user}/builds", query, user="ada").body)
        ids += [row["content_object"]["id"] for row in body["results"]]
        query = urlsplit(body["next"] or "").query
    assert ids == [number + 1 for number in reversed(range(20)) if number % 3]


def test_a_row_that_is_too_large_by_itself_is_still_a_page(api: Api, get: Get) -> None:
    api.services.settings = replace(api.services.settings, max_answer_bytes=10)
    for _ in range(2):
        add_build(api)
    body = json.loads(get("/api/v1/{owner}/{project}/builds").body)
    assert [row["id"] for row in body["results"]] == [2]
    assert urlsplit(body["next"]).query == "limit=1&offset=1"


# Single objects, and the last resort


def test_a_build_with_the_largest_texts_can_be_sent(api: Api, get: Get) -> None:
    """Seven bytes for a control character: it is escaped twice."""
    body = make_body(content="\x01" * (MAX_TEXTS_BYTES // 6 - 50), config=None, dockerfile=None)
    later = "\x01" * MAX_DOCKERFILE_BYTES
    body = replace(body, reported_dockerfile=later, found_dockerfile=later)
    assert not body.is_too_large
    add_build(api)
    api.services.records.bodies[KEY] = body

    answer = get(BUILD)
    assert (answer.status, answer.size < MAX_ANSWER_BYTES) == (200, True)


def test_what_cannot_be_sent_is_an_error_that_says_so(api: Api, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    add_build(api)
    api.services.records.bodies[KEY] = make_body(dockerfile="\x01" * 1_000_000)

    answer = get(BUILD)
    assert (answer.status, json.loads(answer.body)) == (
        500,
        {"detail": "The answer is too large to be sent."},
    )
    assert [record.levelname for record in caplog.records if "too large to be sent" in record.message] == ["ERROR"]
