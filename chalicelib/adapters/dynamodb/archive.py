"""`Archive` on DynamoDB."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item, answered, list_and_count, transaction
from chalicelib.domain.build import Build, BuildKey, Project, ProjectKey
from chalicelib.errors import Conflict


class DynamoArchive:
    def archive(self, build: Build) -> Build:
        return _save_and_count(build, live=-1)

    def restore(self, build: Build) -> Build:
        return _save_and_count(build, live=1)

    def list_archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        items, count = list_and_count(keys.archived_builds(user), offset, limit)
        return [records.decode_listed_build(item) for item in items], count

    def purgeable(self, archived_before: datetime, limit: int) -> Sequence[BuildKey | ProjectKey]:
        with answered():
            found = list(Item.by_active.query("deleted", limit=limit))
            if len(found) < limit:
                before = Item.look_at <= keys.format_instant(archived_before)
                found += Item.by_active.query("archived", before, limit=limit - len(found))
        return [keys.parse_record_key(item.pk, item.sk) for item in found]

    def builds_of(self, project: ProjectKey, limit: int) -> Sequence[BuildKey]:
        with answered():
            rows = list(Item.query(keys.builds(project), consistent_read=True, limit=limit))
        return [BuildKey(project.owner, project.name, int(row.sk)) for row in rows]

    def purge(self, record: Build | Project) -> None:
        """The record goes last: the next attempt finds the rest by it."""
        around, reverse = keys.reverse_bookmark_key(record.key, "")
        with answered():
            for row in Item.query(around, Item.sk.startswith(reverse), consistent_read=True):
                user = keys.parse_reverse_bookmark_key(row.sk)
                Item(*keys.bookmark_key(user, record.key)).delete()
                row.delete()
        if isinstance(record, Build):
            if record.name is not None:
                with suppress(Conflict), answered():  # another build may be called so by now
                    name = Item(*keys.name_key(record.key, record.name))
                    name.delete(Item.data == str(record.key))
            with answered():
                Item(*keys.body_key(record.key)).delete()
        with answered():
            Item(*keys.record_key(record.key)).delete()


def _save_and_count(build: Build, live: int) -> Build:
    """Saves the build and adds `live` to its project's count of live builds."""
    build, actions, condition = records.next_version(build)
    with transaction() as write:
        write.update(Item(*keys.record_key(build.key)), actions, condition)
        write.update(Item(*keys.record_key(build.key.project_key)), [Item.live_builds.add(live)])
    return build
