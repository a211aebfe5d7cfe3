"""What is written before the service is packaged or started: its version, and the command line that it serves."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from chalicelib import page, settings

SOURCE = Path(__file__).with_name("slipway.py")
ROOT = Path(__file__).parents[2]
_NOT_PUBLISHED = f'VERSION = "{settings.UNKNOWN_VERSION}"'


def publish() -> None:
    """Writes `chalicelib/VERSION`, and `chalicelib/ui/slipway`: the command line with that version. Safe to run while
    another process reads or writes these files."""
    version = describe()
    write(settings.VERSION_FILE, version)
    write(page.FOLDER / "slipway", SOURCE.read_text().replace(_NOT_PUBLISHED, f'VERSION = "{version}"'))


def describe() -> str:
    """The commit of this checkout as `git describe` names it; `unknown` without git or its repository."""
    git = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    try:
        done = subprocess.run([*git, "describe", "--always", "--dirty", "--tags"], capture_output=True, text=True)
    except OSError:
        return settings.UNKNOWN_VERSION
    return done.stdout.strip() or settings.UNKNOWN_VERSION


def write(path: Path, text: str) -> None:
    """Writes a file that the service answers; a process that reads or writes it meanwhile is not disturbed."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=page.FOLDER.parent, prefix=".slipway-", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
