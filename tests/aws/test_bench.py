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
    assert sizes == "few: 100 builds, many: 300, a million: 1,000,000"
    assert note == "Instructions are counted where valgrind is found."
    found = {row[:26].strip(): row[26:].split(maxsplit=3)[1:] for row in rows}
    assert found["GET of a build"] == ["2.0", "0", "BatchGetItem"]
    assert found["caller not remembered"] == ["3.5", "0", "GetItem, BatchGetItem"]
    pages = [found[f"page of 20, of {size}"] for size in ("few", "many", "a million")]
    assert len({tuple(page[:2]) for page in pages}) == 1
    assert {tuple(sorted(page[2].split(", "))) for page in pages} == {("GetItem", "Query", "Query")}
    assert len(found["page of 500, of a million"][2].split(", ")) == 3
    assert found["create"][2] == "GetItem, UpdateItem, TransactWriteItems, SendMessage"
    assert found["event: a status"][2] == "BatchGetBuilds, GetItem, UpdateItem"
    assert found["event: the end"][2].startswith("BatchGetBuilds, GetItem, UpdateItem")
    assert all(float(units) >= 0 for read, written, _ in found.values() for units in (read, written))
    assert len(found) == 12
