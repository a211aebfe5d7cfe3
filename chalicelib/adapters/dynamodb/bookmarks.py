"""`Bookmarks` on DynamoDB."""

from collections.abc import Sequence
from datetime import datetime

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item, answered, get_all, list_and_count, transaction, update
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.project import Project
from chalicelib.errors import NotFound
from chalicelib.ports import Bookmarkable

NEAR = 200  # bookmarks of builds whose ids differ less are read as one range


class DynamoBookmarks:
    def among(self, user: str, candidates: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        if not candidates:
            return frozenset()
        pairs = [keys.bookmark_key(user, key) for key in candidates]
        first, last = min(candidates), max(candidates)
        with answered():
            if isinstance(first, BuildKey) and isinstance(last, BuildKey) and _are_near(first, last):
                (pk, low), (_, high) = keys.bookmark_key(user, first), keys.bookmark_key(user, last)
                rows = list(Item.query(pk, Item.sk.between(low, high)))
            else:  # a range could contain any number of other bookmarks
                rows = list(Item.batch_get(pairs))
        found = {(row.pk, row.sk) for row in rows if row.is_bookmarked}
        return frozenset(key for key, pair in zip(candidates, pairs, strict=True) if pair in found)

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


def _are_near(first: BuildKey, last: BuildKey) -> bool:
    return first.project_key == last.project_key and last.id - first.id <= NEAR


def _bookmarked(kind: str, user: str, offset: int, limit: int, ascending: bool) -> tuple[list[Item], int]:
    """Rows of the builds or projects that a user bookmarked, and the number of bookmarks."""
    items, count = list_and_count(keys.bookmarks(kind, user), offset, limit, ascending=ascending)
    pairs = [keys.record_key(keys.parse_reference_sk(item.sk)) for item in items]
    found = get_all(pairs)
    return [found[pair] for pair in pairs if pair in found], count
