"""Engines and a registry that are really there, once for all tests of this folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest

from infra.local.machine import registry
from infra.local.machine.engine import Engine, EngineName
from infra.local.machine.engines import logged_in, running_engine
from infra.local.machine.registry import Registry
from tests.required_engines import skipped_without


@pytest.fixture(scope="session")
def state() -> Iterator[Path]:
    """Stores of all engines; too large to be kept by pytest."""
    with tempfile.TemporaryDirectory(prefix="slipway-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=get_args(EngineName))
def bare_engine(request: pytest.FixtureRequest, state: Path) -> Iterator[Engine]:
    """Each engine that works here."""
    with ExitStack() as closing:
        with skipped_without(request.param):
            found = closing.enter_context(running_engine(state, print, only=request.param))
        yield found


@pytest.fixture(scope="session")
def images(bare_engine: Engine, state: Path) -> Iterator[Registry]:
    with registry.serve(state, bare_engine, print) as images:
        yield images


@pytest.fixture(scope="session")
def engine(bare_engine: Engine, images: Registry) -> Iterator[Engine]:
    """The same, with the registry's login."""
    with logged_in(bare_engine, images.host, images.login) as engine:
        yield engine


@pytest.fixture(scope="session")
def registry_host(images: Registry) -> str:
    return images.host
