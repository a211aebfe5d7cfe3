"""`CodeReferences` on DynamoDB: a row for each project and build that has, or had, an archive."""

from __future__ import annotations

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item, answered, get
from chalicelib.domain.build import BuildKey, ProjectKey


class DynamoCodeReferences:
    def has_code(self, project: ProjectKey, code_sha256: str) -> bool:
        if get(keys.code_reference_key(code_sha256, project)):
            return True
        with answered():
            of_builds = Item.sk.startswith(keys.code_reference_of_builds(project))
            rows = Item.query(keys.code_references(code_sha256), of_builds, limit=1)
            return next(iter(rows), None) is not None

    def is_referenced(self, code_sha256: str) -> bool:
        with answered():
            rows = list(Item.query(keys.code_references(code_sha256), consistent_read=True, limit=20))
        for row in rows:
            if _has_code(keys.parse_code_reference_key(row.sk), code_sha256):
                return True
            with answered():
                row.delete()
        return bool(rows)


def refer(code_sha256: str, key: BuildKey | ProjectKey) -> None:
    """Notes that a build or project has this code."""
    with answered():
        Item(*keys.code_reference_key(code_sha256, key)).save()


def _has_code(key: BuildKey | ProjectKey, code_sha256: str) -> bool:
    item = get(keys.record_key(key))
    if item is None or isinstance(key, BuildKey):
        return item is not None
    code = records.decode_project(item).code
    return code is not None and code.sha256 == code_sha256
