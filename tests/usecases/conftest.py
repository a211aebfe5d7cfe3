from __future__ import annotations

from collections.abc import Callable

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.usecases import builds, logs, upkeep
from tests.factories import SPEC, make_project, make_user
from tests.fakes import FakeServices

Create = Callable[..., BuildKey]


@pytest.fixture
def create(services: FakeServices) -> Create:
    """Has ada create a build in ada/vision, through the front door."""
    services.projects.add(make_project())

    def create(**fields: object) -> BuildKey:
        created = builds.create(services, make_user(), "ada", "vision", {"config": NESTED, **fields})
        return created.build.key

    return create


def tick(services: FakeServices) -> None:
    """The schedule's function, and the function that keeps the logs it found."""
    upkeep.reconcile(services)
    for key in services.log_queue.take():
        logs.keep(services, key)


NESTED = {
    "version": 1,
    "kind": "build",
    "build": {name: value for name, value in SPEC.items() if name not in ("version", "kind")},
}
