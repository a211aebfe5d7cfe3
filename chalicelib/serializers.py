"""Converts domain objects to the API's JSON. Times are ISO 8601 in UTC with `Z`."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from chalicelib import schemas
from chalicelib.domain.build import Build, StatusEntry
from chalicelib.domain.cleanup import CleanupRule, Hidden, purge_at
from chalicelib.domain.project import Project
from chalicelib.errors import NotFound
from chalicelib.ports import Announcement, BuildView, Services
from chalicelib.usecases.accounts import NewUser

CLIENT_VERSION, MIN_CLIENT_VERSION = "0.6.1", "0.5.0"  # of polyaxon-cli
Shown = TypeVar("Shown", bound=msgspec.Struct)


def build_summary(build: Build, bookmarked: bool) -> schemas.Build:
    return _build(schemas.Build, build, bookmarked)


def build_detail(opened: BuildView, services: Services) -> schemas.BuildDetail:
    """A build with all fields; without an estimated cost if the price is 0."""
    build, body, price_per_minute = opened.build, opened.body, services.settings.price_per_minute
    minutes = build.billed_minutes
    return _build(
        schemas.BuildDetail,
        build,
        opened.bookmarked,
        content=body.content,
        config=body.config,
        dockerfile=(not build.is_managed and body.reported_dockerfile) or body.built_dockerfile,
        reported=_reported(opened),
        estimated_cost=round(minutes * price_per_minute, 6) if minutes and price_per_minute else None,
        purge_at=purge_at(build, services.settings.purge_after_days),
    )


def _reported(opened: BuildView) -> schemas.Reported | None:
    """Reported values; None if there are none, or if the build itself shows them."""
    build = opened.build
    said = schemas.Reported(
        dockerfile=opened.body.reported_dockerfile,
        backend=build.reported_backend,
        node_scheduled=build.reported_node,
        code_reference=build.code_reference,
    )
    return said if build.is_managed and any(msgspec.structs.astuple(said)) else None


def archived_build(services: Services, build: Build, bookmarked: bool) -> schemas.ArchivedBuild:
    due_at = purge_at(build, services.settings.purge_after_days)
    return _build(schemas.ArchivedBuild, build, bookmarked, purge_at=due_at)


def cleanup(rules: Sequence[CleanupRule], due: Sequence[Hidden], services: Services) -> schemas.Cleanup:
    days = services.settings.purge_after_days
    return schemas.Cleanup(
        list(rules),
        [schemas.Purge(str(it.key), "deleted" if it.deleted_at else "archived", purge_at(it, days)) for it in due],
    )


def _build(kind: type[Shown], build: Build, bookmarked: bool, **more: Any) -> Shown:
    more |= {"id": build.key.id, "tags": list(build.tags) or None, "bookmarked": bookmarked}
    more |= {"project": f"{build.key.owner}.{build.key.project}"}
    more |= {"waiting_reason": build.waiting_reason if build.is_waiting else None}
    more |= {"num_jobs": 0, "num_experiments": 0}  # Slipway has neither jobs nor experiments
    return shown(kind, build, **more)


def shown(kind: type[Shown], record: object, **given: Any) -> Shown:
    """Makes an instance of `kind`. A field's value is from `given`, else the record's attribute, else its default."""
    names = [name for name in kind.__struct_fields__ if name not in given and hasattr(record, name)]
    return kind(**{name: getattr(record, name) for name in names}, **given)


def status_entry(build: Build, entry: StatusEntry) -> schemas.StatusEntry:
    return shown(schemas.StatusEntry, entry, job=build.key.id)


def announcement(build: Build, entry: StatusEntry) -> Announcement:
    kind = f"build.{entry.status}"
    data = schemas.EventData(status_entry(build, entry), build_summary(build, bookmarked=False))
    event = schemas.BuildEvent(entry.uuid, kind, entry.created_at, data)
    return Announcement(entry.uuid, kind, entry.created_at, msgspec.json.encode(event).decode())


def code_reference(build: Build) -> schemas.CodeReference:
    """The code of a build; if the build runs elsewhere, as a client has reported it."""
    known = (not build.is_managed and build.code_reference) or {}
    source = build.source
    return schemas.CodeReference(
        id=build.key.id,
        branch=known.get("branch"),
        commit=known.get("commit") or build.commit,
        head=known.get("head") or build.commit,
        is_dirty=known.get("is_dirty", False),
        git_url=known.get("git_url") or (source.git_url if source else None),
    )


def project(project: Project, bookmarked: bool) -> schemas.Project:
    return _project(schemas.Project, project, bookmarked)


def project_detail(project: Project, bookmarked: bool) -> schemas.ProjectDetail:
    return _project(schemas.ProjectDetail, project, bookmarked, num_builds=project.live_builds)


def _project(kind: type[Shown], project: Project, bookmarked: bool, **more: Any) -> Shown:
    number = int(project.uuid[:13], 16)  # clients expect a number; Slipway finds projects by name
    tags, has_code = list(project.tags) or None, project.code is not None or project.git_url is not None
    more |= {"id": number, "user": project.owner, "tags": tags, "has_code": has_code, "bookmarked": bookmarked}
    return shown(kind, project, **more)


def version(component: str, slipway: str) -> schemas.Versions | schemas.Version:
    """The versions of a client of Polyaxon that work here, or Slipway's own. Raises NotFound for other components."""
    if component in ("chart", "slipway"):
        return schemas.Version(CLIENT_VERSION if component == "chart" else slipway)
    if component not in ("cli", "platform", "lib"):
        raise NotFound
    return schemas.Versions(latest_version=CLIENT_VERSION, min_version=MIN_CLIENT_VERSION)


def new_user(new: NewUser) -> schemas.NewUser:
    return shown(schemas.NewUser, new.user, username=new.user.name, token=new.token, token_expires_at=new.expires_at)
