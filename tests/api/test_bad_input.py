"""Rubbish of every kind is a 4xx with a sentence; nothing is written, and nothing is a 500."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chalice.local import LambdaContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import app
from chalicelib.domain.build import Build
from chalicelib.domain.project import ProjectKey
from tests.api.conftest import Api
from tests.factories import SPEC, make_archive

BUILDS = "/ada/vision/builds"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = [
    "name",
    "content",
    "config",
    "tags",
    "description",
    "backend",
    "is_managed",
    "ttl",
    "merge",
    "email",
]
FIELDS += [
    "username",
    "git_url",
    "status",
    "message",
    "details",
    "created_at",
    "commit",
    "is_public",
    "dockerfile",
    "value",
]
WRITES = sorted(
    (method, path.removeprefix("/api/v1"))
    for path in app.routes
    for method in app.routes[path]
    if method in ("POST", "PUT", "PATCH") and path != "/healthz"
)


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "change",
    [
        {"image": "a", "dockerfile": "b"},
        {"image": None},
        {"image": "a b"},
        {"image": "a\nRUN evil"},
        {"image": "a\\"},
        {"steps": []},
        {"build_steps": "not a list"},
        {"build_steps": ["a\nb"]},
        {"build_steps": ["--mount=type=bind,target=/x ls"]},
        {"build_steps": ["cat <<EOF"]},
        {"env_vars": {"A": "b"}},
        {"env_vars": [["A=1 B", "c"]]},
        {"env_vars": [["A", "b\nUSER x"]]},
        {"lang_env": "C\nRUN x"},
        {"context": "../x"},
        {"context": "/x"},
        {"dockerfile": "../../etc/passwd", "image": None},
        {"commit": "--upload-pack=x"},
        {"version": 1.1},
        {"version": "1"},
        {"kind": "experiment"},
        {"tags": ["x" * 65]},
        {"environment": {"resources": {"cpu": {"requests": "500m"}}}},
        {"environment": {"service_account": ["x"], "exotic": 1}},
    ],
    ids=str,
)
def test_specs_that_cannot_be_built(api: Api, change: dict[str, Any]) -> None:
    before = api.services.written()
    content = {key: value for key, value in {**SPEC, **change}.items() if value is not None}
    answer = api("POST", BUILDS, {"content": json.dumps(content)})

    assert answer.status == 400
    assert all(isinstance(sentence, str) and sentence for sentence in answer.body)
    assert api.services.written() == before


@pytest.mark.parametrize(
    "text",
    [
        "a: !!bool x",
        "a: !!int ''",
        "a: !!timestamp x",
        "a: !!python/object:os.system x",
        "a: &a [*a]",
        "version: 0x" + "f" * 5_000,
        "version: 1" + ":20" * 2_000,
        "? [a]\n: b",
        "[" * 2_000 + "]" * 2_000,
        "a: \x07",
    ],
    ids=lambda text: repr(text)[:30],
)
def test_yaml_that_cannot_be_read(api: Api, text: str) -> None:
    before = api.services.written()
    answer = api("POST", BUILDS, {"content": text})

    assert (answer.status, bool(answer.body)) == (400, True)
    assert api.services.written() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"\xff\xfe", 400),
        (b'{"content": NaN}', 400),
        (b'{"content": "\\ud800"}', 400),
        (deep(100_000).encode(), 400),
        (b'{"content": "' + deep(3_000).encode() + b'"}', 400),
        (b'{"ttl": 1' + b"0" * 5_000 + b', "is_managed": false}', 400),
        (b'{"name": "a\\nb", "is_managed": false}', 400),
        (b'{"description": "' + b"x" * 5_000 + b'", "is_managed": false}', 400),
        (b'{"content": "' + b"x" * 300_000 + b'"}', 413),
        (
            b'{"content": "a: &a [x,x,x,x,x,x,x]\\nb: &b [*a,*a,*a,*a,*a,*a,*a]\\nc: [*b,*b,*b,*b]"}',
            400,
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_bodies_that_cannot_be_taken(api: Api, body: bytes, status: int) -> None:
    before = api.services.written()
    answer = api("POST", BUILDS, body)

    assert (answer.status, bool(answer.body)) == (status, True)
    assert api.services.written() == before


@pytest.mark.parametrize(
    "archive",
    [b"", b"not gzip", make_archive({"a": "b"})[:-9], make_archive({"../a": "b"})],
    ids=["empty", "no gzip", "cut", "outside"],
)
def test_archives_that_cannot_be_taken(api: Api, archive: bytes) -> None:
    before = api.services.written()
    for headers in (
        {},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "multipart/form-data"},
    ):
        answer = api("PUT", "/ada/vision/repo/upload", archive, **headers)
        assert answer.status == 400, answer
        assert answer.body
    assert api.services.written() == before


def test_an_archive_beyond_what_a_request_carries_says_the_other_way(api: Api) -> None:
    answer = api("PUT", "/ada/vision/repo/upload", b"x" * 4_500_001)
    assert answer.status == 413
    assert "/repo/upload/offers" in answer.body["detail"]


@pytest.mark.parametrize("part", ["%2e%2e", "a%00b", "%ff", "a%2Fb", "x" * 200, "%F0%9F%9A%A2"])
def test_odd_paths_name_nothing(api: Api, part: str) -> None:
    for path in (
        f"/ada/{part}",
        f"/{part}/vision",
        f"/ada/vision/builds/{part}",
        f"/bookmarks/{part}/builds",
    ):
        assert api("GET", path).status == 404


@pytest.mark.parametrize("escape", ["\\ud800", "\\uD800", "\\udc00\\ud800"])
def test_half_a_character_is_refused_wherever_a_text_may_stand(api: Api, escape: str) -> None:
    """It cannot be stored as UTF-8."""
    api.ok("POST", BUILDS, {"is_managed": False})
    for field in ("dockerfile", "description", "name", "anything"):
        answer = api("PATCH", f"{BUILDS}/1", f'{{"{field}": "{escape}"}}'.encode())
        assert (answer.status, "surrogate" in answer.body["detail"]) == (400, True)
    assert api("PATCH", f"{BUILDS}/1", b'{"description": "\\ud83d\\udea2"}').body["description"] == "🚢"


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5.2", "", "%C2%B2", "1", "b", f"{10**14}.1", f"b{10**12}"])
def test_a_cursor_that_no_answer_gave_is_refused(api: Api, cursor: str) -> None:
    api.ok("POST", BUILDS, {"is_managed": False})
    answer = api("GET", f"{BUILDS}/1/logs?cursor={cursor}")
    assert (answer.status, answer.body) == (
        400,
        ["`cursor` must be one that an answer gave, or 0."],
    )


@pytest.mark.parametrize("number", ["1" * 13, "0" * 12 + "1", "-1", "%C2%B2", "1.0"])
def test_what_is_no_number_of_a_build_names_none(api: Api, number: str) -> None:
    """Ids have twelve digits at most: the table's keys could not hold more in their order."""
    api.ok("POST", BUILDS, {"is_managed": False})
    assert api("GET", f"{BUILDS}/{number}").status == 404


