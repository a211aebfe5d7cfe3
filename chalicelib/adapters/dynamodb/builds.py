"""`Builds` on DynamoDB."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec
from pynamodb.transactions import TransactWrite

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.code_references import refer
from chalicelib.adapters.dynamodb.keys import format_instant
from chalicelib.adapters.dynamodb.table import Item, answered, get, get_all, list_rows, transaction
from chalicelib.domain.build import Build, BuildBody, BuildKey, Project, ProjectKey
from chalicelib.errors import Conflict, NotFound
from chalicelib.ports import BuildView, IdempotencyKey

log = logging.getLogger(__name__)
Reserve = Callable[[TransactWrite], None]  # adds to a transaction what fails when a name is taken


class DynamoBuilds:
    def add(
        self,
        project: Project,
        build: Build,
        body: BuildBody,
        wanted_name: str | None,
        once: IdempotencyKey | None = None,
    ) -> Build:
        if build.source is not None and build.source.code_sha256 is not None:
            refer(build.source.code_sha256, build.key)
        for name, reserve in _names(build.key, wanted_name):
            build = replace(build, name=name)
            try:
                with transaction() as write:
                    write.update(
                        Item(*keys.record_key(project.key)),
                        [Item.last_build_id.set(build.key.id), Item.live_builds.add(1)],
                        Item.last_build_id == project.last_build_id,
                    )
                    write.save(records.encode_build(build), Item.pk.does_not_exist())
                    write.save(records.encode_body(build.key, body), Item.pk.does_not_exist())
                    reserve(write)
                    if once is not None:
                        write.save(
                            Item(
                                *keys.idempotency_key(project.key, once.key),
                                data=str(build.key),
                                ttl=int(once.expires_at.timestamp()),
                            ),
                            Item.pk.does_not_exist() | (Item.ttl <= int(once.now.timestamp())),
                        )
                return build
            except Conflict:
                if not _is_taken(build.key, name):
                    raise
        raise Conflict(f"No free name like {wanted_name} was found; choose another.")

    def build_for_key(self, project: ProjectKey, once: str, now: datetime) -> BuildKey | None:
        item = get(keys.idempotency_key(project, once))
        if item is None or int(item.ttl or 0) <= now.timestamp():
            return None  # DynamoDB deletes up to days after the time
        return BuildKey.parse(item.data or "")

    def get(self, key: BuildKey) -> Build | None:
        item = get(keys.record_key(key))
        return records.decode_build(item) if item else None

    def open(self, key: BuildKey, viewer: str) -> BuildView | None:
        pairs = [
            keys.record_key(key),
            keys.body_key(key),
            keys.record_key(key.project_key),
            keys.bookmark_key(viewer, key),
        ]
        found = get_all(pairs)
        build, body, project, bookmark = (found.get(pair) for pair in pairs)
        if build is None or body is None or project is None:
            return None
        return BuildView(
            records.decode_build(build),
            records.decode_body(body),
            records.decode_project(project),
            bookmark is not None and bool(bookmark.is_bookmarked),
        )

    def body(self, key: BuildKey) -> BuildBody | None:
        item = get(keys.body_key(key))
        return records.decode_body(item) if item else None

    def save(self, build: Build) -> Build:
        build, actions, condition = records.next_version(build)
        with answered():
            Item(*keys.record_key(build.key)).update(actions, condition)
        return build

    def save_dockerfile(self, key: BuildKey, dockerfile: str | None) -> None:
        with answered(refused=NotFound):
            columns = {"reported_dockerfile": dockerfile}
            Item(*keys.body_key(key)).update(records.set_columns(columns), Item.pk.exists())

    def rename(self, build: Build, wanted_name: str) -> Build:
        current = self.get(build.key)
        for name, reserve in _names(build.key, wanted_name):
            renamed, actions, condition = records.next_version(replace(build, name=name))
            try:
                with transaction() as write:
                    write.update(Item(*keys.record_key(build.key)), actions, condition)
                    reserve(write)
                    if current and current.name and current.name != name:
                        write.delete(Item(*keys.name_key(build.key, current.name)))
                return renamed
            except Conflict:
                if not _is_taken(build.key, name):
                    raise
        raise Conflict(f"No free name like {wanted_name} was found; choose another.")

    def list_builds(self, project: Project, offset: int, limit: int) -> Sequence[Build]:
        rows = list_rows(keys.live_builds(project.key), offset, limit, attributes=records.LISTED)
        return [records.decode_listed_build(row) for row in rows]

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        return [build for build in _active(keys.UNFINISHED, now, limit) if not build.is_waiting]

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        return [build for build in _active(keys.waiting_builds(executor), now, limit) if build.is_waiting]

    def lease(self, build: Build, until: datetime) -> Build:
        assert build.look_at is not None, "only a build that is due can be leased"
        _move(keys.record_key(build.key), format_instant(build.look_at), format_instant(until))
        return replace(build, look_at=until)


def _active(partition: str, now: datetime, limit: int) -> list[Build]:
    """Builds that the index shows as due in this partition, as a consistent read shows them."""
    with answered():
        found = list(Item.by_active.query(partition, Item.look_at <= format_instant(now), limit=limit))
    stored = get_all([(item.pk, item.sk) for item in found])
    builds = []
    for item in (stored[pair] for each in found if (pair := (each.pk, each.sk)) in stored):
        try:
            build = records.decode_build(item)
        except msgspec.MsgspecError:
            key = keys.parse_record_key(item.pk, item.sk)
            log.exception("The record of build %s cannot be read; it is left alone for a day.", key)
            with suppress(Conflict):
                _move((item.pk, item.sk), item.look_at, format_instant(now + timedelta(days=1)))
        else:
            if build.look_at is not None and build.look_at <= now:
                builds.append(build)
    return builds


def _move(key: keys.Key, look_at: str | None, until: str) -> None:
    """Changes when an unfinished build is due, and nothing else of it. Raises Conflict."""
    is_unfinished = (Item.active == keys.UNFINISHED) | Item.active.startswith(keys.waiting_builds(""))
    with answered():
        Item(*key).update([Item.look_at.set(until)], is_unfinished & (Item.look_at == look_at))


def _names(key: BuildKey, wanted: str | None) -> Iterator[tuple[str | None, Reserve]]:
    """Names to try, each with what reserves it."""
    if wanted is None:
        yield None, lambda write: None
        return
    row = get(keys.name_key(key, wanted))
    if row is None:
        yield wanted, _reserve(key, wanted)
        row = get(keys.name_key(key, wanted))
    given = int(row.suffixes or 0) if row else 0
    for k in range(given + 1, given + 51):
        name = f"{wanted[: 128 - 13]}-{k}"
        yield name, _reserve(key, name, counted_by=wanted, k=k)


def _is_taken(key: BuildKey, name: str | None) -> bool:
    return name is not None and get(keys.name_key(key, name)) is not None


def _reserve(key: BuildKey, name: str, counted_by: str | None = None, k: int = 0) -> Reserve:
    def add_to(write: TransactWrite) -> None:
        write.save(Item(*keys.name_key(key, name), data=str(key)), Item.pk.does_not_exist())
        if counted_by is not None:
            write.update(Item(*keys.name_key(key, counted_by)), [Item.suffixes.set(k)])

    return add_to
