"""Which container engines, and which browser, tests use and may do without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infra.local.machine.engine import NoEngine

ENGINE = next((name for name in ("buildah", "podman", "docker") if shutil.which(name)), "buildah")
OTHER = next((name for name in ("docker", "buildah", "podman") if shutil.which(name)), ENGINE)
# Of tests that do not look at what differs between engines: what is built, and how builds end.
with_one_engine = [pytest.mark.engine, pytest.mark.parametrize("local_machine", [ENGINE], indirect=True)]
# The same, with another engine where there is one: two workers share the tests by engine.
with_any_engine = pytest.mark.parametrize("local_machine", [OTHER], indirect=True)
with_other_engine = [pytest.mark.engine, with_any_engine]
# Of tests where engines may differ. With docker and buildah, `make test` runs them on docker, `make proofs` on buildah;
# tests `with_one_engine` run on buildah.
_TWICE = pytest.mark.proof if ENGINE != OTHER else ()
EVERY_ENGINE = [
    pytest.param(name, marks=_TWICE if name == ENGINE else (), id=name) for name in ("docker", "podman", "buildah")
]
# Of tests where also the executor that runs it matters: every engine on CodeBuild, one on a cluster.
_EACH = [
    *(pytest.param(*each.values, "codebuild", marks=each.marks) for each in EVERY_ENGINE),
    pytest.param(ENGINE, "eks", marks=_TWICE),
]
with_every_engine_and_executor = [
    pytest.mark.engine,
    pytest.mark.parametrize(("local_machine", "backend"), _EACH, indirect=True, scope="module"),
]


@contextmanager
def skipped_without(engine: str) -> Iterator[None]:
    """Skips a test when its engine does not work here; SLIPWAY_REQUIRED_ENGINES names those that must."""
    try:
        yield
    except NoEngine as missing:
        if engine in os.environ.get("SLIPWAY_REQUIRED_ENGINES", "").split():
            raise
        pytest.skip(f"{engine}: {missing}")
