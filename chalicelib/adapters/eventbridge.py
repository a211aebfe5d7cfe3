"""Announcements on a bus of EventBridge."""

from typing import Any

import boto3

from chalicelib.adapters.aws import answered
from chalicelib.errors import Unavailable
from chalicelib.ports import Announcement

SOURCE = "slipway"  # by which rules know them


class EventBridge:
    """`EventBus` as the bus of that name."""

    def __init__(self, bus: str) -> None:
        self._about = {"EventBusName": bus, "Source": SOURCE}
        self._client: Any = boto3.client("events")

    def put(self, announcement: Announcement) -> None:
        event = {"DetailType": announcement.type, "Time": announcement.at, "Detail": announcement.text}
        with answered("EventBridge"):
            (result,) = self._client.put_events(Entries=[self._about | event])["Entries"]
        if "ErrorCode" in result:
            raise Unavailable(f"EventBridge did not take an event: {result['ErrorCode']}.")
