"""Which executor a build gets, and that each build is only ever taken to its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.domain.lifecycle import Outcome
from chalicelib.errors import Invalid
from chalicelib.settings import EksSettings
from chalicelib.usecases import builds, execution, upkeep
from tests.factories import SETTINGS, SPEC, make_project, make_user
from tests.fakes import FakeServices

WITH_EKS = replace(SETTINGS, eks=EksSettings("lab"))


def serving(**changes: Any) -> FakeServices:
    services = FakeServices(replace(WITH_EKS, **changes))
    services.store.add_project(make_project())
    return services


def create(services: FakeServices, backend: str | None, **fields: Any) -> BuildKey:
    config = {"build": {"image": SPEC["image"]}, "version": 1, "kind": "build"}
    fields = {"config": config, "backend": backend, **fields}
    return builds.create(services, make_user(), "ada", "vision", fields).build.key


@pytest.mark.parametrize(
    ("default", "backend", "executor", "shown"),
    [
        ("codebuild", None, "codebuild", "native"),
        ("codebuild", "eks", "eks", "eks"),
        ("eks", None, "eks", "native"),
        ("eks", "kaniko", "eks", "kaniko"),
        ("eks", "other", "eks", "other"),
        ("eks", "codebuild", "codebuild", "codebuild"),
    ],
)
def test_a_build_runs_where_its_backend_says_else_where_all_do(
    default: str, backend: str | None, executor: str, shown: str
) -> None:
    services = serving(backend=default)
    build = services.store.builds[create(services, backend)]
    assert (build.executor, build.backend) == (executor, shown)


def test_a_backend_that_is_not_offered_is_refused() -> None:
    services = serving(eks=None)
    with pytest.raises(Invalid) as refusal:
        create(services, "eks")
    assert refusal.value.sentences() == ["Nothing runs on `eks` here; `backend` may be codebuild."]
    assert services.store.builds == {}


def test_a_build_that_runs_elsewhere_may_say_anything() -> None:
    services = serving(eks=None)
    assert services.store.builds[create(services, "eks", is_managed=False)].backend == "eks"


def test_changing_the_backend_later_moves_nothing() -> None:
    services = serving()
    key = create(services, "eks")
    builds.update(services, make_user(), key, {"backend": "codebuild"})
    execution.attend(services, key)
    assert (len(services.eks.runs), len(services.executor.runs)) == (1, 0)


def test_the_schedule_asks_each_executor_about_its_own_builds() -> None:
    services = serving()
    keys = [create(services, backend) for backend in ("eks", "codebuild", "eks")]
    for key in keys:
        execution.attend(services, key)
    for run in [*services.eks.runs.values(), *services.executor.runs.values()]:
        (services.executor if run.build.executor == "codebuild" else services.eks).end(run, Outcome.FAILED)
    services.clock.forward(minutes=6)

    upkeep.reconcile(services)

    assert [services.store.builds[key].last_status for key in keys] == ["failed"] * 3


def test_a_default_that_is_not_offered_is_a_mistake_of_the_settings() -> None:
    with pytest.raises(ValueError, match="SLIPWAY_BACKEND is eks; offered: codebuild"):
        replace(SETTINGS, backend="eks")
