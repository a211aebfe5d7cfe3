"""Serves the files of `ui/`: the page, which `make ui` builds, the command line and the OpenAPI document, which are
written before the service is packaged or started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chalice.app import Response

FOLDER = Path(__file__).with_name("ui")
INDEX, OPENAPI = "index.html", "openapi"
_TYPES = {
    ".html": "text/html",
    ".json": "application/json",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' {}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NOT_BUILT = "The page is not built here: `make ui` does that, with Node 20 or newer. The API works without it.\n"


def answer(name: str, upload_url: Callable[[], str]) -> Response:
    """The file of that name, or 404. The page may send requests only to this host and to `upload_url`. Browsers cache
    files with a hash in their name, as `main.HASH.js`, for ever, and ask again for all others."""
    found = {path.name: path for path in FOLDER.glob("*")}  # only these names, so that no name leads elsewhere
    headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-cache"}
    if (file := found.get(name) or found.get(f"{name}.html")) is None:
        return Response("Not found.\n" if INDEX in found else NOT_BUILT, {**headers}, 404)
    if kind := _TYPES.get(file.suffix):
        headers["Content-Type"] = f"{kind}; charset=utf-8"
    if name.count(".") == 2:
        headers["Cache-Control"] = "public, max-age=31536000, immutable"
    if file.suffix == ".html":
        headers["Content-Security-Policy"] = _POLICY.format(upload_url())
    return Response(file.read_text(encoding="utf-8"), {**headers})
