"""`Projects` on DynamoDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.code_references import refer
from chalicelib.adapters.dynamodb.table import Item, answered, get, list_and_count
from chalicelib.domain.build import Project, ProjectKey
from chalicelib.errors import AlreadyExists


class DynamoProjects:
    def get(self, owner: str, name: str) -> Project | None:
        item = get(keys.record_key(ProjectKey(owner, name)))
        return records.decode_project(item) if item else None

    def add(self, project: Project) -> None:
        with answered(refused=AlreadyExists):
            new = replace(project, last_build_id=0, live_builds=0)
            records.encode_project(new).save(Item.pk.does_not_exist())

    def save(self, project: Project) -> Project:
        new = replace(project, version=project.version + 1)
        if project.code is not None:  # first: the cleanup drops archives without a reference
            refer(project.code.sha256, project.key)
        with answered():
            item = Item(*keys.record_key(project.key))
            item.update(records.set_columns(records.project_columns(new)), Item.version == project.version)
        return new

    def list_projects(
        self, owner: str, offset: int, limit: int, *, public: bool
    ) -> tuple[Sequence[Project], int]:
        shown = (Item.public == 1) if public else None
        items, count = list_and_count(keys.live_projects(owner), offset, limit, shown)
        return [records.decode_project(item) for item in items], count
