"""How the code of a git repository is fetched: whole, from the Internet alone, with a login that stays unseen."""

from __future__ import annotations

import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chalicelib.adapters import steps
from chalicelib.domain.materials import masks
from tests.git_server import GitServer, git_server

TOKEN = "tok-3f9a-en"
NOTED = 'printf "%s\\n" "$@" >>{0}/called; env | grep ^GIT_CONFIG_ >{0}/told'
Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("git"), f"ada:{TOKEN}") as server:
        yield server


@pytest.fixture(params=["bash", "busybox"])
def fetch(request: pytest.FixtureRequest, tmp_path: Path) -> Fetch:
    """Fetches in tmp_path/work. What git is called with is in tmp_path/called, one argument a line; the settings it is
    told at last, in tmp_path/told."""
    shell = ["bash"] if request.param == "bash" else ["busybox", "sh"]
    for name in ("work", "bin", "memory"):
        (tmp_path / name).mkdir()
    materials = {**steps.texts(), "Dockerfile": "", "private-git-hosts": ""}
    for name, text in materials.items():
        (tmp_path / "memory" / name).write_text(text)
    program(tmp_path, "git", f'{NOTED.format(tmp_path)}; exec /usr/bin/git "$@"')

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
    program(tmp_path, "git", f"{NOTED.format(tmp_path)}; exit 1")
    assert fetch("https://git.test/code.git").returncode == 1
    told = settings(tmp_path)
    assert (told["http.curloptResolve"], told["http.followRedirects"]) == (
        "git.test:443:203.0.113.9,2a01:db8::9",
        "false",
    )


def test_one_private_address_of_several_is_enough_to_refuse(fetch: Fetch, tmp_path: Path) -> None:
    program(tmp_path, "getent", 'printf "%s STREAM git.test\\n" 203.0.113.9 10.1.2.3')
    assert "git.test has the address 10.1.2.3" in fetch("https://git.test/code.git").stdout


def settings(tmp_path: Path) -> dict[str, str]:
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    count = int(told["GIT_CONFIG_COUNT"])
    return {told[f"GIT_CONFIG_KEY_{i}"]: told[f"GIT_CONFIG_VALUE_{i}"] for i in range(count)}


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


def test_the_commit_and_its_time_are_told_for_the_image(fetch: Fetch, tmp_path: Path, git: GitServer) -> None:
    (tmp_path / "memory/labels").write_text("org.opencontainers.image.source eA==\n")
    assert fetch(git.url, SLIPWAY_GIT_REVISION=git.commits[0], **login(tmp_path, git)).returncode == 0

    show = [
        "git",
        "-C",
        str(next(git.certificate.parent.rglob("code.git"))),
        "show",
        "--no-patch",
        "--format=%ct",
        git.commits[0],
    ]
    epoch = subprocess.check_output(show, text=True)
    assert (tmp_path / "memory/epoch").read_text() == epoch
    labels = dict(line.split(" ") for line in (tmp_path / "memory/labels").read_text().splitlines())
    told = {name.rpartition(".")[2]: b64decode(value).decode().strip() for name, value in labels.items()}
    created = f"{datetime.fromtimestamp(int(epoch), UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert told == {"source": "x", "revision": git.commits[0], "created": created}


def test_the_login_is_for_the_repositorys_host_alone(fetch: Fetch, tmp_path: Path, git: GitServer) -> None:
    """What git is told, asked by git itself for this host and for another."""
    assert fetch(git.url, **login(tmp_path, git)).returncode == 0
    told = [part for name, value in settings(tmp_path).items() for part in ("-c", f"{name}={value}")]
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


