"""The table, its two indexes, and the calls that are made to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from time import monotonic
from typing import Any

from botocore.exceptions import ClientError
from pynamodb.attributes import NumberAttribute, UnicodeAttribute, UnicodeSetAttribute
from pynamodb.connection import Connection
from pynamodb.exceptions import DoesNotExist, PynamoDBException, TransactWriteError
from pynamodb.expressions.condition import Condition
from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection, KeysOnlyProjection
from pynamodb.models import Model
from pynamodb.transactions import TransactWrite

from chalicelib.adapters.dynamodb.keys import Key
from chalicelib.errors import Conflict, SlipwayError, Unavailable

LAG_SECONDS = 1  # of reads that may lag: usually far less
_REFUSED = {"ConditionalCheckFailed", "TransactionConflict"}  # DynamoDB may add `Exception`
_ahead: tuple[float, "dict[Key, Item | None]"] = (0, {})  # until when, what was read before it is asked for


class Item(Model):
    """Any row of the table. A record is one JSON text, which parses ten times faster than DynamoDB's typed maps. Values
    that conditions, counters and indexes need are separate attributes."""

    class Meta:
        table_name = ""  # set by `use_table`
        max_retry_attempts = 3
        connect_timeout_seconds = 2
        read_timeout_seconds = 5

    class Recent(GlobalSecondaryIndex["Item"]):  # type: ignore[no-untyped-call]
        """Lists, sorted by the last change of their entries."""

        class Meta:
            index_name = "recent"
            projection = IncludeProjection(["data", "last", "version", "last_build_id", "live_builds", "public"])

        recent = UnicodeAttribute(hash_key=True)
        updated_at = UnicodeAttribute(range_key=True)

    class Active(GlobalSecondaryIndex["Item"]):  # type: ignore[no-untyped-call]
        """Unfinished and purgeable rows, sorted by the time at which they are due."""

        class Meta:
            index_name = "active"
            projection = KeysOnlyProjection()

        active = UnicodeAttribute(hash_key=True)
        check_at = UnicodeAttribute(range_key=True, attr_name="look_at")

    pk = UnicodeAttribute(hash_key=True)
    sk = UnicodeAttribute(range_key=True)
    data = UnicodeAttribute(null=True)
    unlisted = UnicodeAttribute(null=True)  # of a build: the fields that no list shows
    version = NumberAttribute(null=True)
    history = UnicodeAttribute(null=True)
    last = UnicodeAttribute(null=True)  # of a build: its newest status, without texts, for lists
    recent = UnicodeAttribute(null=True)
    updated_at = UnicodeAttribute(null=True)
    active = UnicodeAttribute(null=True)
    check_at = UnicodeAttribute(null=True, attr_name="look_at")
    found_dockerfile = UnicodeAttribute(null=True)
    reported_dockerfile = UnicodeAttribute(null=True)
    last_build_id = NumberAttribute(null=True)
    live_builds = NumberAttribute(null=True)
    body_sha256 = UnicodeAttribute(null=True)  # of an idempotency key
    suffixes = NumberAttribute(null=True)  # of a name: the number of suffixes `-<k>` in use
    is_bookmarked = NumberAttribute(null=True, attr_name="kept")  # of a bookmark: 0 after it was removed
    used_on = UnicodeAttribute(null=True)  # of a token
    public = NumberAttribute(null=True)  # of a project: 1 if it is
    requests = NumberAttribute(null=True, attr_name="taken")  # of a request count
    running = UnicodeSetAttribute(null=True)  # of the slots: the keys of their builds
    ttl = NumberAttribute(null=True)  # seconds since 1970; DynamoDB deletes the item some time after

    by_recent = Recent()
    by_active = Active()


def use_table(name: str) -> None:
    """Sets the table of this process."""
    global _ahead
    _ahead = (0, {})
    Item.Meta.table_name = name
    Item._connection = None


def client() -> Any:
    """The SDK's client. The first call in a process makes it, which is slow."""
    return _connection().client


