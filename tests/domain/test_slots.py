"""Whose turn it is, where limits on running builds are set."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.domain.slots import LimitOf, in_order, turns, why_full


def keys(texts: str) -> list[BuildKey]:
    """`ada:1 eve:2` are ada/p/1 and eve/p/2; `ada.q:3` is ada/q/3."""
    named = [text.split(":") for text in texts.split()]
    return [BuildKey(name.partition(".")[0], name.partition(".")[2] or "p", int(number)) for name, number in named]


def limits(**given: int) -> LimitOf:
    """All builds, an owner's, a project's; else none."""
    return lambda scope: given.get("project" if "/" in scope else "owner" if scope else "all", 0)


@pytest.mark.parametrize(
    ("running", "of", "why"),
    [
        ("", {"all": 1}, None),
        ("eve:1", {"all": 1}, "The limit of running builds is reached: 1 of this deployment."),
        ("eve:1", {"all": 2}, None),
        ("eve:1 eve:2 bob:3", {"all": 2}, "The limit of running builds is reached: 2 of this deployment."),
        ("eve:1 eve:2", {"owner": 2, "project": 1}, None),
        ("ada.q:1 ada.q:2", {"owner": 2, "project": 1}, "The limit of running builds is reached: 2 of ada."),
        ("ada.q:1 ada.q:2", {"project": 1}, None),
        ("ada:2", {"owner": 2, "project": 1}, "The limit of running builds is reached: 1 of ada/p."),
        ("ada:2", {}, None),
    ],
)
def test_the_limit_that_is_reached_is_named(running: str, of: Mapping[str, int], why: str | None) -> None:
    assert why_full(BuildKey("ada", "p", 1), keys(running), limits(**of)) == why


@pytest.mark.parametrize(
    ("waiting", "running", "of", "first"),
    [
        # the longest wait, if all owners run as many
        ("ada:1 eve:1", "", {"all": 1}, "ada:1"),
        ("eve:1 ada:1", "ada:9 eve:9", {"all": 3}, "eve:1"),
        # the owner who runs the fewest
        ("ada:1 eve:1", "ada:9", {"all": 2}, "eve:1"),
        ("ada:1 ada:2 eve:1", "", {"all": 3}, "ada:1 eve:1 ada:2"),
        ("ada:1 ada:2 ada:3 eve:1", "eve:8 eve:9", {"all": 6}, "ada:1 ada:2 ada:3 eve:1"),
        # projects of an owner are counted together
        ("ada.q:1 eve:1", "ada:9", {"all": 2}, "eve:1"),
        # what a limit holds back lets others pass, also in the same line
        ("ada:1 eve:1", "ada:8", {"owner": 1}, "eve:1"),
        ("ada:1 ada:2 ada.q:3", "ada:8", {"project": 1}, "ada.q:3"),
        ("ada:1 ada:2 eve:1", "", {"owner": 1}, "ada:1 eve:1"),
        # without a slot, none
        ("ada:1", "eve:1", {"all": 1}, ""),
        # who has a slot needs none
        ("eve:1 ada:1", "ada:1", {"all": 1}, "ada:1"),
        ("eve:1 ada:1", "ada:1", {"all": 2}, "ada:1 eve:1"),
        ("", "", {}, ""),
    ],
)
def test_a_slot_goes_to_the_owner_with_the_fewest_then_to_the_longest_wait(
    waiting: str, running: str, of: Mapping[str, int], first: str
) -> None:
    assert [*turns(keys(waiting), keys(running), limits(**of))] == keys(first)


@pytest.mark.parametrize(
    ("waiting", "running", "line"),
    [
        ("ada:1 ada:2 ada:3 eve:1 bob:1", "", "ada:1 eve:1 bob:1 ada:2 ada:3"),
        ("ada:1 ada:2 eve:1", "ada:8 ada:9", "eve:1 ada:1 ada:2"),
        ("ada:1 eve:1 eve:2", "ada:9", "eve:1 ada:1 eve:2"),
        ("ada:1 ada.q:2 eve:1", "", "ada:1 eve:1 ada.q:2"),
        ("eve:1 ada:1 ada:2", "ada:1", "ada:1 eve:1 ada:2"),
    ],
)
def test_the_line_has_the_owners_by_turns(waiting: str, running: str, line: str) -> None:
    assert in_order(keys(waiting), keys(running)) == keys(line)


def test_slots_come_in_the_order_of_the_line() -> None:
    """If only the number of all builds is limited: what a waiting build is answered is what happens."""
    waiting = keys(" ".join(f"{'ada' if number % 3 else 'eve'}:{number}" for number in range(1, 40)))
    running = keys("ada:90 eve:91 eve:92 bob:93")
    assert [*turns(waiting, running, limits(all=100))] == in_order(waiting, running)


def test_of_three_owners_with_1000_10_and_1_builds_each_has_the_next_slot_in_turn() -> None:
    crowd = " ".join(f"ada:{number}" for number in range(1, 1001))
    waiting = keys(f"{crowd} eve:1 eve:2 eve:3 eve:4 eve:5 eve:6 eve:7 eve:8 eve:9 eve:10 bob:1")
    running = keys("ada:2001 ada:2002 ada:2003 ada:2004")

    assert [*turns(waiting, running, limits(all=5))] == keys("eve:1")
    assert [*turns(waiting, running, limits(all=9))] == keys("eve:1 bob:1 eve:2 eve:3 eve:4")
    assert in_order(waiting, running)[:15] == keys(
        "eve:1 bob:1 eve:2 eve:3 eve:4 ada:1 eve:5 ada:2 eve:6 ada:3 eve:7 ada:4 eve:8 ada:5 eve:9"
    )
