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
    """Objects by resource and name, as JSON. Hold the lock to read or change them; each change notifies it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now: Callable[[], datetime] = partial(datetime.now, UTC)
        self.lock = threading.Condition()  # guards what follows
        self.objects: dict[str, dict[str, Json]] = {"jobs": {}, "pods": {}, "secrets": {}}
        self.version = 0  # of the last change

    def add(self, resource: str, described: Json) -> None:
        """Stores an object with the fields that a server adds. The caller holds the lock."""
        described["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(self.now())}
        if resource != "secrets":
            described.setdefault("status", {})
        self.objects[resource][described["metadata"]["name"]] = described
        self.touch(described)

    def touch(self, described: Json) -> None:
        """Notes that the object has changed. The caller holds the lock."""
        self.version += 1
        described["metadata"]["resourceVersion"] = str(self.version)
        self.lock.notify_all()

    def remove(self, resource: str, described: Json) -> None:
        """Removes an object and what it owns, as the garbage collector does. The caller holds the lock."""
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
    """A time in the format of Kubernetes; by default the current time."""
    return (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
