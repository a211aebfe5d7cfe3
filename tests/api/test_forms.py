"""Bodies as forms of both kinds, and what clients of other kinds of polyaxonfiles are told."""

import json
from collections.abc import Mapping
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
import pytest

from chalicelib.web import FLAGS
from infra import request_bodies
from tests.api.conftest import Api
from tests.factories import SPEC

BUILDS = "/ada/vision/builds"
Fields = Mapping[str, str | list[str]]


def url_encoded(fields: Fields) -> tuple[bytes, str]:
    return urlencode(fields, doseq=True).encode(), "application/x-www-form-urlencoded"


def multipart(fields: Fields) -> tuple[bytes, str]:
    texts = [(name, each) for name, text in fields.items() for each in ([text] if isinstance(text, str) else text)]
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in texts]
    return "".join([*parts, "--x--\r\n"]).encode(), 'multipart/form-data; boundary="x"'


@pytest.fixture(params=[url_encoded, multipart])
def send(request: pytest.FixtureRequest, api: Api) -> Any:
    def send(method: str, path: str, fields: Fields, **more: Any) -> Any:
        body, kind = request.param(fields)
        return api.ok(method, path, body, Content_Type=kind, **more)

    return send


def test_each_thing_is_written_by_forms(send: Any, api: Api) -> None:
    content = json.dumps(SPEC)
    assert (
        send("POST", "/projects", {"name": "formed", "is_public": "false", "readme": "é\ntrue"})["is_public"] is False
    )
    assert send("PATCH", "/ada/formed", {"tags": ["a", "b, c"], "description": "true"})["description"] == "true"
    assert send("PATCH", "/ada/formed", {"tags": "d", "merge": "True"})["tags"] == ["a", "b, c", "d"]
    assert send("POST", BUILDS, {"content": content, "is_managed": "", "tags": ["x"]})["tags"] == ["x"]
    assert send("POST", BUILDS, {"is_managed": "FALSE", "tags": ""})["is_managed"] is False
    assert send("PATCH", f"{BUILDS}/2", {"name": "named", "is_managed": "false"})["name"] == "named"
    assert send("POST", f"{BUILDS}/2/statuses", {"status": "running", "message": "m"})["message"] == "m"
    assert send("POST", f"{BUILDS}/2/coderef", {"commit": "abc", "is_dirty": "true"})["is_dirty"] is True
    assert send("POST", "/ada/formed/repo/external", {"git_url": "https://git.test/x"})["git_url"]
    assert send("POST", "/users", {"username": "eve", "is_superuser": "true"}, as_="root")["is_superuser"] is True
    assert send("PUT", "/ada/formed/secrets/pip", {"value": "false"}) == ""


@pytest.mark.parametrize("value", ["yes", "1", "tru e"])
def test_other_words_are_no_flags(api: Api, value: str) -> None:
    for body, kind in (url_encoded({"is_managed": value}), multipart({"is_managed": value})):
        for method, path in (("POST", BUILDS), ("PATCH", f"{BUILDS}/1")):
            api("POST", BUILDS, {"is_managed": False})
            answer = api(method, path, body, Content_Type=kind)
            assert (answer.status, answer.body) == (400, {"is_managed": ["Must be true or false."]})


def test_flags_of_forms_are_those_that_may_be_sent() -> None:
    sent = [getattr(request_bodies, name) for name in dir(request_bodies) if name.endswith(("Fields", "Changes"))]
    flags = {field.name for struct in sent for field in msgspec.structs.fields(struct) if bool in flattened(field.type)}
    assert flags - {"fetched"} == FLAGS  # a build's own report, `fetched=1`


def flattened(kind: Any) -> set[Any]:
    return {kind}.union(*map(flattened, get_args(kind))) if get_args(kind) else {kind}


def test_the_text_of_a_form_is_bounded_and_utf_8(api: Api) -> None:
    body, kind = multipart({"description": "x" * api.services.settings.max_body_bytes})
    assert api("POST", BUILDS, body, Content_Type=kind).status == 413
    assert api("POST", BUILDS, body[:100] + b"\xff", Content_Type=kind).status == 400


@pytest.mark.parametrize("value", ["no", 0, "false", []])
def test_a_change_of_is_managed_must_be_a_flag(api: Api, value: Any) -> None:
    api.ok("POST", BUILDS, {"content": json.dumps(SPEC)})
    assert api("PATCH", f"{BUILDS}/1", {"is_managed": value}).body == {"is_managed": ["Must be true or false."]}
    for flag in (True, None):
        assert api.ok("PATCH", f"{BUILDS}/1", {"is_managed": flag})["is_managed"] is True


def test_a_row_of_a_list_is_the_detail_without_what_takes_its_whole_record(api: Api) -> None:
    resources = {"cpu": {"requests": 1}}
    content = {**SPEC, "environment": {"resources": resources}}
    detail = api.ok("POST", BUILDS, {"content": json.dumps(content)})
    (row,) = api.ok("GET", BUILDS)["results"]
    assert (row["resources"], row["num_jobs"], row["duration_seconds"]) == (resources, 0, None)
    left_out = {"content", "config", "dockerfile", "reported"} | {"purge_at", "reused_from"}
    left_out |= {"billed_minutes", "estimated_cost", "image_tags", "image_bytes", "layer_bytes", "rebuild_of"}
    assert row == {name: value for name, value in detail.items() if name not in left_out}


# Polyaxonfiles of other kinds

EXPERIMENT = """version: 1
kind: experiment
build: {image: python, build_steps: [pip install flask]}
run: {cmd: python train.py}
"""


@pytest.mark.parametrize("kind", ["experiments", "groups", "jobs"])
def test_what_runs_other_kinds_is_told_how_to_build(api: Api, kind: str) -> None:
    answer = api("POST", f"/ada/vision/{kind}", {"content": EXPERIMENT, "is_managed": True})
    assert answer.status == 400
    assert answer.body[0].startswith("Slipway builds images and runs nothing else: put what an image is made of")
    assert api.ok("GET", BUILDS)["count"] == 0


def test_a_polyaxonfile_is_given_back_as_it_is_and_can_be_posted_again(api: Api) -> None:
    build = api.ok("POST", BUILDS, {"content": EXPERIMENT})
    assert build["content"] == EXPERIMENT
    assert build["config"]["kind"] == "experiment"
    assert build["config"]["run"] == {"cmd": "python train.py"}
    assert "FROM python\n" in build["dockerfile"]
    assert api.ok("POST", BUILDS, {"config": build["config"]})["dockerfile"] == build["dockerfile"]
