"""A git repository with two commits, served over https on loopback."""

from __future__ import annotations

import base64
import functools
import http.server
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitServer:
    """`asked` has the Authorization headers that came, in their order; None for requests without one."""

    url: str
    commits: list[str]
    certificate: Path  # to trust
    asked: list[str | None]


@contextmanager
def git_server(folder: Path, login: str | None = None, files: Mapping[str, str] | None = None) -> Iterator[GitServer]:
    """Served until the block is left; with a login, `user:password`, to nobody else. Both commits have
    `files`."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    run(
        folder,
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
    )
    work, served = folder / "work", folder / "served"
    work.mkdir()
    for name, text in (files or {}).items():
        (work / name).write_text(text)
    commits = []
    run(work, "git", "init", "--quiet", "--initial-branch", "main")
    author = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for text in ("first", "second"):
        (work / "note.txt").write_text(text)
        (work / "requirements.txt").touch()
        run(work, "git", "add", ".")
        run(work, "git", *author, "commit", "--quiet", "-m", text)
        commits.append(run(work, "git", "rev-parse", "HEAD").strip())
    run(folder, "git", "clone", "--quiet", "--bare", str(work), str(served / "code.git"))
    run(served / "code.git", "git", "update-server-info")

    asked: list[str | None] = []
    wanted = login and f"Basic {base64.b64encode(login.encode()).decode()}"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            if wanted in (None, asked[-1]):
                return super().do_GET()
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="code"')
            said = f"Not {base64.b64decode((asked[-1] or '').removeprefix('Basic ')).decode()}".encode()
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            return None

        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

    handler = functools.partial(Handler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield GitServer(f"https://127.0.0.1:{server.server_address[1]}/code.git", commits, certificate, asked)
    finally:
        server.shutdown()
        server.server_close()


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
