"""Records as rows: `encode_…` makes the row, `decode_…` is its inverse."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar

import msgspec
from pynamodb.expressions.condition import Condition

from chalicelib.adapters.dynamodb import keys
from chalicelib.adapters.dynamodb.keys import format_instant
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.build import ID_DIGITS, LISTED, Build, BuildBody, BuildKey
from chalicelib.domain.cleanup import EXPIRED_TOKEN_RETENTION
from chalicelib.domain.lifecycle import bounded
from chalicelib.domain.project import Project
from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, User
from chalicelib.ports import Account, IdempotencyKey

Record = TypeVar("Record", Build, Project, User, Token)
RECOUNT = timedelta(days=1)
LISTED_COLUMNS = ["data", "last", "version"]  # of a build in a list; each attribute takes time to parse
_UNLISTED = {*Build.__struct_fields__} - LISTED - {"history", "version", "check_at"}


def encode_build(build: Build) -> Item:
    return Item(*keys.record_key(build.key), **build_columns(build))


def decode_build(item: Item) -> Build:
    is_unfinished = item.active not in (None, keys.DELETED, keys.ARCHIVED)
    check_at = f'"{item.check_at}"' if is_unfinished else "null"  # else it is the time of a purge
    data = f"{(item.data or '')[:-1]},{item.unlisted[1:]}" if item.unlisted else item.data  # older: in `data`
    data = data and data.replace('"kept_log_bytes":', '"stored_log_bytes":')  # its name in older records
    return _from_json(data, Build, history=item.history, version=item.version, check_at=check_at)


def decode_change(change: Mapping[str, Any]) -> tuple[Build | None, Build]:
    """The build before and after a change that the table's stream has with both images; None before it was made."""
    before, after = change.get("OldImage"), change["NewImage"]
    return before and decode_build(Item.from_raw_data(before)), decode_build(Item.from_raw_data(after))


def decode_listed_build(item: Item) -> Build:
    """The build with the fields that lists show, from the attributes `LISTED_COLUMNS`."""
    return _from_json(item.data, Build, history=f"[{item.last}]", version=item.version, nonce='""')


def build_columns(build: Build) -> dict[str, Any]:
    """All attributes of a build except its key; None for an attribute to remove."""
    listed: str | None = keys.builds(build.key.project_key)
    if build.archived_at is not None:
        listed = keys.archived_builds(build.user) if build.deleted_at is None else None
    return {
        "data": _to_json(build, "history", "version", "check_at", *_UNLISTED),
        "unlisted": _to_json(build, "history", "version", "check_at", *LISTED),
        "version": build.version,
        "history": f"[{','.join(map(_to_json, build.history))}]",
        "last": _to_json(build.history[-1], "message", "traceback", "details"),
        "recent": listed,
        "updated_at": f"{format_instant(build.updated_at)}#{build.key.id:0{ID_DIGITS}}",
        **_activity(build, build.check_at, keys.waiting(build.executor) if build.is_waiting else keys.UNFINISHED),
    }


def next_version(build: Build) -> tuple[Build, list[Any], Condition]:
    """The build with its next version, and the actions and the condition of the update that writes it. Cuts a history
    that an older version let grow, because an item has at most 400 KB."""
    new = replace(build, version=build.version + 1, history=bounded(build.history))
    return new, set_columns(build_columns(new)), Item.version == build.version


def encode_body(key: BuildKey, body: BuildBody) -> Item:
    """The row without the Dockerfiles that may be added later: they are separate attributes."""
    return Item(*keys.body_key(key), data=_to_json(body, "found_dockerfile", "reported_dockerfile"))


def decode_body(item: Item) -> BuildBody:
    body = msgspec.json.decode(item.data or "", type=BuildBody)
    return replace(body, found_dockerfile=item.found_dockerfile, reported_dockerfile=item.reported_dockerfile)


def encode_mark(once: IdempotencyKey, key: BuildKey) -> Item:
    row, ttl = keys.idempotency_key(key.project_key, once.key), int(once.expires_at.timestamp())
    return Item(*row, data=str(key), body_sha256=once.body_sha256, ttl=ttl)


