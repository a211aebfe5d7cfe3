from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chalicelib.domain import lifecycle
from chalicelib.domain.build import DONE, Build, Image, Push, Status
from chalicelib.domain.lifecycle import MAX_HISTORY, MAX_HISTORY_BYTES, Observation, Outcome, Trouble
from chalicelib.domain.record import replace
from chalicelib.errors import Invalid
from tests.factories import DIGEST, NOW, after, make_build, make_claimed, make_observation

CREATED, BUILDING, SCHEDULED, RUNNING = Status.CREATED, Status.BUILDING, Status.SCHEDULED, Status.RUNNING

# Row: from; column: to, in the order of Status.
TABLE = {
    "created": ".YYYYYYYYYYYY",
    "resuming": "..YYYYYYYYYYY",
    "building": "...YYYYYYYYYY",
    "scheduled": "..Y.YYYYYYYYY",
    "running": ".....YYYYYYYY",
    "unschedulable": "..YYYYYYYYYYY",
    "warning": ".YYYYY.YYYYYY",
    "unknown": "..YYYYY.YYYYY",
    "succeeded": ".............",
    "failed": ".............",
    "upstream_failed": ".............",
    "stopped": ".............",
    "skipped": ".............",
}
MOVES = [(last, status, TABLE[last][i] == "Y") for last in Status for i, status in enumerate(Status)]


def statuses(build: Build) -> list[Status]:
    return [entry.status for entry in build.history]


# The table


def test_the_table_names_every_status() -> None:
    assert list(TABLE) == list(Status)
    assert all(len(row) == len(Status) == 13 for row in TABLE.values())


@pytest.mark.parametrize(("last", "status", "allowed"), MOVES)
def test_a_status_follows_another_only_where_the_table_says_so(last: Status, status: Status, allowed: bool) -> None:
    build = make_build(last)

    assert lifecycle.may_follow(last, status) is allowed
    if allowed:
        assert lifecycle.advance(build, status, after(1)).last_status == status
    else:
        with pytest.raises(Invalid, match=rf"A build that is {last} cannot become {status}\."):
            lifecycle.advance(build, status, after(1))


def test_done_are_the_five_that_nothing_follows() -> None:
    assert {status for status in Status if "Y" not in TABLE[status]} == DONE


# Times


@pytest.mark.parametrize("first", [SCHEDULED, BUILDING, RUNNING])
def test_the_first_stage_starts_a_build(first: Status) -> None:
    assert lifecycle.advance(make_build(), first, after(5)).started_at == after(5)


@pytest.mark.parametrize("other", [Status.UNKNOWN, Status.WARNING, Status.UNSCHEDULABLE, Status.RESUMING])
def test_other_statuses_do_not_start_a_build(other: Status) -> None:
    assert lifecycle.advance(make_build(), other, after(5)).started_at is None


def test_later_stages_do_not_move_the_start() -> None:
    build = lifecycle.advance(make_build(), SCHEDULED, after(5))

    assert lifecycle.advance(build, RUNNING, after(9)).started_at == after(5)


@pytest.mark.parametrize("status", sorted(DONE))
def test_a_final_status_finishes_a_build(status: Status) -> None:
    build = lifecycle.advance(make_build(), SCHEDULED, after(5))

    build = lifecycle.advance(build, status, after(60), at=after(50))

    assert build.history[-1].created_at == after(50)
    assert build.finished_at == after(60), "our time, not the event's"
    assert build.started_at == after(5)
    assert build.check_at is None


def test_after_its_end_a_build_is_looked_at_once_more_if_its_log_has_to_be_kept_or_its_tags_moved() -> None:
    """Who ends one that runs here asks for that at once, so its look need not be soon."""
    for build, check_at in (
        (make_build(log="logs:1"), after(10)),
        (make_build(log="logs:1", check_at=after(300)), after(300)),
        (make_build(log="logs:1", check_at=after(300), is_managed=False), after(10)),
        (make_build(image_tags=("latest",)), after(10)),
        (make_build(log="logs:1", deleted_at=NOW), None),
        (make_build(), None),
    ):
        assert lifecycle.advance(build, Status.FAILED, after(5)).check_at == check_at