# What is fetched


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Its repository `code` has branches, tags and another ref beside its two commits on `main`."""
    with git_server(tmp_path_factory.mktemp("public")) as server:
        for name in BRANCHES:
            server.git("code", "update-ref", f"refs/heads/{name}", server.commits[0])
        server.git("code", "tag", "v1", server.commits[0])
        server.git("code", "tag", "--annotate", "--message", "two", "both", server.commits[1])
        server.git("code", "branch", "both", server.commits[0])
        server.git("code", "checkout", "--quiet", "--detach")
        server.commits.append(server.commit("code", {"note.txt": "third"}))
        server.git("code", "update-ref", "refs/pull/7/head", server.commits[2])
        server.git("code", "checkout", "--quiet", "main")
        server.publish("code")
        yield server


BRANCHES = ("feature/#123-x", "+ümlaut@host,=(core)", "it's\"$(id)", "%s;`id`|a&b")


@pytest.fixture
def fetch_public(fetch: Fetch, tmp_path: Path, public: GitServer) -> Fetch:
    """Without a login; any host of this machine may be asked."""
    (tmp_path / "memory" / "private-git-hosts").write_text("127.0.0.1")

    def fetch_public(url: str, revision: str = "origin/HEAD", **more: str) -> subprocess.CompletedProcess[str]:
        return fetch(url, GIT_SSL_CAINFO=str(public.certificate), SLIPWAY_GIT_REVISION=revision, **more)

    return fetch_public


IN_ONE_SHELL = pytest.mark.parametrize("fetch", ["busybox"], indirect=True)


@IN_ONE_SHELL
@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("origin/HEAD", 1),
        ("HEAD", 1),
        ("main", 1),
        ("origin/v1", 0),
        ("v1", 0),
        ("origin/both", 0),
        ("both", 1),
        ("refs/heads/both", 0),
        ("refs/tags/both", 1),
        ("refs/pull/7/head", 2),
        ("origin/pull/7/head", 2),
        *((f"origin/{name}", 0) for name in BRANCHES),
    ],
)
def test_a_revision_may_be_whatever_leads_to_a_commit(
    fetch_public: Fetch, tmp_path: Path, public: GitServer, revision: str, expected: int
) -> None:
    done = fetch_public(public.url, revision)
    assert done.returncode == 0, done.stdout
    assert f"The commit is {public.commits[expected]}" in done.stdout
    assert (tmp_path / "work/build/note.txt").read_text() == ("first", "second", "third")[expected]
    assert not (tmp_path / "work/build/.git").exists()


@pytest.mark.parametrize("digits", [40, 12])
def test_a_commit_is_found_by_its_hash(fetch_public: Fetch, public: GitServer, digits: int) -> None:
    assert f"The commit is {public.commits[0]}" in fetch_public(public.url, public.commits[0][:digits]).stdout


def test_a_commit_that_no_branch_leads_to_is_found_by_its_hash(fetch_public: Fetch, public: GitServer) -> None:
    assert f"The commit is {public.commits[2]}" in fetch_public(public.url, public.commits[2]).stdout


@pytest.mark.parametrize("revision", ["origin/nope", "nope", "0" * 40, "refs/pull/8/head"])
def test_a_revision_that_is_not_there_is_named(fetch_public: Fetch, public: GitServer, revision: str) -> None:
    done = fetch_public(public.url, revision)
    assert done.returncode == 1
    assert f"ERROR: the repository has no branch, tag, commit or ref {revision.removeprefix('origin/')}" in done.stdout


# Where it is


def test_redirects_on_the_same_host_are_followed(fetch_public: Fetch, tmp_path: Path, public: GitServer) -> None:
    done = fetch_public(public.url.removesuffix(".git"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "work/build/note.txt").exists()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("moved/code", "has moved to another host: https://127.0.0.1:9/code"),
        ("round/code", "redirected again and again"),
    ],
)
def test_other_redirects_are_refused_in_words(fetch_public: Fetch, public: GitServer, path: str, reason: str) -> None:
    done = fetch_public(f"https://{public.host}/{path}")
    assert (done.returncode, reason in done.stdout) == (1, True), done.stdout


@pytest.fixture(scope="module")
def nested(public: GitServer) -> str:
    """The hash of a commit of `lib`, which has a submodule of its own, and is not its newest."""
    deep = public.commit("deep", {"deep.txt": "deep"})
    commit = public.add_submodule("lib", public.url_of("deep"), deep, "a deep one")
    public.commit("lib", {"own.txt": "newer"})
    return commit


@pytest.mark.parametrize("written", ["https://{host}/lib.git", "../lib.git", "https://{host}/lib"])
def test_submodules_are_there_with_their_own(
    fetch_public: Fetch, tmp_path: Path, public: GitServer, nested: str, written: str
) -> None:
    public.add_submodule("whole", written.format(host=public.host), nested)
    done = fetch_public(public.url_of("whole"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "work/build/lib/own.txt").read_text() == "lib"
    assert (tmp_path / "work/build/lib/a deep one/deep.txt").read_text() == "deep"
    assert [*tmp_path.glob("work/build/**/.git")] == []


@IN_ONE_SHELL
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("git@127.0.0.1:lib.git", "submodules are fetched by https alone, not from git@127.0.0.1:lib.git"),
        ("https://10.0.0.1/lib.git", "10.0.0.1 has the address 10.0.0.1, which is not of the Internet"),
        ("https://127.0.0.1:9/lib.git", "unable to access 'https://127.0.0.1:9/lib.git/'"),
        ("", "fatal: No url found for submodule path 'lib' in .gitmodules"),
    ],
)
def test_without_its_submodules_there_is_no_build(
    fetch_public: Fetch, tmp_path: Path, public: GitServer, nested: str, url: str, reason: str
) -> None:
    public.add_submodule("lacking", url, nested)
    if not url:
        public.git("lacking", "rm", "--quiet", "--force", ".gitmodules")
        public.git("lacking", "commit", "--quiet", "--message", "forgotten")
        public.publish("lacking")
    done = fetch_public(public.url_of("lacking"))
    assert done.returncode != 0
    assert reason in done.stdout
    assert not (tmp_path / "work/build").exists()


@pytest.mark.slow
@IN_ONE_SHELL
def test_submodules_end_at_some_depth(fetch_public: Fetch, public: GitServer) -> None:
    commit = public.commit("level-0", {})
    for level in range(6):
        commit = public.add_submodule(f"level-{level + 1}", public.url_of(f"level-{level}"), commit)
    done = fetch_public(public.url_of("level-6"))
    assert (done.returncode, "more than 5 deep" in done.stdout) == (1, True), done.stdout


# git LFS


@pytest.fixture
def large(public: GitServer) -> str:
    """A repository with a file that git LFS keeps, and a file that it would keep but for how it was committed."""
    if not (public.folder / "work/large").exists():
        attributes = "*.bin filter=lfs diff=lfs merge=lfs -text\n"
        files = {".gitattributes": attributes, "a b.bin": public.pointer("much\n"), "plain.bin": "plain\n"}
        public.commit("large", {".lfsconfig": "[lfs]\n\turl = https://10.0.0.1/stolen\n", **files})
    return public.url_of("large")


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is missing: apt-get install git-lfs")
def test_large_files_are_fetched_where_git_lfs_is(fetch_public: Fetch, tmp_path: Path, large: str) -> None:
    done = fetch_public(large)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "work/build/a b.bin").read_text() == "much\n"
    assert (tmp_path / "work/build/plain.bin").read_text() == "plain\n"


def test_without_git_lfs_there_is_no_build(fetch_public: Fetch, tmp_path: Path, large: str) -> None:
    program(tmp_path, "git", 'case "$*" in lfs*) exit 1 ;; esac; exec /usr/bin/git "$@"')
    done = fetch_public(large)
    assert done.returncode == 1
    assert "ERROR: a b.bin is only a pointer of git LFS" in done.stdout
    assert not (tmp_path / "work/build").exists()


# What is left out of the image


def test_dockerignore_counts_from_where_the_code_is(fetch_public: Fetch, tmp_path: Path, public: GitServer) -> None:
    patterns = "# secrets\n.env\r\n  /data/  \n\n*\n!src\n! /notes/*.md\n**/*.pyc\n"
    public.commit("ignoring", {"app/.dockerignore": patterns, "app/src/a.py": "", ".dockerignore": "everything"})
    done = fetch_public(public.url_of("ignoring"), SLIPWAY_CONTEXT="app")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "work/.dockerignore").read_text().splitlines() == [
        "build/.env",
        "build/data/",
        "build/*",
        "!build/src",
        "!build/notes/*.md",
        "build/**/*.pyc",
    ]
