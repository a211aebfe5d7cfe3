from __future__ import annotations

import subprocess
import sys

import pytest

from infra.aws.package import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.proof]


def test_requests_are_counted_with_their_calls_and_units() -> None:
    """Without valgrind, which is not everywhere; how many instructions there are depends on the machine."""
    command = [sys.executable, "-m", "infra.bench.requests", "--many", "300"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, check=True)
    sizes, _, *rows, note = done.stdout.splitlines()
    assert sizes == "few: 100 builds, many: 300"
    assert note == "Instructions are counted where valgrind is found."
    found = {row[:24].strip(): row[24:].split(maxsplit=3)[1:] for row in rows}
    assert found["GET of a build"][2] == "BatchGetItem"
    assert found["page of 20, of few"] == found["page of 20, of many"]
    assert found["create"][2] == "GetItem, UpdateItem, TransactWriteItems"
    assert found["status change"][2] == "GetItem, UpdateItem"
    assert all(float(units) >= 0 for read, written, _ in found.values() for units in (read, written))
    assert len(found) == 8
