"""`Bookmarks` on DynamoDB."""

from collections.abc import Sequence
from datetime import datetime

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item, answered, get_all, list_and_count, transaction, update
from chalicelib.domain.build import Build
from chalicelib.domain.project import Project
from chalicelib.errors import NotFound
from chalicelib.ports import Bookmarkable

IN_RANGE = 500  # bookmarks that are read as one range; it may contain those of other builds


class DynamoBookmarks:
    def among(self, user: str, candidates: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        if not candidates:
            return frozenset()
        pairs = {keys.bookmark_key(user, key): key for key in candidates}
        (pk, first), (_, last) = min(pairs), max(pairs)
        with answered():  # a range costs by what there is, a key also when nothing is there
            rows = list(Item.query(pk, Item.sk.between(first, last), limit=IN_RANGE))
            if len(rows) == IN_RANGE:
                rows += Item.batch_get([pair for pair in pairs if pair[1] > rows[-1].sk])
        return frozenset(pairs[pair] for row in rows if row.is_bookmarked and (pair := (row.pk, row.sk)) in pairs)

    def add(self, user: str, key: Bookmarkable, now: datetime) -> None:
        pk, sk = keys.bookmark_key(user, key)
        with transaction() as write:
            write.save(Item(*keys.reverse_bookmark_key(key, user)))
            at, recent = f"{keys.format_instant(now)}#{sk}", keys.bookmarks(sk[:3], user)
            write.update(Item(pk, sk), records.set_columns({"is_bookmarked": 1, "recent": recent, "updated_at": at}))

    def remove(self, user: str, key: Bookmarkable) -> bool:
        removed = records.set_columns({"is_bookmarked": 0, "recent": None})
        try:
            update(keys.bookmark_key(user, key), removed, Item.pk.exists(), refused=NotFound)
        except NotFound:
            return False
        return True

    def list_builds(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Build], int]:
        rows, count = _bookmarked(keys.BUILD_BOOKMARK, user, offset, limit, ascending)
        builds = [records.decode_build(row) for row in rows]
        return [build for build in builds if build.deleted_at is None], count

    def list_projects(self, user: str, offset: int, limit: int, *, ascending: bool) -> tuple[Sequence[Project], int]:
        rows, count = _bookmarked(keys.PROJECT_BOOKMARK, user, offset, limit, ascending)
        return [records.decode_project(row) for row in rows], count


def _bookmarked(kind: str, user: str, offset: int, limit: int, ascending: bool) -> tuple[list[Item], int]:
    """Rows of the builds or projects that a user bookmarked, and the number of bookmarks."""
    items, count = list_and_count(keys.bookmarks(kind, user), offset, limit, ascending=ascending)
    found = get_all([keys.record_key(keys.parse_reference_sk(item.sk)) for item in items])
    return list(found.values()), count
