"""What `mask` hides of a build's output, by the script that comes with the materials."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chalicelib.adapters import steps
from chalicelib.domain.materials import masks
from tests.adapters.attempts import shell_and_path

Mask = Callable[..., bytes]


@pytest.fixture(params=["bash", "busybox"])
def mask(request: pytest.FixtureRequest, tmp_path: Path) -> Mask:
    shell, path = shell_and_path(request.param, tmp_path)

    def mask(printed: bytes, *secrets: str) -> bytes:
        (tmp_path / "masks").write_text(masks(secrets))
        done = subprocess.run(
            [*shell, "-c", steps.step("mask")],
            input=printed,
            env={"PATH": path, "SLIPWAY_MEMORY": str(tmp_path), "LANG": "C.UTF-8"},
            capture_output=True,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    return mask


def test_without_secrets_all_is_copied(mask: Mask) -> None:
    assert mask(b" a\\n\tb\xff\0\nc") == b" a\\n\tb\xff\0\nc"


@pytest.mark.parametrize(
    "secret", [r"$x*[y]\ ", r"a/b&c", r"^.\n\(x\)", r"\{1,\}+?|", "]] [[:alpha:]]", "'\"`$(id)", "ünïcode"]
)
def test_values_are_hidden_wherever_they_stand_and_nothing_else_is(mask: Mask, secret: str) -> None:
    value = secret.encode()
    near = b"ab xyz 0.2 [y] \xff " + value[:3] + b" " + value[1:]
    printed = near + value + b" and " + value + value + b"\n" + near + b"\n" + value
    assert mask(printed, secret) == near + b"*** and ******\n" + near + b"\n***"


def test_each_line_of_a_secret_is_hidden_but_short_ones_are_not(mask: Mask) -> None:
    secret = "-----BEGIN\r\n  line one\nabc\n\néé"
    assert mask("x   line one y abc éé\n".encode(), secret) == b"x *** y abc ***\n"


def test_the_longest_is_hidden_first(mask: Mask) -> None:
    assert mask(b"password1 word\n", "word", "password1") == b"*** ***\n"


def test_lines_come_through_as_they_are_printed(tmp_path: Path) -> None:
    """busybox alone holds some back."""
    (tmp_path / "masks").write_text(masks(["hush-1"]))
    process = subprocess.Popen(
        ["bash", "-c", steps.step("mask")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "SLIPWAY_MEMORY": str(tmp_path)},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x hush-1\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"x ***\n"
    process.communicate()
