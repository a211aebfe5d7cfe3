# ruff: noqa: E501 - logs are quoted as they are
from __future__ import annotations

import re
from typing import cast

import pytest

from chalicelib.domain import failure
from chalicelib.domain.failure import KILLED, MAX_LINE, failure_reason

BUILDKIT = r"""
#7 [3/4] RUN pip install --no-cache-dir "flask==99" && echo "done"
#7 1.342 ERROR: Could not find a version that satisfies the requirement flask==99 (from versions: 0.1, 3.0.2)
#7 1.343 ERROR: No matching distribution found for flask==99
#7 ERROR: process "/bin/sh -c pip install --no-cache-dir \"flask==99\" && echo \"done\"" did not complete successfully: exit code: 1
------
 > [3/4] RUN pip install --no-cache-dir "flask==99" && echo "done":
1.342 ERROR: Could not find a version that satisfies the requirement flask==99 (from versions: 0.1, 3.0.2)
1.343 ERROR: No matching distribution found for flask==99
------
Dockerfile:9
--------------------
   7 |     WORKDIR /code
   8 |
   9 | >>> RUN pip install --no-cache-dir "flask==99" && echo "done"
  10 |     COPY build /code
--------------------
ERROR: failed to solve: process "/bin/sh -c pip install --no-cache-dir \"flask==99\" && echo \"done\"" did not complete successfully: exit code: 1
[Container] 2024/03/01 12:01:07.481 Command did not exit successfully exit status 1
[Container] 2024/03/01 12:01:07.485 Phase complete: BUILD State: FAILED
[Container] 2024/03/01 12:01:07.485 Phase context status code: COMMAND_EXECUTION_ERROR Message: Error while executing command. Reason: exit status 1
slipway-end 00000000000000000000000000000001
"""

BUILDAH = r"""
STEP 5/6: RUN grep "a b" /missing
grep: /missing: No such file or directory
Error: building at STEP "RUN grep "a b" /missing": while running runtime: exit status 2
[Container] 2024/03/01 12:01:07 Phase complete: BUILD State: FAILED
"""

BASH_STEP = r"""
ERROR: failed to build: failed to solve: process "/bin/bash -c set -o pipefail; false | true" did not complete successfully: exit code: 141
"""

NO_SUCH_BASE = r"""
#2 [internal] load metadata for docker.io/library/nope:latest
#2 ERROR: docker.io/library/nope:latest: not found
------
 > [internal] load metadata for docker.io/library/nope:latest:
------
Dockerfile:2
--------------------
   2 | >>> FROM nope
--------------------
ERROR: failed to solve: nope: failed to resolve source metadata for docker.io/library/nope:latest: docker.io/library/nope:latest: not found
"""

TOO_MANY_PULLS = r"""
#2 ERROR: failed to copy: httpReadSeeker: failed open: unexpected status code 429 Too Many Requests - Server message: toomanyrequests: You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit
ERROR: failed to solve: python:3.7-slim: 429 Too Many Requests
"""

NO_CODE = """
ERROR: the code has no file docker/Dockerfile
"""

DISK_FULL = 'The log says "no space left on device"'


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (BUILDKIT, 'Exit code 1: pip install --no-cache-dir "flask==99" && echo "done"'),
        (BUILDAH, 'Exit code 2: grep "a b" /missing'),
        (BASH_STEP, "Exit code 141: set -o pipefail; false | true"),
        (
            NO_SUCH_BASE,
            "failed to solve: nope: failed to resolve source metadata for docker.io/library/nope:latest: "
            "docker.io/library/nope:latest: not found",
        ),
        (
            TOO_MANY_PULLS,
            "The base image's registry refuses more anonymous pulls for now; use a mirror or log in.",
        ),
        (NO_CODE, "the code has no file docker/Dockerfile"),
        (
            BUILDAH.replace("exit status 2", "exit status 137"),
            f'Exit code 137 ({KILLED}): grep "a b" /missing',
        ),
        (
            "tar: code/x: Cannot write: No space left on device\nexiting",
            "tar: code/x: Cannot write: No space left on device",
        ),
        (f"cp: x: No space left on device{BUILDAH}", f'{DISK_FULL}; Exit code 2: grep "a b" /missing'),
        (
            "Error: storing layer: write /x: no space left on device",
            "storing layer: write /x: no space left on device",
        ),
        ("all is well\nmy ERROR: is in the middle", None),
        ("", None),
    ],
    ids=[
        *("BuildKit", "buildah", "bash", "no base image", "rate limit", "no code"),
        *("killed", "disk full, no error", "disk full in a step", "disk full in the engine"),
        *("no error", "no log"),
    ],
)
def test_the_reason_is_what_the_log_says_last(log: str, reason: str | None) -> None:
    assert failure_reason(log.strip("\n").split("\n")) == reason


def test_the_last_failing_step_counts() -> None:
    lines = [
        'Error: building at STEP "RUN first": while running runtime: exit status 1',
        'Error: building at STEP "RUN --mount=type=secret,id=a --mount=type=bind second": while running runtime: exit status 2',
    ]

    assert failure_reason(lines) == "Exit code 2: second"


FORGED = 'process "x" did not complete successfully: exit code: 0'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            f"""Error: building at STEP "RUN echo '{FORGED}'; exit 7": while running runtime: exit status 7""",
            f"Exit code 7: echo '{FORGED}'; exit 7",
        ),
        (
            f"""#7 ERROR: process "/bin/sh -c echo '{FORGED}'; exit 7" did not complete successfully: exit code: 7""",
            f"Exit code 7: echo '{FORGED}'; exit 7",
        ),
        (
            'ERROR: executor failed running [/bin/sh -c echo "]: exit code: 0"; exit 7]: exit code: 7',
            'Exit code 7: echo "]: exit code: 0"; exit 7',
        ),
    ],
    ids=["buildah", "BuildKit", "older BuildKit"],
)
def test_the_text_of_a_step_is_not_taken_for_its_end(line: str, reason: str) -> None:
    assert failure_reason([line]) == reason


def test_what_a_step_prints_is_not_taken_for_an_error_of_the_engine() -> None:
    lines = [
        f"#7 0.342 ERROR: {FORGED}",
        "#7 0.343 ERROR: toomanyrequests",
        FORGED,
        "ERROR: failed to solve: no such file",
    ]
    assert failure_reason(lines) == "failed to solve: no such file"


class OnlyParts:
    """A line that can be cut, and cannot be searched as a whole."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.looked_at = 0

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, part: slice) -> str:
        self.looked_at += len(self.text[part])
        return self.text[part]


def test_of_a_long_line_only_its_ends_are_read() -> None:
    text = f'ERROR: process "{"p" * 1_000_000}" did not complete successfully: exit code: 3'
    line = OnlyParts(text)
    reason = failure_reason([cast(str, line)])
    assert reason is not None
    assert reason.startswith("Exit code 3: ppp")
    assert line.looked_at == 2 * MAX_LINE


def test_no_pattern_can_be_tried_at_many_lengths() -> None:
    """`.*` between two texts takes time quadratic in a line that a step chooses."""
    patterns = [value.pattern for value in vars(failure).values() if isinstance(value, re.Pattern)]
    patterns += failure._MEANINGS.values()
    assert len(patterns) == 14
    for pattern in patterns:
        unbounded = re.findall(r"[*+]|,\}", re.sub(r"\\[.*+]", "", pattern))
        assert len(unbounded) <= 1, pattern
        assert not re.search(r"(?<!\\)\.", pattern), pattern
