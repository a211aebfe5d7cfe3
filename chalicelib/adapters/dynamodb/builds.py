"""`Builds` on DynamoDB."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec
from pynamodb.transactions import TransactWrite

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.code_references import refer
from chalicelib.adapters.dynamodb.keys import format_instant
from chalicelib.adapters.dynamodb.table import Item, answered, get, get_all, get_lagging, list_rows, transaction, update
from chalicelib.domain.build import Build, BuildBody, BuildKey
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.errors import Conflict, KeyReused, NotFound
from chalicelib.ports import BuildView, IdempotencyKey, InLine

log = logging.getLogger(__name__)
MAX_LINE = 50_000  # waiting builds that are considered: 5 MB of the index


class DynamoBuilds:
    def __init__(self, annotate: Callable[[Build], Build]) -> None:
        self._annotate = annotate

    def next_id(self, project: Project, now: datetime) -> int:
        """Counts with one update, not in a transaction: when several builds are created at the same time, transactions
        on the project's row would cancel each other."""
        counted = [Item.last_build_id.add(1), *records.counted(1, now)]
        is_there = records.is_same(project) & (Item.active.does_not_exist() | (Item.active != keys.DELETED))
        return int(update(keys.record_key(project.key), counted, is_there, refused=NotFound).last_build_id or 0)

    def add(self, build: Build, body: BuildBody, wanted_name: str | None, once: IdempotencyKey | None = None) -> Build:
        if build.source is not None and build.source.code_sha256 is not None:
            refer(build.source.code_sha256, build.key, build.created_at)

        def add_named(named: Build, name_row: Item | None) -> Build:
            with transaction() as write:
                write.save(records.encode_build(named), Item.pk.does_not_exist())
                write.save(records.encode_body(named.key, body), Item.pk.does_not_exist())
                if name_row is not None:
                    write.save(name_row, Item.pk.does_not_exist())
                if named.recipe is not None:
                    write.save(Item(*keys.recipe_key(named.key, named.recipe)))
                if once is not None:
                    is_free = Item.pk.does_not_exist() | (Item.ttl <= int(once.now.timestamp()))
                    write.save(records.encode_mark(once, named.key), is_free)
            return named

        return self._annotate(_named(build, wanted_name, add_named))

    def replay(self, project: ProjectKey, once: IdempotencyKey) -> BuildKey | None:
        item = get(keys.idempotency_key(project, once.key))
        if item is None or int(item.ttl or 0) <= once.now.timestamp():
            return None  # DynamoDB may delete it days later
        if item.body_sha256 and item.body_sha256 != once.body_sha256:  # an older version stored none
            raise KeyReused("This idempotency key came with another request before; use a new one.")
        return BuildKey.parse(item.data or "")

    def note(self, once: IdempotencyKey, build: BuildKey) -> None:
        with answered():
            records.encode_mark(once, build).save()

    def get(self, key: BuildKey) -> Build | None:
        item = get(keys.record_key(key))
        return self._annotate(records.decode_build(item)) if item else None

    def open(self, key: BuildKey, viewer: str, *, may_lag: bool = False) -> BuildView | None:
        pairs = keys.opening_keys(key, viewer)
        found = get_lagging(pairs) if may_lag else get_all(pairs)
        build, body, project, bookmark = (found.get(pair) for pair in pairs)
        if build is None or body is None or project is None:
            return None
        return BuildView(
            self._annotate(records.decode_build(build)),
            records.decode_body(body),
            records.decode_project(project),
            bookmark is not None and bool(bookmark.is_bookmarked),
        )

    def body(self, key: BuildKey) -> BuildBody | None:
        item = get(keys.body_key(key))
        return records.decode_body(item) if item else None

    def equal(self, build: Build, limit: int) -> Sequence[Build]:
        partition, _ = keys.recipe_key(build.key, build.recipe or "")
        with answered():
            rows = Item.query(partition, consistent_read=True, limit=limit, scan_index_forward=False)
            pairs = [keys.record_key(replace(build.key, id=int(row.sk))) for row in rows]
        return list(map(records.decode_build, get_all(pairs).values()))

    def save(self, build: Build, body: BuildBody | None = None) -> Build:
        if body is not None:  # a transaction costs twice as much
            with transaction() as write:
                return _update(write, build, body)
        build, actions, condition = records.next_version(build)
        update(keys.record_key(build.key), actions, condition)
        return build

    def rename(self, build: Build, wanted_name: str | None, body: BuildBody | None = None) -> Build:
        def rename_to(named: Build, name_row: Item | None) -> Build:
            with transaction() as write:
                if name_row is not None:
                    write.save(name_row, Item.pk.does_not_exist())
                if build.name is not None:
                    write.delete(Item(*keys.name_key(build.key, build.name)))
                return _update(write, named, body)

        return _named(build, wanted_name, rename_to)

    def list_builds(self, project: ProjectKey, offset: int, limit: int) -> Sequence[Build]:
        rows = list_rows(keys.builds(project), offset, limit, attributes=records.LISTED_COLUMNS)
        return [records.decode_listed_build(row) for row in rows]

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        return [build for build in _active(keys.UNFINISHED, now, limit) if not build.is_waiting]

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        return [build for build in _active(keys.waiting(executor), now, limit) if build.is_waiting]

    def line(self, executor: str, now: datetime) -> Sequence[InLine]:
        found = _listed(keys.waiting(executor), now, MAX_LINE)
        named = ((datetime.fromisoformat(each.check_at), keys.parse_record_key(each.pk, each.sk)) for each in found)
        return [InLine(since, key, executor) for since, key in named if isinstance(key, BuildKey)]

    def get_all(self, builds: Sequence[BuildKey], now: datetime) -> Sequence[Build]:
        return _readable([keys.record_key(key) for key in builds], now)

    def lease(self, build: Build, until: datetime) -> Build:
        assert build.check_at is not None, "only a build that is due can be leased"
        _move(keys.record_key(build.key), format_instant(build.check_at), format_instant(until))
        return self._annotate(replace(build, check_at=until))


