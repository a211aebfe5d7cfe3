"""moto's rows, parameters, messages, S3 objects and log events: saved after each request, restored at the next start.

The format is ours and contains no Python objects of moto, so another version of moto can read it. A
message that was received but not deleted is visible again at once after a restart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends
from moto.logs.models import LogEvent, LogStream, logs_backends
from moto.s3.models import FakeKey, s3_backends
from moto.s3.utils import _VersionedKeyStore
from moto.sqs.models import Message, sqs_backends
from moto.ssm import models as ssm

from infra.local.signatures import Body
from infra.local.storage import Change, Storage, events_added, events_forgotten, forgotten, stored

LOG_REFUSED_DAYS = 14  # CloudWatch does not take older events
WRITES = ("PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems", "BatchWriteItem")  # of DynamoDB
_OF_MESSAGE = ("body", "message_attributes", "sent_timestamp", "delayed_until")
_OF_OBJECT = ("_etag", "contentsize", "checksum_algorithm", "checksum_value", "checksum_type", "checksum_parts")


class StoredAws:
    """moto's state in one region. Not thread-safe: its owner calls it for one request at a time."""

    def __init__(self, storage: Storage, region: str) -> None:
        self._storage = storage
        self._region = region
        self._queue_of: dict[str, str] = {}  # by the ids of stored messages
        self._touched: set[tuple[str, str]] = set()  # buckets and keys of objects

    # Looked up each time: moto replaces its backends when it is reset.

    @property
    def _dynamodb(self) -> Any:
        return dynamodb_backends[DEFAULT_ACCOUNT_ID][self._region]

    @property
    def _ssm(self) -> Any:
        return ssm.ssm_backends[DEFAULT_ACCOUNT_ID][self._region]

    @property
    def _sqs(self) -> Any:
        return sqs_backends[DEFAULT_ACCOUNT_ID][self._region]

    @property
    def _logs(self) -> Any:
        return logs_backends[DEFAULT_ACCOUNT_ID][self._region]

    @property
    def _s3(self) -> Any:
        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]

    def restore(self) -> None:
        """Fills moto's resources, which must be there and empty. Deletes rows that have expired."""
        now, expired = int(time.time()), []
        for name, item in self._storage.all("row"):
            table = self._dynamodb.tables.get(json.loads(name)[0])
            if int(item.get("ttl", {}).get("N", now)) < now:
                expired.append(forgotten("row", name))
            elif table is not None:  # else the stack uses another DynamoDB than moto's
                table.put_item(item, overwrite=True)
        self._storage.write(expired)
        for name, record in self._storage.all("parameter"):
            at = datetime.fromisoformat(record.pop("last_modified_date"))
            made: Any = ssm.Parameter
            none = dict.fromkeys(("description", "allowed_pattern", "keyid"))
            parameter = made(DEFAULT_ACCOUNT_ID, name, last_modified_date=at, data_type="text", **none, **record)
            self._ssm._parameters[name] = [parameter]
        for message_id, record in self._storage.all("message"):
            self._queue_of[message_id] = record.pop("queue")
            message = Message(message_id, record["body"])
            message.__dict__ |= record
            self._sqs.queues[self._queue_of[message_id]].add_message(message)
        for stream in self._storage.streams():
            group, _, name = stream.partition(":")
            self._logs.ensure_log_group(group)
            self._logs.groups[group].streams[name] = _Stream(self._logs.groups[group], name, self._storage)
        for name, record in self._storage.all("object"):
            bucket, _, key = name.partition("/")
            self._s3.buckets[bucket].keys.setlist(key, [self._object(bucket, key, record)])
        self._touched.clear()

    def save(self, service: str, operation: str, body: Body) -> None:
        """Stores what a request has changed. Raises OSError and sqlite3.Error."""
        gone: list[Path] = []
        changes: Iterable[Change]
        match service, operation:
            case "s3", _:
                changes = self._objects(gone)
            case "sqs", _:
                changes = self._messages()
            case "dynamodb", _ if operation in WRITES:
                changes = self._rows(operation, json.loads(body.read()))
            case "ssm", ("PutParameter" | "DeleteParameter" | "DeleteParameters"):
                changes = self._parameters(json.loads(body.read()))
            case "logs", ("PutLogEvents" | "DeleteLogStream"):
                changes = self._events(json.loads(body.read()))
            case _:
                return
        self._storage.write(changes)
        for path in gone:
            path.unlink(missing_ok=True)

    def _rows(self, operation: str, request: Any) -> Iterator[Change]:
        for name, given in named_rows(operation, request):
            table = self._dynamodb.get_table(name)
            key = self._dynamodb.get_keys_value(table, given)
            item = table.get_item(*key)
            row = json.dumps([name, *(each and each.to_json() for each in key)])
            yield stored("row", row, item.to_json()["Attributes"]) if item else forgotten("row", row)

    def _parameters(self, request: Any) -> Iterator[Change]:
        for name in request.get("Names") or [request["Name"]]:
            versions = dict.get(self._ssm._parameters, name)
            if not versions:
                yield forgotten("parameter", name)
                continue
            last = versions[-1]
            record = {"value": last.decrypt(last.value), "last_modified_date": last.last_modified_date.isoformat()}
            record |= {each: getattr(last, each) for each in ("parameter_type", "version", "tier")}
            yield stored("parameter", name, record)

    def _messages(self) -> Iterator[Change]:
        """Compares all messages: moto moves those that were received too often to other queues."""
        found = {each.id: (name, each) for name, queue in self._sqs.queues.items() for each in queue._messages}
        yield from (forgotten("message", each) for each in self._queue_of.keys() - found.keys())
        for message_id, (queue, message) in found.items():
            if self._queue_of.get(message_id) != queue:
                record = {each: getattr(message, each) for each in _OF_MESSAGE}
                yield stored("message", message_id, record | {"queue": queue})
        self._queue_of = {message_id: queue for message_id, (queue, _) in found.items()}

    def _events(self, request: Any) -> Iterator[Change]:
        group, name = request["logGroupName"], request["logStreamName"]
        if "logEvents" not in request:
            yield events_forgotten(f"{group}:{name}")
            return
        oldest = (time.time() - LOG_REFUSED_DAYS * 86_400) * 1000
        yield events_added(f"{group}:{name}", [each for each in request["logEvents"] if each["timestamp"] > oldest])

    def _objects(self, gone: list[Path]) -> list[Change]:
        """Moves the contents of objects from memory into files. `gone` gets the files that nothing names afterwards."""
        changes = []
        for made in self._s3.buckets.values():
            if not isinstance(made.keys, _Keys):  # this request made the bucket
                made.keys = _Keys(made.name, self._touched)
        for bucket, key in self._touched:
            if bucket in self._s3.buckets and self._s3.buckets[bucket].is_versioned:
                continue  # not supported: the stack's bucket has no versions
            name = f"{bucket}/{key}"
            before = self._storage.get("object", name)
            found = self._s3.buckets[bucket].keys.get(key) if bucket in self._s3.buckets else None
            if found is None:
                changes.append(forgotten("object", name))
            elif not isinstance(found._value_buffer, _File):
                file = self._storage.add_file(found.value)
                record = {"file": file, "last_modified": found.last_modified.isoformat()}
                found.etag  # noqa: B018  makes it
                record |= {each: getattr(found, each) for each in _OF_OBJECT} | {"metadata": dict(found.metadata)}
                changes.append(stored("object", name, record))
                found._value_buffer = _File(self._storage.path(file), found.contentsize)
                if found.multipart is not None:
                    found.multipart.dispose()
                    found.multipart = None
            else:
                continue
            gone += [self._storage.path(before["file"])] if before else []
        self._touched.clear()
        return changes

    def _object(self, bucket: str, key: str, record: dict[str, Any]) -> FakeKey:
        made: Any = FakeKey(key, b"", DEFAULT_ACCOUNT_ID, self._s3.region_name, bucket_name=bucket, version_id="null")
        made.last_modified = datetime.fromisoformat(record["last_modified"])
        made.set_metadata(record["metadata"], replace=True)
        made.__dict__ |= {each: record[each] for each in _OF_OBJECT}
        made._value_buffer = _File(self._storage.path(record["file"]), record["contentsize"])
        return made  # type: ignore[no-any-return]


