"""schemathesis asks the running service whatever its OpenAPI document allows, and more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import urllib3

from tests.stack.conftest import Client

pytestmark = pytest.mark.slow
# What every path leads to; what would make it lead nowhere is left to other tests.
PARAMETERS = """
[parameters]
"path.owner" = "root"
"path.user" = "root"
"path.project" = "quick-start"
"path.build_id" = "1"
"path.component" = "cli"
"""
LEFT_OUT = ("revoke_tokens", "delete_project", "archive_project", "delete_build", "archive_build")
CHECKS = "not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance"


def test_pages_of_other_origins_may_ask_first(client: Client) -> None:
    url = f"{client.running.url}/api/v1/root/quick-start/builds"
    answer = urllib3.request("OPTIONS", url, headers={"Origin": "https://page.test"})

    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.proof
def test_no_request_makes_it_fail_or_answer_outside_of_its_schema(client: Client, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(PARAMETERS)
    client.call("POST", "/root/quick-start/builds", {"is_managed": False})
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"{client.running.url}/api/v1/openapi.json",
            *("--header", f"Authorization: token {client.running.token}"),
            *("--checks", CHECKS, "--phases", "fuzzing", "--max-examples", "15"),
            *(
                "--seed",
                "1",
                "--generation-database",
                "none",
                "--no-color",
                "--suppress-health-check",
                "all",
            ),
            *(word for name in LEFT_OUT for word in ("--exclude-operation-id", name)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6_000:]
