"""What one machine keeps when its stack ends: a folder with a SQLite file, objects as files, and images.

    python -m infra.local.kept backup FILE     writes all of it into a tar, also while a stack uses it
    python -m infra.local.kept restore FILE    puts it back where nothing is kept

Each change is one transaction of SQLite's write-ahead log, so that nothing is ever half written. The end of
the stack, by `kill -9` too, loses no transaction: the kernel has what was written. When the machine itself
goes down, those of the last `SYNC_SECONDS` may be lost.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any, Literal

FOLDER = Path(__file__).parents[2] / ".slipway" / "kept"
SYNC_SECONDS = 2.0
PORTS = range(5001, 6000)  # of registries; 5000 is macOS's own
LOG_RETENTION_DAYS = 30  # as a deployment's logs have by default
_FILE, _OBJECTS, _IMAGES, _LOCK = "kept.sqlite", "objects", "registry", "lock"
_BYTES = "base64 of bytes"  # as JSON
_COPY = "backup-"
_UNFINISHED = "_uploads"  # the registry's folder of layers that are not whole
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
  kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, name)
);
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY, stream TEXT NOT NULL, at REAL NOT NULL, events TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_stream ON events (stream);
"""

Kind = Literal["setting", "row", "parameter", "message", "object", "build"]
Change = tuple[str, tuple[object, ...]]  # a statement of SQL and what stands in it


class InUse(Exception):
    """Another stack keeps its state in the folder, or another program has a port; the message says so."""