def named_rows(operation: str, request: Any) -> Iterator[tuple[str, Any]]:
    """What a request to DynamoDB writes: the table, and the key or the item that has the key."""
    match operation:
        case "TransactWriteItems":
            writes = [(write["TableName"], write) for each in request["TransactItems"] for write in each.values()]
        case "BatchWriteItem":
            tables = request["RequestItems"].items()
            writes = [(table, write) for table, each in tables for one in each for write in one.values()]
        case _:
            writes = [(request["TableName"], request)]
    for table, write in writes:
        yield table, write.get("Key") or write["Item"]


class _Stream(LogStream):
    """A stream whose events are read from the storage when they are first needed."""

    def __init__(self, group: Any, name: str, storage: Storage) -> None:
        super().__init__(group, name)
        self._storage = storage
        del self.__dict__["events"]

    @cached_property
    def events(self) -> list[LogEvent]:  # type: ignore[override]
        stream = f"{self.log_group.name}:{self.log_stream_name}"
        return [LogEvent(each["timestamp"], each) for each in self._storage.events(stream)]


class _Keys(_VersionedKeyStore):
    """The objects of a bucket; notes which were set and removed."""

    def __init__(self, bucket: str, touched: set[tuple[str, str]]) -> None:
        super().__init__()
        self._bucket, self._touched = bucket, touched

    def setlist(self, key: Any, list_: Any) -> Any:
        self._touched.add((self._bucket, key))
        return super().setlist(key, list_)

    def pop(self, key: str) -> None:  # type: ignore[override]
        self._touched.add((self._bucket, key))
        super().pop(key)


class _File:
    """The content of an object, as moto reads it; the file is open only during a read."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + self._size * (whence == 2)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._at)
            content = file.read(size)
        self._at += len(content)
        return content

    def close(self) -> None:
        """Nothing is open."""
