"""The command line that the service hands out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from chalicelib import page

SOURCE = Path(__file__).with_name("slipway.py")


def publish() -> None:
    """Lays it beside the page's files."""
    lay("slipway", SOURCE.read_bytes())


def lay(name: str, content: bytes) -> None:
    """Writes a file that the service hands out. Whoever is reading it, or does the same, is not disturbed."""
    published = page.FOLDER / name
    if published.exists() and published.read_bytes() == content:
        return
    page.FOLDER.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=page.FOLDER.parent, prefix=".slipway-", delete=False) as file:
        file.write(content)
    Path(file.name).replace(published)
