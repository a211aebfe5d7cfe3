"""Projects, builds, users and tokens in one DynamoDB table.

| item            | pk                      | sk                  |
|-----------------|-------------------------|---------------------|
| build           | B#owner/project         | id, padded          |
| its texts       | D#owner/project#id      | D                   |
| its name        | N#owner/project#name    | N                   |
| project         | P#owner/project         | P                   |
| user            | U#name                  | U                   |
| bookmark        | U#name                  | BM#owner/project#id, or BP#owner/project |
| its twin        | D#…, or P#…: the texts', or the project's | BM#name |
| token           | T#sha256                | T                   |
| done once       | I#owner/project#key     | I                   |
| requests        | R#user#minute           | R                   |
| code's user     | C#sha256                | B#owner/project#id, or P#owner/project |

A build carries its status history. A name keeps others from being called so in the project. A bookmark has
a twin where what it marks is, so that both can be purged without searching.

Two indexes serve lists. `recent`, by `updated_at`, has one partition per list:

| list                           | recent          |
|--------------------------------|-----------------|
| live builds of a project       | B#owner/project |
| archived builds of a creator   | A#user          |
| live projects of an owner      | P#owner         |
| bookmarks of a user            | BM#user, BP#user |

`active`, by `look_at`, has the unfinished builds (`1`), those that wait for their turn with an executor
(`W#codebuild`, `W#eks`), and what may be purged: `archived` and `deleted`.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeVar, cast

import msgspec
from pynamodb.attributes import NumberAttribute, UnicodeAttribute
from pynamodb.connection import Connection
from pynamodb.exceptions import DoesNotExist, PynamoDBException, TransactWriteError
from pynamodb.expressions.condition import Condition
from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection, KeysOnlyProjection
from pynamodb.models import Model
from pynamodb.transactions import TransactWrite

from chalicelib.domain.build import (
    ID_DIGITS,
    Build,
    BuildBody,
    BuildKey,
    Project,
    ProjectKey,
    Token,
    User,
)
from chalicelib.domain.lifecycle import bounded
from chalicelib.errors import AlreadyExists, Conflict, NotFound, SlipwayError, Unavailable
from chalicelib.ports import Bookmarkable, BuildView, Fresh, Given, IdempotencyKey

log = logging.getLogger(__name__)
Known = TypeVar("Known", User, Token)
Whole = TypeVar("Whole", Build, Project)
NEAR = 200  # ids apart: bookmarks of such builds are read as one range
_LISTED = ["data", "last", "version"]  # of a build in a list: every attribute takes time to parse
_KEPT = 1_000  # users and tokens that a process remembers at once


class Item(Model):
    """Any row of the table.

    A record is one JSON text, because nothing looks into it on the server and DynamoDB's typed maps cost
    ten times its parsing. What conditions, counters and indexes need stands beside it.
    """

    class Meta:
        table_name = ""  # set by `use_table`
        max_retry_attempts = 3
        connect_timeout_seconds = 2
        read_timeout_seconds = 5

    class Recent(GlobalSecondaryIndex["Item"]):  # type: ignore[no-untyped-call]
        """Lists, by the last change of what is in them."""

        class Meta:
            index_name = "recent"
            projection = IncludeProjection(
                ["data", "last", "version", "last_build_id", "live_builds", "public"]
            )

        recent = UnicodeAttribute(hash_key=True)
        updated_at = UnicodeAttribute(range_key=True)

    class Active(GlobalSecondaryIndex["Item"]):  # type: ignore[no-untyped-call]
        """What somebody must look at, by the time for it."""

        class Meta:
            index_name = "active"
            projection = KeysOnlyProjection()

        active = UnicodeAttribute(hash_key=True)
        look_at = UnicodeAttribute(range_key=True)

    pk = UnicodeAttribute(hash_key=True)
    sk = UnicodeAttribute(range_key=True)
    data = UnicodeAttribute(null=True)
    version = NumberAttribute(null=True)
    history = UnicodeAttribute(null=True)
    last = UnicodeAttribute(null=True)  # the newest row of history, for lists
    recent = UnicodeAttribute(null=True)
    updated_at = UnicodeAttribute(null=True)
    active = UnicodeAttribute(null=True)
    look_at = UnicodeAttribute(null=True)
    reported_dockerfile = UnicodeAttribute(null=True)
    last_build_id = NumberAttribute(null=True)
    live_builds = NumberAttribute(null=True)
    suffixes = NumberAttribute(null=True)  # of a name marker: how many `-<k>` were given
    kept = NumberAttribute(null=True)  # of a bookmark: 0 once it was taken away
    public = NumberAttribute(null=True)  # of a project: 1 if it is
    taken = NumberAttribute(null=True)  # of a user's requests in a minute
    ttl = NumberAttribute(null=True)  # seconds since 1970; DynamoDB deletes the item some time after

    by_recent = Recent()
    by_active = Active()


def use_table(name: str) -> None:
    """Names the table of this process."""
    Item.Meta.table_name = name
    Item._connection = None


def client() -> Any:
    """The SDK's client, which takes a while to be made, by the first call if by nobody before."""
    return _connection().client


