"""A few stories in the quick suite, some hundred in the whole one; `make simulate` runs as many as wanted."""

from __future__ import annotations

import pytest

from tests.simulation import recall
from tests.simulation.faults import Fault
from tests.simulation.ports import PORTS, methods_of, special_faults
from tests.simulation.run import simulate
from tests.simulation.shrink import rendered, shrink

QUICK, SLOW = range(1, 16), range(16, 216)
ON_ADAPTERS = range(1, 11)
HALVES = [SLOW[::2], SLOW[1::2]]  # for two workers


def broken(seeds: range, *, adapters: bool = False) -> dict[int, list[str]]:
    """What breaks, by seed."""
    results = [simulate(seed, adapters=adapters) for seed in seeds]
    return {result.seed: [*map(str, result.broken)] for result in results if result.broken}


def test_all_promises_are_kept_in_a_few_stories() -> None:
    assert broken(QUICK) == {}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", HALVES, ids=str)
def test_all_promises_are_kept_in_hundreds_of_stories(seeds: range) -> None:
    assert broken(seeds) == {}


@pytest.mark.slow
def test_all_promises_are_kept_on_the_real_adapters() -> None:
    assert broken(ON_ADAPTERS, adapters=True) == {}


CONFLICTING = {
    "projects": "add save recount",
    "builds": "add save rename lease",
    "slots": "take",
    "archive": "archive restore purge",
    "accounts": "add_user add_token drop_token save_user",
}
LAGGING = {"projects": "list_projects miscounted", "builds": "list_builds line", "archive": "purgeable"}
SUBMIT, THROTTLED = {"executor": "submit"}, {"executor": "submit find_handle observe stop"}


@pytest.mark.parametrize(
    ("fault", "methods"),
    [
        (Fault.OWN_CONFLICT, CONFLICTING),
        (Fault.LAG, LAGGING),
        (Fault.NEVER, SUBMIT),
        (Fault.BUSY, THROTTLED),
    ],
)
def test_the_docstrings_of_the_ports_say_which_faults_a_method_has(fault: Fault, methods: dict[str, str]) -> None:
    """A word that is lost there would switch its fault off."""
    found = {(port, method) for port in PORTS for method in methods_of(port) if fault in special_faults(port, method)}
    assert found == {(port, method) for port, names in methods.items() for method in names.split()}


def test_stories_are_full_of_faults() -> None:
    results = [simulate(seed) for seed in QUICK]
    assert sum(len(result.fired) for result in results) > 100
    assert sum(result.calls for result in results) > 1_000


@pytest.mark.parametrize("adapters", [False, True], ids=["fakes", "adapters"])
def test_a_seed_tells_the_same_story_again(adapters: bool) -> None:
    first, second = (simulate(2, traced=True, adapters=adapters).lines for _ in range(2))
    assert first == second
    assert len(first) > 20


def test_a_story_without_its_faults_has_none() -> None:
    assert simulate(2, only=()).fired == []


def test_a_broken_promise_is_found_and_shrunk_to_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault put in: who creates a build does not announce it, and the schedule is blind to new ones."""
    promise = "every build ends"
    recall.put_back(monkeypatch.setattr, recall.UNANNOUNCED)

    seed = next(seed for seed in QUICK if any(each.promise == promise for each in simulate(seed).broken))
    small = shrink(seed, promise)

    assert (len(small.requests), small.fired) == (1, [])
    assert f"seed {seed}: {promise}" in rendered(small, promise)


@pytest.mark.parametrize("fault", recall.FAULTS, ids=lambda fault: fault.name)
def test_each_known_fault_is_found_by_its_seed_when_it_is_put_back(fault: recall.KnownFault) -> None:
    """`make simulate-recall` searches for these seeds, which takes minutes."""
    assert recall.breaks(fault, fault.seed) == (True, True)
