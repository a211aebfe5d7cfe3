"""Fields that several requests have."""

from __future__ import annotations

import re

from chalicelib.domain.spec import has_control_characters

MAX_TEXT = 4_096  # characters of a description or readme


def is_text(text: object) -> bool:
    """Whether `text` can be a description: any lines, of bounded length."""
    return (
        isinstance(text, str)
        and len(text) <= MAX_TEXT
        and not has_control_characters(re.sub(r"[\r\n]", "", text))
    )
