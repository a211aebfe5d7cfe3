"""The locks agree with their lists, with each other, and name all that is installed."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, requires
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EACH_IN_THE_NEXT = {
    "infra/aws/requirements.in": "requirements.txt",
    "infra/local/requirements.in": "infra/local/requirements.txt",
    "tests/requirements.in": "tests/requirements.txt",
    "tests/mutants/requirements.in": "tests/mutants/requirements.txt",
}
OF_THE_PAGE = "infra/ui/requirements.in"
LOCKS = {**EACH_IN_THE_NEXT, OF_THE_PAGE: "infra/ui/requirements.txt"}
NOT_INSTALLED = ("tests/mutants/requirements.in", OF_THE_PAGE)  # by `make check`
both = pytest.mark.parametrize(("list_", "lock"), LOCKS.items())


def listed(path: str) -> list[Requirement]:
    """What a list asks for, with what the lists that it includes ask for."""
    found = []
    for line in (ROOT / path).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found += listed(str((ROOT / path).parent.joinpath(text[3:]).resolve().relative_to(ROOT)))
        elif text:
            found.append(Requirement(text))
    return found


def locked(path: str) -> dict[str, Requirement]:
    """The requirements of a lock, by name."""
    lines = re.findall(r"(?m)^[a-z0-9].*?(?= \\$)", (ROOT / path).read_text())
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def needed(asked: list[Requirement]) -> set[str]:
    """The names of all that is needed here, by what is installed."""
    done = set[tuple[str, str]]()
    left = [(each, "") for each in asked]
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in done:
                done.add((name, wanted))
                left += [(Requirement(text), wanted) for text in requires(name) or []]
    return {name for name, _ in done}


@both
def test_a_lock_has_what_its_list_asks_for(list_: str, lock: str) -> None:
    found = locked(lock)
    for each in listed(list_):
        assert version(found[canonicalize_name(each.name)]) in each.specifier, f"{each}: run make lock"


@pytest.mark.parametrize("list_", [each for each in LOCKS if each not in NOT_INSTALLED])
def test_a_lock_has_all_that_is_needed_and_nothing_else(list_: str) -> None:
    lock = LOCKS[list_]
    try:
        names = needed(listed(list_))
    except PackageNotFoundError as missing:
        pytest.fail(f"{missing} is not installed: run make check")
    here = {name for name, each in locked(lock).items() if each.marker is None or each.marker.evaluate()}
    assert names == here, "run make lock"


@both
def test_every_package_of_a_lock_has_hashes_and_no_address(list_: str, lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert len(re.findall(r"(?m)^[a-z0-9][^\n]* \\\n    --hash=sha256:", text)) == len(locked(lock))
    assert "://" not in text
    assert "index-url" not in text


def test_locks_agree_on_versions() -> None:
    for smaller, larger in pairwise(map(locked, EACH_IN_THE_NEXT.values())):
        assert {name: version(larger[name]) for name in smaller} == {
            name: version(each) for name, each in smaller.items()
        }


def test_the_lock_of_the_page_has_hashes_and_names_no_host() -> None:
    lock = json.loads((ROOT / "infra/ui/package-lock.json").read_text())
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in packages.values())


def test_the_packages_of_the_page_are_listed_with_one_version_each() -> None:
    listed_there = json.loads((ROOT / "infra/ui/package.json").read_text())
    versions = [*listed_there["dependencies"].values(), *listed_there["devDependencies"].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", each) for each in versions)
