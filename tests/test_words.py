"""Words that this code once used in meanings of its own. Readers had to guess them, so they stay out of the product."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("app.py", "chalicelib", "infra", "Makefile", "README.md", ".github", ".ci")
READ = {".py", ".sh", ".yaml", ".yml", ".ts", ".tsx", ".mjs", ".md", ""}
# Each with the usual words. Also as a part of a name: `look_at`, `_KEPT`, `KeptAws`.
INSTEAD = {
    "kept": "stored, saved, retained",
    "told": "reported, notified, given",
    "tells": "says, shows, reports",
    "doomed": "purgeable",
    "wish": "request",
    "whoever": "the caller, everyone who",
    "somebody": "a user, another handler",
    "heeded": "used, takes effect",
    "look_at": "check_at",
    "looked at": "checked",
    "attend": "process, advance",
    "twin": "copy, reverse row",
    "doorbell": "event, message",
}
# Names that stored data or deployed resources have.
EXCEPTED = (
    r"\.slipway/kept",
    r'"\.slipway" / "kept"',
    r'"kept\.sqlite"',
    r"(?:FROM|INTO|EXISTS) kept\b",
    r'"kept_log_bytes"',
    r'attr_name="(?:kept|look_at)"',
    r"AttributeName: look_at\b",
    r"`look_at`",
)


def forbidden(text: str) -> list[str]:
    """The forbidden words in a text, with their forms: kept, _KEPT, Kept."""
    for pattern in EXCEPTED:
        text = re.sub(pattern, "", text)
    words = "|".join(word.replace(" ", r"\s+") for word in INSTEAD)
    return re.findall(rf"(?<![A-Za-z])(?i:{words})(?:ed|s|es)?(?![a-z])", text)


def product_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", *PRODUCT], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split() if Path(path).suffix in READ]


@pytest.mark.parametrize("path", product_files())
def test_a_file_uses_the_usual_words(path: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    assert not [(number, found, line) for number, line in enumerate(lines, 1) if (found := forbidden(line))]


@pytest.mark.parametrize(
    "text", ["it is kept", "KEPT_SECONDS", "KeptAws", "_attended", "build.look_at", "was looked at"]
)
def test_a_forbidden_word_is_found_in_prose_and_in_names(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize("text", ["attention", "wishbone", ".slipway/kept", "look at", "a `look_at` index"])
def test_other_words_and_names_of_stored_data_may_stay(text: str) -> None:
    assert not forbidden(text)
