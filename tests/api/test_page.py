"""The page's files and the command line, as they are handed out."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from chalicelib import page
from tests.api.conftest import Answer, Api

FILES = {
    "index.html": ("<!doctype html>", "text/html"),
    "main.0123ABCD.js": ("let ä", "text/javascript"),
    "main.4567CDEF.css": ("body {}", "text/css"),
    "icon.89AB0123.svg": ("<svg/>", "image/svg+xml"),
    "licences.txt": ("MIT", "text/plain"),
    "slipway": ("#!/usr/bin/env python3", "text/plain"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`chalicelib/ui/`, and a file beside it."""
    (tmp_path / "beside.txt").write_text("secret")
    folder = tmp_path / "ui"
    folder.mkdir()
    for name, (text, _) in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(page, "FOLDER", folder)
    return folder


def fetched(api: Api, path: str, method: str = "GET", as_: str | None = None) -> Answer:
    return api(method, path, as_=as_, root="/api/ui")


@pytest.mark.parametrize("path", ["", "/"])
def test_the_address_of_the_page_leads_to_its_file(api: Api, path: str) -> None:
    answer = fetched(api, path)
    assert (answer.status, answer.headers["Location"]) == (302, "/api/ui/index.html")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_answered_without_a_token_and_as_what_it_is(api: Api, name: str) -> None:
    text, kind = FILES[name]
    for method, as_ in (("GET", None), ("HEAD", None), ("GET", "a token that nobody has")):
        answer = fetched(api, f"/{name}", method, as_)
        assert (answer.status, answer.body) == (200, text)
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_only_names_with_a_hash_are_kept_by_browsers(api: Api) -> None:
    kept = {name for name in FILES if "immutable" in fetched(api, f"/{name}").headers["Cache-Control"]}
    assert kept == {"main.0123ABCD.js", "main.4567CDEF.css", "icon.89AB0123.svg"}
    assert {fetched(api, f"/{name}").headers["Cache-Control"] for name in {*FILES} - kept} == {"no-cache"}


def test_the_page_runs_its_own_scripts_only_and_reaches_nothing_but_the_api_and_the_bucket(api: Api) -> None:
    policy = fetched(api, "/index.html").headers["Content-Security-Policy"]
    said = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    assert said == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "connect-src": ["'self'", api.services.sources.upload_url()],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }


def test_the_reference_is_a_page_by_the_same_rules_without_an_ending_in_its_address(api: Api, folder: Path) -> None:
    (folder / "api.html").write_text("<!doctype html>")
    answer = fetched(api, "/api")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["Content-Security-Policy"] == fetched(api, "/index.html").headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fbeside.txt", "..%5cbeside.txt", ".", "%00", "*", "INDEX.HTML"])
def test_names_that_are_not_in_the_folder_lead_nowhere(api: Api, name: str) -> None:
    """As they come and, as a gateway may hand them on, decoded."""
    answer = fetched(api, f"/{name}")
    assert (answer.status, answer.body) == (404, "Not found.\n")
    assert page.answer(unquote(name), lambda: "").status_code == 404


def test_without_the_page_one_is_told_how_to_get_it_and_has_the_command_line(api: Api, folder: Path) -> None:
    (folder / "index.html").unlink()
    for path in ("/index.html", "/main.4567CDEF.js"):
        answer = fetched(api, path)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
        assert "`make ui`" in answer.body and "Node" in answer.body
    assert fetched(api, "/slipway").status == 200

    shutil.rmtree(folder)
    assert fetched(api, "/slipway").status == 404
    assert "`make ui`" in fetched(api, "/index.html").body


def test_a_page_that_is_built_later_is_there_at_once(api: Api, folder: Path) -> None:
    (folder / "main.FEDC3210.js").write_text("let later")
    assert fetched(api, "/main.FEDC3210.js").body == "let later"
