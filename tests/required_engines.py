"""Which container engines tests may do without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infra.local.machine.engine import NoEngine


@contextmanager
def skipped_without(engine: str) -> Iterator[None]:
    """Skips a test when its engine does not work here; SLIPWAY_REQUIRED_ENGINES names those that must."""
    try:
        yield
    except NoEngine as missing:
        if engine in os.environ.get("SLIPWAY_REQUIRED_ENGINES", "").split():
            raise
        pytest.skip(f"{engine}: {missing}")
