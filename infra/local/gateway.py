"""API Gateway on loopback: Chalice's local server, with the error responses of the deployed gateway."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

from chalice.app import Chalice
from chalice.config import Config
from chalice.local import (
    ChaliceRequestHandler,
    ForbiddenError,
    LocalChalice,
    LocalDevServer,
    LocalGateway,
    LocalGatewayException,
    ThreadedHTTPServer,
)


class _Server(ThreadedHTTPServer):
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self.is_closing = False
        self._in_progress, self._changed = 0, threading.Condition()
        super().__init__(*arguments)  # closes the server when the port is taken

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """A request in progress."""
        with self._changed:
            self._in_progress += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_progress -= 1
                self._changed.notify_all()

    def server_close(self) -> None:
        """Takes no more connections and waits for the answers of requests in progress, for a bounded time."""
        self.is_closing = True
        super().server_close()
        with self._changed:
            self._changed.wait_for(lambda: self._in_progress == 0, PATIENCE_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs errors, except when a client closes the connection (an interrupted demo does)."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


PATIENCE_SECONDS = 20  # with requests in progress when the stack stops
MAX_ANSWER_BYTES = 6_291_556  # of a function's answer as JSON: Lambda's limit for synchronous invocations


Checks = Mapping[str, Callable[[], bool]]  # the name of what is checked, and whether it works


class _Gateway(LocalGateway):
    """Answers 502 for an answer that Lambda would not pass on. `/healthz` also runs the checks."""

    def __init__(self, app: Chalice, config: Config, checks: Checks) -> None:
        super().__init__(app, config)
        self._checks = checks

    def handle_request(self, method: str, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        answer: dict[str, Any] = super().handle_request(method, path, *args, **kwargs)
        if path.partition("?")[0] == "/healthz":
            broken = [what for what, works in self._checks.items() if not works()]
            if broken:
                body = "".join(f"{what} does not answer.\n" for what in broken)
                answer |= {"statusCode": 503, "body": body}
        # Since Python 3.12, Lambda's runtime client does not escape characters beyond ASCII.
        text = json.dumps(answer, ensure_ascii=sys.version_info < (3, 12))
        if len(text.encode(errors="surrogatepass")) <= MAX_ANSWER_BYTES:
            return answer
        body = '{"message": "Internal server error"}'
        return {"statusCode": 502, "headers": {}, "multiValueHeaders": {}, "body": body}


class _Handler(ChaliceRequestHandler):
    disable_nagle_algorithm = True  # else each request on an open connection takes 40 ms

    def __init__(self, *connection: Any, app_object: Chalice, config: Config, checks: Checks) -> None:
        self.local_gateway = _Gateway(app_object, config, checks)
        BaseHTTPRequestHandler.__init__(self, *connection)

    def _answer(self) -> None:
        """A request on an open connection is refused when the stack stops."""
        assert isinstance(self.server, _Server)
        with self.server.one_more():
            if not self.server.is_closing:
                super()._generic_handle()
                return
        self.close_connection = True
        body = b'{"detail": "The service is stopping; try again."}'
        self._send_http_response(503, {"Retry-After": "5", "Connection": "close"}, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = _answer  # noqa: N815 - http.server calls them

    def _send_error_response(self, error: LocalGatewayException) -> None:
        """Answers unknown routes with the text that the template's GatewayResponses have."""
        if isinstance(error, ForbiddenError):
            self._send_http_response(404, {}, b'{"detail": "Not found."}')
        else:
            super()._send_error_response(error)

    def _send_http_response_with_body(self, code: int, headers: Any, body: Any) -> None:
        """Answers HEAD without the body, which a client would read as the beginning of the next answer."""
        if self.command == "HEAD":
            headers["Content-Length"] = str(len(body if isinstance(body, bytes) else body.encode()))
            self.send_response(code)
            self._send_headers(headers)
        else:
            super()._send_http_response_with_body(code, headers, body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged here; the service logs errors."""


class Gateway:
    """Serves an app on loopback until closed; `/healthz` names the checks that fail. Raises OSError when the port is
    taken."""

    def __init__(self, app: Chalice, port: int, checks: Checks) -> None:
        handler = partial(_Handler, checks=checks)
        app.__class__ = LocalChalice  # keeps the current request per thread
        self._server = LocalDevServer(app, Config(), "127.0.0.1", port, handler, _Server).server
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="gateway")
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
