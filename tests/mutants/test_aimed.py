"""Breakages by hand fit the code: `make mutants` takes an hour to say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.aimed import BREAKAGES, Breakage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda each: each.what)
def test_what_is_broken_stands_once_in_its_file(breakage: Breakage) -> None:
    assert (ROOT / breakage.file).read_text().count(breakage.text) == 1
