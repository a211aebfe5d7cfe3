from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from chalicelib import wiring
from tests.fakes import FakeServices

# The same examples every time, however slow the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("repeatable")


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def installed(services: FakeServices) -> Iterator[FakeServices]:
    """The fakes in the place of the real services, for what comes in through `app`."""
    previous = wiring.install(services)
    yield services
    wiring.install(previous)
