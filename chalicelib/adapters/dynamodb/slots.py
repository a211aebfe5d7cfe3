"""`Slots` on DynamoDB: one item, whose string set has the keys of the builds that have a slot."""

from collections.abc import Collection

from chalicelib.adapters.dynamodb import keys
from chalicelib.adapters.dynamodb.table import Item, get, update
from chalicelib.domain.build import BuildKey
from chalicelib.domain.slots import Running


class DynamoSlots:
    def read(self) -> Running:
        item = get(keys.SLOTS)
        if item is None:
            return Running()
        return Running(frozenset(map(BuildKey.parse, item.running or ())), int(item.version or 0))

    def take(self, build: BuildKey, running: Running) -> None:
        is_same = Item.version == running.version if running.version else Item.version.does_not_exist()
        update(keys.SLOTS, [Item.running.add({str(build)}), Item.version.add(1)], is_same)

    def free(self, builds: Collection[BuildKey]) -> None:
        """Does not change the version, because who was given a slot while fewer were free may keep it."""
        update(keys.SLOTS, [Item.running.delete({str(build) for build in builds})])
