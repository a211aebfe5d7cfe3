"""The command line by itself: what it packs, how it reads addresses and refusals, and on which Pythons."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from chalicelib import page, settings
from infra import cli
from infra.cli import slipway


def test_it_is_python_3_9_and_imports_the_standard_library_alone() -> None:
    tree = ast.parse(cli.SOURCE.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that has VERSION and ui/ instead of chalicelib/."""
    monkeypatch.setattr(page, "FOLDER", tmp_path / "ui")
    monkeypatch.setattr(settings, "VERSION_FILE", tmp_path / "VERSION")
    settings.version.cache_clear()
    yield tmp_path
    settings.version.cache_clear()


def test_it_is_written_where_the_service_reads_it(published: Path) -> None:
    for content in (None, "an older one"):
        if content is not None:
            (page.FOLDER / "slipway").write_text(content)
        cli.publish()
        handed_out = subprocess.run(
            [sys.executable, page.FOLDER / "slipway", "--version"], capture_output=True, text=True, check=True
        )
        assert handed_out.stdout.startswith(f"slipway {cli.describe()}, Python 3.")
    assert {path.name for path in published.rglob("*")} == {"VERSION", "ui", "slipway"}


def test_the_service_has_the_version_that_git_describes_or_none(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.version() == "unknown"  # nothing is published yet
    repository = published / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    repository.mkdir()
    monkeypatch.setattr(cli, "ROOT", repository)
    assert cli.describe() == "unknown"
    for words in (["init"], ["commit", "--allow-empty", "--message=a"], ["tag", "1.2.0"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    cli.publish()
    settings.version.cache_clear()
    assert settings.version() == "1.2.0"
    monkeypatch.setenv("PATH", "")
    assert cli.describe() == "unknown"


@pytest.mark.parametrize("words", [["--help"], ["build", "--help"], ["logs", "--help"]])
def test_help_says_what_the_exit_status_means(words: list[str]) -> None:
    done = subprocess.run([sys.executable, cli.SOURCE, *words], capture_output=True, text=True, check=True)
    assert "1 the build failed" in done.stdout


class Script(slipway.Service):
    """A service whose build goes on with each answer of its log: the statuses so far, and the next lines."""

    def __init__(self, *polls: tuple[list[str], str]) -> None:
        super().__init__("http://service.example", "token")
        self.polls, self.rows = [*polls], list[str]()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[str, Any]:
        rows, text = self.polls.pop(0)
        self.rows += rows
        is_complete = "false" if self.polls else "true"
        return text, {"X-Slipway-Next-Cursor": "1", "X-Slipway-Log-Complete": is_complete, "Retry-After": "0"}

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        if "/statuses?" not in path:
            return {"last_status": self.rows[-1]}
        seen = int(path.partition("offset=")[2].partition("&")[0])
        return {"results": [{"status": status, "message": None} for status in self.rows[seen:]]}


def test_lines_come_after_the_statuses_of_their_time_and_before_the_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    at = Script((["created"], ""), (["scheduled", "running"], "first\n"), (["failed"], "last\n"), ([], "later\n"))
    ended = slipway.follow(at, "/root/app/builds/1", lambda text: slipway.say(text, end=""))
    assert ended == {"last_status": "failed"}
    said = [line.rpartition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["created", "scheduled", "running", "first", "last", "failed", "later"]


def test_following_ends_though_the_last_lines_of_a_build_that_was_killed_never_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, rows = [100.0], [[{"status": "failed", "message": "The machine was stopped."}]]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(slipway, "wait", lambda seconds, _: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(slipway, "log_of", lambda at, path: repeat(("", 5)))

    class Killed:
        def json(self, method: str, path: str) -> Any:
            return {"results": rows.pop() if rows else []} if "statuses" in path else {"last_status": "failed"}

    at: Any = Killed()
    assert slipway.follow(at, "ada/vision/builds/1", print) == {"last_status": "failed"}
    assert 130 < clock[0] < 145


def test_an_image_is_named_when_there_is_one() -> None:
    build = {"last_status": "failed", "image": "registry/app:1", "image_digest": None}
    assert slipway.image_of(build) == ""
    assert slipway.image_of({**build, "image_digest": "sha256:0"}) == "registry/app@sha256:0"


# .dockerignore, by what docker's documentation says of it

IGNORED = [
    ("*.log", "a.log", True),
    ("*.log", "sub/a.log", False),
    ("**/*.log", "a.log", True),
    ("**/*.log", "sub/deep/a.log", True),
    ("*/temp*", "sub/temporary.txt", True),
    ("*/temp*", "sub/deep/temp", False),
    ("temp?", "tempa", True),
    ("temp?", "temp", False),
    ("[a-c].txt", "b.txt", True),
    ("[^a-c].txt", "b.txt", False),
    ("sub", "sub/deep/file", True),
    ("/sub/", "sub/file", True),
    ("./sub", "sub/file", True),
    ("sub", "other/sub", False),
    ("**/sub", "other/sub/file", True),
    ("sub/**", "sub/file", True),
    ("sub/**/end", "sub/a/b/end", True),
    ("a.b", "aXb", False),
    (r"\*.txt", "*.txt", True),
    (r"\*.txt", "a.txt", False),
    ("# sub", "sub", False),
    ("", "sub", False),
    ("*.md\n!README.md", "README.md", False),
    ("*.md\n!README.md", "OTHER.md", True),
    ("!README.md\n*.md", "README.md", True),
    ("sub\n!sub/keep", "sub/keep/file", False),
    ("sub\n!sub/keep\nsub/keep/not", "sub/keep/not", True),
]


@pytest.mark.parametrize(("patterns", "path", "is_ignored"), IGNORED)
def test_what_a_dockerignore_leaves_out(patterns: str, path: str, is_ignored: bool) -> None:
    assert slipway.ignoring(patterns)(path) is is_ignored


def packed(folder: Path, dockerfile: str = "Dockerfile") -> tuple[bytes, dict[str, tarfile.TarInfo]]:
    file = io.BytesIO()
    slipway.pack(folder, dockerfile, file)
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        return file.getvalue(), {member.name: member for member in tar}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_file_in_another_encoding_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_bytes("gr\u00fcn".encode("latin-1"))
    with pytest.raises(slipway.WrongUse, match="dockerignore is not in UTF-8"):
        slipway.pack(tmp_path, "Dockerfile", io.BytesIO())


def test_a_folder_is_packed_without_what_is_ignored_but_with_its_dockerfile(tmp_path: Path) -> None:
    write(tmp_path, a_py="", sub__b_py="", sub__c_log="", docker__Dockerfile="", docker__d="", venv__lib__e_py="")
    (tmp_path / ".dockerignore").write_text("**/*.log\ndocker\nvenv\n")
    (tmp_path / "link").symlink_to("a.py")
    os.mkfifo(tmp_path / "pipe")
    assert [*packed(tmp_path, "docker/Dockerfile")[1]] == [
        *(".dockerignore", "a.py", "link", "sub"),
        *("docker/Dockerfile", "sub/b.py"),
    ]

    (tmp_path / "docker" / "Dockerfile.dockerignore").write_text("*\n!venv/lib\n")
    assert [*packed(tmp_path, "docker/Dockerfile")[1]] == ["docker/Dockerfile", "venv/lib", "venv/lib/e.py"]


def test_the_same_files_are_the_same_bytes_whoever_owns_them(tmp_path: Path) -> None:
    write(tmp_path, b="1", a="2")
    first, members = packed(tmp_path)
    assert packed(tmp_path)[0] == first
    assert {(each.uid, each.gid, each.uname) for each in members.values()} == {(0, 0, "")}
    write(tmp_path, b="3")
    assert packed(tmp_path)[0] != first


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/api/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/api/v1"),
        ("https://x.example.com/api", "https://x.example.com/api/v1"),
        ("https://x.example.com/api/v1/", "https://x.example.com/api/v1"),
        ("https://x.example.com/api/ui/index.html", "https://x.example.com/api/v1"),
        ("https://builds.example.com/v1", "https://builds.example.com/v1"),
        ("https://builds.example.com/ui/", "https://builds.example.com/v1"),
    ],
)
def test_an_address_may_be_that_of_the_host_of_the_api_or_of_the_page(given: str, found: str) -> None:
    assert slipway.address(given) == found


@pytest.mark.parametrize("given", ["", "127.0.0.1:8000", "ftp://x", "https://", "file:///etc/passwd", "https://a b"])
def test_what_is_no_address_is_said(given: str) -> None:
    with pytest.raises(slipway.Trouble, match="is not an address"):
        slipway.address(given)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('{"detail": "Not found."}', "Not found."),
        ('{"message": "Too Many Requests"}', "Too Many Requests"),
        ('["One.", "Two."]', "One. Two."),
        (
            '{"name": ["Must be a slug."], "tags": ["Too many.", "Too long."]}',
            "name: Must be a slug. tags: Too many. Too long.",
        ),
        ("text", "text"),
        ("<html>", ""),
        ("", ""),
    ],
)
def test_refusals_are_read_as_sentences(said: str, words: str) -> None:
    assert " ".join(slipway.sentences(said)) == words
