#!/usr/bin/env python3
"""Build container images on Slipway. This one file needs only Python 3.9 or newer.

    curl -O https://HOST/api/ui/slipway
    python3 slipway login https://HOST/api
    python3 slipway build . --follow

SLIPWAY_URL and SLIPWAY_TOKEN override what `login` has saved.
"""

from __future__ import annotations

import argparse
import getpass
import gzip
import http.client
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

OUTCOMES = {"succeeded": 0, "failed": 1, "upstream_failed": 1, "stopped": 3, "skipped": 3}
WRONG_USE, TROUBLE, INTERRUPTED = 2, 4, 130  # exit statuses, as those of the outcomes
ENDS = """The exit status is the outcome: 0 done or succeeded, 1 the build failed, 2 wrong usage, 3 the build was
stopped, 4 the service refuses or does not answer (which says nothing about the build), 130 interrupted.
Results go to standard output, all else to standard error."""
VERSION = "unknown"
PROGRAM = f"python3 {shlex.quote(sys.argv[0])}"
LOGIN = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "slipway" / "login.json"
SMALL_BYTES = 4_400_000  # the largest archive that is sent to the API; larger ones are sent to storage
TIMEOUT_SECONDS = 60  # of a request that makes no progress
PATIENCE_SECONDS = 900  # how long requests are repeated when a service that has answered before does not answer
LONGEST_PAUSE_SECONDS = 30
LAST_LINES_SECONDS = 30  # after its end, and after the last line that came
AGAIN = (429, 500, 502, 503, 504)  # statuses after which a request is repeated, as after any with Retry-After


class Trouble(Exception):
    """An error, as a sentence for the user; `status` is that of the HTTP answer, or 0."""

    exit_status = TROUBLE

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


class WrongUse(Trouble):
    """The program was called in a wrong way; nothing was sent."""

    exit_status = WRONG_USE


class NoAnswer(Trouble):
    """The service did not answer, or is too busy; try again."""


# Output


def tick(text: str) -> None:
    """Shows progress, only on a terminal; the next line replaces it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()


def say(text: str, to: IO[str] | None = None, end: str = "\n") -> None:
    """Prints a text, by default to standard error."""
    tick("")
    print(text, file=to or sys.stderr, end=end, flush=True)


def wait(seconds: float, why: str) -> None:
    tick(f"{why} in {seconds:.0f} s")
    time.sleep(seconds)


def printable(text: str) -> str:
    """The text in one line, without control characters."""
    return "".join(each if each.isprintable() else " " for each in text)


# The service


class Plain(urllib.request.HTTPErrorProcessor):
    """Returns error responses instead of raising. Follows no redirects: they could take the token to another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def blocks(files: list[IO[bytes]]) -> Iterator[bytes]:
    """The files one after another, from their beginnings; shows how much was sent."""
    size, sent = size_of(files), 0
    for file in files:
        file.seek(0)
        while block := file.read(1 << 16):
            sent += len(block)
            tick(f"Uploading: {sent * 100 // size} % of {size / 1e6:.1f} MB")
            yield block


def size_of(files: list[IO[bytes]]) -> int:
    return sum(file.seek(0, io.SEEK_END) for file in files)