def _update(write: TransactWrite, build: Build, body: BuildBody | None) -> Build:
    """Adds a build's next version to a transaction, and the texts that can change."""
    build, actions, condition = records.next_version(build)
    write.update(Item(*keys.record_key(build.key)), actions, condition)
    if body is not None:
        columns = {name: getattr(body, name) for name in ("found_dockerfile", "reported_dockerfile")}
        write.update(Item(*keys.body_key(build.key)), records.set_columns(columns), Item.pk.exists())
    return build


def _active(partition: str, now: datetime, limit: int) -> list[Build]:
    """Builds that are due in a partition of the index, in their current state."""
    builds = _readable([(item.pk, item.sk) for item in _listed(partition, now, limit)], now)
    return [build for build in builds if build.check_at is not None and build.check_at <= now]


def _listed(partition: str, now: datetime, limit: int) -> list[Item]:
    """The keys of the builds that are due in a partition of the index, and since when each is due."""
    with answered():
        return list(Item.by_active.query(partition, Item.check_at <= format_instant(now), limit=limit))


def _readable(pairs: Sequence[keys.Key], now: datetime) -> list[Build]:
    """The builds of these rows, except those that cannot be read: they are found again in a day."""
    builds = []
    for pair, item in get_all(pairs).items():
        try:
            builds.append(records.decode_build(item))
        except msgspec.MsgspecError:
            key = keys.parse_record_key(*pair)
            log.exception("The record of build %s is invalid; it is checked again in a day.", key)
            with suppress(Conflict):
                _move(pair, item.check_at, format_instant(now + timedelta(days=1)))
    return builds


def _move(key: keys.Key, check_at: str | None, until: str) -> None:
    """Changes only the time at which an unfinished build is due. Raises Conflict."""
    is_unfinished = (Item.active == keys.UNFINISHED) | Item.active.startswith(keys.waiting(""))
    update(key, [Item.check_at.set(until)], is_unfinished & (Item.check_at == check_at))


def _named(build: Build, wanted: str | None, write: Callable[[Build, Item | None], Build]) -> Build:
    """Writes the build under the wanted name, or with the next free suffix, and the row that reserves the name. A
    counter gives each writer another suffix, so that writers that want the same name do not block each other. Raises
    Conflict."""
    if wanted is None:
        return write(replace(build, name=None), None)
    name = wanted
    for attempt in range(50):
        if attempt > 0:
            counted = update(keys.name_key(build.key, wanted), [Item.suffixes.add(1)])
            name = f"{wanted[: 128 - 13]}-{int(counted.suffixes or 0)}"
        key = keys.name_key(build.key, name)
        if attempt == 0 and get(key) is not None:
            continue
        try:
            return write(replace(build, name=name), Item(*key, data=str(build.key)))
        except Conflict:
            if get(key) is None:
                raise
    raise Conflict(f"No free name like {wanted} was found; choose another.")
