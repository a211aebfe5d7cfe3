"""How the code of a git repository is fetched: from the Internet alone, with a login that stays unseen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chalicelib.adapters import steps
from chalicelib.domain.secrets import masks
from tests.git_server import GitServer, git_server

TOKEN = "tok-3f9a-en"
Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("git"), f"ada:{TOKEN}") as server:
        yield server


@pytest.fixture(params=["bash", "busybox"])
def fetch(request: pytest.FixtureRequest, tmp_path: Path) -> Fetch:
    """Fetches in tmp_path/work; what git is called with is in tmp_path/called, one argument a line."""
    shell = ["bash"] if request.param == "bash" else ["busybox", "sh"]
    for name in ("work", "bin", "memory"):
        (tmp_path / name).mkdir()
    materials = {**steps.StepFiles().texts(), "Dockerfile": "", "private-git-hosts": ""}
    for name, text in materials.items():
        (tmp_path / "memory" / name).write_text(text)
    program(tmp_path, "git", f'printf "%s\\n" "$@" >>{tmp_path}/called; exec /usr/bin/git "$@"')

    def fetch(url: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*shell, "-c", steps.step("fetch_code")],
            cwd=tmp_path / "work",
            env={
                "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
                "HOME": str(tmp_path),
                "SLIPWAY_MEMORY": str(tmp_path / "memory"),
                "SLIPWAY_GIT_URL": url,
                "SLIPWAY_GIT_REVISION": "origin/HEAD",
                "SLIPWAY_CONTEXT": "",
                "SLIPWAY_DOCKERFILE": "",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return fetch


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", ""),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1:8443", "127.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("172.31.0.2", "172.31.0.2"),
        ("192.168.1.1", "192.168.1.1"),
        ("100.64.0.1", "100.64.0.1"),
        ("169.254.169.254", "169.254.169.254"),
        ("[::1]", "::1"),
        ("[fd00:ec2::254]:443", "fd00:ec2::254"),
        ("[::ffff:10.0.0.1]", ""),
    ],
)
def test_addresses_that_are_not_of_the_internet_are_refused(
    fetch: Fetch, tmp_path: Path, host: str, address: str
) -> None:
    done = fetch(f"https://{host}/code.git")
    assert done.returncode == 1
    assert f"has the address {address}" in done.stdout
    assert "which is not of the Internet" in done.stdout
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("host", ["%31%32%37.0.0.1", "git.test.", "a,b", "a'b"])
def test_hosts_that_git_could_read_in_another_way_are_refused(fetch: Fetch, tmp_path: Path, host: str) -> None:
    done = fetch(f"https://{host}/code.git")
    assert (done.returncode, "is no host name" in done.stdout) == (1, True)
    assert not (tmp_path / "called").exists()


def test_a_host_that_is_not_known_is_named(fetch: Fetch) -> None:
    done = fetch("https://nowhere.invalid/code.git")
    assert (done.returncode, "nowhere.invalid could not be resolved" in done.stdout) == (1, True)


def test_git_takes_the_addresses_that_were_checked(fetch: Fetch, tmp_path: Path) -> None:
    """Else the name could lead elsewhere when git asks for it again."""
    program(tmp_path, "getent", 'printf "%s STREAM git.test\\n" 203.0.113.9 2a01:db8::9 203.0.113.9')
    program(tmp_path, "git", f'printf "%s\\n" "$@" >>{tmp_path}/called; exit 1')
    assert fetch("https://git.test/code.git").returncode == 1
    called = (tmp_path / "called").read_text().splitlines()
    assert "http.curloptResolve=git.test:443:203.0.113.9,2a01:db8::9" in called


def test_one_private_address_of_several_is_enough_to_refuse(fetch: Fetch, tmp_path: Path) -> None:
    program(tmp_path, "getent", 'printf "%s STREAM git.test\\n" 203.0.113.9 10.1.2.3')
    assert "git.test has the address 10.1.2.3" in fetch("https://git.test/code.git").stdout


def login(tmp_path: Path, git: GitServer, password: str = TOKEN) -> dict[str, str]:
    memory = tmp_path / "memory"
    (memory / "git-login").write_text(f"username=ada\npassword={password}\n")
    (memory / "git-masks").write_text(masks([password]))
    (memory / "private-git-hosts").write_text("git.test 127.0.0.1")
    return {"GIT_SSL_CAINFO": str(git.certificate), "SLIPWAY_MEMORY": str(memory)}


def test_a_private_repository_is_fetched_and_its_login_is_left_nowhere(
    fetch: Fetch, tmp_path: Path, git: GitServer
) -> None:
    done = fetch(git.url, **login(tmp_path, git))
    assert done.returncode == 0, done.stdout
    assert f"The commit is {git.commits[-1]}" in done.stdout
    assert (tmp_path / "work/build/note.txt").read_text() == "second"
    left = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN in path.read_text()]
    assert (left, TOKEN in done.stdout) == ([], False)  # `called` has git's arguments


def test_the_login_is_for_the_repositorys_host_alone(fetch: Fetch, tmp_path: Path, git: GitServer) -> None:
    """What git is told, asked by git itself for this host and for another."""
    assert fetch(git.url, **login(tmp_path, git)).returncode == 0
    called = (tmp_path / "called").read_text().splitlines()
    told = called[: called.index("clone")]
    for url, is_given in ((git.url, True), ("https://elsewhere.test/code.git", False)):
        asked = subprocess.run(
            ["git", *told, "credential", "fill"],
            input=f"url={url}\n\n",
            env={"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0", **login(tmp_path, git)},
            capture_output=True,
            text=True,
        )
        assert (f"password={TOKEN}" in asked.stdout) == is_given


@pytest.mark.parametrize("password", [None, "wrong-9c1d"])
def test_without_the_right_login_the_build_ends_in_words(
    fetch: Fetch, tmp_path: Path, git: GitServer, password: str | None
) -> None:
    given = login(tmp_path, git, password or "")
    if password is None:
        (tmp_path / "memory" / "git-login").unlink()
    done = fetch(git.url, **given)
    assert done.returncode != 0
    assert ("could not read Username" if password is None else "Authentication failed") in done.stdout
    assert not (tmp_path / "memory" / "git-login").exists()
    if password is not None:  # the host shows what it got, and git shows what the host says
        assert "remote: Not ada:***" in done.stdout
        assert password not in done.stdout
