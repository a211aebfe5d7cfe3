"""The state of a stack that outlives it: a folder with a SQLite file, objects as files, and images.

    python -m infra.local.storage backup FILE     writes the folder into a tar, also while a stack uses it
    python -m infra.local.storage restore FILE    makes the folder from such a tar, if there is none

Each change is one transaction in SQLite's write-ahead log, so no change is ever half written. A stack that ends,
also by `kill -9`, loses no transaction: the kernel has what was written. When the machine itself goes down, the
transactions of the last `SYNC_SECONDS` may be lost.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import random
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

FOLDER = Path(__file__).parents[2] / ".slipway" / "kept"  # the name, as that of file and table, is on users' disks
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
    """Another stack uses the folder, or another program has the port; the message says which."""


class Storage:
    """The folder, used by one stack at a time. Values are JSON's types, and bytes. Raises InUse."""

    def __init__(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # it has tokens and secrets
        self.folder = folder
        self._lock_file = _locked(folder)
        self._objects = folder / _OBJECTS
        self._objects.mkdir(exist_ok=True)
        self._lock = threading.RLock()  # of all below
        self._pending: list[Change] = []  # not written yet, because the disk was full
        self._sqlite = _opened(folder / _FILE)
        self._sqlite.executescript(_SCHEMA)
        for left in folder.glob(f"{_COPY}*"):  # a backup that was killed left them
            shutil.rmtree(left)
        known = {each["file"] for _, each in self.all("object")}
        for file in self._objects.iterdir():
            if file.name not in known:  # the stack was killed before the transaction that names it
                file.unlink()
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync_often, daemon=True, name="storage-sync")
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
        """The value of this kind and name; None if there is none."""
        with self._lock:
            found = self._sqlite.execute("SELECT value FROM kept WHERE kind = ? AND name = ?", (kind, name)).fetchone()
        return _read(found[0]) if found else None

    def all(self, kind: Kind) -> Iterator[tuple[str, Any]]:
        """Names and values, in the order in which they were first written."""
        for name, value in self._sqlite.execute("SELECT name, value FROM kept WHERE kind = ? ORDER BY rowid", (kind,)):
            yield name, _read(value)

    def write(self, changes: Iterable[Change]) -> None:
        """Writes the changes in one transaction. If that fails, the next call writes them too. Raises sqlite3.Error."""
        with self._lock:
            self._pending += [*changes]  # none of them if `changes` raises
            if not self._pending:
                return
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in self._pending:
                    self._sqlite.execute(statement, values)
                self._sqlite.execute("COMMIT")
            except BaseException:
                self._sqlite.execute("ROLLBACK")
                raise
            self._pending = []

    def remembered(self, name: str, make: Callable[[], str]) -> str:
        """The setting of this name; `make` makes it the first time."""
        value: str | None = self.get("setting", name)
        return self.remember(name, make()) if value is None else value

    def remember(self, name: str, value: str) -> str:
        self.write([stored("setting", name, value)])
        return value

    def port(self, of: str) -> int:
        """The port of a service: the same at every start, because names of images contain it. It is below the ports
        that the kernel gives to connections, and chosen at random, so that the stacks of two folders can run at the
        same time. Raises InUse when another program has it."""
        port = int(self.remembered(f"{of} port", lambda: str(next(filter(_is_free, random.sample(PORTS, len(PORTS)))))))
        if not _is_free(port):
            raise InUse(f"Another program uses port {port}, which is that of the {of} of {self.folder}; stop it first.")
        return port

    def streams(self) -> Iterator[str]:
        """Names of log streams. Deletes events that are older than `LOG_RETENTION_DAYS`."""
        self.write([("DELETE FROM events WHERE at < ?", (time.time() - LOG_RETENTION_DAYS * 86_400,))])
        for (stream,) in self._sqlite.execute("SELECT DISTINCT stream FROM events"):
            yield stream

    def events(self, stream: str) -> list[Any]:
        """All events of a stream, in the order in which they were written."""
        query = "SELECT events FROM events WHERE stream = ? ORDER BY number"
        with self._lock:
            return [each for (batch,) in self._sqlite.execute(query, (stream,)) for each in json.loads(batch)]

    def path(self, file: str) -> Path:
        """The path of an object's file."""
        return self._objects / file

    def add_file(self, content: bytes) -> str:
        """Writes the content of an object to the disk, and returns the name of its file."""
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
        """Syncs the write-ahead log to the disk by a checkpoint every `SYNC_SECONDS`, which does not block writers."""
        with closing(_opened(self.folder / _FILE)) as sqlite:
            while not self._closing.wait(SYNC_SECONDS):
                with suppress(sqlite3.Error):  # a full disk: the next checkpoint tries again
                    sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)")


def stored(kind: Kind, name: str, value: object) -> Change:
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
    """Writes a consistent copy of the folder into a tar, also while a stack uses it. The copy may lack what is pushed
    or stored meanwhile. Raises OSError."""
    if not (folder / _FILE).exists():
        raise FileNotFoundError(f"{folder} is not there: `make up` makes it.")
    with tempfile.TemporaryDirectory(prefix=_COPY, dir=folder) as temporary:
        copy = Path(temporary)
        objects = _copied(folder, copy)
        unfinished = to.with_name(f"{to.name}.unfinished")
        with unfinished.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            unfinished.chmod(0o600)  # it has secrets
            tar.add(copy / _FILE, _FILE)
            for name in objects:
                tar.add(copy / name, f"{_OBJECTS}/{name}")
            # images last: each was pushed before the record that names it, and nothing deletes images
            if (folder / _IMAGES).exists():
                tar.add(folder / _IMAGES, _IMAGES, filter=_finished)
        unfinished.replace(to)


def restore(folder: Path, source: Path) -> None:
    """Makes the folder from a tar of `backup`. Raises FileExistsError if it is there, OSError and tarfile.TarError."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: stop the stack that uses it, and move it away first.")
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
    """Copies SQLite's file, and its objects as hard links; repeats if one is deleted meanwhile. Returns their names."""
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
    """The folder's lock, held until the file is closed. Raises InUse."""
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InUse(f"Another stack uses {folder}: stop it, or store nothing with KEEP=0.") from error
    return lock


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.storage", description=__doc__)
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
    print(f"{'Wrote' if size else 'Restored'} {arguments.file}{size}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
