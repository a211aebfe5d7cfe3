"""What GitHub reads: it fits GitHub's schemas, is safe to run, and only calls targets of the Makefile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / ".github"
BIN = Path(sys.executable).parent
SCHEMAS = {
    "workflows/checks.yml": "github-workflows",
    "dependabot.yml": "dependabot",
    "ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/config.yml": "github-issue-config",
}


def test_each_file_has_a_schema() -> None:
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yml")} == set(SCHEMAS)


@pytest.mark.parametrize(("file", "schema"), SCHEMAS.items())
def test_it_fits_its_schema(file: str, schema: str) -> None:
    assert_passes("check-jsonschema", "--builtin-schema", f"vendor.{schema}", FOLDER / file)


def test_workflows_are_safe_to_run() -> None:
    assert_passes("zizmor", "--offline", "--no-progress", FOLDER)


def test_jobs_only_call_targets_of_the_makefile() -> None:
    called = {command for job in jobs().values() for step in job["steps"] if (command := step.get("run"))}
    wanted = {command.removeprefix("sudo ").split()[1] for command in called} - {"${TARGET}"}
    wanted |= {target.split()[0] for job in ("test", "long") for target in jobs()[job]["strategy"]["matrix"]["target"]}

    assert all(command.removeprefix("sudo ").startswith("make ") for command in called)
    targets = (FOLDER.parent / "Makefile").read_text()
    assert all(f"\n{target}:" in targets for target in wanted), wanted


def jobs() -> dict[str, Any]:
    jobs = yaml.safe_load((FOLDER / "workflows/checks.yml").read_text())["jobs"]
    assert isinstance(jobs, dict)
    return jobs


def assert_passes(tool: str, *arguments: str | Path) -> None:
    found = subprocess.run([BIN / tool, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
