"""A log while it grows, and kept once its build has ended."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chalicelib.domain.answer import encoded_bytes
from chalicelib.domain.build import CODEBUILD, Build, BuildBody, BuildKey
from chalicelib.domain.lifecycle import Outcome
from chalicelib.errors import NoLog, Unavailable
from chalicelib.ports import LogLine
from chalicelib.usecases import builds, execution, logs, schedule
from tests.factories import SETTINGS, make_build, make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import Create, stored, tick

ADA = make_user()


def ended(services: FakeServices, key: BuildKey, *texts: str) -> Build:
    """The build has failed with this log."""
    execution.attend(services, key)
    run = services.codebuild.run_of(key)
    services.logs.write(f"logs:{run.handle}", *texts, at=services.now())
    services.codebuild.end(run, Outcome.FAILED, "no")
    execution.observe(services, CODEBUILD, [run.handle])
    return stored(services, key)


def test_before_anything_is_logged_there_is_no_log(services: FakeServices, create: Create) -> None:
    with pytest.raises(NoLog):
        logs.read(services, ADA, create())


def test_a_log_with_its_end_mark_is_kept_and_served_without_the_log_service(
    services: FakeServices, create: Create
) -> None:
    key = create()
    nonce = stored(services, key).nonce
    ended(services, key, "one", f"slipway-end {nonce}")
    services.clock.forward(seconds=21)
    tick(services)
    services.logs.is_down = True

    assert logs.read(services, ADA, key).text == "2024-03-01 12:00:00 UTC -- one\n"
    assert stored(services, key).look_at is None


def test_without_the_mark_it_is_kept_after_two_quiet_minutes(services: FakeServices, create: Create) -> None:
    key = create()
    ended(services, key, "one")
    for _ in range(3):
        services.clock.forward(seconds=61)
        tick(services)

    assert services.log_archive.texts == {stored(services, key).uuid: "2024-03-01 12:00:00 UTC -- one\n"}


def test_a_mark_with_another_nonce_is_a_line_like_others(services: FakeServices, create: Create) -> None:
    key = create()
    ended(services, key, "slipway-end of the line")
    assert "slipway-end of the line" in logs.read(services, ADA, key).text


def test_the_log_of_a_deleted_build_is_not_kept(services: FakeServices, create: Create) -> None:
    key = create()
    ended(services, key, "one")
    builds.archive(services, ADA, key, delete=True)
    services.clock.forward(minutes=5)
    schedule.reconcile(services)

    assert services.log_archive.texts == {}
    assert stored(services, key).look_at is None


def test_a_kept_log_that_exceeds_an_answer_is_fetched_elsewhere(
    services: FakeServices, create: Create
) -> None:
    services.settings = replace(SETTINGS, max_answer_bytes=100)
    key = create()
    ended(services, key, *["x" * 50] * 10)
    services.clock.forward(minutes=5)
    tick(services)

    page = logs.read(services, ADA, key)
    assert page.url == f"https://storage.test/logs/{stored(services, key).uuid}"


def test_a_growing_log_that_exceeds_an_answer_says_how_to_go_on(
    services: FakeServices, create: Create
) -> None:
    services.settings = replace(SETTINGS, max_answer_bytes=100)
    key = create()
    ended(services, key, *["x" * 50] * 3)

    page = logs.read(services, ADA, key)
    assert page.next_cursor == 78
    assert page.text.endswith("… the log goes on: ask for it with ?cursor=78\n")


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=60), min_size=1),
    st.booleans(),
)
@example(["🚢" * 60], True)
@example(["x" + "🚢" * 60], False)
def test_pages_by_cursor_give_every_byte_once(texts: list[str], is_kept: bool) -> None:
    services = FakeServices(replace(SETTINGS, max_answer_bytes=150))
    services.projects.add(make_project())
    project = services.projects.get("ada", "vision")
    assert project is not None
    build = make_build(log="logs:x")
    services.builds.add(build, BuildBody(), None)
    services.logs.write("logs:x", *texts)
    whole = logs.render(services.logs.lines("logs:x"), build.nonce)
    if is_kept:
        services.log_archive.store(build, io.BytesIO(whole.encode()))
        services.builds.save(replace(build, kept_log_bytes=len(whole.encode())))

    parts: list[bytes] = []
    cursor: int | None = 0
    while cursor is not None:
        page = logs.read(services, ADA, build.key, cursor)
        assert encoded_bytes(page.text) - 2 <= 150
        parts.append(page.text.encode())
        cursor = page.next_cursor

    assert b"".join(parts).decode() == whole


def test_a_log_beyond_what_is_kept_is_cut_with_a_mark(
    services: FakeServices, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_KEPT_BYTES", 100)
    key = create()
    ended(services, key, *["x" * 50] * 3)
    services.clock.now += timedelta(minutes=5)
    tick(services)

    (text,) = services.log_archive.texts.values()
    assert text.endswith("… cut here: the log goes on, and at most 100 bytes are kept.\n")


def test_what_a_log_holds_in_memory_does_not_grow_with_it(services: FakeServices, create: Create) -> None:
    """Keeping, and one page of a log that grows: neither holds more of it than a page."""
    key = create()
    ended(services, key, "one")
    services.clock.forward(minutes=5)
    page = [LogLine(services.now(), "x" * 1_000)] * 1_000

    def lines(log: str) -> Iterator[LogLine]:
        for _ in range(40):
            yield from page  # 40 MB in all

    services.logs.lines = lines  # type: ignore[method-assign]
    services.log_archive.store = lambda build, text: None  # type: ignore[method-assign]
    tracemalloc.start()
    logs.read(services, ADA, key)
    logs.keep(services, key)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert stored(services, key).kept_log_bytes == 40_000 * 1_028
    assert peak < 32_000_000  # a page is 6 MB, and the log 41 MB


@pytest.mark.parametrize("trouble", ["logs", "log_archive"])
def test_the_last_try_to_keep_a_log_succeeds_with_what_can_be_had(
    services: FakeServices, create: Create, trouble: str
) -> None:
    key = create()
    ended(services, key, "one", "two")
    services.clock.forward(minutes=5)
    if trouble == "logs":
        services.logs.fails_after_lines = 1
    else:
        services.log_archive.is_down = True
    with pytest.raises(Unavailable):
        logs.keep(services, key)
    assert stored(services, key).look_at is not None

    logs.keep(services, key, is_last_try=True)

    assert stored(services, key).look_at is None
    if trouble == "logs":
        (text,) = services.log_archive.texts.values()
        assert text == (
            "2024-03-01 12:00:00 UTC -- one\n… cut here: the rest of the log could not be read.\n"
        )
    else:
        assert logs.read(services, ADA, key).text.endswith("two\n")  # the log service still has it


def test_a_log_that_grew_while_it_was_kept_is_kept_once_more(services: FakeServices, create: Create) -> None:
    key = create()
    ended(services, key, "one", f"slipway-end {stored(services, key).nonce}")
    services.records.before_write.append(
        lambda: services.builds.save(replace(stored(services, key), look_at=services.now()))
    )

    logs.keep(services, key)

    assert stored(services, key).kept_log_bytes is None
    schedule.reconcile(services)
    assert services.log_queue.take() == [key]