def test_no_page_has_more_than_500_rows_and_no_store_is_asked_for_more(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    page = api.services.builds.list_builds

    def noted(project: ProjectKey, offset: int, limit: int) -> Sequence[Build]:
        asked.append(limit)
        return page(project, offset, limit)

    monkeypatch.setattr(api.services.builds, "list_builds", noted)
    for limit in ("500", "501", "100000", "9" * 12, "9" * 13, "0", "-1", "x"):
        api.ok("GET", f"{BUILDS}?limit={limit}")
    assert asked == [500, 500, 500, 500, 20, 20, 20, 20]


def test_a_path_may_be_percent_encoded(api: Api) -> None:
    assert api.ok("GET", "/%61da/%76ision")["unique_name"] == "ada.vision"


@pytest.mark.parametrize("route", WRITES, ids=" ".join)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_no_body_makes_the_service_fail(api: Api, route: tuple[str, str], body: Any) -> None:
    method, pattern = route
    values = {"owner": "ada", "project": "vision", "build_id": 1, "user": "ada", "offer_id": "x"}
    path = pattern.format(**values, secret="x", hook="x")
    api("POST", BUILDS, {"is_managed": False})
    for as_ in ("root", "ada"):
        assert api(method, path, json.dumps(body).encode(), as_=as_).status < 500


def test_a_body_that_the_gateway_encoded(api: Api) -> None:
    """API Gateway hands binary bodies over in base64."""
    recorded = json.loads((Path(__file__).parents[1] / "events" / "upload.json").read_text())
    recorded["body"] = base64.b64encode(make_archive({"a.txt": "b"})).decode()
    answer = app(recorded, LambdaContext("api", 256, 28_000))

    assert (answer["statusCode"], answer["body"]) == (200, "")
    project = api.services.projects.get("ada", "vision")
    assert project is not None
    assert project.code is not None


def test_a_web_socket_is_refused_in_words_that_name_the_way_to_read_a_log(api: Api) -> None:
    api.ok("POST", BUILDS, {"is_managed": False})
    answer = api("GET", f"{BUILDS}/1/logs/stream", Upgrade="websocket", Connection="Upgrade")
    assert (answer.status, answer.body) == (
        400,
        ["There is no WebSocket here: `polyaxon build logs -p` prints the log so far."],
    )


def test_resources_that_no_build_gets_are_refused_at_once(api: Api) -> None:
    """Instead of a build that waits for a node until its deadline."""
    spec = {**SPEC, "environment": {"resources": {"cpu": {"requests": 999_999_999}}}}
    refused = api("POST", "/ada/vision/builds", {"content": json.dumps(spec)})
    assert refused.status == 400
    assert "a build gets 16 at most here" in json.dumps(refused.body)