def encode_project(project: Project) -> Item:
    columns = project_columns(project) | {"last_build_id": project.last_build_id, "live_builds": project.live_builds}
    return Item(*keys.record_key(project.key), **columns)


def decode_project(item: Item) -> Project:
    return _from_json(item.data, Project, last_build_id=item.last_build_id, live_builds=item.live_builds)


def project_columns(project: Project) -> dict[str, Any]:
    """All attributes of a project except its key and counters; None for an attribute to remove."""
    return {
        "data": _to_json(project, "last_build_id", "live_builds"),
        "version": project.version,
        "public": int(project.is_public),
        "recent": keys.live_projects(project.owner) if project.archived_at is None else None,
        "updated_at": f"{format_instant(project.updated_at)}#{project.name}",
        **_activity(project, None if project.archived_at else project.updated_at + RECOUNT, keys.MISCOUNTED),
    }


def is_same(record: Build | Project) -> Condition:
    """The stored record has the same uuid; its key may have been reused."""
    return Item.data.contains(f'"uuid":"{record.uuid}"')


def encode_user(user: User) -> Item:
    return Item(*keys.user_key(user.name), data=_to_json(user))


def encode_token(token: Token) -> tuple[Item, Item]:
    """The row of a token, and the row that lists it among those of its user."""
    day = token.used_on.isoformat() if token.used_on else None
    ttl = int((token.expires_at + EXPIRED_TOKEN_RETENTION).timestamp())
    row = Item(*keys.token_key(token.sha256), data=_to_json(token, "used_on"), used_on=day, ttl=ttl)
    return row, Item(*keys.held_token_key(token.user, token.sha256), ttl=ttl)


def decode_account(item: Item, kind: type[Account]) -> Account:
    """The user or token in a row. The day of a token's last use is apart: writes do not compare it."""
    return _from_json(item.data, kind, **({"used_on": f'"{item.used_on}"'} if item.used_on else {}))


def set_columns(columns: Mapping[str, Any]) -> list[Any]:
    """An update's actions; None removes the attribute."""
    return [
        getattr(Item, name).remove() if value is None else getattr(Item, name).set(value)
        for name, value in columns.items()
    ]


def counted(live: int, now: datetime) -> list[Any]:
    """Update actions that change the count of a project's live builds, and schedule a recount within a day: the
    function may die before or after the build itself is written."""
    return [
        Item.live_builds.add(live),
        Item.active.set(Item.active | keys.MISCOUNTED),
        Item.check_at.set(Item.check_at | format_instant(now + RECOUNT)),
    ]


def _activity(record: Build | Project, check_at: datetime | None, unfinished: str) -> dict[str, str | None]:
    """Why and when a row is due: an unfinished build to be checked, or a hidden row to be purged."""
    for reason, at in ((unfinished, check_at), (keys.DELETED, record.deleted_at), (keys.ARCHIVED, record.archived_at)):
        if at is not None:
            return {"active": reason, "check_at": format_instant(at)}
    return {"active": None, "check_at": None}


def _to_json(record: Any, *apart: str) -> str:
    """A record as JSON, without the fields `apart`, which have their own attributes, and without fields that have their
    default value None, 0, False or ()."""
    return msgspec.json.encode(_without_empty(record, apart)).decode()


def _without_empty(record: Any, apart: Collection[str] = ()) -> dict[str, Any]:
    found = {}
    for name, default in _defaults(record.__class__).items():
        value = getattr(record, name)
        if name not in apart and (value or value != default):
            found[name] = _without_empty(value) if isinstance(value, msgspec.Struct) else value
    return found


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


def _from_json(data: str | None, kind: type[Record], **apart: str | float | None) -> Record:
    """Inverse of `_to_json`. The values of `apart` are JSON texts that are added to the text before it is parsed,
    because replacing fields of the parsed record takes twice as long."""
    joined = "".join(f',"{name}":{text}' for name, text in apart.items())
    return msgspec.json.decode(f"{(data or '')[:-1]}{joined}}}", type=kind)
