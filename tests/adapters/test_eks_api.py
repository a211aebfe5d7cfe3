"""The client of a cluster's API: what it repeats, and how long it pauses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from chalicelib.adapters.eks.api import TRIES, KubernetesApi

Answer = tuple[int, dict[str, str]]


class _Server(ThreadingHTTPServer):
    """Gives scripted answers in turn, then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Answer] = []
        self.asked: list[tuple[str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.command, self.headers["Authorization"]))
        status, headers = self.server.script.pop(0) if self.server.script else (200, {})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.fixture
def api(server: _Server) -> KubernetesApi:
    tokens = iter("abcd")
    return KubernetesApi("lab", f"http://127.0.0.1:{server.server_port}", token=lambda: next(tokens))


@pytest.mark.parametrize(("wanted", "paused"), [("1", 1), ("3600", 2)])
def test_a_pause_that_the_cluster_asks_for_is_made_and_bounded(
    server: _Server, api: KubernetesApi, pauses: list[float], wanted: str, paused: float
) -> None:
    server.script = [(429, {"Retry-After": wanted})]
    assert api.call("POST", "/x", {})[0] == 200
    assert pauses == [paused]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_answer_that_stays_the_same_is_returned_after_three_tries(
    server: _Server, api: KubernetesApi, pauses: list[float], status: int
) -> None:
    server.script = [(status, {})] * TRIES
    assert api.call("POST", "/x", {}) == (status, {})
    assert len(server.asked) == TRIES
    assert sum(pauses) < 1


@pytest.mark.parametrize("status", [302, 400, 403, 404, 409, 422])
def test_an_answer_that_will_not_change_is_returned_at_once(server: _Server, api: KubernetesApi, status: int) -> None:
    server.script = [(status, {"Location": "/y"})]
    assert api.call("POST", "/x", {}) == (status, {})
    assert len(server.asked) == 1


def test_a_refused_token_is_replaced_once(server: _Server, api: KubernetesApi) -> None:
    server.script = [(401, {})] * 2
    assert api.call("POST", "/x", {}) == (401, {})
    assert [token for _, token in server.asked] == ["Bearer a", "Bearer b"]
    assert api.call("POST", "/x", {})[0] == 200