def test_a_status_on_the_way_does_not_change_when_a_build_is_looked_at() -> None:
    assert lifecycle.advance(make_build(check_at=after(300)), RUNNING, after(5)).check_at == after(300)


def test_a_build_that_never_started_takes_its_creation_as_start() -> None:
    assert lifecycle.advance(make_build(), Status.STOPPED, after(5)).started_at == NOW


def test_every_row_touches_the_build() -> None:
    assert lifecycle.advance(make_build(), Status.UNKNOWN, after(5)).updated_at == after(5)


def test_a_clock_that_is_behind_does_not_take_the_last_change_back() -> None:
    build = make_build(updated_at=after(10))

    assert lifecycle.advance(build, SCHEDULED, after(5)).updated_at == after(10)


@pytest.mark.parametrize(
    ("at", "recorded"),
    [(after(-30), NOW), (after(3), after(3)), (after(90), after(10)), (None, after(10))],
    ids=["before the last row", "between", "in the future", "unknown"],
)
def test_rows_stay_in_the_order_of_time(at: datetime | None, recorded: datetime) -> None:
    build = lifecycle.advance(make_build(), SCHEDULED, after(10), at=at)

    assert build.history[-1].created_at == recorded


def test_rows_are_numbered() -> None:
    build = lifecycle.advance(lifecycle.advance(make_build(), SCHEDULED, NOW), RUNNING, NOW)

    assert [entry.id for entry in build.history] == [1, 2, 3]
    assert len({entry.uuid for entry in build.history}) == 3


def test_long_messages_are_cut_where_the_api_would_refuse_them() -> None:
    build = lifecycle.advance(make_build(), Status.FAILED, NOW, message="x" * 1000)

    message = build.history[-1].message
    assert message is not None
    assert len(message) == 256
    assert message.endswith("x…")


# The history's bound


def test_the_history_is_bounded_and_a_build_can_always_end() -> None:
    build = make_build(Status.UNSCHEDULABLE)
    while len(build.history) < MAX_HISTORY - 1:
        build = lifecycle.advance(build, Status.UNSCHEDULABLE, NOW)

    with pytest.raises(Invalid, match="limited to 100 statuses"):
        lifecycle.advance(build, Status.UNSCHEDULABLE, NOW)
    assert len(lifecycle.advance(build, Status.FAILED, NOW).history) == MAX_HISTORY


# What a status says, at worst: JSON has six bytes for each of these characters.
WORST: dict[str, Any] = {"message": "\x01" * 256, "traceback": "\x01" * 4096, "details": {"d": "\x01" * 600}}


def encoded_bytes(build: Build) -> int:
    return len(msgspec.json.encode(build.history))


def reported(statuses: Sequence[Status], **texts: Any) -> Build:
    build = make_build(is_managed=False)
    for status in statuses:
        build = lifecycle.advance(build, status, NOW + timedelta(microseconds=1), **texts)
    return build


@pytest.mark.parametrize("last", sorted(DONE))
def test_the_history_is_bounded_in_bytes_and_keeps_all_statuses(last: Status) -> None:
    story = [Status.UNSCHEDULABLE] * (MAX_HISTORY - 2)
    build = reported(story, **WORST)
    done = lifecycle.advance(build, last, after(1), **WORST)

    assert statuses(done) == [CREATED, *story, last]
    assert encoded_bytes(done) <= MAX_HISTORY_BYTES
    assert done.history[-1].message == WORST["message"], "the end can always say why"


def test_texts_are_whole_until_they_are_too_many_and_then_cut_with_a_mark() -> None:
    texts: dict[str, Any] = {"message": "m" * 256, "traceback": "t" * 2_000, "details": {"d": "d" * 1_000}}
    build = reported([SCHEDULED, RUNNING, Status.WARNING, Status.FAILED], **texts)
    first, second, third, last = build.history[1:]

    assert (first.message, first.traceback, first.details) == tuple(texts.values())
    assert second.message == texts["message"]
    assert second.traceback is not None
    assert second.traceback.startswith("t" * 500)
    assert second.traceback.endswith("t… (cut)")
    assert second.details == {"cut": True}
    assert (third.message, third.traceback, third.details) == ("… (cut)", "… (cut)", {"cut": True})
    assert (last.message, last.traceback, last.details) == tuple(texts.values()), "has room of its own"