class Kept:
    """The folder, for one stack at a time. Values are what JSON can say, and bytes. Raises InUse."""

    def __init__(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # it has tokens and secrets
        self.folder = folder
        self._lock_file = _locked(folder)
        self._objects = folder / _OBJECTS
        self._objects.mkdir(exist_ok=True)
        self._lock = threading.RLock()  # of all below
        self._waiting: list[Change] = []  # not yet written: the disk may be full for a while
        self._sqlite = _opened(folder / _FILE)
        self._sqlite.executescript(_SCHEMA)
        for left in folder.glob(f"{_COPY}*"):  # by a backup that was killed
            shutil.rmtree(left)
        known = {each["file"] for _, each in self.all("object")}
        for file in self._objects.iterdir():
            if file.name not in known:  # its transaction did not come any more
                file.unlink()
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync_often, daemon=True, name="kept")
        self._syncing.start()

    @property
    def images(self) -> Path:
        """The registry's folder."""
        return self.folder / _IMAGES

    def close(self) -> None:
        self._closing.set()
        self._syncing.join()
        self._sqlite.close()
        self._lock_file.close()

    def get(self, kind: Kind, name: str) -> Any:
        """A value, or None."""
        with self._lock:
            found = self._sqlite.execute("SELECT value FROM kept WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        return _read(found[0]) if found else None

    def all(self, kind: Kind) -> Iterator[tuple[str, Any]]:
        """Names and values, in the order in which they came."""
        for name, value in self._sqlite.execute("SELECT name, value FROM kept WHERE kind = ? ORDER BY rowid", (kind,)):
            yield name, _read(value)

    def write(self, changes: Iterable[Change]) -> None:
        """One transaction. Where it fails, its changes are written with the next one. Raises sqlite3.Error."""
        with self._lock:
            self._waiting += [*changes]  # all, or none where one cannot be told
            if not self._waiting:
                return
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in self._waiting:
                    self._sqlite.execute(statement, values)
                self._sqlite.execute("COMMIT")
            except BaseException:
                self._sqlite.execute("ROLLBACK")
                raise
            self._waiting = []

    def remembered(self, name: str, make: Callable[[], str]) -> str:
        """A setting that was made once."""
        value: str | None = self.get("setting", name)
        return self.remember(name, make()) if value is None else value

    def remember(self, name: str, value: str) -> str:
        self.write([kept("setting", name, value)])
        return value

    def port(self, of: str) -> int:
        """The port where something has listened since the first start; it stands in names of images. Raises InUse
        where another program has it. Below those that the kernel gives out, which any connection may have."""
        port = int(self.remembered(f"{of} port", lambda: str(next(filter(_is_free, PORTS)))))
        if not _is_free(port):
            raise InUse(f"Port {port}, where the {of} of {self.folder} is, is taken; end what listens there.")
        return port

    def streams(self) -> Iterator[str]:
        """Names of streams of log events; those whose time is over are forgotten."""
        self.write([("DELETE FROM events WHERE at < ?", (time.time() - LOG_RETENTION_DAYS * 86_400,))])
        for (stream,) in self._sqlite.execute("SELECT DISTINCT stream FROM events"):
            yield stream

    def events(self, stream: str) -> list[Any]:
        """All events of a stream, in the order in which they came."""
        query = "SELECT events FROM events WHERE stream = ? ORDER BY number"
        with self._lock:
            return [each for (batch,) in self._sqlite.execute(query, (stream,)) for each in json.loads(batch)]

    def path(self, file: str) -> Path:
        """Of an object."""
        return self._objects / file

    def add_file(self, content: bytes) -> str:
        """Stores the content of an object, whole and on the disk; its name."""
        name = uuid.uuid4().hex
        with self.path(name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self._objects, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return name

    def _sync_often(self) -> None:
        """A checkpoint brings what is in the write-ahead log to the disk. It does not hold up who writes."""
        with closing(_opened(self.folder / _FILE)) as sqlite:
            while not self._closing.wait(SYNC_SECONDS):
                with suppress(sqlite3.Error):  # a full disk: the next one tries again
                    sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)")


def kept(kind: Kind, name: str, value: object) -> Change:
    text = json.dumps(value, separators=(",", ":"), default=lambda raw: {_BYTES: base64.b64encode(raw).decode()})
    return "INSERT INTO kept VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (kind, name, text)


def _read(text: str) -> Any:
    return json.loads(text, object_hook=lambda found: base64.b64decode(found[_BYTES]) if _BYTES in found else found)


def forgotten(kind: Kind, name: str) -> Change:
    return "DELETE FROM kept WHERE kind = ? AND name = ?", (kind, name)


def events_added(stream: str, events: object) -> Change:
    return "INSERT INTO events (stream, at, events) VALUES (?, ?, ?)", (stream, time.time(), json.dumps(events))


def events_forgotten(stream: str) -> Change:
    return "DELETE FROM events WHERE stream = ?", (stream,)


def backup(folder: Path, to: Path) -> None:
    """Writes a consistent copy into a tar; a stack may use the folder meanwhile. What is pushed or stored while
    this runs may be missing from it. Raises OSError."""
    if not (folder / _FILE).exists():
        raise FileNotFoundError(f"nothing is kept in {folder} yet; `make up` does.")
    with tempfile.TemporaryDirectory(prefix=_COPY, dir=folder) as temporary:
        copy = Path(temporary)
        objects = _copied(folder, copy)
        unfinished = to.with_name(f"{to.name}.unfinished")
        with unfinished.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            unfinished.chmod(0o600)  # it has secrets
            tar.add(copy / _FILE, _FILE)
            for name in objects:
                tar.add(copy / name, f"{_OBJECTS}/{name}")
            # images are older than the records that name them, and nothing deletes one
            if (folder / _IMAGES).exists():
                tar.add(folder / _IMAGES, _IMAGES, filter=_finished)
        unfinished.replace(to)


def restore(folder: Path, source: Path) -> None:
    """Raises FileExistsError where something is kept already, OSError and tarfile.TarError."""
    if folder.exists():
        raise FileExistsError(f"{folder} has records; stop what runs and move it away first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="restore-", dir=folder.parent))
    try:
        try:
            with tarfile.open(source, "r:") as tar:
                tar.extractall(unfinished, filter="data")
        except tarfile.TarError as error:
            raise tarfile.TarError(f"{source} is not a whole tar: {error}") from error
        if not (unfinished / _FILE).exists():
            raise tarfile.TarError(f"{source} is not what `make backup` writes")
        with closing(_opened(unfinished / _FILE)) as sqlite:
            sqlite.execute("SELECT 1 FROM kept LIMIT 1")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copied(folder: Path, copy: Path) -> list[str]:
    """Copies SQLite's file and links the objects that it names; an object that is deleted at that moment has
    all be done again."""
    while True:
        (copy / _FILE).unlink(missing_ok=True)
        with closing(_opened(folder / _FILE)) as source, closing(sqlite3.connect(copy / _FILE)) as target:
            source.backup(target)
            values = target.execute("SELECT value FROM kept WHERE kind = 'object'")
            objects = [str(json.loads(value)["file"]) for (value,) in values]
        try:
            for name in objects:
                if not (copy / name).exists():
                    (copy / name).hardlink_to(folder / _OBJECTS / name)
        except FileNotFoundError:
            continue
        return objects


def _finished(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name == _UNFINISHED else entry


def _opened(file: Path) -> sqlite3.Connection:
    sqlite = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
    sqlite.execute("PRAGMA journal_mode = WAL")
    sqlite.execute("PRAGMA synchronous = NORMAL")
    return sqlite


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _locked(folder: Path) -> IO[str]:
    """A lock, for as long as it is open. Raises InUse."""
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InUse(f"Another stack keeps its records in {folder}; `make up KEEP=0` runs beside it.") from error
    return lock


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.kept", description=__doc__)
    parser.add_argument("command", choices=("backup", "restore"))
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "backup":
            backup(FOLDER, arguments.file)
        else:
            restore(FOLDER, arguments.file)
    except (OSError, tarfile.TarError, sqlite3.Error) as error:
        print(f"This {arguments.command} failed: {error}", file=sys.stderr)
        return 1
    size = f", {arguments.file.stat().st_size / 1e6:.1f} MB" if arguments.command == "backup" else ""
    print(f"{'Wrote' if size else 'Put back'} {arguments.file}{size}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
