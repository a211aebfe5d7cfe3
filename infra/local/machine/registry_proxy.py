"""Stands before an image registry and asks for a login, as ECR does: HTTP Basic, 401 without one.

Runs in the stack's process, or alone in a container beside the registry, where there is nothing but Python's
own library: `python3 -c "$(cat registry_proxy.py)"` with the variables LISTEN (host:port), REGISTRY
(host:port) and LOGIN (user:password).
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

# What a login may do: asked with the method and the repository's name, "" where a request is about none.
Rights = Callable[[str, str], bool]

BLOCK_BYTES = 262_144  # bodies are passed on by such pieces, never held whole
UPSTREAM_SECONDS = 300
_PATH = re.compile(r"/v2(/[A-Za-z0-9_:@+=-][A-Za-z0-9_.:@+=-]*)*/?")
_REPOSITORY = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags)/.*")
_ONE_HOP = ("connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "expect")


def everything(method: str, repository: str) -> bool:
    """The rights of the login that the stack itself uses."""
    return True


class Proxy:
    """Serves until closed; `connect` makes a connection to the registry, `logins` are `user:password`."""

    def __init__(
        self,
        connect: Callable[[], HTTPConnection],
        logins: Mapping[str, Rights],
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.connect, Handler.logins = staticmethod(connect), logins
        self._server = _Server(address, Handler)
        self.host = "{}:{}".format(*self._server.server_address[:2])

    def serve(self) -> None:
        self._server.serve_forever()

    def start(self) -> None:
        threading.Thread(target=self.serve, daemon=True, name="registry").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class UnixConnection(HTTPConnection):
    """HTTP over the socket of a file."""

    def __init__(self, path: str) -> None:
        super().__init__("registry", timeout=UPSTREAM_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, as a stopped build does, is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _ClientLeft(Exception):
    """In the middle of a body."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connect: Callable[[], HTTPConnection]
    logins: Mapping[str, Rights]

    def handle_request(self) -> None:
        path = self.path.partition("?")[0]
        rights = self._rights()
        if rights is None:
            self._refuse(401, "UNAUTHORIZED", "Log in: docker login --username … --password-stdin HOST")
        elif not _PATH.fullmatch(path):
            self._refuse(404, "UNSUPPORTED", "There is no such path.")
        elif not rights(self.command, found[1] if (found := _REPOSITORY.fullmatch(path)) else ""):
            self._refuse(403, "DENIED", "This login may not do that.")
        else:
            self._pass_on()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815

    def _rights(self) -> Rights | None:
        """Those of the login that the request names, None without a good one."""
        kind, _, text = self.headers.get("Authorization", "").partition(" ")
        try:
            given = base64.b64decode(text, validate=True) if kind.lower() == "basic" else b""
        except ValueError:
            return None
        for login, rights in self.logins.items():
            if hmac.compare_digest(login.encode(), given):
                return rights
        return None

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.close_connection = True  # a body that was not read must not be taken for another request
        self.send_response_only(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="slipway",service="ecr.amazonaws.com"')
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _pass_on(self) -> None:
        dropped = (*_ONE_HOP, "authorization")
        headers = HTTPMessage()  # a name may come more than once, as `Accept` of docker does
        for name, value in self.headers.items():
            if name.lower() not in dropped:
                headers[name] = value
        body: Iterator[bytes] | None = None
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            body = self._chunks()
        elif length := int(self.headers.get("Content-Length") or 0):
            body = self._blocks(length)
        upstream = self.connect()
        try:
            try:
                upstream.request(self.command, self.path, body, cast(Any, headers), encode_chunked=True)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # it answered before it had read the body
            answer = upstream.getresponse()
        except _ClientLeft:
            self.close_connection = True
        except (OSError, HTTPException):
            self._refuse(502, "UNAVAILABLE", "The registry did not answer.")
        else:
            self._answer(answer)
        finally:
            upstream.close()

    def _answer(self, answer: Any) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _ONE_HOP:
                self.send_header(name, value)
        bodiless = self.command == "HEAD" or answer.status in (204, 304)
        if not bodiless and answer.length is None:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        while not bodiless and (block := answer.read(BLOCK_BYTES)):
            self.wfile.write(block)

    def _blocks(self, left: int) -> Iterator[bytes]:
        while left:
            block = self.rfile.read(min(left, BLOCK_BYTES))
            if not block:
                raise _ClientLeft
            left -= len(block)
            yield block

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(64).partition(b";")[0], 16):
            yield from self._blocks(size)
            self.rfile.readline(64)
        while self.rfile.readline(1024).strip():
            pass  # trailers

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _main() -> None:
    host, _, port = os.environ["LISTEN"].rpartition(":")
    registry = os.environ["REGISTRY"]
    Proxy(
        lambda: HTTPConnection(registry, timeout=UPSTREAM_SECONDS),
        {os.environ["LOGIN"]: everything},
        (host, int(port)),
    ).serve()


if __name__ == "__main__":
    _main()
