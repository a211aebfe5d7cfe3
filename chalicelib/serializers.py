"""The domain as the API's JSON. Times are ISO 8601 in UTC with `Z`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from chalicelib.domain.build import Build, Project, StatusEntry, User
from chalicelib.errors import NotFound
from chalicelib.ports import Offer, Opened
from chalicelib.usecases.accounts import NewUser

Json = dict[str, Any]
CLIENT_VERSION, MIN_CLIENT_VERSION = "0.6.1", "0.5.0"  # of polyaxon-cli


def build_summary(build: Build, bookmarked: bool) -> Json:
    """A build in a list: everything but its texts."""
    return {
        "id": build.key.id,
        "uuid": build.uuid,
        "name": build.name,
        "unique_name": build.unique_name,
        "pod_id": build.pod_id,
        "user": build.user,
        "description": build.description,
        "created_at": _time(build.created_at),
        "updated_at": _time(build.updated_at),
        "started_at": _time(build.started_at),
        "finished_at": _time(build.finished_at),
        "last_status": build.last_status,
        "tags": list(build.tags) or None,
        "project": f"{build.key.owner}.{build.key.project}",
        "backend": build.backend,
        "is_managed": build.is_managed,
        "bookmarked": bookmarked,
        "image": build.image,
        "image_digest": build.image_digest,
    }


def build_detail(opened: Opened) -> Json:
    """A build with its texts, in both layouts of its specification."""
    build, body = opened.build, opened.body
    return {
        **build_summary(build, opened.bookmarked),
        "content": body.content,
        "config": body.config,
        "resources": build.resources,
        "node_scheduled": build.node_scheduled,
        "num_jobs": 0,  # jobs and experiments that use the image live elsewhere
        "num_experiments": 0,
        "dockerfile": body.shown_dockerfile,
        "commit": build.commit,
        "on_behalf_of": build.on_behalf_of,
    }


def status_entry(build: Build, entry: StatusEntry) -> Json:
    return {
        "id": entry.id,
        "uuid": entry.uuid,
        "created_at": _time(entry.created_at),
        "message": entry.message,
        "traceback": entry.traceback,
        "status": entry.status,
        "details": entry.details,
        "job": build.key.id,
    }


def archived_build(build: Build, bookmarked: bool) -> Json:
    return {**build_summary(build, bookmarked), "deleted": True}


def code_reference(build: Build) -> Json:
    """What is known of the build's code; blank values where nothing is."""
    known = build.code_reference or {}
    source = build.source
    return {
        "id": build.key.id,
        "branch": known.get("branch"),
        "commit": known.get("commit") or build.commit,
        "head": known.get("head") or build.commit,
        "is_dirty": known.get("is_dirty", False),
        "git_url": known.get("git_url") or (source.git_url if source else None),
        "repo": None,
        "external_repo": None,
    }


def project(project: Project, bookmarked: bool) -> Json:
    """A project in a list."""
    return {
        "id": int(project.uuid[:13], 16),  # clients want a number; projects are found by name
        "uuid": project.uuid,
        "user": project.owner,
        "owner": project.owner,
        "name": project.name,
        "unique_name": project.unique_name,
        "description": project.description,
        "tags": list(project.tags) or None,
        "created_at": _time(project.created_at),
        "updated_at": _time(project.updated_at),
        "is_public": project.is_public,
        "bookmarked": bookmarked,
    }


def project_detail(found: Project, bookmarked: bool) -> Json:
    return {
        **project(found, bookmarked),
        "readme": found.readme,
        "has_code": found.code is not None or found.git_url is not None,
        "git_url": found.git_url,
        "num_builds": found.live_builds,
        # what else Polyaxon runs in projects; clients expect the fields
        "tensorboard": None,
        "notebook": None,
        "has_tensorboard": False,
        "has_notebook": False,
        "num_experiment_groups": 0,
        "num_independent_experiments": 0,
        "num_experiments": 0,
        "num_jobs": 0,
    }


def version(component: str) -> Json:
    """The versions of Polyaxon's clients that fit. Raises NotFound for an unknown component."""
    if component == "chart":
        return {"version": CLIENT_VERSION}
    if component not in ("cli", "platform", "lib"):
        raise NotFound
    return {"latest_version": CLIENT_VERSION, "min_version": MIN_CLIENT_VERSION}


def log_handler() -> Json:
    """Where clients shall report their own errors: nowhere."""
    return {"dsn": None, "environment": "production", "tags": {}}


def offer(offer: Offer, url: str) -> Json:
    """`url` is the address that offers are asked for at."""
    return {
        "url": offer.url,
        "fields": offer.fields,
        "complete": f"{url.rstrip('/')}/{offer.id}",
        "expires_at": _time(offer.expires_at),
    }


def user(user: User) -> Json:
    return {"username": user.name, "email": user.email, "is_superuser": user.is_superuser}


def new_user(new: NewUser) -> Json:
    return {**user(new.user), "token": new.token, "token_expires_at": _time(new.expires_at)}


def page(
    results: Sequence[Json], count: int, url: str, query: Mapping[str, str], offset: int, limit: int
) -> Json:
    """One page of a list; `url` is the list's absolute address, `query` what else was asked for."""

    def link(to: int) -> str:
        return f"{url}?{urlencode({**query, 'limit': limit, 'offset': to})}"

    return {
        "count": count,
        "next": link(offset + limit) if offset + limit < count else None,
        "previous": link(max(offset - limit, 0)) if offset > 0 else None,
        "results": results,
    }


def _time(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
