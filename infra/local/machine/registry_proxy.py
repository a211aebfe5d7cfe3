"""A proxy before an image registry that requires a login, as ECR does: HTTP Basic, 401 without a login, 403 if it
has expired or does not allow the request.

There are two kinds of logins. The registry's own login allows everything. A build's login is signed with that one by
`signed_logins.SignedLogins`; its password contains its rights.

The proxy runs in the stack's process, or in a container beside the registry with Python's standard library only:
`python3 -c "$(cat registry_proxy.py)"` with the variables LISTEN (host:port), REGISTRY (host:port) and LOGIN
(user:password).
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from http.client import HTTPConnection, HTTPException, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs

BLOCK_BYTES = 262_144  # bodies are forwarded in pieces of this size
UPSTREAM_SECONDS = 300
_PATH = re.compile(r"/v2(/[A-Za-z0-9_:@+=-][A-Za-z0-9_.:@+=-]*)*/?")
_REPOSITORY = re.compile(r"/v2/(.+)/(manifests|blobs/uploads|blobs|tags|referrers)/.*")
_ONE_HOP = ("connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "expect")


class Everything:
    """The rights of the registry's own login. Times are seconds since 1970."""

    made_at = expires_at = math.inf

    def pulls(self, repository: str) -> bool:
        return True

    def allows(self, method: str, path: str) -> bool:
        return True


class Grant(Everything):
    """The rights of a build's login: `domain.repositories.Rights`, read from its password."""

    def __init__(self, text: str) -> None:
        said = json.loads(base64.urlsafe_b64decode(text))
        self.own, self.closed = said["own"], said["closed"]
        self.made_at, self.expires_at = said["made_at"], said["expires_at"]

    def pulls(self, repository: str) -> bool:
        """On one machine, every repository that cannot belong to a project is a base repository."""
        return repository in self.own or not any(fnmatchcase(repository, each) for each in self.closed)

    def allows(self, method: str, path: str) -> bool:
        if path.rstrip("/") == "/v2":
            return True
        if (found := _REPOSITORY.fullmatch(path)) is None:
            return False  # the catalog of all repositories
        repository, kind = found.groups()
        if method in ("GET", "HEAD"):
            return self.pulls(repository)
        # an upload may be cancelled; nothing else is ever deleted
        return repository in self.own and (method != "DELETE" or kind == "blobs/uploads")


class Proxy:
    """Serves until closed. `connect` makes a connection to the registry, whose own `login` is user:password.

    In tests, builds' logins can expire early: `login_seconds` after they were made, after `login_requests`, or at
    `expire_logins`.
    """

    def __init__(
        self,
        connect: Callable[[], HTTPConnection],
        login: str,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        login_seconds: float = math.inf,
        login_requests: float = math.inf,
    ) -> None:
        class Handler(_Handler):
            pass

        Handler.connect, Handler.proxy = staticmethod(connect), self
        self._login = login
        self._seconds, self._requests = login_seconds, login_requests
        self._expired_until = 0.0
        self._requests_of: Counter[str] = Counter()  # requests by login
        self._server = _Server(address, Handler)
        self.host = "{}:{}".format(*self._server.server_address[:2])

    def expire_logins(self) -> None:
        """For tests: refuses all builds' logins that were made until now."""
        self._expired_until = time.time()
        time.sleep(0.002)  # logins have their time in milliseconds

    def rights(self, login: str) -> Everything | None:
        """The rights of a login, user:password; None if it is not valid."""
        if hmac.compare_digest(login.encode(), self._login.encode()):
            return Everything()
        user, _, password = login.partition(":")
        text, _, signature = password.partition(".")
        good = hmac.new(self._login.encode(), text.encode(), "sha256").hexdigest()
        is_ours = user == self._login.partition(":")[0]
        return Grant(text) if hmac.compare_digest(signature.encode(), good.encode()) and is_ours else None

    def has_ended(self, rights: Everything, login: str) -> bool:
        """Whether the login has expired; counts this request."""
        if not isinstance(rights, Grant):
            return False
        self._requests_of[login] += 1
        ends = min(rights.expires_at, rights.made_at + self._seconds)
        is_late = time.time() >= ends or rights.made_at <= self._expired_until
        return is_late or self._requests_of[login] > self._requests

    def serve(self) -> None:
        self._server.serve_forever()

    def start(self) -> None:
        threading.Thread(target=self.serve, daemon=True, name="registry").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

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
        """Logs errors, except when a client closes the connection (a stopped build does)."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _ClientLeft(Exception):
    """The client closed the connection in the middle of a body."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connect: Callable[[], HTTPConnection]
    proxy: Proxy

    def handle_request(self) -> None:
        path, _, query = self.path.partition("?")
        login = self._login()
        rights = self.proxy.rights(login)
        if rights is None:
            self._refuse(401, "UNAUTHORIZED", "Log in: docker login --username … --password-stdin HOST")
        elif not _PATH.fullmatch(path):
            self._refuse(404, "UNSUPPORTED", "There is no such path.")
        elif self.proxy.has_ended(rights, login):
            self._refuse(403, "DENIED", "Your login has expired; ask for another.")
        elif not rights.allows(self.command, path):
            self._refuse(403, "DENIED", "This login may not do that.")
        else:
            # without the right to pull from there, the layer is not mounted, and the registry expects its upload
            if not all(map(rights.pulls, parse_qs(query).get("from", ()))):
                self.path = path
            self._pass_on()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request  # noqa: N815

    def _login(self) -> str:
        """The login of the request, user:password; empty without one."""
        kind, _, text = self.headers.get("Authorization", "").partition(" ")
        try:
            return base64.b64decode(text, validate=True).decode() if kind.lower() == "basic" else ""
        except ValueError:
            return ""

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.close_connection = True  # the rest of the body must not be read as another request
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
        dropped = {*_ONE_HOP, "authorization"}
        if self.command == "POST":
            dropped.add("content-type")  # a form could name another `from` than the query
        headers = HTTPMessage()  # a header may come more than once, as docker's `Accept` does
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
                self.close_connection = True  # the registry answered before it had read the body
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
        while size := int(self._line().partition(b";")[0], 16):
            yield from self._blocks(size)
            self.rfile.readline(64)
        while self.rfile.readline(1024).strip():
            pass  # trailers

    def _line(self) -> bytes:
        """The line that begins a chunk."""
        if not (line := self.rfile.readline(64)):
            raise _ClientLeft
        return line

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def _main() -> None:
    host, _, port = os.environ["LISTEN"].rpartition(":")
    registry = os.environ["REGISTRY"]
    Proxy(
        lambda: HTTPConnection(registry, timeout=UPSTREAM_SECONDS),
        os.environ["LOGIN"],
        (host, int(port)),
    ).serve()


if __name__ == "__main__":
    _main()
