"""`Archive` on DynamoDB."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item, answered, list_and_count, query, transaction, update
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.cleanup import Hidden
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.errors import Conflict


class DynamoArchive:
    def archive(self, build: Build) -> Build:
        return _save_and_count(build, live=-1)

    def restore(self, build: Build) -> Build:
        return _save_and_count(build, live=1)

    def list_archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        items, count = list_and_count(keys.archived_builds(user), offset, limit)
        return [records.decode_listed_build(item) for item in items], count

    def purgeable(
        self, deleted_before: datetime, archived_before: datetime, limit: int | None = None
    ) -> Iterator[Hidden]:
        for partition, before in ((keys.DELETED, deleted_before), (keys.ARCHIVED, archived_before)):
            with answered():
                for item in Item.by_active.query(partition, Item.check_at <= keys.format_instant(before), limit=limit):
                    since = {f"{partition}_at": datetime.fromisoformat(item.check_at or "")}
                    yield Hidden(keys.parse_record_key(item.pk, item.sk), **since)

    def builds_of(self, project: ProjectKey) -> Iterator[BuildKey]:
        with answered():
            for row in Item.query(keys.builds(project), consistent_read=True):
                yield BuildKey(project.owner, project.name, int(row.sk))

    def purge(self, record: Build | Project) -> None:
        """Deletes the record last: a repeated purge needs it to find the rest, and every transaction checks it."""
        item = Item(*keys.record_key(record.key))
        stored = (Item.version == record.version) & records.is_same(record)
        around, reverse = keys.reverse_bookmark_key(record.key, "")
        for row in query(around, Item.sk.startswith(reverse)):
            with transaction() as write:
                write.condition_check(Item, item.pk, item.sk, stored)
                write.delete(Item(*keys.bookmark_key(row.sk.removeprefix(reverse), record.key)))
                write.delete(row)
        if isinstance(record, Project):
            with answered():
                item.delete(stored & (Item.last_build_id == record.last_build_id))
            return
        if record.name is not None:
            name = Item(*keys.name_key(record.key, record.name))
            with suppress(Conflict), transaction() as write:  # another build may have the name by now
                write.condition_check(Item, item.pk, item.sk, stored)
                write.delete(name, Item.data == str(record.key))
        with transaction() as write:
            write.delete(item, stored)
            write.delete(Item(*keys.body_key(record.key)))
            if record.recipe is not None:
                write.delete(Item(*keys.recipe_key(record.key, record.recipe)))


def _save_and_count(build: Build, live: int) -> Build:
    """Saves the build, then adds `live` to its project's count of live builds. If this function dies in between,
    `recount` corrects the count, which is only for display."""
    build, actions, condition = records.next_version(build)
    update(keys.record_key(build.key), actions, condition)
    with suppress(Conflict):
        update(keys.record_key(build.key.project_key), records.counted(live, build.updated_at), Item.pk.exists())
    return build