class Service:
    """The API, for one user."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token, self.has_answered = url, token, False
        self._opener = urllib.request.build_opener(Plain)

    @cached_property
    def user(self) -> str:
        return str(self.json("GET", "/users/")["username"])

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer, parsed. Raises as `ask`."""
        try:
            return json.loads(self.ask(method, path, body, **headers)[0] or "null")
        except ValueError as error:
            raise Trouble(f"{self.url} answers, but not as Slipway does.") from error

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[str, Any]:
        """Text and headers of the answer. `path` is a path of the API or a URL, `body` an object or files. If the
        service has answered before, repeats the request for `PATIENCE_SECONDS` while there is no answer. Raises
        Trouble, NoAnswer."""
        since, pause = time.monotonic(), 1
        while True:
            try:
                answer = self._asked(method, path, body, {name.replace("_", "-"): headers[name] for name in headers})
            except NoAnswer as trouble:
                if not self.has_answered or time.monotonic() - since > PATIENCE_SECONDS:
                    raise
                if pause == 1:
                    say(f"{trouble} Trying again for 15 minutes.")
                wait(pause, "No answer; trying again")
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                if pause > 1:
                    say("The service answers again.")
                self.has_answered = True
                return answer

    def _asked(self, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[str, Any]:
        url = path
        if path.startswith("/"):
            url, headers["Authorization"] = self.url + path, f"token {self.token}"
        if isinstance(body, list):
            body, headers["Content-Length"] = blocks(body), str(size_of(body))
        elif body is not None:
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 (see `address`)
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                text, status = answer.read().decode(errors="replace"), answer.status
        except (OSError, http.client.HTTPException) as error:
            why = printable(str(getattr(error, "reason", error)))
            raise NoAnswer(f"{urlsplit(url).netloc} does not answer ({why}).") from error
        except ValueError as error:  # its message may contain the token
            raise Trouble(f"{url} cannot be requested: it or the token has a wrong character.") from error
        if status < 300:
            return text, answer.headers
        words = printable(" ".join(sentences(text)))[:2000] or f"{url} answers {status} {answer.reason}."
        if status in AGAIN or answer.headers["Retry-After"]:
            raise NoAnswer(words, status)
        raise Trouble(f"{words} Log in again: {PROGRAM} login {self.url}" if status == 401 else words, status)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a refusal: `{"detail": …}`, a list, lists by field, or a text; none of an HTML page."""
    try:
        said = json.loads(text)
    except ValueError:
        said = [] if text.lstrip().startswith("<") else text
    for field, words in said.items() if isinstance(said, dict) else [("detail", said)]:
        named = "" if field in ("detail", "message", "non_field_errors") else f"{field}: "
        yield named + " ".join(map(str, words if isinstance(words, list) else [words]))


def address(text: str) -> str:
    """The URL of the API, given that of the host, the stage, the API or the page. Raises Trouble."""
    found = re.fullmatch(r"(https?://[^/?#\s]+)([^?#\s]*)", text.strip().rstrip("/"))
    if found is None:
        raise WrongUse(f"{printable(text)} is not an address: it must begin with https:// or http://.")
    return found[1] + (re.sub(r"/(ui|v1)(/.*)?$", "", found[2]) if found[2] else "/api") + "/v1"


def service() -> Service:
    """The service of SLIPWAY_URL and SLIPWAY_TOKEN, or of the last `login`. Raises Trouble."""
    try:
        saved = json.loads(LOGIN.read_text())
    except (OSError, ValueError):
        saved = {}
    url, token = (os.environ.get(f"SLIPWAY_{name.upper()}") or saved.get(name) for name in ("url", "token"))
    if not url or not token:
        raise WrongUse(f"Which service? {PROGRAM} login https://HOST/api, or set SLIPWAY_URL and SLIPWAY_TOKEN.")
    return Service(address(url), token.strip())


# The inputs of a build


def ignoring(patterns: str) -> Callable[[str], bool]:
    """A function that says whether a .dockerignore with these lines excludes a path; the last matching line decides."""
    rules: list[tuple[re.Pattern[str], bool]] = []
    for line in map(str.strip, patterns.splitlines()):
        if line and not line.startswith("#"):
            keeps = line.startswith("!")
            pattern = os.path.normpath(line[keeps:].strip()).strip("/")
            rules.insert(0, (re.compile(f"{expression(pattern)}(/.*)?", re.DOTALL), keeps))
    return lambda path: next((not keeps for rule, keeps in rules if rule.fullmatch(path)), False)


def expression(pattern: str) -> str:
    """A pattern of .dockerignore as a regular expression."""
    meanings = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|\\.|.", pattern, re.DOTALL)
    return "".join(
        meanings.get(each) or (each if each[1:] and each[0] == "[" else re.escape(each[-1])) for each in tokens
    )


def text_of(path: Path) -> str:
    """The text of a file in UTF-8. Raises WrongUse."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise WrongUse(f"{path} is not in UTF-8.") from None


def pack(folder: Path, dockerfile: str, to: IO[bytes]) -> int:
    """Writes the files that are not ignored as a gzipped tar; equal files make equal bytes. Returns their number."""

    def without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        info.uid, info.gid, info.uname, info.gname = 0, 0, "", ""
        return None if info.isdev() else info

    lists = (folder / f"{dockerfile}.dockerignore", folder / ".dockerignore")  # as BuildKit looks for them
    patterns = next((text_of(path) for path in lists if path.is_file()), "")
    is_ignored = ignoring(patterns)
    with gzip.GzipFile("", "wb", fileobj=to, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for parent, folders, files in os.walk(folder):
            for name in sorted(folders + files):
                file = Path(parent, name)
                path = file.relative_to(folder).as_posix()
                if not is_ignored(path) or path == dockerfile:
                    tick(f"Packing {printable(path)}")
                    tar.add(file, path, recursive=False, filter=without_owner)
                elif name in folders and "!" not in patterns and not dockerfile.startswith(f"{path}/"):
                    folders.remove(name)  # nothing in it is packed
            folders.sort()
        return sum(not info.isdir() for info in tar.getmembers())


def upload(to: Service, project: str, archive: IO[bytes]) -> None:
    """Uploads the archive as the project's code. Raises Trouble."""
    if size_of([archive]) <= SMALL_BYTES:
        to.ask("PUT", f"{project}/repo/upload", [archive], Content_Type="application/gzip")
        return
    offer, boundary = to.json("POST", f"{project}/repo/upload/offers"), uuid.uuid4().hex
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = "".join(f'{part}"{name}"\r\n\r\n{value}\r\n' for name, value in offer["fields"].items())
    head += f'{part}"file"; filename="code.tar.gz"\r\n\r\n'
    form = [io.BytesIO(head.encode()), archive, io.BytesIO(f"\r\n--{boundary}--\r\n".encode())]
    to.ask("POST", offer["url"], form, Content_Type=f"multipart/form-data; boundary={boundary}")
    to.ask("POST", f"{project}/repo/upload/offers/{offer['complete'].rstrip('/').rpartition('/')[2]}")


def specification(given: argparse.Namespace) -> str:
    """The build specification. Raises Trouble."""
    if not Path(given.folder).is_dir():
        raise WrongUse(f"{given.folder} is not a folder.")
    if given.spec:
        return text_of(Path(given.spec))
    if not Path(given.folder, given.dockerfile).is_file():
        raise WrongUse(f"{given.folder} has no {given.dockerfile}: name one with --dockerfile, or a --spec.")
    return json.dumps({"version": 1, "kind": "build", "dockerfile": given.dockerfile})


# Commands


def project_of(at: Service, name: str | None, folder: str = ".") -> str:
    """The path of a project that is given as NAME or OWNER/NAME, else the user's with the folder's name."""
    name = name or re.sub(r"[^\w-]+", "-", Path(folder).resolve().name, flags=re.ASCII).strip("-") or "code"
    return f"/{name}" if "/" in name else f"/{at.user}/{name}"


def build_of(at: Service, text: str) -> str:
    """The path of a build that is given as NUMBER, PROJECT/NUMBER or OWNER/PROJECT/NUMBER. Raises Trouble."""
    name, _, number = text.rpartition("/")
    if not number.isdigit():
        raise WrongUse(
            f"{printable(text)} does not name a build: write NUMBER, PROJECT/NUMBER or OWNER/PROJECT/NUMBER."
        )
    return f"{project_of(at, name)}/builds/{number}"


def named(path: str) -> str:
    """A build as `build_of` takes it."""
    return path[1:].replace("/builds/", "/")


def image_of(build: Any) -> str:
    """The build's image by its digest, as `docker pull` takes it; empty while the build has no image."""
    return f"{build['image'].rpartition(':')[0]}@{build['image_digest']}" if build["image_digest"] else ""


def login(given: argparse.Namespace) -> int:
    token = getpass.getpass("Token: ") if sys.stdin.isatty() else sys.stdin.readline()
    at = Service(address(given.url), token.strip())
    say(f"{at.url} knows you as {at.user}. The token is saved in {LOGIN}, which only you can read.")
    LOGIN.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    LOGIN.touch(mode=0o600)
    LOGIN.write_text(json.dumps({"url": at.url, "token": at.token}))
    return 0


def build(given: argparse.Namespace) -> int:
    at, content = service(), specification(given)
    project = project_of(at, given.project, given.folder)
    try:
        at.ask("GET", project)
    except Trouble as trouble:
        if trouble.status != 404 or not project.startswith(f"/{at.user}/"):
            raise
        at.ask("POST", "/projects/", {"name": project.rpartition("/")[2]})
        say(f"Created project {project[1:]}.")
    # of a build that runs elsewhere the specification alone is checked, not whether the code is there
    at.ask("POST", f"{project}/dockerfile", {"content": content, "is_managed": False})
    with tempfile.TemporaryFile() as archive:
        count = pack(Path(given.folder), os.path.normpath(given.dockerfile), archive)
        say(f"Uploading {given.folder}: {count} files, {archive.tell() / 1e6:.1f} MB packed.")
        upload(at, project, archive)
    made = at.json("POST", f"{project}/builds/", {"content": content}, Idempotency_Key=uuid.uuid4().hex)
    path = f"{project}/builds/{made['id']}"
    say(f"Created build {named(path)}.")
    if given.follow:
        made = follow(at, path, lambda text: say(text, end=""))
    else:
        say(f"Follow it: {PROGRAM} logs {named(path)} --follow")
    if given.json:
        say(json.dumps(made), sys.stdout)
    elif result := image_of(made) if given.follow else named(path):
        say(result, sys.stdout)
    return OUTCOMES[made["last_status"]] if given.follow else 0


def logs(given: argparse.Namespace) -> int:
    at = service()
    path = build_of(at, given.build)

    def show(text: str) -> None:
        if given.json:
            rows = (line.partition(" -- ") for line in re.findall(r"[^\n]+", text))
            text = "".join(json.dumps({"time": at, "message": words}) + "\n" for at, _, words in rows)
        say(text, sys.stdout, end="")

    if given.follow:
        ended = follow(at, path, show)
        if image := image_of(ended):
            say(image)
        return OUTCOMES[ended["last_status"]]
    for text, seconds in log_of(at, path):
        show(text)
        if seconds:
            break
    return 0


def log_of(at: Service, path: str) -> Iterator[tuple[str, int]]:
    """The log in pieces until it is complete, each with the seconds to wait for the next one."""
    cursor, is_complete = "0", "false"
    while is_complete == "false":
        text, headers = at.ask("GET", f"{path}/logs?{urlencode({'cursor': cursor})}")
        cursor, is_complete = headers["X-Slipway-Next-Cursor"], headers["X-Slipway-Log-Complete"]
        yield text, int(headers["Retry-After"] or 0)


def follow(at: Service, path: str, show: Callable[[str], None]) -> Any:
    """Shows statuses and log until the build has ended; returns the build. Raises Trouble, KeyboardInterrupt."""
    since, seen, status = time.monotonic(), 0, "created"

    def show_statuses(text: str = "") -> None:
        """Those that have come since, with a text of the log where it belongs: before the outcome."""
        nonlocal seen, status
        for row in at.json("GET", f"{path}/statuses?offset={seen}&limit=500")["results"]:
            seen, status = seen + 1, row["status"]
            if status in OUTCOMES:
                show(text)
                text = ""
            words = f"{status}: {printable(row['message'])}" if row["message"] else status
            say(f"[{time.monotonic() - since:5.1f} s] {words}")
        show(text)

    try:
        heard = since
        for text, seconds in log_of(at, path):
            show_statuses(text)
            heard = time.monotonic() if text or status not in OUTCOMES else heard
            quiet = time.monotonic() - heard
            if seconds and (status == "stopped" or quiet > LAST_LINES_SECONDS):  # its last lines may never come
                break
            wait(seconds, f"{status}, {time.monotonic() - since:.0f} s; asking again")
        while (found := at.json("GET", path))["last_status"] not in OUTCOMES:
            wait(2, "The log is complete; asking for the outcome")
        show_statuses()
        return found
    except (KeyboardInterrupt, NoAnswer):
        if status not in OUTCOMES:
            say(f"Not following any more; the build goes on. To follow: {PROGRAM} logs {named(path)} --follow")
            say(f"To stop it: {PROGRAM} stop {named(path)}")
        raise


def list_(given: argparse.Namespace) -> int:
    at = service()
    query = urlencode({"limit": given.limit, "query": given.query, "sort": "-created_at"})
    found = at.json("GET", f"{project_of(at, given.project)}/builds/?{query}")["results"]
    if given.json:
        print(json.dumps(found))
    for each in () if given.json else found:
        of, created = f"{each['project'].replace('.', '/')}/{each['id']}", each["created_at"][:19]
        print(f"{of:32} {each['last_status']:10} {created} {each['user']:12} {image_of(each)}".rstrip())
    return 0


def show(given: argparse.Namespace) -> int:
    at = service()
    found = at.json("GET", build_of(at, given.build))
    if given.json:
        print(json.dumps(found))
        return 0
    last = at.json("GET", f"{build_of(at, given.build)}/statuses?limit=500")["results"][-1]
    shown = {**found, "reason": last["message"], "image": image_of(found)}
    names = "last_status reason waiting_reason image commit user created_at started_at finished_at duration_seconds"
    for name in filter(shown.get, names.split()):
        print(f"{name.replace('_', ' '):17} {printable(str(shown[name]))}")
    return 0


def stop(given: argparse.Namespace) -> int:
    at = service()
    at.ask("POST", f"{build_of(at, given.build)}/stop")
    return show(given)


def parser() -> argparse.ArgumentParser:
    shape: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": ENDS}
    whole = argparse.ArgumentParser(prog=PROGRAM, description=__doc__, **shape)
    version = f"slipway {VERSION}, Python {sys.version.split()[0]}"
    whole.add_argument("--version", action="version", version=version, help="print the versions and exit")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__.rstrip("_"), help=words, description=words, **shape)
        made.set_defaults(run=run)
        return made

    one = command(login, "save the address and a token of a service; the token is read from the terminal or a pipe")
    one.add_argument("url", metavar="URL", help="https://HOST/api")
    one = command(build, "upload a folder, build an image with it, print HOST/REPO@sha256:…")
    one.add_argument("folder", nargs="?", default=".", help="without what its .dockerignore excludes (%(default)s)")
    one.add_argument("--follow", action="store_true", help="show statuses and log until the end")
    one.add_argument("--project", metavar="[OWNER/]NAME", help="created if it is missing (the folder's name)")
    words = "a file of the folder (%(default)s); it finds the code in build/"
    one.add_argument("--dockerfile", default="Dockerfile", metavar="PATH", help=words)
    one.add_argument("--spec", metavar="FILE", help="a polyaxonfile (kind: build, or with `build:`), not a Dockerfile")
    one = command(list_, "list the latest builds of a project")
    one.add_argument("project", nargs="?", metavar="[OWNER/]NAME", help="(this folder's name)")
    one.add_argument("--query", default="", help="as status:failed|stopped, created_at:>=2024-03-01")
    one.add_argument("--limit", type=int, default=20, help="(%(default)s)")
    for run, words in ((logs, "print a build's log"), (show, "show a build"), (stop, "ask a build to stop; show it")):
        one = command(run, words)
        one.add_argument("build", help="[[OWNER/]PROJECT/]NUMBER")
        if run is logs:
            one.add_argument("--follow", action="store_true", help="also print new lines until the end")
    for name in ("build", "list", "logs", "show", "stop"):
        commands.choices[name].add_argument("--json", action="store_true", help="print the result as JSON")
    return whole


def main() -> int:
    given = parser().parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(given.run(given))
    except Trouble as trouble:
        say(str(trouble))
        return trouble.exit_status
    except BrokenPipeError:  # the reader of standard output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        say(f"{error.filename or PROGRAM}: {error.strerror or error}")
    except KeyboardInterrupt:
        say("Interrupted.")
        return INTERRUPTED
    return TROUBLE


if __name__ == "__main__":
    sys.exit(main())