class DynamoBuildStore:
    """`BuildStore` on DynamoDB."""

    def project(self, owner: str, name: str) -> Project | None:
        item = _get(*_project_key(ProjectKey(owner, name)))
        return _project(item) if item else None

    def add_project(self, project: Project) -> None:
        item = Item(*_project_key(project.key), **_project_columns(project), last_build_id=0, live_builds=0)
        with _translated(refused=AlreadyExists):
            item.save(Item.pk.does_not_exist())

    def save_project(self, project: Project) -> Project:
        new = replace(project, version=project.version + 1)
        if project.code is not None:  # first: who finds the code unused drops it
            _refer(project.code.sha256, f"P#{project.key}")
        with _translated(refused=Conflict):
            item = Item(*_project_key(project.key))
            item.update(_set(_project_columns(new)), Item.version == project.version)
        return new

    def projects(self, owner: str, offset: int, limit: int, *, public: bool) -> tuple[Sequence[Project], int]:
        shown = (Item.public == 1) if public else None
        items, count = _listing(f"P#{owner}", offset, limit, shown)
        return [_project(item) for item in items], count

    def add(
        self,
        project: Project,
        build: Build,
        body: BuildBody,
        wanted_name: str | None,
        once: IdempotencyKey | None = None,
    ) -> Build:
        if build.source is not None and build.source.code_sha256 is not None:
            _refer(build.source.code_sha256, f"B#{_of_build(build.key)}")
        for name, marker in self._names(build.key, wanted_name):
            build = replace(build, name=name)
            try:
                with _transaction() as write:
                    write.update(
                        Item(*_project_key(project.key)),
                        [Item.last_build_id.set(build.key.id), Item.live_builds.add(1)],
                        Item.last_build_id == project.last_build_id,
                    )
                    write.save(_build_item(build), Item.pk.does_not_exist())
                    write.save(_body_item(build.key, body), Item.pk.does_not_exist())
                    marker(write)
                    if once is not None:
                        write.save(
                            Item(
                                *_once_key(project.key, once.key),
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
        item = _get(*_once_key(project, once))
        if item is None or int(item.ttl or 0) <= now.timestamp():
            return None  # DynamoDB deletes up to days after the time
        return BuildKey.parse(item.data or "")

    def get(self, key: BuildKey) -> Build | None:
        item = _get(*_build_key(key))
        return _build(item) if item else None

    def open(self, key: BuildKey, viewer: str) -> BuildView | None:
        keys = [
            _build_key(key),
            _body_key(key),
            _project_key(key.project_key),
            _bookmark_key(viewer, key),
        ]
        found = _get_all(keys)
        build, body, project, bookmark = (found.get(pair) for pair in keys)
        if build is None or body is None or project is None:
            return None
        return BuildView(
            _build(build), _body(body), _project(project), bookmark is not None and bool(bookmark.kept)
        )

    def body(self, key: BuildKey) -> BuildBody | None:
        item = _get(*_body_key(key))
        return _body(item) if item else None

    def save(self, build: Build) -> Build:
        build, actions, condition = _change(build)
        with _translated(refused=Conflict):
            Item(*_build_key(build.key)).update(actions, condition)
        return build

    def save_dockerfile(self, key: BuildKey, dockerfile: str | None) -> None:
        reported = Item.reported_dockerfile
        with _translated(refused=NotFound):
            Item(*_body_key(key)).update(
                [reported.remove() if dockerfile is None else reported.set(dockerfile)], Item.pk.exists()
            )

    def rename(self, build: Build, wanted_name: str) -> Build:
        current = self.get(build.key)
        for name, marker in self._names(build.key, wanted_name):
            renamed, actions, condition = _change(replace(build, name=name))
            try:
                with _transaction() as write:
                    write.update(Item(*_build_key(build.key)), actions, condition)
                    marker(write)
                    if current and current.name and current.name != name:
                        write.delete(Item(*_name_key(build.key, current.name)))
                return renamed
            except Conflict:
                if not _is_taken(build.key, name):
                    raise
        raise Conflict(f"No free name like {wanted_name} was found; choose another.")

    def archive(self, build: Build) -> Build:
        return self._hidden_or_shown(build, live=-1)

    def restore(self, build: Build) -> Build:
        return self._hidden_or_shown(build, live=1)

    def _hidden_or_shown(self, build: Build, live: int) -> Build:
        build, actions, condition = _change(build)
        with _transaction() as write:
            write.update(Item(*_build_key(build.key)), actions, condition)
            write.update(Item(*_project_key(build.key.project_key)), [Item.live_builds.add(live)])
        return build

    def page(self, project: Project, offset: int, limit: int) -> Sequence[Build]:
        return [_listed(item) for item in _page(f"B#{project.key}", offset, limit, of=_LISTED)]

    def archived(self, user: str, offset: int, limit: int) -> tuple[Sequence[Build], int]:
        items, count = _listing(f"A#{user}", offset, limit)
        return [_listed(item) for item in items], count

    def doomed(self, archived_before: datetime, limit: int) -> Sequence[BuildKey | ProjectKey]:
        with _translated():
            found = list(Item.by_active.query("deleted", limit=limit))
            if len(found) < limit:
                before = Item.look_at <= _instant(archived_before)
                found += Item.by_active.query("archived", before, limit=limit - len(found))
        return [_doomed_key(item) for item in found]

    def builds_of(self, project: ProjectKey, limit: int) -> Sequence[BuildKey]:
        with _translated():
            return [_key_of(item) for item in Item.query(f"B#{project}", consistent_read=True, limit=limit)]

    def purge(self, doomed: Build | Project) -> None:
        """What marks it goes first and what it is found by last, so that a repetition finds the rest."""
        around, _ = _body_key(doomed.key) if isinstance(doomed, Build) else _project_key(doomed.key)
        with _translated():
            for twin in Item.query(around, Item.sk.startswith("BM#"), consistent_read=True):
                Item(*_bookmark_key(twin.sk.removeprefix("BM#"), doomed.key)).delete()
                twin.delete()
        if isinstance(doomed, Project):
            with _translated():
                Item(*_project_key(doomed.key)).delete()
            return
        if doomed.name is not None:
            with suppress(Conflict), _translated():  # another build may be called so by now
                marker = Item(*_name_key(doomed.key, doomed.name))
                marker.delete(Item.data == str(doomed.key))
        with _translated():
            Item(*_body_key(doomed.key)).delete()
            Item(*_build_key(doomed.key)).delete()

    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        if _get(f"C#{code_sha256}", f"P#{project}"):
            return True
        with _translated():
            rows = Item.query(f"C#{code_sha256}", Item.sk.startswith(f"B#{project}#"), limit=1)
            return next(iter(rows), None) is not None

    def is_referenced(self, code_sha256: str) -> bool:
        with _translated():
            rows = list(Item.query(f"C#{code_sha256}", consistent_read=True, limit=20))
        for row in rows:
            if self._has_code(row.sk, code_sha256):
                return True
            with _translated():
                row.delete()
        return bool(rows)

    def _has_code(self, user: str, code_sha256: str) -> bool:
        kind, _, name = user.partition("#")
        if kind == "B":
            return self.get(_build_of(name)) is not None
        project = self.project(*name.split("/"))
        return project is not None and project.code is not None and project.code.sha256 == code_sha256

    def due(self, now: datetime, limit: int) -> Sequence[Build]:
        builds = self._active("1", now, limit)
        return [build for build in builds if build.look_at is not None and build.look_at <= now]

    def waiting(self, executor: str, now: datetime, limit: int) -> Sequence[Build]:
        builds = self._active(f"W#{executor}", now, limit)
        return [build for build in builds if build.is_waiting and build.look_at and build.look_at <= now]

    def _active(self, partition: str, now: datetime, limit: int) -> list[Build]:
        """Builds that the index has there until now, read consistently; those that can be read."""
        with _translated():
            found = list(Item.by_active.query(partition, Item.look_at <= _instant(now), limit=limit))
        stored = _get_all([(item.pk, item.sk) for item in found])
        builds = []
        for item in (stored[pair] for each in found if (pair := (each.pk, each.sk)) in stored):
            try:
                builds.append(_build(item))
            except msgspec.MsgspecError:
                log.exception(
                    "The record of build %s cannot be read; it is left alone for a day.", _key_of(item)
                )
                with suppress(Conflict):
                    _move(item.pk, item.sk, item.look_at, _instant(now + timedelta(days=1)))
        return builds

    def lease(self, build: Build, until: datetime) -> Build:
        assert build.look_at is not None, "only a build that is due can be leased"
        _move(*_build_key(build.key), _instant(build.look_at), _instant(until))
        return replace(build, look_at=until)

    def bookmarks(self, user: str, keys: Sequence[Bookmarkable]) -> frozenset[Bookmarkable]:
        if not keys:
            return frozenset()
        first, last = min(keys), max(keys)
        pairs = [_bookmark_key(user, key) for key in keys]
        with _translated():
            if isinstance(first, BuildKey) and isinstance(last, BuildKey) and last.id - first.id <= NEAR:
                between = Item.sk.between(_bookmark_key(user, first)[1], _bookmark_key(user, last)[1])
                rows = list(Item.query(pairs[0][0], between))
            else:  # a range could hold any number of other bookmarks
                rows = list(Item.batch_get(pairs))
        kept = {item.sk for item in rows if item.kept}
        return frozenset(key for key in keys if _bookmark_key(user, key)[1] in kept)

    def bookmark(self, user: str, key: Bookmarkable, now: datetime) -> None:
        pk, sk = _bookmark_key(user, key)
        around = _body_key(key)[0] if isinstance(key, BuildKey) else _project_key(key)[0]
        with _transaction() as write:
            write.save(Item(around, f"BM#{user}"))
            write.update(
                Item(pk, sk),
                [
                    Item.kept.set(1),
                    Item.recent.set(f"{sk[:2]}#{user}"),
                    Item.updated_at.set(f"{_instant(now)}#{sk}"),
                ],
            )

    def unbookmark(self, user: str, key: Bookmarkable) -> bool:
        try:
            with _translated(refused=NotFound):
                Item(*_bookmark_key(user, key)).update(
                    [Item.kept.set(0), Item.recent.remove()], Item.pk.exists()
                )
        except NotFound:
            return False
        return True

    def bookmarked_builds(
        self, user: str, offset: int, limit: int, *, oldest_first: bool = False
    ) -> tuple[Sequence[Build], int]:
        items, count = _listing(f"BM#{user}", offset, limit, oldest_first=oldest_first)
        keys = [_build_of(item.sk.removeprefix("BM#")) for item in items]
        found = _get_all([_build_key(key) for key in keys])
        builds = [_build(found[pair]) for key in keys if (pair := _build_key(key)) in found]
        return [build for build in builds if build.deleted_at is None], count

    def bookmarked_projects(
        self, user: str, offset: int, limit: int, *, oldest_first: bool = False
    ) -> tuple[Sequence[Project], int]:
        items, count = _listing(f"BP#{user}", offset, limit, oldest_first=oldest_first)
        keys = [_project_key(ProjectKey(*item.sk.removeprefix("BP#").split("/"))) for item in items]
        found = _get_all(keys)
        return [_project(found[key]) for key in keys if key in found], count

    def _names(
        self, key: BuildKey, wanted: str | None
    ) -> Iterator[tuple[str | None, Callable[[TransactWrite], None]]]:
        """Names to try, each with what reserves it in a transaction that fails when it is taken."""
        if wanted is None:
            yield None, lambda write: None
            return
        marker = _get(*_name_key(key, wanted))
        if marker is None:
            yield wanted, _reserve(key, wanted)
            marker = _get(*_name_key(key, wanted))
        given = int(marker.suffixes or 0) if marker else 0
        for k in range(given + 1, given + 51):
            name = f"{wanted[: 128 - 13]}-{k}"
            yield name, _reserve(key, name, counted_by=wanted, k=k)


def _is_taken(key: BuildKey, name: str | None) -> bool:
    return name is not None and _get(*_name_key(key, name)) is not None


def _reserve(
    key: BuildKey, name: str, counted_by: str | None = None, k: int = 0
) -> Callable[[TransactWrite], None]:
    def add_to(write: TransactWrite) -> None:
        write.save(Item(*_name_key(key, name), data=str(key)), Item.pk.does_not_exist())
        if counted_by is not None:
            write.update(Item(*_name_key(key, counted_by)), [Item.suffixes.set(k)])

    return add_to


class DynamoAccounts:
    """`Accounts` on DynamoDB, remembered in the process for a while, refusals too."""

    def __init__(self, remember_seconds: float) -> None:
        self._remember_seconds = remember_seconds
        self._remembered: dict[tuple[str, str], tuple[float, Any]] = {}

    def user(self, name: str) -> User | None:
        return self._recall(_user_key(name), User)

    def token(self, sha256: str) -> Token | None:
        return self._recall(_token_key(sha256), Token)

    def fresh_user(self, name: str) -> Fresh[User] | None:
        return self._read(_user_key(name), User)

    def fresh_token(self, sha256: str) -> Fresh[Token] | None:
        return self._read(_token_key(sha256), Token)

    def add_user(self, user: User, token: Token, given: Given = ()) -> None:
        try:
            self._write([(_user_item(user), Item.pk.does_not_exist()), (_token_item(token), None)], given)
        except Conflict as exc:
            if _get(*_user_key(user.name)):
                raise AlreadyExists from exc
            raise

    def add_token(self, token: Token, given: Given = ()) -> None:
        self._write([(_token_item(token), None)], given)

    def save_user(self, user: User, given: Given = ()) -> None:
        self._write([(_user_item(user), None)], given)

    def count_requests(self, name: str, minute: datetime, requests: int) -> int:
        item = Item(f"R#{name}#{_instant(minute)}", "R")
        expires_at = int(minute.timestamp()) + 3_600
        with _translated():
            item.update([Item.taken.add(requests), Item.ttl.set(expires_at)])
        return int(item.taken or 0)

    def _write(self, items: Sequence[tuple[Item, Condition | None]], given: Given) -> None:
        """All items, if their conditions hold and what is given is still stored as it was read."""
        texts = {(pk, sk): text for pk, sk, text in (fresh.row for fresh in given)}
        with _transaction() as write:
            for item, condition in items:
                text = texts.pop((item.pk, item.sk), None)
                write.save(item, condition if text is None else Item.data == text)
            for key, text in texts.items():
                write.condition_check(Item, *key, condition=Item.data == text)
        self._remembered.clear()

    def _recall(self, key: tuple[str, str], kind: type[Known]) -> Known | None:
        until, remembered = self._remembered.get(key, (0.0, None))
        if time.monotonic() < until:
            return cast("Known | None", remembered)
        fresh = self._read(key, kind)
        return fresh.record if fresh else None

    def _read(self, key: tuple[str, str], kind: type[Known]) -> Fresh[Known] | None:
        item, until = _get(*key), time.monotonic() + self._remember_seconds
        text = item.data or "" if item else ""
        known = msgspec.json.decode(text, type=kind) if item else None
        if len(self._remembered) >= _KEPT:
            self._remembered.clear()
        self._remembered[key] = (until, known)
        return Fresh(known, (*key, text)) if known else None


# Keys


def _project_key(key: ProjectKey) -> tuple[str, str]:
    return f"P#{key}", "P"


def _build_key(key: BuildKey) -> tuple[str, str]:
    return f"B#{key.project_key}", f"{key.id:0{ID_DIGITS}}"


def _body_key(key: BuildKey) -> tuple[str, str]:
    return f"D#{key.project_key}#{key.id}", "D"


def _name_key(key: BuildKey, name: str) -> tuple[str, str]:
    return f"N#{key.project_key}#{name}", "N"


def _user_key(name: str) -> tuple[str, str]:
    return f"U#{name}", "U"


def _token_key(sha256: str) -> tuple[str, str]:
    return f"T#{sha256}", "T"


def _once_key(project: ProjectKey, once: str) -> tuple[str, str]:
    return f"I#{project}#{once}", "I"


def _bookmark_key(user: str, key: BuildKey | ProjectKey) -> tuple[str, str]:
    return f"U#{user}", f"BM#{_of_build(key)}" if isinstance(key, BuildKey) else f"BP#{key}"


def _of_build(key: BuildKey) -> str:
    return f"{key.project_key}#{key.id:0{ID_DIGITS}}"


def _build_of(text: str) -> BuildKey:
    """The inverse of `_of_build`."""
    place, _, number = text.partition("#")
    owner, project = place.split("/")
    return BuildKey(owner, project, int(number))


def _key_of(item: Item) -> BuildKey:
    return _build_of(f"{item.pk.removeprefix('B#')}#{item.sk}")


def _doomed_key(item: Item) -> BuildKey | ProjectKey:
    if item.sk == "P":
        return ProjectKey(*item.pk.removeprefix("P#").split("/"))
    return _key_of(item)


# Records


def _encode(record: Any, *apart: str) -> str:
    """A record as JSON, without the fields that stand beside it and without what is None: all such fields
    default to it."""
    values = {field.name: getattr(record, field.name) for field in fields(record) if field.name not in apart}
    return msgspec.json.encode({name: value for name, value in values.items() if value is not None}).decode()


def _decode(data: str | None, kind: type[Whole], **apart: str | float | None) -> Whole:
    """The inverse. What stood apart, as JSON, joins the text: to replace fields of a record takes twice the
    time of parsing it."""
    joined = ",".join(f'"{name}":{text}' for name, text in apart.items())
    return msgspec.json.decode(f"{(data or '')[:-1]},{joined}}}", type=kind)


def _columns(build: Build) -> dict[str, Any]:
    """All attributes of a build beside its key; None for one that must not be there."""
    listed: str | None = f"B#{build.key.project_key}"
    if build.archived_at is not None:
        listed = f"A#{build.user}" if build.deleted_at is None else None
    return {
        "data": _encode(build, "history", "version", "look_at"),
        "version": build.version,
        "history": msgspec.json.encode(build.history).decode(),
        "last": msgspec.json.encode(build.history[-1]).decode(),
        "recent": listed,
        "updated_at": f"{_instant(build.updated_at)}#{build.key.id:0{ID_DIGITS}}",
        **_activity(
            build.look_at,
            build.archived_at,
            build.deleted_at,
            unfinished=f"W#{build.executor}" if build.is_waiting else "1",
        ),
    }


def _project_columns(project: Project) -> dict[str, Any]:
    return {
        "data": _encode(project, "last_build_id", "live_builds"),
        "version": project.version,
        "public": int(project.is_public),
        "recent": f"P#{project.owner}" if project.archived_at is None else None,
        "updated_at": f"{_instant(project.updated_at)}#{project.name}",
        **_activity(None, project.archived_at, project.deleted_at),
    }


def _activity(
    look_at: datetime | None,
    archived_at: datetime | None,
    deleted_at: datetime | None,
    unfinished: str = "1",
) -> dict[str, str | None]:
    """Why and when somebody must look at a row: to bring it to its end first, then to purge it."""
    for reason, at in ((unfinished, look_at), ("deleted", deleted_at), ("archived", archived_at)):
        if at is not None:
            return {"active": reason, "look_at": _instant(at)}
    return {"active": None, "look_at": None}


def _build_item(build: Build) -> Item:
    return Item(*_build_key(build.key), **_columns(build))


def _change(build: Build) -> tuple[Build, list[Any], Condition]:
    """The build with its next version, and the update that writes it if nobody was faster. A history that
    an older version let grow is cut, or the item could exceed the 400 KB of DynamoDB."""
    new = replace(build, version=build.version + 1, history=bounded(build.history))
    return new, _set(_columns(new)), Item.version == build.version


def _set(columns: Mapping[str, Any]) -> list[Any]:
    """An update's actions; None removes the attribute."""
    return [
        getattr(Item, name).remove() if value is None else getattr(Item, name).set(value)
        for name, value in columns.items()
    ]


def _build(item: Item) -> Build:
    is_unfinished = item.active is not None and item.active not in ("deleted", "archived")
    look_at = f'"{item.look_at}"' if is_unfinished else "null"  # else it is the time of a purge
    return _decode(item.data, Build, history=item.history, version=item.version, look_at=look_at)


def _listed(item: Item) -> Build:
    return _decode(item.data, Build, history=f"[{item.last}]", version=item.version)


def _body_item(key: BuildKey, body: BuildBody) -> Item:
    return Item(*_body_key(key), data=_encode(body))


def _body(item: Item) -> BuildBody:
    body = msgspec.json.decode(item.data or "", type=BuildBody)
    return replace(body, reported_dockerfile=item.reported_dockerfile)


def _project(item: Item) -> Project:
    counters = {"last_build_id": item.last_build_id, "live_builds": item.live_builds}
    return _decode(item.data, Project, **counters)


def _user_item(user: User) -> Item:
    return Item(*_user_key(user.name), data=_encode(user))


def _token_item(token: Token) -> Item:
    return Item(*_token_key(token.sha256), data=_encode(token))


def _instant(at: datetime) -> str:
    """Text whose order is the order of time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


# Calls


def _get(pk: str, sk: str) -> Item | None:
    with _translated():
        try:
            return Item.get(pk, sk, consistent_read=True)
        except DoesNotExist:
            return None


def _get_all(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Item]:
    with _translated():
        return {(item.pk, item.sk): item for item in Item.batch_get(list(keys), consistent_read=True)}


def _move(pk: str, sk: str, look_at: str | None, until: str) -> None:
    """Changes when an unfinished build is due, and nothing else of it. Raises Conflict."""
    with _translated(refused=Conflict):
        Item(pk, sk).update(
            [Item.look_at.set(until)],
            ((Item.active == "1") | Item.active.startswith("W#")) & (Item.look_at == look_at),
        )


def _refer(code_sha256: str, user: str) -> None:
    with _translated():
        Item(f"C#{code_sha256}", user).save()


def _page(
    partition: str,
    offset: int,
    limit: int,
    shown: Condition | None = None,
    *,
    oldest_first: bool = False,
    of: list[str] | None = None,
) -> list[Item]:
    """Rows of a list, after skipping `offset` of them; with these attributes alone, if they are named."""
    with _translated():
        items = Item.by_recent.query(
            partition,
            filter_condition=shown,
            scan_index_forward=oldest_first,
            limit=offset + limit,
            attributes_to_get=of,
        )
        return list(islice(items, offset, None))


def _listing(
    partition: str,
    offset: int,
    limit: int,
    shown: Condition | None = None,
    *,
    oldest_first: bool = False,
) -> tuple[list[Item], int]:
    """Rows of a list, and how many it has in all."""
    items = _page(partition, offset, limit, shown, oldest_first=oldest_first)
    if len(items) < limit and (items or offset == 0):
        return items, offset + len(items)
    with _translated():
        return items, Item.by_recent.count(partition, filter_condition=shown)


@contextmanager
def _transaction(refused: type[SlipwayError] = Conflict) -> Iterator[TransactWrite]:
    """A write of several items, all or none, with errors as in `_translated`. The token makes the SDK's
    own retries harmless."""
    with (
        _translated(refused),
        TransactWrite(connection=_connection(), client_request_token=uuid.uuid4().hex) as write,
    ):
        yield write


def _connection() -> Connection:
    """The one of the model, for transactions as well: a client of their own would be made once more."""
    assert Item.Meta.table_name, "use_table comes first"
    return Item._get_connection().connection


@contextmanager
def _translated(refused: type[SlipwayError] = Conflict) -> Iterator[None]:
    """Calls to DynamoDB in here raise `refused` when a condition fails and Unavailable for other trouble."""
    try:
        yield
    except TransactWriteError as exc:
        codes = {reason.code for reason in exc.cancellation_reasons if reason}
        if codes & {"ConditionalCheckFailed", "TransactionConflict"}:
            raise refused from exc
        raise Unavailable("The database did not answer; try again.") from exc
    except PynamoDBException as exc:
        if exc.cause_response_code in ("ConditionalCheckFailedException", "TransactionConflictException"):
            raise refused from exc
        raise Unavailable("The database did not answer; try again.") from exc
