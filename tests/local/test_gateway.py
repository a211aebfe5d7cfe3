"""The gateway on this machine keeps a limit of Lambda's that Chalice's local server does not have."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from chalice.app import Chalice, Response

from infra.local.gateway import MAX_ANSWER_BYTES, Gateway

IS_WELL = {"The attic": True}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Chalice("texts")

    @app.route("/text/{character}/{count}")
    def text(character: str, count: str) -> Response:
        content = {"escape": "\x1b", "letter": "x", "umlaut": "ü"}[character] * int(count)
        return Response(content, headers={"Content-Type": "text/plain"})

    @app.route("/both", methods=["GET", "HEAD"])
    def both() -> Response:
        return Response("ü!", headers={"Content-Type": "text/plain"})

    @app.route("/healthz")
    def healthz() -> Response:
        return Response("")

    gateway = Gateway(app, 0, {"The cellar": lambda: True, "The attic": lambda: IS_WELL["The attic"]})
    gateway.start()
    yield gateway.url
    gateway.close()


def answer(url: str, character: str, count: int) -> tuple[int, int]:
    """Status and length."""
    got = urllib3.request("GET", f"{url}/text/{character}/{count}", retries=False)
    if got.status == 502:
        assert got.json() == {"message": "Internal server error"}
    return got.status, len(got.data)


def test_an_answer_up_to_the_limit_passes_and_a_larger_one_is_lost(url: str) -> None:
    assert answer(url, "letter", MAX_ANSWER_BYTES - 500) == (200, MAX_ANSWER_BYTES - 500)
    assert answer(url, "letter", MAX_ANSWER_BYTES)[0] == 502


def test_what_counts_is_its_size_as_json(url: str) -> None:
    sixth = MAX_ANSWER_BYTES // 6  # an escape is six characters of JSON
    assert answer(url, "escape", sixth - 500) == (200, sixth - 500)
    assert answer(url, "escape", sixth)[0] == 502


def test_other_characters_than_ascii_count_as_the_runtime_writes_them(url: str) -> None:
    size = 2 if sys.version_info >= (3, 12) else 6
    assert answer(url, "umlaut", MAX_ANSWER_BYTES // size - 500)[0] == 200
    assert answer(url, "umlaut", MAX_ANSWER_BYTES // size)[0] == 502


def test_a_head_is_answered_like_a_get_but_without_the_body(url: str) -> None:
    with urllib3.PoolManager(maxsize=1) as one_connection:
        for method, body in (("HEAD", b""), ("GET", "ü!".encode()), ("HEAD", b"")):
            got = one_connection.request(method, f"{url}/both", retries=False)
            assert (got.status, got.headers["Content-Length"], got.data) == (200, "3", body)
        assert one_connection.request("HEAD", f"{url}/healthz", retries=False).status == 405
        assert one_connection.request("GET", f"{url}/healthz", retries=False).status == 200


def test_health_names_the_parts_that_do_not_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def health() -> tuple[int, str]:
        got = urllib3.request("GET", f"{url}/healthz", retries=False)
        return got.status, got.data.decode()

    assert health() == (200, "")
    monkeypatch.setitem(IS_WELL, "The attic", False)
    assert health() == (503, "The attic does not answer.\n")


def test_a_request_in_progress_gets_its_whole_answer_when_the_stack_stops() -> None:
    app, has_begun, goes_on = Chalice("slow"), threading.Event(), threading.Event()

    @app.route("/slow")
    def slow() -> Response:
        has_begun.set()
        goes_on.wait(60)
        return Response("all of it", headers={"Content-Type": "text/plain"})

    @app.route("/quick")
    def quick() -> Response:
        return Response("")

    gateway = Gateway(app, 0, {})
    gateway.start()
    with ThreadPoolExecutor(2) as pool, urllib3.PoolManager() as kept_open:
        assert kept_open.request("GET", f"{gateway.url}/quick").status == 200
        slow_one = pool.submit(urllib3.request, "GET", f"{gateway.url}/slow", retries=False)
        assert has_begun.wait(60)
        closing = pool.submit(gateway.close)
        while is_listening(gateway.url):
            time.sleep(0.01)
        assert kept_open.request("GET", f"{gateway.url}/quick", retries=False).status == 503
        assert not closing.done()
        goes_on.set()
        assert (slow_one.result().status, slow_one.result().data) == (200, b"all of it")
        closing.result()


def is_listening(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))).close()
    except ConnectionRefusedError:
        return False
    return True
