"""Clients that generators make of the OpenAPI document work against the service it describes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.local.machine.machine import STATE
from tests.stack.conftest import Client

pytestmark = [pytest.mark.slow, pytest.mark.proof]
HERE = Path(__file__).parents[1] / "clients" / "generated"


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def installed(lock: str, *commands: Sequence[str]) -> Path:
    """A folder where these commands install what a file names; made once for each content of that file."""
    recipe = hashlib.sha256((HERE / lock).read_bytes()).hexdigest()[:12]
    home = (STATE / f"generator-{recipe}").absolute()
    if not (home / "ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(HERE / lock, home)
        for command in commands:
            run(*command, cwd=home)
        (home / "ready").touch()
    return home


def test_a_generated_python_client_creates_gets_and_lists_builds(client: Client, tmp_path: Path) -> None:
    pip = ("venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    home = installed("requirements.txt", (sys.executable, "-m", "venv", "venv"), (*pip, "-r", "requirements.txt"))
    python = home / "venv" / "bin" / "python"
    url = f"{client.running.url}/api/v1"
    (tmp_path / "openapi.json").write_text(json.dumps(client.get("/openapi.json")))
    made = ("--path", "openapi.json", "--output-path", "generated", "--meta", "none", "--fail-on-warning")
    config = HERE / "openapi-python-client.yml"
    run(python.with_name("openapi-python-client"), "generate", *made, "--config", config, cwd=tmp_path)
    shutil.copy(HERE / "use.py", tmp_path)

    said: dict[str, Any] = json.loads(run(python, "use.py", url, client.running.token, cwd=tmp_path))

    number = said["again"]
    assert said == {
        "created": [number, "elsewhere", ["nightly"], True],
        "again": number,
        "got": "running",
        "created_at": "UTC",
        "listed": [number],
        "log": ["one", "two"],
        "faults": ["name"],
        "sentences": ["`nonsense` is not an expression like `field:value`."],
        "missing": "Not found.",
    }


def test_generated_typescript_types_fit_what_is_answered(client: Client, tmp_path: Path) -> None:
    if missing := [name for name in ("node", "npm") if not shutil.which(name)]:
        pytest.skip(f"{' and '.join(missing)} not installed: the TypeScript types are not tested")
    home = installed("package.json", ("npm", "install", "--no-audit", "--no-fund"))
    programs = home / "node_modules" / ".bin"
    (tmp_path / "openapi.json").write_text(json.dumps(client.get("/openapi.json")))
    for name in ("package.json", "use.ts"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(home / "node_modules")
    run(programs / "openapi-typescript", "openapi.json", "--output", "api.d.ts", cwd=tmp_path)
    strict = ("--strict", "--module", "nodenext", "--target", "es2022", "--types", "node")
    run(programs / "tsc", *strict, "use.ts", cwd=tmp_path)

    url = f"{client.running.url}/api/v1"
    said = json.loads(run("node", "use.js", url, client.running.token, cwd=tmp_path))

    assert said == {
        "managed": False,
        "status": "running",
        "listed": [True],
        "log": "a line",
        "sentence": "Enter a valid 'slug': letters, digits, hyphens and underscores, at most 128.",
    }
