"""The proxy before the registry, with a registry that only writes down what reaches it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from infra.local.machine import registry_proxy
from infra.local.machine.registry_proxy import Proxy
from infra.local.machine.signed_logins import SignedLogins

LOGIN = "AWS:secret"
IMAGE = "registry.test/slipway/ann/app-0123:7"
OWN, CACHE = "slipway/ann/app-0123", "slipway-cache/ann/app-0123"
BLOB = "/v2/ann/app/blobs/uploads/7?digest=sha256:00"


@dataclass
class Upstream:
    """A registry in the proxy's back. Paths that end in `/large` answer 32 MiB."""

    host: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    seen = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            headers = {name.lower(): ",".join(self.headers.get_all(name, ())) for name in self.headers}
            seen.requests.append((self.command, self.path, headers))
            seen.received.append(sum(self.sizes()))
            blocks = 512 if self.path.endswith("/large") else 0
            self.send_response(200)
            self.send_header("Content-Length", str(blocks * 65536))
            self.send_header("Location", f"http://{self.headers['Host']}/v2/next")
            self.end_headers()
            for _ in range(blocks):
                self.wfile.write(bytes(65536))

        do_GET = do_HEAD = do_PATCH = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def sizes(self) -> Iterator[int]:
            if self.headers.get("Transfer-Encoding") != "chunked":
                left = int(self.headers.get("Content-Length") or 0)
                while left:
                    yield (size := len(self.rfile.read(min(left, 65536))))
                    left -= size
                return
            while size := int(self.rfile.readline(), 16):
                yield len(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    seen.host = f"127.0.0.1:{server.server_port}"
    yield seen
    server.shutdown()
    server.server_close()


@contextmanager
def before(upstream: Upstream, **more: Any) -> Iterator[tuple[Proxy, str]]:
    """A proxy, and its URL."""
    proxy = Proxy(lambda: HTTPConnection(upstream.host), LOGIN, **more)
    proxy.start()
    yield proxy, f"http://{proxy.host}"
    proxy.close()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[str]:
    """Its URL."""
    with before(upstream) as (_, url):
        yield url


def of_build(image: str = IMAGE, key: str = LOGIN, ago_seconds: float = 0) -> str:
    """The login that a build got so long ago."""
    now = datetime.now(UTC) - timedelta(seconds=ago_seconds)
    login = SignedLogins(key, lambda: now).mint(image)
    return f"{login.username}:{login.password}"


def status(url: str, login: str, method: str, path: str) -> int:
    return urllib3.request(method, f"{url}/v2/{path}", headers=basic(login), retries=False).status


def basic(login: str) -> dict[str, str]:
    return dict(urllib3.make_headers(basic_auth=login))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("AWS:wrong"),
        basic("AWS:"),
        basic("secret"),
        {"Authorization": "Bearer secret"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic é"},
    ],
)
def test_without_a_good_login_nothing_passes(proxy: str, upstream: Upstream, headers: dict[str, str]) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        answer = urllib3.request(method, proxy + BLOB, headers=headers, body=b"x" * 100, retries=False)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert upstream.requests == []


def test_with_it_everything_passes_but_the_login_itself(proxy: str, upstream: Upstream) -> None:
    headers = urllib3.HTTPHeaderDict({**basic(LOGIN), "Accept": "one", "Content-Type": "text/plain"})
    headers.add("Accept", "two")  # as docker names the kinds of manifests that it takes
    answer = urllib3.request("PUT", proxy + BLOB, headers=headers, body=b"x" * 100)

    assert answer.status == 200
    assert answer.headers["Location"] == f"{proxy}/v2/next"  # the client comes back through the proxy
    ((method, path, passed),) = upstream.requests
    assert (method, path, upstream.received) == ("PUT", BLOB, [100])
    assert (passed["accept"], passed["content-type"]) == ("one,two", "text/plain")
    assert "authorization" not in passed


def test_a_build_pushes_and_pulls_its_own_and_pulls_what_is_no_projects(proxy: str) -> None:
    login = of_build()
    assert status(proxy, login, "GET", "") == 200
    for repository in (OWN, CACHE):
        for method, path in (
            *(("GET", "manifests/1"), ("HEAD", "blobs/sha256:0"), ("GET", "tags/list")),
            *(("POST", "blobs/uploads/"), ("PATCH", "blobs/uploads/7"), ("PUT", "blobs/uploads/7")),
            *(("DELETE", "blobs/uploads/7"), ("PUT", "manifests/1")),
        ):
            assert status(proxy, login, method, f"{repository}/{path}") == 200, (method, path)
    assert status(proxy, login, "GET", "library/python/manifests/3") == 200


def test_a_build_reaches_nothing_else(proxy: str, upstream: Upstream) -> None:
    login = of_build()
    others = ("slipway/bob/app-0123", "slipway/ann/app-01234", "slipway-cache/bob/app-0123", f"{OWN}/more")
    for repository in others:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            for path in (
                "manifests/1",
                "blobs/sha256:0",
                "blobs/uploads/",
                "tags/list",
                "referrers/sha256:0",
            ):
                assert status(proxy, login, method, f"{repository}/{path}") == 403
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert status(proxy, login, method, "library/python/manifests/3") == 403
    for repository in (OWN, CACHE):
        for path in ("manifests/1", "blobs/sha256:0"):
            assert status(proxy, login, "DELETE", f"{repository}/{path}") == 403
    assert status(proxy, login, "GET", "_catalog") == 403
    assert upstream.requests == []


