"""The proxy before the registry, with a registry that only writes down what reaches it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3

from infra.local.machine import registry_proxy
from infra.local.machine.registry_proxy import Proxy, everything

LOGIN, READER = "AWS:secret", "reader:other"
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

        do_GET = do_PATCH = do_PUT = do_POST = answer  # noqa: N815

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


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[str]:
    """Its URL."""

    def only_reads_hers(method: str, repository: str) -> bool:
        return method in ("GET", "HEAD") and repository in ("", "ann/app")

    proxy = Proxy(lambda: HTTPConnection(upstream.host), {LOGIN: everything, READER: only_reads_hers})
    proxy.start()
    yield f"http://{proxy.host}"
    proxy.close()


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


def test_a_login_may_be_narrowed_by_method_and_repository(proxy: str, upstream: Upstream) -> None:
    def status(method: str, path: str) -> int:
        return urllib3.request(method, proxy + path, headers=basic(READER), retries=False).status

    assert status("GET", "/v2/") == 200
    assert status("GET", "/v2/ann/app/manifests/1") == 200
    assert status("PUT", "/v2/ann/app/manifests/1") == 403
    assert status("GET", "/v2/ann/other/manifests/1") == 403
    for trick in (
        "/v2/ann/app/../other/manifests/1",
        "/v2/ann%2fother/manifests/1",
        "/v2//ann/other/tags/list",
    ):
        connection = HTTPConnection(proxy.removeprefix("http://"))
        connection.request("GET", trick, headers=basic(READER))
        assert connection.getresponse().status == 404
        connection.close()
    assert len(upstream.requests) == 2


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


def test_a_connection_serves_one_request_after_another(proxy: str, upstream: Upstream) -> None:
    connection = HTTPConnection(proxy.removeprefix("http://"))
    for _ in range(3):
        connection.request("GET", "/v2/", headers=basic(LOGIN))
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.will_close) == (200, False)
    connection.close()


def test_a_registry_that_does_not_answer_is_said_so() -> None:
    proxy = Proxy(lambda: HTTPConnection("127.0.0.1:9"), {LOGIN: everything})
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
        assert urllib3.request("GET", f"http://{address}/v2/", headers=basic(LOGIN)).status == 200
    finally:
        alone.terminate()
        alone.wait()
