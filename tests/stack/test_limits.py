"""A limit on running builds, on the whole stack: builds run one after the other, and say why they wait."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.stack.conftest import PROJECT, Client

pytestmark = pytest.mark.slow


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Client:
    monkeypatch.setenv("SLIPWAY_MAX_RUNNING_BUILDS", "1")
    client: Client = request.getfixturevalue("client")
    return client


def test_builds_run_one_after_the_other_and_say_their_place(limited: Client) -> None:
    paths = [limited.build("true") for _ in range(3)]
    seen: set[str] = set()

    def note(build: Any) -> bool:
        rows = limited.get(f"{PROJECT}/builds/")["results"]
        seen.update(row["waiting_reason"] for row in [build, *rows] if row["waiting_reason"])
        return build["finished_at"] is not None

    builds = [limited.until(path, note) for path in paths]

    for before, after in pairwise(sorted(builds, key=lambda build: build["started_at"])):
        assert before["finished_at"] <= after["started_at"]
    reason = "The limit of running builds is reached: 1 of this deployment."
    assert any(words.startswith(f"{reason} Place 1 of ") for words in seen), seen
