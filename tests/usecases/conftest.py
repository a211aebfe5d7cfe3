from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable

import pytest

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.lifecycle import Outcome
from chalicelib.usecases import builds, logs, schedule, sources
from tests.factories import SPEC, make_archive, make_project, make_user
from tests.fakes import FakeServices

Create = Callable[..., BuildKey]
FILES = {"requirements.txt": "x", "app/setup.sh": "x", "app/Dockerfile": "FROM x\n"}


@pytest.fixture
def create(services: FakeServices) -> Create:
    """Has ada create a build in ada/vision, through the front door."""
    services.projects.add(make_project())

    def create(**fields: object) -> BuildKey:
        created = builds.create(services, make_user(), "ada", "vision", {"config": NESTED, **fields})
        return created.build.key

    return create


def stored(services: FakeServices, key: BuildKey) -> Build:
    build = services.builds.get(key)
    assert build is not None
    return build


def upload(services: FakeServices, files: dict[str, str] = FILES) -> str:
    """Makes them the code of ada/vision; its SHA-256."""
    project = sources.upload(services, make_user(), "ada", "vision", make_archive(files))
    assert project.code is not None
    return project.code.sha256


def end_with_an_image(services: FakeServices, key: BuildKey) -> None:
    """CodeBuild pushes the build's image and ends its newest run. No event says so."""
    services.push(stored(services, key))
    services.codebuild.end(services.codebuild.run_of(key), Outcome.SUCCEEDED)


def tick(services: FakeServices) -> None:
    """The schedule's function, and the function that keeps logs, for whoever asked for that."""
    schedule.reconcile(services)
    asked, services.log_queue.later = [*services.log_queue.later, *services.log_queue.take()], []
    for key in asked:
        logs.keep(services, key)


NESTED = {
    "version": 1,
    "kind": "build",
    "build": {name: value for name, value in SPEC.items() if name not in ("version", "kind")},
}


def parsed(materials: str) -> dict[str, str]:
    lines = (line.split(" ") for line in materials.splitlines())
    return {name: b64decode(encoded).decode() for name, encoded in lines}
