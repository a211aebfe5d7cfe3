"""`Projects` on DynamoDB."""

from collections.abc import Sequence
from datetime import datetime

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.code_references import refer
from chalicelib.adapters.dynamodb.keys import format_instant
from chalicelib.adapters.dynamodb.table import Item, answered, get, list_and_count, update
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.record import replace
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
        if project.code is not None:  # first, because the cleanup deletes archives without a reference
            refer(project.code.sha256, project.key, project.updated_at)
        is_unchanged = (Item.version == project.version) & records.is_same(project)
        update(keys.record_key(project.key), records.set_columns(records.project_columns(new)), is_unchanged)
        return new

    def list_projects(self, owner: str, offset: int, limit: int, *, public: bool) -> tuple[Sequence[Project], int]:
        shown = (Item.public == 1) if public else None
        items, count = list_and_count(keys.live_projects(owner), offset, limit, shown)
        return [records.decode_project(item) for item in items], count

    def miscounted(self, now: datetime, limit: int) -> Sequence[ProjectKey]:
        with answered():
            due = Item.check_at <= format_instant(now)
            found = list(Item.by_active.query(keys.MISCOUNTED, due, limit=limit))
        return [ProjectKey(*item.pk.removeprefix("P#").split("/")) for item in found]

    def recount(self, project: ProjectKey) -> None:
        item = get(keys.record_key(project))
        if item is None or item.active != keys.MISCOUNTED:
            return
        with answered():
            live = Item.by_recent.count(keys.builds(project))
        is_unchanged = (Item.last_build_id == item.last_build_id) & (Item.live_builds == item.live_builds)
        counted = [Item.live_builds.set(live), Item.active.remove(), Item.check_at.remove()]
        update(keys.record_key(project), counted, is_unchanged & (Item.active == keys.MISCOUNTED))