ROOM_OF_THE_LAST = 256 * 6 + 4096  # bytes of JSON: a message and a traceback
ROOM = MAX_HISTORY_BYTES - MAX_HISTORY * 224 - ROOM_OF_THE_LAST


@pytest.mark.parametrize("letter", ["t", "é"])
@pytest.mark.parametrize(("status", "room"), [(SCHEDULED, ROOM), (Status.FAILED, ROOM + ROOM_OF_THE_LAST)])
def test_a_text_that_just_fits_is_whole_and_a_longer_one_is_cut_to_fit(status: Status, room: int, letter: str) -> None:
    size = len(letter.encode())
    whole = letter * ((room - len('""')) // size)
    for text, shown in (
        (whole, whole),
        (whole + letter, letter * ((room - len('""') - len("… (cut)".encode())) // size) + "… (cut)"),
    ):
        row = lifecycle.advance(make_build(), status, NOW, traceback=text).history[-1]
        assert row.traceback == shown


def test_details_that_just_fit_are_whole_and_longer_ones_are_left_out() -> None:
    for length, is_whole in ((ROOM - len('{"a":1,"d":""}'), True), (ROOM - len('{"a":1,"d":""}') + 1, False)):
        details = {"a": 1, "d": "d" * length}
        row = lifecycle.advance(make_build(), SCHEDULED, NOW, details=details).history[-1]
        assert row.details == (details if is_whole else {"cut": True})


@pytest.mark.parametrize(
    "texts",
    [
        {"traceback": "t" * (ROOM - len('""'))},
        {"details": {"d": "d" * (ROOM - len('{"d":""}'))}},
        {"traceback": "t" * (ROOM - len('""')), "details": {"d": "a mark takes its place"}},
    ],
    ids=["a traceback", "details", "more than there is room for"],
)
def test_what_fills_the_history_leaves_the_last_status_its_own_room(texts: dict[str, Any]) -> None:
    full = lifecycle.advance(make_build(), SCHEDULED, NOW, **texts)
    room = ROOM_OF_THE_LAST - len('""')
    for length, is_whole in ((room, True), (room + 1, False)):
        last = lifecycle.advance(full, Status.FAILED, NOW, traceback="t" * length).history[-1]
        assert (last.traceback == "t" * length) is is_whole


def test_half_a_character_is_no_obstacle() -> None:
    assert lifecycle.advance(make_build(), Status.FAILED, NOW, message="\ud800").history[-1].message == "\ud800"


TEXTS = st.one_of(st.none(), st.text(max_size=256), st.just("\x01" * 256), st.just("\U0001f40d" * 256))


@given(st.lists(st.tuples(TEXTS, TEXTS.map(lambda text: text and text * 16)), max_size=20), st.booleans())
def test_a_bounded_history_stays_as_it_is(texts: list[tuple[str | None, str | None]], ends: bool) -> None:
    build = make_build()
    for message, traceback in texts:
        build = lifecycle.advance(
            build, Status.UNSCHEDULABLE, NOW, message=message, traceback=traceback, details={"m": message}
        )
    if ends:
        build = lifecycle.advance(build, Status.FAILED, NOW, message="x" * 256, traceback="t" * 4096)

    assert lifecycle.bounded(build.history) == build.history


def test_a_history_from_before_the_bound_is_cut_and_keeps_its_statuses() -> None:
    build = make_build(RUNNING)
    rows = [replace(build.history[-1], id=number, traceback="t" * 4096) for number in range(2, 92)]
    build = replace(build, history=(build.history[0], *rows))

    ended = lifecycle.advance(build, Status.STOPPED, after(1), message="stopped")

    assert len(ended.history) == len(build.history) + 1
    assert encoded_bytes(ended) <= MAX_HISTORY_BYTES
    assert ended.history[-1].message == "stopped"


# Claims


def test_a_claim_is_a_new_attempt_that_shows_the_former_log_until_it_has_its_own() -> None:
    build = make_build(attempt=1, handle="run-1", log="logs:run-1")

    claimed = lifecycle.claim(build, after(1))

    assert (claimed.attempt, claimed.submitting_at) == (2, after(1))
    assert (claimed.handle, claimed.log) == (None, "logs:run-1")
    for log, shown in ((None, "logs:run-1"), ("logs:run-2", "logs:run-2")):
        seen = make_observation(attempt=2, handle="run-2", log=log)
        moved = lifecycle.follow(claimed, seen, after(2), image=None, reason=None)
        assert moved is not None
        assert (moved.handle, moved.log) == ("run-2", shown)


def test_an_attempt_keeps_the_handle_that_was_noted_first() -> None:
    noted = lifecycle.submitted(make_claimed(), "run-1", after(1), after(300))
    assert followed(noted, make_observation(RUNNING, handle="another")).handle == "run-1"


def test_a_claim_after_an_unfinished_one_remembers_that_it_may_have_made_the_image() -> None:
    build = lifecycle.claim(lifecycle.claim(make_build(), NOW), after(200))

    assert (build.attempt, build.unsure_attempts) == (2, (1,))
    assert lifecycle.claim(build, after(400)).unsure_attempts == (1, 2)
    assert lifecycle.claim(lifecycle.release(build, "wait"), after(400)).unsure_attempts == (1,)


def test_a_released_build_waits_unclaimed() -> None:
    released = lifecycle.release(make_claimed(created_at=after(-9)), "no slot is free")

    assert released.is_waiting
    assert (released.submitting_at, released.check_at) == (None, after(-9)), "its place in the line"
    assert released.waiting_reason == "no slot is free"
    assert lifecycle.release(make_claimed(), "x" * 1000).waiting_reason == "x" * 255 + "…"


def test_a_claim_ends_the_wait_and_notes_whose_turn_had_come() -> None:
    waiting = lifecycle.release(make_claimed(), "no slot is free")
    claimed = lifecycle.claim(waiting, after(60))

    assert (claimed.turn_at, claimed.waiting_reason) == (after(60), None)
    assert lifecycle.claim(claimed, after(300)).turn_at == after(60), "it did not wait again"


def test_a_submitted_build_is_scheduled() -> None:
    build = lifecycle.submitted(make_claimed(), "run-1", after(1), after(300))

    assert (build.handle, build.check_at, build.last_status) == ("run-1", after(300), SCHEDULED)


@pytest.mark.parametrize("status", [SCHEDULED, BUILDING, RUNNING])
def test_a_handle_stored_after_the_first_event_does_not_lead_back(status: Status) -> None:
    build = make_build(status, attempt=1, submitting_at=NOW)

    noted = lifecycle.submitted(build, "run-1", after(1), after(300))

    assert noted.handle == "run-1"
    assert noted.history == build.history


# Stopping


def test_a_build_nobody_was_asked_to_start_is_stopped_at_once() -> None:
    stopped = lifecycle.request_stop(make_build(), after(1))

    assert stopped is not None
    assert (stopped.last_status, stopped.stop_requested_at) == (Status.STOPPED, after(1))


def test_a_claimed_build_is_stopped_by_its_executor() -> None:
    stopping = lifecycle.request_stop(make_claimed(), after(1))

    assert stopping is not None
    assert (stopping.last_status, stopping.stop_requested_at, stopping.check_at) == (
        CREATED,
        after(1),
        after(1),
    )
    assert lifecycle.request_stop(stopping, after(2)) is None, "wishing twice is wishing once"


@pytest.mark.parametrize("outcome", [Outcome.STOPPED, Outcome.GONE, Outcome.FAILED])
@pytest.mark.parametrize(
    ("archived_at", "message"), [(None, "BuildJob was stopped."), (NOW, "Build is scheduled for deletion.")]
)
def test_a_build_says_why_it_was_stopped(outcome: Outcome, archived_at: datetime | None, message: str) -> None:
    waiting = lifecycle.request_stop(make_build(archived_at=archived_at), after(1))
    running = lifecycle.request_stop(make_claimed(archived_at=archived_at), after(1))
    assert waiting is not None
    assert running is not None
    seen = make_observation(RUNNING, outcome=outcome)
    stopped = lifecycle.follow(running, seen, after(200), image=None, reason=None)
    assert stopped is not None

    for build in (waiting, stopped):
        last = build.history[-1]
        assert (last.status, last.message) == (Status.STOPPED, message)


def test_an_unmanaged_build_is_stopped_at_once_whatever_it_reports() -> None:
    stopped = lifecycle.request_stop(make_build(RUNNING, is_managed=False), after(1))

    assert stopped is not None
    assert stopped.last_status == Status.STOPPED


@pytest.mark.parametrize("status", sorted(DONE))
def test_what_has_ended_is_not_stopped(status: Status) -> None:
    assert lifecycle.request_stop(make_build(status), after(1)) is None


# Following an executor


def follow(
    build: Build, seen: Observation, *, now: datetime | None = None, digest: str | None = DIGEST
) -> Build | None:
    return lifecycle.follow(
        build, seen, now or after(200), image=Image(digest) if digest else None, reason="a command failed"
    )


def followed(build: Build, *observations: Observation, digest: str | None = DIGEST) -> Build:
    for seen in observations:
        build = follow(build, seen, digest=digest) or build
    return build


def test_a_success_knows_the_digest_and_the_layers_of_its_image() -> None:
    seen, image = make_observation(outcome=Outcome.SUCCEEDED), Image(DIGEST, (10, 20))
    done = lifecycle.follow(make_claimed(), seen, after(200), image=image, reason=None)
    assert done is not None
    assert (done.image_digest, done.layer_bytes) == (DIGEST, (10, 20))


def test_one_observation_is_enough() -> None:
    seen = make_observation(SCHEDULED, BUILDING, RUNNING, outcome=Outcome.SUCCEEDED, log="logs:run-1")

    build = followed(make_claimed(), seen)

    assert [(entry.status, entry.created_at) for entry in build.history] == [
        (CREATED, NOW),
        (SCHEDULED, after(10)),
        (BUILDING, after(20)),
        (RUNNING, after(30)),
        (Status.SUCCEEDED, after(100)),
    ]
    assert (build.handle, build.log, build.image_digest) == ("run-1", "logs:run-1", DIGEST)
    assert build.history[-1].message == "Completed"


def test_an_observation_without_news_says_so() -> None:
    seen = make_observation(SCHEDULED, BUILDING)

    assert follow(followed(make_claimed(), seen), seen) is None


@pytest.mark.parametrize("attempt", [1, 3])
def test_observations_of_other_attempts_are_ignored(attempt: int) -> None:
    seen = make_observation(SCHEDULED, outcome=Outcome.FAILED, attempt=attempt)

    assert follow(make_claimed(attempt=2), seen) is None


def test_observations_of_unmanaged_builds_are_ignored() -> None:
    assert follow(make_claimed(is_managed=False), make_observation(SCHEDULED)) is None


@pytest.mark.parametrize(
    ("outcome", "digest", "stop_requested", "status", "message"),
    [
        (Outcome.SUCCEEDED, DIGEST, False, Status.SUCCEEDED, "Completed"),
        (Outcome.SUCCEEDED, DIGEST, True, Status.SUCCEEDED, "Completed"),
        (
            Outcome.SUCCEEDED,
            None,
            False,
            Status.FAILED,
            "The build ended without an error, but the registry has no image of it.",
        ),
        (Outcome.FAILED, None, False, Status.FAILED, "a command failed"),
        (Outcome.TIMED_OUT, None, False, Status.FAILED, "a command failed"),
        (Outcome.STOPPED, None, True, Status.STOPPED, "BuildJob was stopped."),
        (Outcome.STOPPED, DIGEST, True, Status.STOPPED, "BuildJob was stopped."),
        (Outcome.STOPPED, None, False, Status.STOPPED, "Stopped from outside."),
        (Outcome.STOPPED, DIGEST, False, Status.SUCCEEDED, "Completed"),
        (Outcome.GONE, DIGEST, False, Status.SUCCEEDED, "Completed"),
        (Outcome.GONE, None, True, Status.STOPPED, "BuildJob was stopped."),
        (Outcome.GONE, None, False, Status.FAILED, "The build disappeared from where it was running."),
        (
            Outcome.FAULT,
            None,
            False,
            Status.WARNING,
            "The build service had a fault; trying once more.",
        ),
        (Outcome.FAULT, None, True, Status.FAILED, "a command failed"),
    ],
)
def test_how_an_attempt_ends(
    outcome: Outcome, digest: str | None, stop_requested: bool, status: Status, message: str | None
) -> None:
    build = make_claimed(stop_requested_at=NOW if stop_requested else None)

    build = followed(build, make_observation(RUNNING, outcome=outcome), digest=digest)

    assert (build.last_status, build.history[-1].message) == (status, message)
    assert build.image_digest == (DIGEST if status is Status.SUCCEEDED else None)


def test_a_fault_leaves_the_build_to_be_claimed_once_more() -> None:
    warned = followed(make_claimed(), make_observation(RUNNING, outcome=Outcome.FAULT), digest=None)

    assert (warned.submitting_at, warned.handle, warned.check_at) == (None, None, after(200))
    assert (warned.queued_at, warned.unsure_attempts) == (after(200), (1,))


def test_a_fault_of_a_later_attempt_is_added_to_those_that_may_have_made_the_image() -> None:
    claimed = make_claimed(attempt=3)
    warned = followed(claimed, make_observation(outcome=Outcome.FAULT, attempt=3), digest=None)
    assert warned.unsure_attempts == (1, 2, 3)


@pytest.mark.parametrize("outcome", [Outcome.FAULT, Outcome.FAILED])
def test_the_executors_words_are_shown_where_there_are_no_better_ones(outcome: Outcome) -> None:
    seen = make_observation(outcome=outcome, reason="BUILD: no disk")
    build = lifecycle.follow(make_claimed(), seen, after(200), image=None, reason=None)
    assert build is not None
    assert build.history[-1].message == "BUILD: no disk"


def test_a_failure_without_any_words_says_where_to_look() -> None:
    build = lifecycle.follow(
        make_claimed(), make_observation(outcome=Outcome.FAILED), after(200), image=None, reason=None
    )
    assert build is not None
    assert build.history[-1].message == "The build failed; its log may tell why."


def test_a_second_fault_fails() -> None:
    warned = followed(make_claimed(), make_observation(RUNNING, outcome=Outcome.FAULT), digest=None)
    seen = make_observation(SCHEDULED, outcome=Outcome.FAULT, attempt=2, reason="BUILD: no disk")

    build = lifecycle.follow(lifecycle.claim(warned, after(250)), seen, after(300), image=None, reason=None)

    assert build is not None
    assert (build.last_status, build.history[-1].message) == (Status.FAILED, "BUILD: no disk")


def test_a_repeated_fault_changes_nothing_until_the_next_attempt() -> None:
    seen = make_observation(SCHEDULED, BUILDING, outcome=Outcome.FAULT)
    warned = followed(make_claimed(), seen, digest=None)

    assert follow(warned, seen) is None
    assert follow(warned, make_observation(SCHEDULED, BUILDING, RUNNING)) is None


# What an executor can have to say about one attempt: any part of this, more with every time it is asked.
STORY = [SCHEDULED, BUILDING, RUNNING]
ENDINGS = st.sampled_from([o for o in Outcome if o is not Outcome.GONE])


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[Observation, Sequence[Observation]]:
    """How one attempt ended, and its observations as they may arrive: lost, repeated, in any order."""
    stages = draw(st.lists(st.sampled_from(STORY), unique=True).map(lambda some: sorted(some, key=STORY.index)))
    final = make_observation(*stages, outcome=draw(ENDINGS), log="logs:run-1")
    views = [make_observation(*stages[:count]) for count in range(len(stages) + 1)] + [final]
    return final, [*draw(st.lists(st.sampled_from(views), max_size=8)), final]


@given(deliveries(), st.integers(1, 2), st.booleans())
def test_lost_repeated_and_reordered_observations_end_alike(
    delivery: tuple[Observation, Sequence[Observation]], attempt: int, repeated: bool
) -> None:
    final, arriving = delivery
    arriving = [replace(seen, attempt=attempt) for seen in [*arriving, *(arriving if repeated else [])]]
    claimed = make_claimed(attempt=attempt)
    alone = followed(claimed, replace(final, attempt=attempt))

    build = followed(claimed, *arriving)

    assert build.last_status == alone.last_status
    assert statuses(build) == statuses(alone)
    times = [entry.created_at for entry in build.history]
    assert times == sorted(times)
    assert build.started_at == alone.started_at


@given(deliveries(), st.lists(st.sampled_from(list(Outcome))))
def test_a_final_status_never_changes(delivery: tuple[Observation, Sequence[Observation]], late: list[Outcome]) -> None:
    final, arriving = delivery
    build = followed(make_claimed(attempt=2), replace(final, attempt=2))
    assume(build.is_done)  # the first fault is forgiven

    for seen in [*arriving, *(make_observation(RUNNING, outcome=outcome) for outcome in late)]:
        assert follow(build, replace(seen, attempt=2)) is None
    assert lifecycle.request_stop(build, after(300)) is None


# Deadlines


NOT_ENDED = "The build did not end within 90 minutes of being started."
LIMITS: Any = {"wait_minutes": 600, "queue_minutes": 60, "run_minutes": 30}


@pytest.mark.parametrize(
    ("build", "minutes", "reason"),
    [
        (make_build(waiting_reason="no slot is free"), 600, None),
        (
            make_build(waiting_reason="no slot is free"),
            601,
            "The build's turn did not come within 600 minutes.",
        ),
        (make_build(), 70, None),
        (make_build(), 71, "The build could not be started within 60 minutes."),
        (make_claimed(), 71, "The build could not be started within 60 minutes."),
        (make_build(created_at=after(-3_600), queued_at=NOW), 70, None),
        (
            make_build(created_at=after(-3_600), queued_at=NOW),
            71,
            "The build could not be started within 60 minutes.",
        ),
        (make_build(created_at=after(-9_000), turn_at=NOW), 70, None),
        (
            make_build(created_at=after(-9_000), turn_at=NOW),
            71,
            "The build could not be started within 60 minutes.",
        ),
        (make_build(turn_at=after(-9_000), queued_at=NOW), 70, None),
        (replace(make_claimed(created_at=after(-9_000)), handle="run-1"), 100, None),
        (replace(make_claimed(), handle="run-1"), 100, None),
        (
            replace(make_claimed(), handle="run-1"),
            101,
            "The build did not end within 90 minutes of being started.",
        ),
    ],
    ids=[
        "waiting for its turn",
        "its turn never came",
        "waiting",
        "never started",
        "claimed and never started",
        "second attempt waiting",
        "second attempt never started",
        "its turn came late",
        "its turn came late and it was never started",
        "second attempt after its turn",
        "running after a long wait",
        "running",
        "never ended",
    ],
)
def test_when_to_give_up(build: Build, minutes: float, reason: str | None) -> None:
    assert lifecycle.overdue(build, NOW + timedelta(minutes=minutes), **LIMITS) == reason


def test_a_stage_of_many_phases_begins_with_the_first() -> None:
    stages = [(SCHEDULED, after(0)), (SCHEDULED, after(1)), (BUILDING, after(2)), (BUILDING, after(3))]

    assert [(step.status, step.at) for step in lifecycle.steps_of(stages)] == [
        (SCHEDULED, after(0)),
        (BUILDING, after(2)),
    ]


def test_the_first_entry_has_an_aware_time() -> None:
    entry = lifecycle.first_entry(NOW)
    assert (entry.id, entry.status, entry.created_at.tzinfo) == (1, CREATED, UTC)


# Trouble that may pass


def troubled(build: Build, *steps: Status, trouble: Status = Status.UNSCHEDULABLE, words: str = "no node") -> Build:
    seen = make_observation(*steps, trouble=Trouble(trouble, words))
    return lifecycle.follow(build, seen, after(60), image=None, reason=None) or build


def test_trouble_is_told_once_and_leads_nowhere_back() -> None:
    build = make_claimed(status=Status.SCHEDULED, handle="run-1")
    for words in ("1 node", "2 nodes", "3 nodes"):
        build = troubled(build, Status.SCHEDULED, words=words)
    assert [entry.status for entry in build.history] == ["created", "scheduled", "unschedulable"]
    assert build.history[-1].message == "1 node"

    seen = make_observation(Status.SCHEDULED, Status.BUILDING, Status.RUNNING)
    build = lifecycle.follow(build, seen, after(90), image=None, reason=None) or build
    assert [entry.status for entry in build.history][2:] == ["unschedulable", "building", "running"]


@pytest.mark.parametrize("before", [(), (SCHEDULED,), (SCHEDULED, BUILDING)], ids=len)
def test_stages_go_on_after_trouble_from_where_they_were(before: tuple[Status, ...]) -> None:
    build = troubled(make_claimed(), *before)
    for count in range(len(before), 4):
        build = followed(build, make_observation(*STORY[:count]))
    assert statuses(build) == [CREATED, *before, Status.UNSCHEDULABLE, *STORY[len(before) :]]


def test_trouble_of_changing_kinds_leaves_room_for_the_end() -> None:
    build = make_claimed(status=Status.SCHEDULED, handle="run-1")
    for number in range(200):
        kind = (Status.UNSCHEDULABLE, Status.WARNING)[number % 2]
        build = troubled(build, Status.SCHEDULED, trouble=kind)
    assert len(build.history) == lifecycle.MAX_HISTORY - 1 - 10

    seen = make_observation(Status.SCHEDULED, Status.BUILDING, Status.RUNNING, outcome=Outcome.FAILED)
    done = lifecycle.follow(build, seen, after(900), image=None, reason="Exit code 1: x")
    assert done is not None
    assert [entry.status for entry in done.history][-3:] == ["building", "running", "failed"]


def test_trouble_leaves_room_for_one_more_attempt() -> None:
    build = make_claimed(status=Status.SCHEDULED, handle="run-1")
    for number in range(200):
        kind = (Status.UNSCHEDULABLE, Status.UNKNOWN)[number % 2]
        build = troubled(build, Status.SCHEDULED, trouble=kind)
    build = followed(build, make_observation(SCHEDULED, BUILDING, RUNNING, outcome=Outcome.FAULT), digest=None)
    assert build.last_status is Status.WARNING

    build = lifecycle.claim(build, after(300))
    seen = make_observation(SCHEDULED, BUILDING, RUNNING, outcome=Outcome.SUCCEEDED, attempt=2)
    build = followed(build, seen)

    assert statuses(build)[-4:] == [SCHEDULED, BUILDING, RUNNING, Status.SUCCEEDED]
    assert len(build.history) <= MAX_HISTORY


def test_an_end_without_trace_can_say_more_than_that() -> None:
    build = make_claimed(status=Status.RUNNING, handle="run-1")
    seen = make_observation(outcome=Outcome.GONE, reason="The build's pod was removed while it ran.")
    done = lifecycle.follow(build, seen, after(900), image=None, reason=None)
    assert done is not None
    assert done.history[-1].message == "The build's pod was removed while it ran."


def test_only_one_fault_is_forgiven_and_trouble_is_none() -> None:
    """A warning that an executor gave meanwhile is no attempt that was lost."""
    build = troubled(make_claimed(), trouble=Status.WARNING)
    assert build.last_status is Status.WARNING

    for attempt, expected in ((1, Status.WARNING), (2, Status.FAILED)):
        seen = make_observation(attempt=attempt, outcome=Outcome.FAULT)
        after_fault = lifecycle.follow(build, seen, after(200), image=None, reason=None)
        assert after_fault is not None
        assert after_fault.last_status is expected
        build = lifecycle.claim(after_fault, after(201))
    assert build.faults == 1


@pytest.mark.parametrize(
    ("changes", "is_made"),
    [
        ({"attempt": 1, "tag_was_free": True, "pushes": (Push(1, DIGEST),)}, True),
        ({"attempt": 1, "tag_was_free": True, "pushes": (Push(1, "sha256:other"),)}, False),
        ({"attempt": 1, "tag_was_free": True}, False),
        ({"attempt": 1}, True),  # an older version started it
        ({"attempt": 0}, False),  # nobody did
    ],
)
def test_an_image_is_a_builds_own_when_an_attempt_has_reported_it(changes: dict[str, Any], is_made: bool) -> None:
    assert lifecycle.image_of(make_build(**changes), Image(DIGEST)) == (Image(DIGEST) if is_made else None)
    assert lifecycle.image_of(make_build(**changes), None) is None
