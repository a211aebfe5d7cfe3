"""`CodeReferences` on DynamoDB: a row for each pair of an archive and a project or build that uses or used it."""

from datetime import datetime, timedelta

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.keys import format_instant
from chalicelib.adapters.dynamodb.table import Item, answered, get, query
from chalicelib.domain.build import BuildKey
from chalicelib.domain.cleanup import SETTLES
from chalicelib.domain.project import ProjectKey

DROP_COUNTS = timedelta(minutes=10)  # longer than a cleanup and an upload together


class DynamoCodeReferences:
    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        if get(keys.code_reference_key(code_sha256, project)):
            return True
        with answered():
            of_builds = Item.sk.startswith(keys.code_reference_of_builds(project))
            rows = Item.query(keys.code_references(code_sha256), of_builds, limit=1)
            return next(iter(rows), None) is not None

    def is_referenced(self, code_sha256: str, now: datetime) -> bool:
        rows = [row for row in query(keys.code_references(code_sha256), limit=20) if row.sk != keys.DROP]
        for row in rows:
            if _has_code(keys.parse_reference_sk(row.sk), code_sha256):
                return True
            if row.updated_at is None or row.updated_at < format_instant(now - SETTLES):
                with answered():
                    row.delete()
        return bool(rows)

    def note(self, code_sha256: str, project: ProjectKey, now: datetime) -> None:
        refer(code_sha256, project, now)

    def begin_drop(self, code_sha256: str, now: datetime) -> None:
        with answered():
            forget_at = int((now + SETTLES).timestamp())
            Item(*keys.drop_key(code_sha256), updated_at=format_instant(now), ttl=forget_at).save()

    def end_drop(self, code_sha256: str) -> None:
        with answered():
            Item(*keys.drop_key(code_sha256)).delete()

    def is_being_dropped(self, code_sha256: str, now: datetime) -> bool:
        row = get(keys.drop_key(code_sha256))
        return row is not None and (row.updated_at or "") > format_instant(now - DROP_COUNTS)


def refer(code_sha256: str, key: BuildKey | ProjectKey, now: datetime) -> None:
    """Notes that a build or project uses this code, or is about to."""
    with answered():
        Item(*keys.code_reference_key(code_sha256, key), updated_at=format_instant(now)).save()


def _has_code(key: BuildKey | ProjectKey, code_sha256: str) -> bool:
    item = get(keys.record_key(key))
    if item is None:
        return False
    if isinstance(key, BuildKey):  # may be another build, of a later project with the same name
        source = records.decode_build(item).source
        return source is not None and source.code_sha256 == code_sha256
    code = records.decode_project(item).code
    return code is not None and code.sha256 == code_sha256
