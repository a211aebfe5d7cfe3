"""`Accounts` on DynamoDB."""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import date, datetime
from typing import Any, cast

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.keys import Key
from chalicelib.adapters.dynamodb.table import Item, get, get_all, get_lagging, query, transaction, update
from chalicelib.domain.build import BuildKey
from chalicelib.domain.cleanup import COUNTED_FOR
from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, User
from chalicelib.errors import AlreadyExists, Conflict
from chalicelib.ports import Account, Fresh, Given

CACHE_SIZE = 1_000  # users and tokens in the memory of a process


class DynamoAccounts:
    """`Accounts` on DynamoDB, with a cache in the process; it also caches that a row is missing."""

    def __init__(self, remember_seconds: float) -> None:
        self._remember_seconds = remember_seconds
        self._remembered: dict[Key, tuple[float, Any]] = {}

    def user(self, name: str, opening: BuildKey | None = None) -> User | None:
        return self._recall(keys.user_key(name), User, keys.opening_keys(opening, name) if opening else ())

    def token(self, sha256: str) -> Token | None:
        return self._recall(keys.token_key(sha256), Token)

    def fresh_user(self, name: str) -> Fresh[User] | None:
        return self._read(keys.user_key(name), User)

    def fresh_token(self, sha256: str) -> Fresh[Token] | None:
        return self._read(keys.token_key(sha256), Token)

    def add_user(self, user: User, token: Token, given: Given = ()) -> None:
        row = records.encode_user(user)
        try:
            self._write([row, *records.encode_token(token)], given, new=row)
        except Conflict as exc:
            if get(keys.user_key(user.name)):
                raise AlreadyExists from exc
            raise

    def add_token(self, token: Token, given: Given = ()) -> None:
        self._write(records.encode_token(token), given)

    def tokens(self, user: str) -> Sequence[Token]:
        pk, held = keys.held_token_key(user, "")
        hashes = [row.sk.removeprefix(held) for row in query(pk, Item.sk.startswith(held))]
        found = get_all([keys.token_key(sha256) for sha256 in hashes])
        return [records.decode_account(item, Token) for item in found.values()]

    def drop_token(self, token: Token, given: Given = ()) -> None:
        self._write([], given, gone=records.encode_token(token))

    def note_use(self, token: Token, day: date) -> None:
        key = keys.token_key(token.sha256)
        with suppress(Conflict):
            update(key, [Item.used_on.set(day.isoformat())], Item.pk.exists())
        if key in self._remembered:
            self._remembered[key] = (self._remembered[key][0], replace(token, used_on=day))

    def save_user(self, user: User, given: Given = ()) -> None:
        self._write([records.encode_user(user)], given)

    def count_requests(self, name: str, minute: datetime, requests: int) -> int:
        counted = [Item.requests.add(requests), Item.ttl.set(int((minute + COUNTED_FOR).timestamp()))]
        return int(update(keys.request_count_key(name, minute), counted).requests or 0)

    def _write(self, items: Sequence[Item], given: Given, gone: Sequence[Item] = (), new: Item | None = None) -> None:
        """Saves `items` and deletes `gone`. Raises Conflict if `new` exists or if a record of `given` has changed."""
        texts = {(pk, sk): text for pk, sk, text in (fresh.row for fresh in given)}
        with transaction() as write:
            for item in gone:
                text = texts.pop((item.pk, item.sk), None)
                write.delete(item, condition=None if text is None else Item.data == text)
            for item in items:
                text = texts.pop((item.pk, item.sk), None)
                unread = Item.pk.does_not_exist() if item is new else None
                write.save(item, unread if text is None else Item.data == text)
            for key, text in texts.items():
                write.condition_check(Item, *key, condition=Item.data == text)
        self._remembered.clear()

    def _recall(self, key: Key, kind: type[Account], ahead: Sequence[Key] = ()) -> Account | None:
        until, remembered = self._remembered.get(key, (0.0, None))
        if time.monotonic() < until:
            return cast("Account | None", remembered)
        fresh = self._read(key, kind, ahead)
        return fresh.record if fresh else None

    def _read(self, key: Key, kind: type[Account], ahead: Sequence[Key] = ()) -> Fresh[Account] | None:
        until = time.monotonic() + self._remember_seconds
        item = (get_lagging([key], ahead).get(key) if ahead else None) or get(key)
        text = item.data or "" if item else ""
        known = records.decode_account(item, kind) if item else None
        if len(self._remembered) >= CACHE_SIZE:
            self._remembered.clear()
        self._remembered[key] = (until, known)
        return Fresh(known, (*key, text)) if known else None
