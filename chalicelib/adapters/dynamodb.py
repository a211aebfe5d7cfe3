"""Projects, builds, users and tokens in one DynamoDB table.

| item        | pk                     | sk            |
|-------------|------------------------|---------------|
| build       | B#owner/project        | id, padded    |
| build body  | D#owner/project#id     | D             |
| build name  | N#owner/project#name   | N             |
| project     | P#owner/project        | P             |
| user        | U#name                 | U             |
| bookmark    | U#name                 | BM#owner/project#id |
| token       | T#sha256               | T             |

A build carries its status history; it is in the index `recent` while live and in `active` while unfinished.
A build name is a marker that keeps names unique in their project.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import msgspec
from pynamodb.attributes import NumberAttribute, UnicodeAttribute
from pynamodb.connection import Connection
from pynamodb.exceptions import DoesNotExist, PynamoDBException, TransactWriteError
from pynamodb.expressions.condition import Condition
from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection, KeysOnlyProjection
from pynamodb.models import Model
from pynamodb.transactions import TransactWrite

from chalicelib.domain.build import ID_DIGITS, Build, BuildBody, BuildKey, Project, StatusEntry, Token, User
from chalicelib.errors import AlreadyExists, Conflict, NotFound, SlipwayError, Unavailable
from chalicelib.ports import Opened

Known = TypeVar("Known", User, Token)
_connection: Connection | None = None  # for transactions; models keep one of their own
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
        """Live builds of a project by their last change."""

        class Meta:
            index_name = "recent"
            projection = IncludeProjection(["data", "last", "version"])

        recent = UnicodeAttribute(hash_key=True)
        updated_at = UnicodeAttribute(range_key=True)

    class Active(GlobalSecondaryIndex["Item"]):  # type: ignore[no-untyped-call]
        """Unfinished builds by the time somebody must look at them."""

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

    by_recent = Recent()
    by_active = Active()


def use_table(name: str) -> None:
    """Names the table of this process."""
    global _connection
    Item.Meta.table_name = name
    Item._connection = None
    _connection = Connection(
        max_retry_attempts=Item.Meta.max_retry_attempts,
        connect_timeout_seconds=Item.Meta.connect_timeout_seconds,
        read_timeout_seconds=Item.Meta.read_timeout_seconds,
    )


class DynamoBuildStore:
    """`BuildStore` on DynamoDB."""

    def project(self, owner: str, name: str) -> Project | None:
        item = _get(*_project_key(owner, name))
        return _project(item) if item else None

    def add_project(self, project: Project) -> None:
        pk, sk = _project_key(project.owner, project.name)
        item = Item(pk, sk, data=_encode(project), version=project.version, last_build_id=0, live_builds=0)
        with _translated(refused=AlreadyExists):
            item.save(Item.pk.does_not_exist())

    def save_project(self, project: Project) -> Project:
        new = replace(project, version=project.version + 1)
        actions: list[Any] = [Item.data.set(_encode(new)), Item.version.set(new.version)]
        with _translated(refused=Conflict):
            Item(*_project_key(project.owner, project.name)).update(actions, Item.version == project.version)
        return new

    def add(self, project: Project, build: Build, body: BuildBody, wanted_name: str | None) -> Build:
        for name, marker in self._names(build.key, wanted_name):
            build = replace(build, name=name)
            try:
                with _transaction() as write:
                    write.update(
                        Item(*_project_key(project.owner, project.name)),
                        [Item.last_build_id.set(build.key.id), Item.live_builds.add(1)],
                        Item.last_build_id == project.last_build_id,
                    )
                    write.save(_build_item(build), Item.pk.does_not_exist())
                    write.save(_body_item(build.key, body), Item.pk.does_not_exist())
                    marker(write)
                return build
            except Conflict:
                if not _is_taken(build.key, name):
                    raise
        raise Conflict(f"No free name like {wanted_name} was found; choose another.")

    def get(self, key: BuildKey) -> Build | None:
        item = _get(*_build_key(key))
        return _build(item) if item else None

    def open(self, key: BuildKey, viewer: str) -> Opened | None:
        keys = [
            _build_key(key),
            _body_key(key),
            _project_key(key.owner, key.project),
            _bookmark_key(viewer, key),
        ]
        with _translated():
            found = {(item.pk, item.sk): item for item in Item.batch_get(keys, consistent_read=True)}
        build, body, project, bookmark = (found.get(pair) for pair in keys)
        if build is None or body is None or project is None:
            return None
        return Opened(
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
                    if current and current.name and current.name != wanted_name:
                        write.delete(Item(*_name_key(build.key, current.name)))
                return renamed
            except Conflict:
                if not _is_taken(build.key, name):
                    raise
        raise Conflict(f"No free name like {wanted_name} was found; choose another.")

    def archive(self, build: Build, now: datetime) -> Build:
        build, actions, condition = _change(build)
        with _transaction() as write:
            write.update(Item(*_build_key(build.key)), actions, condition)
            write.update(Item(*_project_key(build.key.owner, build.key.project)), [Item.live_builds.add(-1)])
        return build

    def page(self, project: Project, offset: int, limit: int) -> Sequence[Build]:
        with _translated():
            items = Item.by_recent.query(
                f"{project.owner}/{project.name}", scan_index_forward=False, limit=offset + limit
            )
            return [_listed(item) for position, item in enumerate(items) if position >= offset]

    def due(self, now: datetime, limit: int) -> Sequence[BuildKey]:
        with _translated():
            items = Item.by_active.query("1", Item.look_at <= _instant(now), limit=limit)
            return [_key_of(item) for item in items]

    def bookmarks(self, user: str, keys: Sequence[BuildKey]) -> frozenset[BuildKey]:
        if not keys:
            return frozenset()
        pk, first = _bookmark_key(user, min(keys))
        _, last = _bookmark_key(user, max(keys))
        with _translated():
            kept = {item.sk for item in Item.query(pk, Item.sk.between(first, last)) if item.kept}
        return frozenset(key for key in keys if _bookmark_key(user, key)[1] in kept)

    def bookmark(self, user: str, key: BuildKey, now: datetime) -> None:
        with _translated():
            Item(*_bookmark_key(user, key)).update([Item.kept.set(1), Item.updated_at.set(_instant(now))])

    def unbookmark(self, user: str, key: BuildKey) -> bool:
        try:
            with _translated(refused=NotFound):
                Item(*_bookmark_key(user, key)).update([Item.kept.set(0)], Item.pk.exists())
        except NotFound:
            return False
        return True

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
        write.save(Item(*_name_key(key, name)), Item.pk.does_not_exist())
        if counted_by is not None:
            write.update(Item(*_name_key(key, counted_by)), [Item.suffixes.set(k)])

    return add_to


class DynamoAccounts:
    """`Accounts` on DynamoDB, remembered in the process for a while, refusals too."""

    def __init__(self, remember_seconds: float) -> None:
        self._remember_seconds = remember_seconds
        self._remembered: dict[tuple[str, str], tuple[float, Any]] = {}

    def user(self, name: str) -> User | None:
        return self._recall(("U#" + name, "U"), User)

    def token(self, sha256: str) -> Token | None:
        return self._recall(("T#" + sha256, "T"), Token)

    def add_user(self, user: User, token: Token) -> None:
        with _transaction(refused=AlreadyExists) as write:
            write.save(Item("U#" + user.name, "U", data=_encode(user)), Item.pk.does_not_exist())
            write.save(Item("T#" + token.sha256, "T", data=_encode(token)))
        self._remembered.clear()

    def add_token(self, token: Token) -> None:
        with _translated():
            Item("T#" + token.sha256, "T", data=_encode(token)).save()
        self._remembered.clear()

    def _recall(self, key: tuple[str, str], kind: type[Known]) -> Known | None:
        now = time.monotonic()
        until, remembered = self._remembered.get(key, (0.0, None))
        if now < until:
            return cast("Known | None", remembered)
        item = _get(*key)
        known = msgspec.json.decode(item.data or "", type=kind) if item else None
        if len(self._remembered) >= _KEPT:
            self._remembered.clear()
        self._remembered[key] = (now + self._remember_seconds, known)
        return known


# Keys


def _project_key(owner: str, name: str) -> tuple[str, str]:
    return f"P#{owner}/{name}", "P"


def _build_key(key: BuildKey) -> tuple[str, str]:
    return f"B#{key.owner}/{key.project}", f"{key.id:0{ID_DIGITS}}"


def _body_key(key: BuildKey) -> tuple[str, str]:
    return f"D#{key.owner}/{key.project}#{key.id}", "D"


def _name_key(key: BuildKey, name: str) -> tuple[str, str]:
    return f"N#{key.owner}/{key.project}#{name}", "N"


def _bookmark_key(user: str, key: BuildKey) -> tuple[str, str]:
    return f"U#{user}", f"BM#{key.owner}/{key.project}#{key.id:0{ID_DIGITS}}"


def _key_of(item: Item) -> BuildKey:
    owner, project = item.pk.removeprefix("B#").split("/")
    return BuildKey(owner, project, int(item.sk))


# Records


def _encode(record: Any) -> str:
    """A record as JSON, without what is None: all such fields default to it."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return msgspec.json.encode({name: value for name, value in values.items() if value is not None}).decode()


