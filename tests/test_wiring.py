"""The services of a process."""

from __future__ import annotations

import threading

import pytest

from chalicelib.errors import Unavailable
from chalicelib.wiring import AwsServices

PATIENCE_SECONDS = 60


def test_what_is_read_aside_goes_on_meanwhile() -> None:
    goes_on = threading.Event()
    answer = AwsServices().aside(lambda: goes_on.wait(PATIENCE_SECONDS))
    goes_on.set()
    assert answer()


def test_what_goes_wrong_aside_is_known_where_the_answer_is_asked_for() -> None:
    def refuse() -> None:
        raise Unavailable

    answer = AwsServices().aside(refuse)
    with pytest.raises(Unavailable):
        answer()
