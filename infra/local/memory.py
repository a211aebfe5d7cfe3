"""Folders for what is not to be written to a disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TMPFS = Path("/dev/shm")  # of Linux


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that only this user may enter, gone after the block; in memory, where the machine has a place
    for that."""
    place = TMPFS if TMPFS.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="slipway-memory-", dir=place) as name:
        yield Path(name)
