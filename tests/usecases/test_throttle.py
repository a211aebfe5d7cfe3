"""A limit of requests a minute that many processes share, roughly."""

from __future__ import annotations

import pytest

from chalicelib.errors import Throttled
from chalicelib.usecases import throttle
from tests.fakes import FakeServices


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    throttle._taken.clear()


def passed(services: FakeServices, tries: int, name: str = "ada", limit: int = 25) -> int:
    count = 0
    for _ in range(tries):
        try:
            throttle.admit(services, name, limit)
        except Throttled:
            continue
        count += 1
    return count


def test_without_a_limit_everything_passes(services: FakeServices) -> None:
    assert passed(services, 1_000, limit=0) == 1_000
    assert services.accounts.taken == {}


def test_a_user_has_so_many_a_minute_and_others_theirs(services: FakeServices) -> None:
    assert passed(services, 40) == 25
    assert passed(services, 40, "bob") == 25
    services.clock.forward(minutes=1)
    assert passed(services, 40) == 25


def test_processes_share_the_count_and_ask_for_it_once_in_ten(services: FakeServices) -> None:
    assert passed(services, 10) == 10
    throttle._taken.clear()  # as another process sees it
    assert passed(services, 40) == 15
    assert list(services.accounts.taken.values()) == [40]  # ten, ten, five of ten, and none of ten


def test_the_refusal_says_when_to_come_back(services: FakeServices) -> None:
    services.clock.forward(seconds=48)
    passed(services, 1, limit=1)
    with pytest.raises(Throttled, match="Expected available in 12 seconds"):
        throttle.admit(services, "ada", 1)
