"""Engines and a registry that are really there, once for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest

from infra.local import registry
from infra.local.engines import Engine, EngineName, running_engine
from tests.required_engines import skipped_without


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """Stores of all engines; too large to be kept by pytest."""
    with tempfile.TemporaryDirectory(prefix="slipway-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=get_args(EngineName))
def engine(request: pytest.FixtureRequest, state: Path) -> Iterator[Engine]:
    """Each engine that works here."""
    with ExitStack() as closing:
        with skipped_without(request.param):
            found = closing.enter_context(running_engine(state, print, only=request.param))
        yield found


@pytest.fixture(scope="session")
def registry_host(engine: Engine, state: Path) -> Iterator[str]:
    with registry.serve(state, engine, print) as host:
        yield host
