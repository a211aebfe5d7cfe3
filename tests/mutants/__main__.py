"""Breaks the code in one place after another; each time a test, or mypy, must fail.

    python -m tests.mutants [PATTERN…]

Two kinds of breakages: mutants, which mutmut makes everywhere in the files of `[tool.mutmut]`, and those of
`aimed`, by hand. All is done in a copy of the project, `out/mutants`. Exits with 1 when a mutant survives
that `accepted.toml` does not list, when one that it lists is killed or not there, and when no test finds an
aimed breakage. With patterns of mutants' names (`*.x_process__*`) only these are tested again, in the copy of
the last complete run, with the tests as they are now.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import libcst
from mutmut.__main__ import _run
from mutmut.configuration import config
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.mutators import mutation_operators
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

from tests.mutants import aimed

ROOT = Path(__file__).parents[2]
COPY = ROOT / "out" / "mutants"
ACCEPTED = Path(__file__).with_name("accepted.toml")
FOUND = ("killed", "timeout", "caught by type check")


def without_guard(node: libcst.If) -> Iterator[libcst.CSTNode]:
    """`if` whose body always runs, or never."""
    for operator, literal in ((libcst.Or(), "True"), (libcst.And(), "False")):
        test = libcst.BooleanOperation(_in_brackets(node.test), operator, libcst.Name(literal))
        yield node.with_changes(test=test)


def without_operand(node: libcst.BooleanOperation) -> Iterator[libcst.CSTNode]:
    """One side of `and` and `or` alone."""
    yield _in_brackets(node.left)
    yield _in_brackets(node.right)


def without_call(node: libcst.Expr) -> Iterator[libcst.CSTNode]:
    """A call whose answer nobody takes, left out."""
    if isinstance(node.value, libcst.Call):
        yield libcst.Pass()


def _in_brackets(node: libcst.BaseExpression) -> libcst.BaseExpression:
    return node.with_changes(lpar=[libcst.LeftParen(), *node.lpar], rpar=[*node.rpar, libcst.RightParen()])


# What mutmut lacks, and what a review found to survive most: guards that are gone.
OPERATORS = [
    (libcst.If, without_guard),
    (libcst.BooleanOperation, without_operand),
    (libcst.Expr, without_call),
]


def copy_project() -> None:
    """What the tests read, as it is now."""
    ignored = shutil.ignore_patterns("__pycache__")
    COPY.mkdir(parents=True, exist_ok=True)
    for name in ("app.py", "chalicelib", "infra", "tests", ".chalice", "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, COPY / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / name, COPY / name)


def results() -> dict[str, str]:
    """Of each mutant, by the name that `accepted.toml` gives it: what became of it."""
    found: dict[str, str] = {}
    for path in config().only_mutate:
        codes = json.loads(Path("mutants", f"{path}.meta").read_text())["exit_code_by_key"]
        for key, code in codes.items():
            status = status_by_exit_code[code]
            name = described(key, path) if status not in FOUND else key
            found[name] = status
    return found


def described(key: str, path: str) -> str:
    """`module.function: old lines -> new lines`: what stays when other lines come and go."""
    function, class_name = orig_function_and_class_names_from_key(key)
    lines = get_diff_for_mutant(key, path=path).splitlines()
    old, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
        for sign in "-+"
    )
    where = ".".join(filter(None, (Path(path).stem, class_name, function)))
    return f"{where}: {old} -> {new}"


def accepted() -> Iterable[str]:
    return [name for group in tomllib.loads(ACCEPTED.read_text())["accepted"] for name in group["mutants"]]


def judged(found: dict[str, str]) -> list[str]:
    """In words, where the mutants and the list disagree."""
    listed = set(accepted())
    survivors = {name: status for name, status in found.items() if status not in FOUND}
    return [f"{status}: {name}" for name, status in survivors.items() if name not in listed] + [
        f"listed, but killed or not there: {name}" for name in sorted(listed - survivors.keys())
    ]


def main(patterns: list[str]) -> int:
    if not patterns:
        shutil.rmtree(COPY, ignore_errors=True)
    copy_project()
    os.chdir(COPY)
    assert isinstance(mutation_operators, list)
    mutation_operators.extend(OPERATORS)
    _run(patterns, max_children=1)
    wrong = judged(results())
    if not patterns:
        wrong += aimed.not_found(COPY)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
