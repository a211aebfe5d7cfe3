"""The special files of code, which Python knows of uploads and the shell of a build of git repositories."""

from __future__ import annotations

import re

from chalicelib.adapters import codebuild
from chalicelib.domain.build import SPECIAL_FILES_MARK
from chalicelib.domain.dockerfile import SPECIAL_FILES

# What builds run: neither has the list from the other, because the shell runs without our code.
SHELL = "\n".join(path.read_text() for path in codebuild.BUILDSPEC.parent.glob("*.[ys][mh]*"))


def test_both_know_the_same_files_in_the_same_order() -> None:
    groups = re.findall(r"^ *special (.+)$", SHELL, re.MULTILINE)
    assert tuple(tuple(group.split()) for group in groups) == SPECIAL_FILES


def test_both_know_the_same_mark() -> None:
    assert f"'{SPECIAL_FILES_MARK}'" in SHELL
    assert f"/^{SPECIAL_FILES_MARK}$/" in SHELL
