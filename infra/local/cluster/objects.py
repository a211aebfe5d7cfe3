"""The objects of a cluster, which its API and its node share."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

Json = dict[str, Any]


class Cluster:
    """Objects by resource and name, as JSON. Whoever reads or changes them holds the lock; it is notified of
    every change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now: Callable[[], datetime] = partial(datetime.now, UTC)
        self.lock = threading.Condition()  # guards what follows
        self.objects: dict[str, dict[str, Json]] = {"jobs": {}, "pods": {}, "secrets": {}}
        self.version = 0  # of the last change

    def add(self, resource: str, described: Json) -> None:
        """Stores an object with what a server adds. The lock is held."""
        described["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(self.now())}
        if resource != "secrets":
            described.setdefault("status", {})
        self.objects[resource][described["metadata"]["name"]] = described
        self.touch(described)

    def touch(self, described: Json) -> None:
        """Something changed of it. The lock is held."""
        self.version += 1
        described["metadata"]["resourceVersion"] = str(self.version)
        self.lock.notify_all()

    def remove(self, resource: str, described: Json) -> None:
        """Removes an object and, as the garbage collector does, what it owns. The lock is held."""
        self.objects[resource].pop(described["metadata"]["name"], None)
        uid = described["metadata"]["uid"]
        for others in self.objects.values():
            for other in [*others.values()]:
                owners = [owner["uid"] for owner in other["metadata"].get("ownerReferences", ())]
                is_going_on = other.get("status", {}).get("phase") in ("Pending", "Running")
                if uid in owners and not is_going_on:  # the node removes a pod when it has ended
                    del others[other["metadata"]["name"]]
        self.lock.notify_all()


def timestamp(at: datetime | None = None) -> str:
    """A time as objects have it; that of this moment when none is given."""
    return (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
