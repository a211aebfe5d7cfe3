"""An HTTP server on loopback that takes the place of an AWS service; one function answers all requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server


class _Handler(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Requests are not logged."""


@contextmanager
def served(answer: Callable[[Request], Response]) -> Iterator[str]:
    """Yields the address of the server, host:port; it stops at the end of the block. Requests run concurrently, each on
    its own connection."""
    application = Request.application(answer)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
