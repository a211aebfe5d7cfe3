"""The domain as the API's JSON. Times are ISO 8601 in UTC with `Z`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from chalicelib import schemas
from chalicelib.domain.answer import fitting
from chalicelib.domain.build import Build, StatusEntry
from chalicelib.domain.project import Project
from chalicelib.domain.user import Token, User
from chalicelib.errors import NotFound
from chalicelib.ports import BuildView, Offer
from chalicelib.usecases.accounts import NewUser
from chalicelib.usecases.logs import RETRY_SECONDS, LogPage

CLIENT_VERSION, MIN_CLIENT_VERSION = "0.6.1", "0.5.0"  # of polyaxon-cli
Row = TypeVar("Row")


def build_summary(build: Build, bookmarked: bool) -> schemas.Build:
    return schemas.Build(**_summary(build, bookmarked))


def build_detail(opened: BuildView, price_per_minute: float) -> schemas.BuildDetail:
    """A price of 0 is none."""
    build, body = opened.build, opened.body
    minutes = build.billed_minutes
    return schemas.BuildDetail(
        **_summary(build, opened.bookmarked),
        content=body.content,
        config=body.config,
        resources=build.resources,
        node_scheduled=build.node_scheduled,
        num_jobs=0,  # jobs and experiments that use the image live elsewhere
        num_experiments=0,
        dockerfile=(not build.is_managed and body.reported_dockerfile) or body.built_dockerfile,
        commit=build.commit,
        reported=_reported(opened),
        on_behalf_of=build.on_behalf_of,
        waiting_reason=build.waiting_reason if build.is_waiting else None,
        duration_seconds=build.duration_seconds,
        billed_minutes=minutes,
        estimated_cost=round(minutes * price_per_minute, 6) if minutes and price_per_minute else None,
    )


def _reported(opened: BuildView) -> schemas.Reported | None:
    """None where nothing was reported, or where what was reported is what the build shows."""
    build = opened.build
    said = schemas.Reported(
        dockerfile=opened.body.reported_dockerfile,
        backend=build.reported_backend,
        node_scheduled=build.reported_node,
        code_reference=build.code_reference,
    )
    return said if build.is_managed and any(msgspec.structs.astuple(said)) else None


def archived_build(build: Build, bookmarked: bool) -> schemas.ArchivedBuild:
    return schemas.ArchivedBuild(**_summary(build, bookmarked))


def bookmarked_build(build: Build) -> schemas.BookmarkedBuild:
    return schemas.BookmarkedBuild(build_summary(build, bookmarked=True))


def _summary(build: Build, bookmarked: bool) -> dict[str, Any]:
    return {
        "id": build.key.id,
        "uuid": build.uuid,
        "name": build.name,
        "unique_name": build.unique_name,
        "pod_id": build.pod_id,
        "user": build.user,
        "description": build.description,
        "created_at": build.created_at,
        "updated_at": build.updated_at,
        "started_at": build.started_at,
        "finished_at": build.finished_at,
        "last_status": build.last_status,
        "tags": list(build.tags) or None,
        "project": f"{build.key.owner}.{build.key.project}",
        "backend": build.backend,
        "is_managed": build.is_managed,
        "bookmarked": bookmarked,
        "image": build.image,
        "image_digest": build.image_digest,
    }


def status_entry(build: Build, entry: StatusEntry) -> schemas.StatusEntry:
    return schemas.StatusEntry(
        id=entry.id,
        uuid=entry.uuid,
        created_at=entry.created_at,
        message=entry.message,
        traceback=entry.traceback,
        status=entry.status,
        details=entry.details,
        job=build.key.id,
    )


def code_reference(build: Build) -> schemas.CodeReference:
    """What is known of the code, or blanks; what a client said counts where the build runs elsewhere."""
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
    return schemas.Project(**_project(project, bookmarked))


def project_detail(project: Project, bookmarked: bool) -> schemas.ProjectDetail:
    return schemas.ProjectDetail(
        **_project(project, bookmarked), readme=project.readme, git_url=project.git_url, num_builds=project.live_builds
    )


def bookmarked_project(found: Project) -> schemas.BookmarkedProject:
    return schemas.BookmarkedProject(project(found, bookmarked=True))


def _project(project: Project, bookmarked: bool) -> dict[str, Any]:
    return {
        "id": int(project.uuid[:13], 16),  # clients want a number; projects are found by name
        "uuid": project.uuid,
        "user": project.owner,
        "owner": project.owner,
        "name": project.name,
        "unique_name": project.unique_name,
        "description": project.description,
        "tags": list(project.tags) or None,
        "created_at": project.created_at,
        "updated_at": project.updated_at,
        "is_public": project.is_public,
        "has_code": project.code is not None or project.git_url is not None,
        "bookmarked": bookmarked,
    }


def version(component: str) -> schemas.Versions | schemas.ChartVersion:
    """The versions of Polyaxon's clients that fit. Raises NotFound for an unknown component."""
    if component == "chart":
        return schemas.ChartVersion(CLIENT_VERSION)
    if component not in ("cli", "platform", "lib"):
        raise NotFound
    return schemas.Versions(latest_version=CLIENT_VERSION, min_version=MIN_CLIENT_VERSION)


def offer(offer: Offer, url: str) -> schemas.Offer:
    """`url` is the address that offers are asked for at."""
    return schemas.Offer(
        url=offer.url, fields=dict(offer.fields), complete=f"{url.rstrip('/')}/{offer.id}", expires_at=offer.expires_at
    )


def user(user: User) -> schemas.User:
    return schemas.User(user.name, user.email, user.is_superuser)


def new_user(new: NewUser) -> schemas.NewUser:
    return schemas.NewUser(
        new.user.name, new.user.email, new.user.is_superuser, token=new.token, token_expires_at=new.expires_at
    )


def token(token: Token) -> schemas.Token:
    return schemas.Token(token.id, token.name, token.created_at, token.expires_at, token.used_on)


@dataclass(frozen=True, slots=True)
class Paging:
    """Which rows of a list a request is for, its address and query, and how many bytes an answer can have."""

    limit: int
    offset: int
    url: str
    query: Mapping[str, str]
    max_bytes: int


class PageTooLarge(Exception):
    """A page's rows exceed an answer; the first `rows` of them do not."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


def page(paging: Paging, rows: Sequence[Row], count: int) -> schemas.Page[Row]:
    """A page of a list of `count` entries; `next` stays within the largest offset. Raises PageTooLarge."""
    encoded: Any = [msgspec.Raw(msgspec.json.encode(row)) for row in rows]
    fit = max(fitting((f"{bytes(row).decode()}," for row in encoded), paging.max_bytes), 1)
    if fit < len(rows):
        raise PageTooLarge(fit)

    def link(to: int) -> str:
        return f"{paging.url}?{urlencode({**paging.query, 'limit': paging.limit, 'offset': to})}"

    after = paging.offset + paging.limit
    return schemas.Page(
        count=count,
        next=link(after) if after < count and after <= schemas.MAX_OFFSET else None,
        previous=link(max(paging.offset - paging.limit, 0)) if paging.offset > 0 else None,
        results=encoded,
    )


def log_page(page: LogPage) -> schemas.LogText | schemas.Redirect:
    """A part of a log, with where the next begins, or the address of the whole."""
    if page.url is not None:
        return schemas.Redirect(page.url, page.next_cursor)
    later = None if page.is_complete or page.is_cut else RETRY_SECONDS
    return schemas.LogText(page.text, page.next_cursor, page.is_complete, later)
