"""Operations of users on projects."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.build_request import checked_fields
from chalicelib.domain.project import Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.user import User, may_read, may_write
from chalicelib.errors import AlreadyExists, Forbidden, Invalid, NotFound
from chalicelib.ports import Services
from chalicelib.usecases.conflicts import retry_on_conflict

Record = TypeVar("Record", Build, Project)
STOPPED_AT_ONCE = 100  # builds of an archived project, newest change first; the schedule finds the others


class Page(Struct, Generic[Record], frozen=True):
    """Projects or builds of one page, which of them the caller bookmarked, and how many there are in all, or may be at
    least."""

    records: Sequence[Record] = ()
    bookmarked: frozenset[ProjectKey | BuildKey] = frozenset()
    count: int = 0
    is_minimum: bool = False


def create(services: Services, caller: User, fields: dict[str, Any]) -> Project:
    """Creates a project of the caller. Raises Invalid."""
    name = fields.get("name")
    if not name:
        raise Invalid({"name": ["This field is required."]})
    now = services.now()
    blank = Project(owner=caller.name, name=name, uuid=uuid.uuid4().hex, created_at=now, updated_at=now)
    project = _changed(replace(blank, is_public=services.settings.projects_are_public), fields)
    try:
        services.projects.add(project)
    except AlreadyExists as exc:
        raise Invalid([f"A project with name `{project.name}` already exists."]) from exc
    return project


def open_project(services: Services, caller: User, owner: str, name: str, *, archived: bool = False) -> Project:
    """A project that the caller may see; an archived one only with `archived`. Raises NotFound, Forbidden."""
    project = services.projects.get(owner, name)
    if project is None or project.deleted_at or (project.archived_at and not archived):
        raise NotFound
    if not may_read(caller, owner, project.is_public):
        raise Forbidden
    return project


def writable(services: Services, caller: User, owner: str, name: str, *, archived: bool = False) -> Project:
    """Like `open_project`, but the caller must have the right to change the project."""
    project = open_project(services, caller, owner, name, archived=archived)
    if not may_write(caller, owner):
        raise Forbidden
    return project


def page(services: Services, caller: User, owner: str, offset: int, limit: int) -> Page[Project]:
    """The live projects of an owner that the caller may see, newest change first. Raises NotFound."""
    if services.accounts.user(owner) is None:
        raise NotFound
    projects, count = services.projects.list_projects(owner, offset, limit, public=not may_write(caller, owner))
    return Page(projects, services.bookmarks.among(caller.name, [project.key for project in projects]), count)


def is_bookmarked(services: Services, caller: User, project: Project) -> bool:
    return project.key in services.bookmarks.among(caller.name, [project.key])


def update(services: Services, caller: User, owner: str, name: str, fields: dict[str, Any]) -> Project:
    """Changes a project; ignores other fields. Raises NotFound, Forbidden, Invalid."""
    if fields.get("name") not in (None, name):
        raise Invalid({"name": ["A project keeps its name: its builds and images are found by it."]})
    project = writable(services, caller, owner, name)
    others = {**fields, "name": None}
    return save(services, project, lambda known: replace(_changed(known, others), updated_at=services.now()))


def archive(services: Services, caller: User, owner: str, name: str, *, delete: bool = False) -> None:
    """Hides a project, and hides and stops its builds; `delete` lets all be purged. Raises NotFound, Forbidden."""
    now = services.now()
    project = writable(services, caller, owner, name, archived=not delete)

    def hide(project: Project) -> Project:
        deleted_at = now if delete else project.deleted_at
        return replace(project, archived_at=project.archived_at or now, deleted_at=deleted_at)

    save(services, project, hide)
    for build in services.builds.list_builds(project.key, 0, STOPPED_AT_ONCE):
        if not build.is_done:
            services.queue.announce(build.key)  # its handler sees that the project is archived, and stops it


def restore(services: Services, caller: User, owner: str, name: str) -> None:
    """Restores an archived project; its builds stay stopped. Raises NotFound, Forbidden."""
    project = writable(services, caller, owner, name, archived=True)
    save(services, project, lambda project: replace(project, archived_at=None))


def bookmark(services: Services, caller: User, owner: str, name: str) -> None:
    """Idempotent. Raises NotFound, Forbidden."""
    services.bookmarks.add(caller.name, open_project(services, caller, owner, name).key, services.now())


def unbookmark(services: Services, caller: User, owner: str, name: str) -> None:
    """Idempotent. Raises NotFound, also when the caller never bookmarked it; Forbidden."""
    if not services.bookmarks.remove(caller.name, open_project(services, caller, owner, name).key):
        raise NotFound


def bookmarked(
    services: Services, caller: User, user: str, offset: int, limit: int, *, ascending: bool
) -> Page[Project]:
    """A user's bookmarked projects, latest first; none if the caller may not see them. Raises NotFound."""
    if not may_list(services, caller, user):
        return Page()
    projects, count = services.bookmarks.list_projects(user, offset, limit, ascending=ascending)
    shown = [each for each in projects if may_read(caller, each.owner, each.is_public)]
    return Page(shown, frozenset(project.key for project in shown), count)


def may_list(services: Services, caller: User, user: str) -> bool:
    """Whether the caller may see the private lists of a user. Raises NotFound if there is no such user."""
    if services.accounts.user(user) is None:
        raise NotFound
    return caller.is_superuser or caller.name == user


@retry_on_conflict
def save(services: Services, project: Project, change: Callable[[Project], Project]) -> Project:
    """Applies `change` to the stored project. Raises NotFound, Conflict, and the errors of `change`."""
    stored = services.projects.get(project.owner, project.name)
    if stored is None:
        raise NotFound
    return services.projects.save(change(stored))


def _changed(project: Project, fields: dict[str, Any]) -> Project:
    is_public, reuse = fields.get("is_public"), fields.get("reuse")
    return replace(
        project,
        tags=checked_fields(fields, project.tags, "readme", "is_public", "reuse"),
        description=fields.get("description", project.description),
        readme=fields.get("readme", project.readme),
        is_public=project.is_public if is_public is None else is_public,
        reuse=project.reuse if reuse is None else reuse,
    )