def _columns(build: Build) -> dict[str, Any]:
    """All attributes of a build beside its key; None for one that must not be there."""
    live = build.archived_at is None
    waiting = build.look_at is not None
    return {
        "data": _encode(replace(build, history=())),
        "version": build.version,
        "history": msgspec.json.encode(build.history).decode(),
        "last": msgspec.json.encode(build.history[-1]).decode(),
        "recent": f"{build.key.owner}/{build.key.project}" if live else None,
        "updated_at": f"{_instant(build.updated_at)}#{build.key.id:0{ID_DIGITS}}",
        "active": "1" if waiting else None,
        "look_at": _instant(build.look_at) if build.look_at else None,
    }


def _build_item(build: Build) -> Item:
    return Item(*_build_key(build.key), **_columns(build))


def _change(build: Build) -> tuple[Build, list[Any], Condition]:
    """The build with its next version, and the update that writes it if nobody was faster."""
    new = replace(build, version=build.version + 1)
    actions = []
    for name, value in _columns(new).items():
        attribute = getattr(Item, name)
        actions.append(attribute.remove() if value is None else attribute.set(value))
    return new, actions, Item.version == build.version


def _build(item: Item) -> Build:
    build = msgspec.json.decode(item.data or "", type=Build)
    history = msgspec.json.decode(item.history or "", type=tuple[StatusEntry, ...])
    return replace(build, history=history, version=int(item.version or 0))


def _listed(item: Item) -> Build:
    build = msgspec.json.decode(item.data or "", type=Build)
    last = msgspec.json.decode(item.last or "", type=StatusEntry)
    return replace(build, history=(last,), version=int(item.version or 0))


def _body_item(key: BuildKey, body: BuildBody) -> Item:
    return Item(*_body_key(key), data=_encode(body))


def _body(item: Item) -> BuildBody:
    body = msgspec.json.decode(item.data or "", type=BuildBody)
    return replace(body, reported_dockerfile=item.reported_dockerfile)


def _project(item: Item) -> Project:
    project = msgspec.json.decode(item.data or "", type=Project)
    return replace(
        project, last_build_id=int(item.last_build_id or 0), live_builds=int(item.live_builds or 0)
    )


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


@contextmanager
def _transaction(refused: type[SlipwayError] = Conflict) -> Iterator[TransactWrite]:
    """A write of several items, all or none, with errors as in `_translated`. The token makes the SDK's
    own retries harmless."""
    assert _connection is not None, "use_table comes first"
    with (
        _translated(refused),
        TransactWrite(connection=_connection, client_request_token=uuid.uuid4().hex) as write,
    ):
        yield write


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
