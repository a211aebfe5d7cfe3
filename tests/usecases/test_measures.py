from __future__ import annotations

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Status
from chalicelib.domain.record import replace
from chalicelib.usecases.conflicts import measures_of
from tests.factories import after, make_build


def test_a_submission_counts_when_its_handle_is_noted() -> None:
    claimed = lifecycle.claim(make_build(), after(1))
    assert measures_of(make_build(), claimed) == {}
    submitted = lifecycle.submitted(claimed, "run-1", after(2), after(300))
    assert measures_of(claimed, submitted) == {"Submissions": 1}
    assert measures_of(submitted, lifecycle.advance(submitted, Status.BUILDING, after(3))) == {}


def test_every_attempt_after_the_first_is_a_retry() -> None:
    first = lifecycle.claim(make_build(), after(1))
    second = lifecycle.claim(lifecycle.release(first, "wait"), after(31))
    assert measures_of(first, second) == {"Retries": 1}


def test_the_end_has_a_status_and_times() -> None:
    waiting = lifecycle.submitted(lifecycle.claim(make_build(), after(1)), "run-1", after(2), after(300))
    running = lifecycle.advance(lifecycle.advance(waiting, Status.BUILDING, after(10)), Status.RUNNING, after(12))
    failed = lifecycle.advance(running, Status.FAILED, after(70))
    assert measures_of(running, failed) == {"Failed": 1, "QueuedSeconds": 10, "BuildingSeconds": 60}
    assert measures_of(failed, replace(failed, stored_log_bytes=3)) == {}


def test_a_stop_is_timed_from_the_wish_to_the_end() -> None:
    wished = replace(make_build(Status.RUNNING), stop_requested_at=after(20))
    stopped = lifecycle.advance(wished, Status.STOPPED, after(23.5))
    assert measures_of(wished, stopped)["StoppingSeconds"] == 3.5


def test_a_build_that_never_began_has_no_times() -> None:
    created = make_build()
    ended = lifecycle.advance(created, Status.UPSTREAM_FAILED, after(5))
    assert measures_of(created, ended) == {"UpstreamFailed": 1}
