"""Builds that run elsewhere live from what is told about them."""

from __future__ import annotations

from typing import Any

import pytest

from chalicelib.domain.build import BuildKey, Status
from chalicelib.errors import Invalid
from chalicelib.usecases import builds, logs, reports
from tests.factories import make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import Create, stored, tick

ADA = make_user()


@pytest.fixture
def elsewhere(services: FakeServices) -> BuildKey:
    services.projects.add(make_project())
    return builds.create(services, ADA, "ada", "vision", {"is_managed": False}).build.key


def test_statuses_follow_the_table(services: FakeServices, elsewhere: BuildKey) -> None:
    for status in ("building", "running", "succeeded"):
        services.clock.forward(seconds=1)
        reports.report_status(services, ADA, elsewhere, {"status": status, "message": "m"})
    with pytest.raises(Invalid, match="cannot become running"):
        reports.report_status(services, ADA, elsewhere, {"status": "running"})

    build = stored(services, elsewhere)
    assert [str(entry.status) for entry in build.history] == ["created", "building", "running", "succeeded"]
    assert build.check_at is None


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "exploded"},
        {"status": ["running"]},
        {"status": "running", "message": "x" * 257},
        {"status": "running", "traceback": "x" * 4097},
        {"status": "running", "details": []},
        {"status": "running", "created_at": "yesterday"},
    ],
    ids=str,
)
def test_odd_statuses_are_refused(services: FakeServices, elsewhere: BuildKey, fields: dict[str, Any]) -> None:
    before = services.written()
    with pytest.raises(Invalid):
        reports.report_status(services, ADA, elsewhere, fields)
    assert services.written() == before


def test_a_build_that_is_run_here_is_not_overruled(services: FakeServices, create: Create) -> None:
    key = create()
    with pytest.raises(Invalid, match="run here"):
        reports.report_status(services, ADA, key, {"status": "succeeded"})
    with pytest.raises(Invalid, match="run here"):
        reports.report_lines(services, ADA, key, "line")


@pytest.mark.parametrize("status", [None, "building", "scheduled", "running", "unknown"])
def test_silence_for_half_an_hour_is_the_end_in_every_state(
    services: FakeServices, elsewhere: BuildKey, status: str | None
) -> None:
    if status:
        reports.report_status(services, ADA, elsewhere, {"status": status})
    services.clock.forward(minutes=29)
    tick(services)
    reports.heartbeat(services, ADA, elsewhere)
    services.clock.forward(minutes=29)
    tick(services)
    assert not stored(services, elsewhere).is_done

    services.clock.forward(minutes=2)
    tick(services)
    last = stored(services, elsewhere).history[-1]
    assert (last.status, last.message) == (
        Status.FAILED,
        "BuildJob is in zombie state (no heartbeat was reported).",
    )


def test_lines_become_its_log(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.report_lines(services, ADA, elsewhere, "one\ntwo")
    reports.report_lines(services, ADA, elsewhere, ["three"])
    text = logs.read(services, ADA, elsewhere).text
    assert [line.rpartition(" -- ")[2] for line in text.splitlines()] == ["one", "two", "three"]


def test_its_log_is_kept_after_its_end(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.report_lines(services, ADA, elsewhere, "one")
    reports.report_status(services, ADA, elsewhere, {"status": "failed"})
    for _ in range(3):
        services.clock.forward(minutes=1)
        tick(services)
    assert list(services.log_archive.texts) == [stored(services, elsewhere).uuid]


def test_lines_after_its_end_are_kept_as_well(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.report_status(services, ADA, elsewhere, {"status": "failed"})
    tick(services)
    reports.report_lines(services, ADA, elsewhere, "late")
    for _ in range(4):
        services.clock.forward(minutes=1)
        tick(services)
    (text,) = services.log_archive.texts.values()
    assert text.endswith(" UTC -- late\n")


def test_a_kept_log_takes_no_more_lines(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.report_lines(services, ADA, elsewhere, "one")
    reports.report_status(services, ADA, elsewhere, {"status": "failed"})
    for _ in range(3):
        services.clock.forward(minutes=1)
        tick(services)
    before = logs.read(services, ADA, elsewhere)
    with pytest.raises(Invalid, match="accepts no more lines"):
        reports.report_lines(services, ADA, elsewhere, "too late")
    assert logs.read(services, ADA, elsewhere) == before


def test_settling_adds_a_status_where_the_table_allows_it(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.report_reconciled(services, ADA, elsewhere, {"status": "failed"})
    reports.report_reconciled(services, ADA, elsewhere, {"status": "running"})
    build = stored(services, elsewhere)
    assert (build.last_status, build.history[-1].message) == (Status.FAILED, "Status was reconciled.")


def test_settling_without_a_status_says_that_one_is_needed(services: FakeServices, elsewhere: BuildKey) -> None:
    with pytest.raises(Invalid, match="This field is required"):
        reports.report_reconciled(services, ADA, elsewhere, {})


def test_what_is_reported_of_a_build_that_runs_here_is_kept_apart(services: FakeServices, create: Create) -> None:
    key = create()
    before = stored(services, key)
    said = {"commit": "c" * 40, "git_url": "https://trusted.test/x"}
    reports.reference(services, ADA, key, said)
    builds.update(services, ADA, key, {"backend": "other", "node_scheduled": "n1"})

    after = stored(services, key)
    assert after.code_reference == {"branch": "master", **said}
    assert (after.reported_backend, after.reported_node) == ("other", "n1")
    ours = ("commit", "backend", "node_scheduled", "source", "image_digest")
    assert [getattr(after, name) for name in ours] == [getattr(before, name) for name in ours]


def test_a_code_reference_is_replaced(services: FakeServices, elsewhere: BuildKey) -> None:
    reports.reference(services, ADA, elsewhere, {"commit": "abc", "git_url": "https://git.test/x"})
    build = reports.reference(services, ADA, elsewhere, {"commit": "def"})
    assert build.code_reference == {"branch": "master", "commit": "def"}
    assert build.commit == "def"
    with pytest.raises(Invalid):
        reports.reference(services, ADA, elsewhere, {"commit": "x" * 41})
    with pytest.raises(Invalid, match="true or false"):
        reports.reference(services, ADA, elsewhere, {"is_dirty": 1})