def get(key: Key) -> Item | None:
    """The row, by a consistent read; None if there is none."""
    with answered():
        try:
            return Item.get(*key, consistent_read=True)
        except DoesNotExist:
            return None


def get_all(keys: Sequence[Key], *, may_lag: bool = False) -> dict[Key, Item]:
    """The existing rows of these keys, in their order, by consistent reads unless they `may_lag`."""
    with answered():
        found = {(item.pk, item.sk): item for item in Item.batch_get(list(keys), consistent_read=not may_lag)}
    return {key: found[key] for key in keys if key in found}


def query(partition: str, condition: Condition | None = None, limit: int | None = None) -> list[Item]:
    """The rows of a partition, or those that meet the condition, by consistent reads."""
    with answered():
        return list(Item.query(partition, condition, consistent_read=True, limit=limit))


def update(
    key: Key, actions: Sequence[Any], condition: Condition | None = None, refused: type[SlipwayError] = Conflict
) -> Item:
    """Changes a row, on a condition whose failure raises `refused`; returns the row as it is then."""
    item = Item(*key)
    with answered(refused):
        item.update(list(actions), condition)
    return item


def get_lagging(keys: Sequence[Key], ahead: Sequence[Key] = ()) -> dict[Key, Item]:
    """Those of the rows that there are, at most about a second old. Rows of `ahead` are read with them, for a call
    that asks for all of those within this second."""
    global _ahead
    until, rows = _ahead
    if monotonic() > until or not rows.keys() >= {*keys}:
        until, wanted = monotonic() + LAG_SECONDS, [*keys, *ahead]
        found = get_all(wanted, may_lag=True)
        rows = {key: found.get(key) for key in wanted}
    _ahead = until, {key: rows[key] for key in ahead}
    return {key: row for key in keys if (row := rows[key])}


def list_rows(
    partition: str,
    offset: int,
    limit: int,
    shown: Condition | None = None,
    *,
    ascending: bool = False,
    attributes: list[str] | None = None,
) -> list[Item]:
    """Rows of a list after the first `offset`; only with these `attributes`, if given."""
    with answered():
        items = Item.by_recent.query(
            partition,
            filter_condition=shown,
            scan_index_forward=ascending,
            limit=offset + limit,
            attributes_to_get=attributes,
        )
        return list(islice(items, offset, None))


def list_and_count(
    partition: str, offset: int, limit: int, shown: Condition | None = None, *, ascending: bool = False
) -> tuple[list[Item], int]:
    """Rows of a list after the first `offset`, and the number of all its rows."""
    items = list_rows(partition, offset, limit, shown, ascending=ascending)
    if len(items) < limit and (items or offset == 0):
        return items, offset + len(items)
    with answered():
        return items, Item.by_recent.count(partition, filter_condition=shown)


@contextmanager
def transaction() -> Iterator[TransactWrite]:
    """A write of several items, all or none. Raises Conflict when a condition fails. The SDK sends a token, so that its
    own retries have no further effect."""
    with answered(), TransactWrite(connection=_connection()) as write:
        yield write


def _connection() -> Connection:
    """The connection of the model, also for transactions, so that there is only one client."""
    assert Item.Meta.table_name, "use_table comes first"
    return Item._get_connection().connection


@contextmanager
def answered(refused: type[SlipwayError] = Conflict) -> Iterator[None]:
    """Calls of DynamoDB in the block raise `refused` when a condition fails, and Unavailable for other errors."""
    try:
        yield
    except PynamoDBException as exc:
        # `cause_response_code` itself fails after a timeout, whose `response` is None.
        codes = {exc.cause_response_code if isinstance(exc.cause, ClientError) else None}
        if isinstance(exc, TransactWriteError):
            codes = {reason.code for reason in exc.cancellation_reasons if reason}
        if {str(code).removesuffix("Exception") for code in codes} & _REFUSED:
            raise refused from exc
        raise Unavailable("The database did not answer; try again.") from exc
