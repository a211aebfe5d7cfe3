"""The table's stream on one machine, made of rows before and after each request. moto's own stream keeps all
records for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends

from infra.local.signatures import Body
from infra.local.stored_aws import WRITES, named_rows

BATCH = 100  # records, as app.py says for AWS


class Stream:
    """Changes of builds, as the filter of the template selects them: not of other rows, and no deletions.
    Records that were not read when this process ends are lost; AWS would keep them for a day."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._records: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._made = 0

    @contextmanager
    def watching(self, operation: str, body: Body) -> Iterator[None]:
        """Notes what a request to DynamoDB, handled in the block, changes. One at a time."""
        if operation not in WRITES:
            yield
            return
        request = json.loads(body.read())
        body.seek(0)
        before = dict(self._images(operation, request))
        yield
        for row, new in self._images(operation, request):
            old = before.get(row)
            if new is not None and new != old:
                self._made += 1
                self._records.put(record(self._made, self._region, new, old))

    def read(self, wait_seconds: float) -> list[dict[str, Any]]:
        """The next records, in their order; none if there is none within that time."""
        found = []
        try:
            found.append(self._records.get(timeout=wait_seconds))
            while len(found) < BATCH:
                found.append(self._records.get_nowait())
        except Empty:
            pass
        return found

    def _images(self, operation: str, request: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Of builds that a request names: table and keys, and the row, None without one."""
        backend: Any = dynamodb_backends[DEFAULT_ACCOUNT_ID][self._region]
        for name, given in named_rows(operation, request):
            pk = given.get("pk", {}).get("S", "")
            if pk.startswith("B#") and name in backend.tables:
                item = backend.tables[name].get_item(*backend.get_keys_value(backend.tables[name], given))
                yield (name, pk, given["sk"]["S"]), item and item.to_json()["Attributes"]


def record(number: int, region: str, new: Mapping[str, Any], old: Mapping[str, Any] | None) -> dict[str, Any]:
    """A record of the stream, for a row as it is and as it was; None for one that is new."""
    change = {
        "ApproximateCreationDateTime": int(time.time()),
        "Keys": {name: new[name] for name in ("pk", "sk")},
        "NewImage": new,
        "SequenceNumber": str(number),
        "SizeBytes": len(json.dumps(new)),
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    return {
        "eventID": f"{number:032x}",
        "eventName": "MODIFY" if old else "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": region,
        "dynamodb": change | ({"OldImage": old} if old else {}),
        "eventSourceARN": f"arn:aws:dynamodb:{region}:000000000000:table/slipway/stream/local",
    }
