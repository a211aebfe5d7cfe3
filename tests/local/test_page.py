"""When the page of the browser is built, and what is said when it cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chalicelib import page
from infra.ui import __main__ as build

ROOT = Path(__file__).parents[2]


def planned(target: str) -> str:
    """What make would run."""
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "check"])
def test_demo_and_check_do_without_node(target: str) -> None:
    assert "ui" not in planned(target).split()
    assert "infra.ui" not in planned(target)


@pytest.mark.parametrize("node", [None, "v18.20.0"])
def test_a_machine_without_node_and_network_is_told_so_and_keeps_what_it_has(
    node: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        is_node = command[1] == "--version"
        return subprocess.CompletedProcess(command, int(not is_node), stdout=node if is_node else "")

    monkeypatch.setattr(shutil, "which", lambda name: node and f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    (tmp_path / page.INDEX).write_text("an older page")

    with pytest.raises(
        SystemExit, match=r"The page is not built\. Node 20 or newer is not here, and pip cannot fetch it\."
    ):
        build.main()

    assert (tmp_path / page.INDEX).read_text() == "an older page"
