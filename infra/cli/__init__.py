"""The command line that the service hands out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from chalicelib import page

SOURCE = Path(__file__).with_name("slipway.py")


def publish() -> None:
    """Lays it beside the page's files. Whoever is reading it, or does the same, is not disturbed."""
    published, text = page.FOLDER / "slipway", SOURCE.read_bytes()
    if published.exists() and published.read_bytes() == text:
        return
    page.FOLDER.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=page.FOLDER.parent, prefix=".slipway-", delete=False) as file:
        file.write(text)
    Path(file.name).replace(published)
