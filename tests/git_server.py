"""Git repositories, served over https on loopback by git's own program."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
# What the machine's git is told, such as to let git LFS take files, is not heeded.
_OWN = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
_MADE_BY = {f"GIT_{who}_{what}": "t@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class GitServer:
    """Serves the repositories below `folder/served`, and what git LFS keeps of them. A path without `.git` leads on to
    the one with it, `/moved/…` elsewhere, and `/round/…` in a circle."""

    folder: Path
    host: str  # with its port
    certificate: Path  # to trust
    commits: list[str] = field(default_factory=list)  # of the repository `code`
    asked: list[str | None] = field(default_factory=list)  # the header Authorization of each request

    @property
    def url(self) -> str:
        """Of the repository `code`."""
        return self.url_of("code")

    def url_of(self, name: str) -> str:
        return f"https://{self.host}/{name}.git"

    def commit(self, name: str, files: Mapping[str, str]) -> str:
        """The hash of a commit with these files more, on the branch that is checked out."""
        work = self.folder / "work" / name
        if not work.exists():
            work.mkdir(parents=True)
            self.git(name, "init", "--quiet", "--initial-branch", "main")
            run(self.folder, "git", "init", "--quiet", "--bare", f"served/{name}.git", "--initial-branch", "main")
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        self.git(name, "add", ".")
        self.git(name, "commit", "--quiet", "--allow-empty", "--message", "change")
        self.publish(name)
        return self.git(name, "rev-parse", "HEAD")

    def add_submodule(self, name: str, url: str, commit: str, path: str = "lib") -> str:
        """The hash of a commit with another repository's commit as submodule, written down in any way, and more."""
        self.commit(name, {"own.txt": name})
        self.git(name, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        for setting, value in {"path": path, "url": url, "update": "none"}.items():
            self.git(name, "config", "--file", ".gitmodules", f"submodule.{path}.{setting}", value)
        self.git(name, "add", ".gitmodules")
        self.git(name, "commit", "--quiet", "--message", "submodule")
        self.publish(name)
        return self.git(name, "rev-parse", "HEAD")

    def publish(self, name: str) -> None:
        """Shows all refs that there are now."""
        self.git(name, "push", "--quiet", "--mirror", str(self.folder / "served" / f"{name}.git"))

    def git(self, name: str, *arguments: str) -> str:
        """Runs git in the repository's work tree, and gives what it said."""
        return run(self.folder / "work" / name, "git", *arguments, GIT_SSL_CAINFO=str(self.certificate)).strip()

    def pointer(self, content: str) -> str:
        """What stands in a repository for a file that git LFS keeps, and is kept by that."""
        oid = hashlib.sha256(content.encode()).hexdigest()
        (self.folder / "lfs").mkdir(exist_ok=True)
        (self.folder / "lfs" / oid).write_text(content)
        return POINTER.format(oid=oid, size=len(content))


@contextmanager
def git_server(folder: Path, login: str | None = None, files: Mapping[str, str] | None = None) -> Iterator[GitServer]:
    """Served until the block is left; with a login, `user:password`, to nobody else. The repository `code` has two
    commits, both with `files`."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    run(
        folder,
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    git = GitServer(folder, f"127.0.0.1:{server.server_address[1]}", certificate)
    server.git = git  # type: ignore[attr-defined]
    server.wanted = login and f"Basic {base64.b64encode(login.encode()).decode()}"  # type: ignore[attr-defined]
    for text in ("first", "second"):
        git.commits.append(git.commit("code", {"note.txt": text, "requirements.txt": "", **(files or {})}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield git
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"  # else the end of TLS is missed

    def do_GET(self) -> None:
        git: GitServer = self.server.git
        git.asked.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        first, _, rest = path.removeprefix("/").partition("/")
        if self.server.wanted not in (None, git.asked[-1]):
            said = f"Not {base64.b64decode((git.asked[-1] or '').removeprefix('Basic ')).decode()}"
            self._answer(401, said.encode(), {"WWW-Authenticate": 'Basic realm="code"', "Content-Type": "text/plain"})
        elif first == "moved":
            self._answer(302, b"", {"Location": f"https://127.0.0.1:9/{rest}?{query}"})
        elif first == "round":
            self._answer(307, b"", {"Location": f"{path}?{query}"})
        elif first == "lfs":
            self._answer(200, (git.folder / "lfs" / rest).read_bytes(), {})
        elif rest.endswith("objects/batch"):
            self._answer(200, self._batch(body), {"Content-Type": "application/vnd.git-lfs+json"})
        elif not first.endswith(".git"):
            self._answer(301, b"", {"Location": f"https://{git.host}/{first}.git/{rest}?{query}"})
        else:
            self._run(path, query, body)

    do_POST = do_GET  # noqa: N815 - so it is called

    def _batch(self, body: bytes) -> bytes:
        wanted = json.loads(body)["objects"]
        for each in wanted:
            each["actions"] = {"download": {"href": f"https://{self.server.git.host}/lfs/{each['oid']}"}}
        return json.dumps({"transfer": "basic", "objects": wanted}).encode()

    def _run(self, path: str, query: str, body: bytes) -> None:
        variables = {
            "GIT_PROJECT_ROOT": str(self.server.git.folder / "served"),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env={**os.environ, **variables}, capture_output=True, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self._answer(int(headers.pop("Status", "200").split()[0]), content, headers)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are not logged."""


def run(folder: Path, *command: str, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **_OWN, **_MADE_BY, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