def test_no_spelling_of_a_path_leads_to_another_repository(proxy: str, upstream: Upstream) -> None:
    for trick in (
        f"/v2/{OWN}/../../bob/app/manifests/1",
        f"/v2/{OWN}%2f..%2fbob/manifests/1",
        "/v2//slipway/bob/app/tags/list",
        "http://registry.test/v2/slipway/bob/app/manifests/1",
    ):
        connection = HTTPConnection(proxy.removeprefix("http://"))
        connection.request("GET", trick, headers=basic(of_build()))
        assert connection.getresponse().status == 404
        connection.close()
    assert upstream.requests == []


def test_a_layer_is_mounted_only_from_where_it_may_be_pulled(proxy: str, upstream: Upstream) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for source, asks in ((CACHE, True), ("library/python", True), ("slipway/bob/app", False)):
        url = f"{proxy}/v2/{OWN}/blobs/uploads/?mount=sha256:0&from={source}"
        urllib3.request("POST", url, headers={**basic(of_build()), **form})
        _, path, passed = upstream.requests[-1]
        assert (f"from={source}" in path) == ("mount=" in path) == asks
        assert "content-type" not in passed  # the registry would read a body like the query


def test_a_login_of_another_start_or_of_nobody_is_none(proxy: str) -> None:
    login = of_build()
    text, _, signature = login.partition(":")[2].partition(".")
    other = of_build("registry.test/slipway/bob/app-0123:7").partition(":")[2].partition(".")[0]
    for forged in (
        of_build(key="AWS:other"),
        f"AWS:{other}.{signature}",
        f"AWS:{text}.",
        f"AWS:{text}",
        f"root:{text}.{signature}",
        "AWS:.",
    ):
        assert status(proxy, forged, "GET", f"{OWN}/manifests/1") == 401


def test_a_login_that_has_expired_is_refused_as_ecr_does(proxy: str) -> None:
    assert status(proxy, of_build(ago_seconds=3590), "GET", f"{OWN}/manifests/1") == 200
    assert status(proxy, of_build(ago_seconds=3601), "GET", f"{OWN}/manifests/1") == 403


def test_a_login_can_be_made_to_end_sooner(upstream: Upstream) -> None:
    """For tests of builds that ask for another one."""
    with before(upstream, login_seconds=60) as (_, url):
        assert status(url, of_build(ago_seconds=50), "GET", "") == 200
        assert status(url, of_build(ago_seconds=61), "GET", "") == 403
    with before(upstream, login_requests=2) as (_, url):
        first, second = of_build(), of_build()
        assert [status(url, first, "GET", "") for _ in range(3)] == [200, 200, 403]
        assert status(url, second, "GET", "") == 200
        assert [status(url, LOGIN, "GET", "") for _ in range(3)] == [200] * 3
    with before(upstream) as (proxy, url):
        first = of_build()
        assert status(url, first, "GET", "") == 200
        proxy.expire_logins()
        assert status(url, first, "GET", "") == 403
        assert status(url, of_build(), "GET", "") == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_stream_in_both_directions(proxy: str, upstream: Upstream, chunked: bool) -> None:
    size = 32 * 1024**2
    length = {} if chunked else {"Content-Length": str(size)}
    tracemalloc.start()
    blocks = (bytes(65536) for _ in range(size // 65536))
    sent = urllib3.request("PATCH", proxy + BLOB, headers={**basic(LOGIN), **length}, body=blocks)
    got = urllib3.request("GET", f"{proxy}/v2/large", headers=basic(LOGIN), preload_content=False)
    received = sum(len(block) for block in got.stream(65536))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (sent.status, upstream.received[0], received) == (200, size, size)
    assert peak < 8 * 1024**2


def test_a_client_that_leaves_in_the_middle_of_an_upload_is_no_error(
    proxy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a build that is stopped while it pushes."""
    before = threading.enumerate()
    connection = HTTPConnection(proxy.removeprefix("http://"))
    connection.putrequest("PATCH", BLOB)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.putheader("Authorization", basic(LOGIN)["authorization"])
    connection.endheaders(b"1\r\nx\r\n")
    connection.close()

    headers = {**basic(LOGIN), "Connection": "close"}
    assert urllib3.request("GET", f"{proxy}/v2/", headers=headers).status == 200
    for handler in set(threading.enumerate()) - set(before):
        handler.join(10)
    assert "machine/registry_proxy.py" not in capfd.readouterr().err  # in no traceback


def test_a_connection_serves_one_request_after_another(proxy: str, upstream: Upstream) -> None:
    connection = HTTPConnection(proxy.removeprefix("http://"))
    for _ in range(3):
        connection.request("GET", "/v2/", headers=basic(LOGIN))
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.will_close) == (200, False)
    connection.close()


def test_a_registry_that_does_not_answer_is_said_so() -> None:
    proxy = Proxy(lambda: HTTPConnection("127.0.0.1:9"), LOGIN)
    proxy.start()
    answer = urllib3.request("GET", f"http://{proxy.host}/v2/", headers=basic(LOGIN), retries=False)
    proxy.close()
    assert answer.status == 502


def test_it_runs_alone_with_nothing_but_python(upstream: Upstream) -> None:
    """As in the container beside a registry that is a container."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(registry_proxy.__file__).read_text()
    variables = {"LISTEN": address, "REGISTRY": upstream.host, "LOGIN": LOGIN, "PATH": os.environ["PATH"]}
    alone = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], env=variables)
    try:
        retries = urllib3.Retry(40, backoff_factor=0.05, backoff_max=0.5)
        assert urllib3.request("GET", f"http://{address}/v2/", retries=retries).status == 401
        for login in (LOGIN, of_build()):
            assert urllib3.request("GET", f"http://{address}/v2/", headers=basic(login)).status == 200
        assert status(f"http://{address}", of_build(), "GET", "slipway/bob/app/manifests/1") == 403
    finally:
        alone.terminate()
        alone.wait()
