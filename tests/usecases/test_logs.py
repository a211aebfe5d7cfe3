"""A log while it grows, and kept once its build has ended."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.domain.answer import encoded_bytes
from chalicelib.domain.build import CODEBUILD, Build, BuildBody, BuildKey, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.log_lines import Lines, LogLine, Position, Table, find
from chalicelib.domain.record import replace
from chalicelib.errors import NoLog, Unavailable
from chalicelib.ports import MAX_READ_LINES, LogPart
from chalicelib.usecases import builds, execution, logs, schedule
from tests.adapters.test_log_reader import Counted
from tests.factories import NOW, SETTINGS, make_build, make_project, make_user
from tests.fakes import Died, FakeServices
from tests.usecases.conftest import Create, stored, tick
from tests.usecases.test_interruptions import dies, dying, ends_at_every_call

ADA = make_user()


def ended(services: FakeServices, key: BuildKey, *texts: str) -> Build:
    """The build has failed with this log."""
    execution.process(services, key)
    run = services.codebuild.run_of(key)
    services.logs.write(f"logs:{run.handle}", *texts, at=services.now())
    services.codebuild.end(run, Outcome.FAILED, "no")
    execution.observe(services, CODEBUILD, [run.handle])
    return stored(services, key)


def test_before_anything_is_logged_there_is_no_log(services: FakeServices, create: Create) -> None:
    with pytest.raises(NoLog):
        logs.read(services, ADA, create())


def test_steps_are_read_from_the_log_while_it_grows_and_kept_with_it(services: FakeServices, create: Create) -> None:
    key = create()
    assert list(logs.steps(services, ADA, key)) == []
    end = f"slipway-end {stored(services, key).nonce}"
    ended(services, key, "STEP 1/1: FROM x", 'Error: building at STEP "FROM x": no', end)
    growing = list(logs.steps(services, ADA, key))
    assert [(step.name, step.error) for step in growing] == [("[1/1] FROM x", 'Error: building at STEP "FROM x": no')]

    services.clock.forward(seconds=21)
    tick(services)
    services.logs.is_down = True

    assert list(logs.steps(services, ADA, key)) == growing


def test_of_a_log_that_grows_a_bounded_part_is_read_for_steps(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    run = services.codebuild.run_of(key)
    lines = ["STEP 1/2: FROM x", *["x"] * (logs.MAX_READS_FOR_STEPS * MAX_READ_LINES), "STEP 2/2: RUN y"]
    services.logs.write(f"logs:{run.handle}", *lines, at=services.now())
    execution.observe(services, CODEBUILD, [run.handle])

    assert [step.name for step in logs.steps(services, ADA, key)] == ["[1/2] FROM x"]


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
    assert stored(services, key).check_at is None


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
    assert stored(services, key).check_at is None


def test_a_kept_log_that_exceeds_an_answer_is_fetched_elsewhere(services: FakeServices, create: Create) -> None:
    services.settings = replace(SETTINGS, max_answer_bytes=100)
    key = create()
    ended(services, key, *["x" * 50] * 10)
    services.clock.forward(minutes=5)
    tick(services)

    page = logs.read(services, ADA, key)
    assert page.url == f"https://storage.test/logs/{stored(services, key).uuid}"


def test_a_growing_log_that_exceeds_an_answer_says_how_to_go_on(services: FakeServices, create: Create) -> None:
    services.settings = replace(SETTINGS, max_answer_bytes=100)
    key = create()
    ended(services, key, *["x" * 50] * 3)

    page = logs.read(services, ADA, key)
    assert page.text.endswith(f"… the log goes on: ask for it with ?cursor={page.next_cursor}\n")
    assert page.is_cut
    assert not page.is_complete
    assert len(logs.read(services, ADA, key, page.next_cursor).text) == 50 + 28


def test_a_follower_hears_of_the_end_once_the_end_mark_is_there_and_ever_after(
    services: FakeServices, create: Create
) -> None:
    key = create()
    build = ended(services, key, "one")
    page = logs.read(services, ADA, key)
    assert (page.text, page.is_complete) == ("2024-03-01 12:00:00 UTC -- one\n", False)
    assert (logs.read(services, ADA, key, page.next_cursor).text, page.is_cut) == ("", False)

    services.logs.write(build.log or "", "two", f"three slipway-end {build.nonce}"[:-70], at=services.now())
    services.logs.write(build.log or "", f"three slipway-end {build.nonce}", at=services.now())
    page = logs.read(services, ADA, key, page.next_cursor)
    assert page.is_complete
    assert page.text.endswith("UTC -- three \n")
    again = logs.read(services, ADA, key, page.next_cursor)
    assert again.is_complete
    services.clock.forward(minutes=5)
    tick(services)
    again = logs.read(services, ADA, key, again.next_cursor)
    assert again.is_complete
    assert "slipway-end" not in again.text


@pytest.mark.parametrize("cursor", [None, "0"])
def test_a_build_that_ended_without_a_log_says_that_none_will_come(
    services: FakeServices, create: Create, cursor: str | None
) -> None:
    key = create()
    if cursor is None:
        with pytest.raises(NoLog) as none_yet:
            logs.read(services, ADA, key)
        assert not none_yet.value.is_complete
    builds.stop(services, ADA, key)
    if cursor is None:
        with pytest.raises(NoLog) as no_log:
            logs.read(services, ADA, key)
        assert no_log.value.is_complete
    else:
        assert logs.read(services, ADA, key, cursor) == logs.LogPage("0", is_complete=True)


def test_a_line_that_has_not_ended_is_served_when_it_ends(services: FakeServices, create: Create) -> None:
    key = create()
    build = ended(services, key, "one")
    services.logs.logs[build.log or ""] += [LogLine(services.now(), "a piece ", goes_on=True)]
    page = logs.read(services, ADA, key, "0")
    assert page.text.endswith("UTC -- one\n")
    services.logs.write(build.log or "", "and its end", at=services.now())

    assert logs.read(services, ADA, key, page.next_cursor).text.endswith("UTC -- a piece and its end\n")
    services.logs.logs[build.log or ""] += [LogLine(services.now(), "never ended", goes_on=True)]
    services.clock.forward(minutes=5)
    tick(services)
    assert logs.read(services, ADA, key).text.endswith("UTC -- never ended\n")


def test_a_line_that_never_ends_is_not_waited_for_in_one_answer(services: FakeServices, create: Create) -> None:
    key = create()
    build = ended(services, key, "one")
    services.logs.read = lambda log, after, limit=0: LogPart(  # type: ignore[method-assign]
        [LogLine(after.at, "10 %\r", goes_on=True)], after.after(after.at), False
    )
    assert logs.read(services, ADA, build.key, "0") == logs.LogPage("0", is_complete=False)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=40)
LINE = st.one_of(TEXT, st.sampled_from(["", "[Container] 2026/04/27 10:04:39.842 Entering phase BUILD"]))
# Pieces as the log service has them: milliseconds after the one before, text, whether the line goes on.
PIECES = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 999]), LINE, st.integers(0, 3)), min_size=1)


def a_log(pieces: list[tuple[int, str, int]]) -> list[LogLine]:
    at, lines = services_start(), []
    for later, text, kind in pieces:
        at += timedelta(milliseconds=later)
        lines.append(LogLine(at, text or "x" * (kind == 0), goes_on=kind == 0))
    return lines


def services_start() -> datetime:
    return NOW - timedelta(hours=1)


def world_with(lines: list[LogLine], limit: int) -> tuple[FakeServices, Build]:
    services = FakeServices(replace(SETTINGS, max_answer_bytes=limit))
    services.projects.add(make_project())
    project = services.projects.get("ada", "vision")
    assert project is not None
    build = make_build(Status.FAILED, log="logs:x", check_at=NOW, finished_at=NOW)
    services.builds.add(build, BuildBody(), None)
    services.logs.logs["logs:x"] = list(lines)
    read = services.logs.read
    services.logs.read = lambda log, after, limit=0: read(log, after, 3)  # type: ignore[method-assign]
    return services, build


def whole_of(lines: list[LogLine], nonce: str) -> str:
    """What a reader shall get in the end, made in one go."""
    made = Lines(nonce)
    rows = [(piece.at, line) for piece in lines for line in made.add(piece)]
    rows += [(lines[-1].at, line) for line in made.rest()]
    return "".join(f"{at:%Y-%m-%d %H:%M:%S} UTC -- {line}\n" for at, line in rows)


def follow(services: FakeServices, key: BuildKey, cursor: str = "0") -> tuple[str, str]:
    """All there is behind a cursor, and the cursor behind that."""
    text = ""
    while True:
        page = logs.read(services, ADA, key, cursor)
        assert page.url is None
        assert not page.text or page.text.endswith("\n")
        assert encoded_bytes(page.text) - 2 <= services.settings.max_answer_bytes or page.text.count("\n") <= 2
        text, cursor = text + page.text, page.next_cursor
        if not page.is_cut:
            return text, cursor


@given(PIECES, st.integers(1, 300), st.data())
@example([(0, "🚢" * 60, 1)] * 3, 100, None)
def test_a_follower_gets_every_line_once_whatever_is_cut_where_and_when(
    pieces: list[tuple[int, str, int]], limit: int, data: Any
) -> None:
    """The log grows while it is read, in answers of any size, and is kept at any moment in between."""
    lines = a_log(pieces)
    services, build = world_with([], limit)
    text, cursor, at = "", "0", 0
    while at < len(lines):
        more = data.draw(st.integers(1, len(lines) - at)) if data else 1
        services.logs.logs["logs:x"] += lines[at : at + more]
        at += more
        page = logs.read(services, ADA, build.key, cursor)
        text, cursor = text + page.text, page.next_cursor
    services.clock.forward(minutes=5)
    logs.keep(services, build.key)
    rest, cursor = follow(services, build.key, cursor)

    assert text + rest == whole_of(lines, build.nonce)
    assert follow(services, build.key)[0] == text + rest
    assert logs.read(services, ADA, build.key, cursor) == logs.LogPage(cursor, is_complete=True)
    kept = services.records.builds[build.key]
    whole = (text + rest).encode()
    if whole:
        assert kept.stored_log_bytes == len(whole)


def test_a_slow_reader_of_a_long_log_that_grows_gets_every_line_once_at_a_call_for_each_part() -> None:
    """200,000 lines, over the real reader of the log service."""
    services, build = world_with([], SETTINGS.max_answer_bytes)
    log, number = Counted(0), 0
    services.logs = CloudWatchLogs("", log, clock=count().__next__)  # type: ignore[assignment]
    services.records.builds[build.key] = replace(build, log="group:stream", finished_at=None)
    cursor, lines, answers = "0", 0, 0
    while number < 200_000 or lines < 200_000:
        written = range(number, min(200_000, number + 9_000))
        log.events += [{"timestamp": n // 3, "message": f"line {n}\n"} for n in written]
        number = written.stop
        page = logs.read(services, ADA, build.key, cursor)
        for line in page.text.splitlines():
            assert line.endswith(f"-- line {lines}")
            lines += 1
        cursor, answers = page.next_cursor, answers + 1

    assert log.calls <= 2 * answers


@given(PIECES, st.data())
def test_late_lines_are_only_in_the_kept_log_and_double_or_hide_no_other(
    pieces: list[tuple[int, str, int]], data: Any
) -> None:
    lines = [replace(line, goes_on=False, text=line.text or "x") for line in a_log(pieces)]
    late = data.draw(st.sets(st.integers(0, len(lines) - 1)))
    services, build = world_with([line for n, line in enumerate(lines) if n not in late], 120)
    seen, cursor = follow(services, build.key)
    come_late = [LogLine(line.at - timedelta(milliseconds=1), "late") for n, line in enumerate(lines) if n in late]
    services.logs.logs["logs:x"] += come_late
    more, cursor = follow(services, build.key, cursor)
    services.logs.logs["logs:x"].append(LogLine(NOW, "last"))
    services.clock.forward(minutes=5)
    logs.keep(services, build.key)
    rest, _ = follow(services, build.key, cursor)

    kept = services.log_archive.texts[build.uuid]
    assert kept == whole_of(sorted(services.logs.logs["logs:x"], key=lambda line: line.at), build.nonce)
    followed = Counter((seen + more + rest).splitlines())
    assert not followed - Counter(kept.splitlines())
    missed = Counter(kept.splitlines()) - followed
    assert all(line.endswith("UTC -- late") for line in missed)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 40))
def test_every_line_of_a_kept_text_is_found_by_the_position_behind_it(gaps: list[int], block: int) -> None:
    table, at, places = Table(), services_start(), [(Position(), 0)]
    table.BLOCK_BYTES = block
    text, position = b"", Position()
    for number, gap in enumerate(gaps):
        at += timedelta(milliseconds=gap)
        row = b"x" * number + b"\n" if number % 3 else b""
        text, position = text + row, position.after(at)
        table.add(at, 1 if row else 0, len(text))
        places.append((position, len(text)))
    table.close(len(text))

    for position, byte in places:
        start, skip = find(table.blocks, position)
        for _ in range(skip):
            start = text.index(b"\n", start) + 1
        assert start == byte


def test_a_log_beyond_what_is_kept_is_cut_with_a_mark(services: FakeServices, create: Create) -> None:
    services.settings = replace(SETTINGS, max_stored_log_bytes=100)
    key = create()
    ended(services, key, *["x" * 50] * 3)
    services.clock.now += timedelta(minutes=5)
    tick(services)

    (text,) = services.log_archive.texts.values()
    assert text.endswith("… cut here: the log goes on, and at most 100 bytes are stored.\n")


def test_earlier_states_of_progress_bars_are_bounded_as_well(services: FakeServices, create: Create) -> None:
    services.settings = replace(SETTINGS, max_stored_log_bytes=1_000)
    key = create()
    ended(services, key, *["10 %\r20 %\r" * 100] * 5)
    services.clock.forward(minutes=5)
    tick(services)

    (text,) = services.log_archive.texts.values()
    assert text.count("20 %") == 4
    assert text.endswith("… cut here: the log goes on, and at most 1000 bytes are stored.\n")


def test_what_a_log_holds_in_memory_does_not_grow_with_it(services: FakeServices, create: Create) -> None:
    """Keeping, and one page of a log that grows: neither holds more of it than a page."""
    key = create()
    ended(services, key, "one")
    services.clock.forward(minutes=5)
    page = [LogLine(services.now(), "x" * 1_000)] * 1_000

    def read(log: str, after: Position, limit: int = 0) -> LogPart:
        more = Position(services.now(), after.count + len(page))
        return LogPart(page, more, after.count >= 39_000)  # 40 MB in all

    def store(build: Build, text: Iterable[bytes]) -> None:
        for _ in text:
            pass

    services.logs.read = read  # type: ignore[method-assign]
    services.log_archive.store = store  # type: ignore[method-assign]
    tracemalloc.start()
    logs.read(services, ADA, key)
    logs.keep(services, key)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert stored(services, key).stored_log_bytes == 40_000 * 1_028
    assert peak < 32_000_000  # a page is 6 MB, and the log 41 MB


def test_a_function_that_keeps_a_log_may_end_anywhere(services: FakeServices, create: Create) -> None:
    """The next one begins anew, once the first cannot live any more."""

    def story(calls: int) -> bool:
        key = create()
        build = ended(services, key, "one", f"slipway-end {stored(services, key).nonce}")
        services.clock.forward(seconds=21)
        died = dies(lambda: logs.keep(dying(services, calls), key))
        was_leased = False
        try:
            logs.keep(services, key)
        except Unavailable:
            was_leased = True
        services.clock.forward(minutes=6)
        tick(services)

        assert services.log_archive.texts[build.uuid] == whole_of([LogLine(build.created_at, "one")], "")
        assert stored(services, key).stored_log_bytes == len(services.log_archive.texts[build.uuid])
        assert stored(services, key).check_at is None
        assert was_leased or not died or calls < 4
        return died

    ends_at_every_call(story)


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
    assert stored(services, key).check_at is not None

    services.clock.forward(minutes=30)
    logs.keep(services, key, is_last_try=True)

    assert stored(services, key).check_at is None
    if trouble == "logs":
        (text,) = services.log_archive.texts.values()
        assert text == ("2024-03-01 12:00:00 UTC -- one\n… cut here: the rest of the log could not be read.\n")
    else:
        assert logs.read(services, ADA, key).text.endswith("two\n")  # the log service still has it


@pytest.mark.parametrize("trouble", ["failure", "death"])
def test_a_log_that_no_function_can_keep_comes_to_its_last_try(
    services: FakeServices, create: Create, trouble: str
) -> None:
    """A message comes again after half an hour, and meanwhile the schedule sends others."""
    key = create()
    ended(services, key, "one", "two")
    services.clock.forward(minutes=5)
    services.logs.fails_after_lines = 1
    waiting: list[tuple[datetime, int]] = []  # messages: when each comes, and how often it came before
    for _ in range(200):
        schedule.reconcile(services)
        waiting += [(services.now(), 0) for _ in services.log_queue.take()]
        for at, before in [message for message in waiting if message[0] <= services.now()]:
            waiting.remove((at, before))
            is_last_try = before + 1 >= logs.TRIES
            mortal = dying(services, 5) if trouble == "death" and not is_last_try else services
            try:
                logs.keep(mortal, key, is_last_try=is_last_try)
            except (Unavailable, Died):
                waiting.append((at + timedelta(minutes=31), before + 1))
        services.clock.forward(minutes=1)

    assert stored(services, key).check_at is None


def test_a_log_that_grew_while_it_was_kept_is_kept_once_more(services: FakeServices, create: Create) -> None:
    key = create()
    ended(services, key, "one", f"slipway-end {stored(services, key).nonce}")
    services.records.before_write.append(
        lambda: services.builds.save(replace(stored(services, key), check_at=services.now()))
    )

    logs.keep(services, key)

    assert stored(services, key).stored_log_bytes is None
    services.clock.forward(seconds=5)
    schedule.reconcile(services)
    assert services.log_queue.take() == [key]
