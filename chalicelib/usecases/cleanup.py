"""The scheduled cleanup: what was archived long enough or deleted is purged, unused uploads are dropped.

Each step finds its work anew, so that a cleanup that ended anywhere is continued by the next.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from chalicelib.domain.build import Build, BuildKey, Project
from chalicelib.errors import Conflict, SlipwayError
from chalicelib.ports import Services
from chalicelib.usecases.builds import request_stop

log = logging.getLogger(__name__)
MAX_PURGED = 200  # builds, and as many uploads, of one tick; the next one continues
UNUSED_FOR = timedelta(days=1)  # an upload is kept first and used then
SWEEP_SECONDS = 300  # a tick looks at the uploads whose hash begins with its number: 256 ticks see them all


@dataclass(slots=True)
class Cleaned:
    """What a cleanup did, or a dry run would do."""

    builds: int = 0
    projects: int = 0
    uploads: int = 0


def cleanup(services: Services, *, dry_run: bool = False) -> Cleaned:
    """Purges archived builds and projects `purge_after_days` after they were archived and deleted ones once
    they have stopped; drops uploads that no project and no build has. Images stay in the registry."""
    done = Cleaned()
    before = services.now() - timedelta(days=services.settings.purge_after_days)
    for key in services.archive.purgeable(before, MAX_PURGED):
        try:
            if isinstance(key, BuildKey):
                build = services.builds.get(key)
                if build is not None:
                    done.builds += _purge_build(services, build, before, dry_run)
            else:
                project = services.projects.get(key.owner, key.name)
                if project is not None:
                    _purge_project(services, project, before, dry_run, done)
        except Conflict:
            pass  # somebody else is at it; the next tick looks again
        except SlipwayError as error:
            log.warning("%s could not be purged: %s", key, error or type(error).__name__)
    done.uploads = _sweep(services, dry_run)
    counted = {f"{name.title()}Purged": number for name, number in asdict(done).items()}
    log.info(
        "%s %d builds, %d projects, %d uploads.",
        "A cleanup would purge" if dry_run else "Purged",
        done.builds,
        done.projects,
        done.uploads,
        extra={} if dry_run else {"measures": counted},
    )
    return done


def _purge_build(services: Services, build: Build, before: datetime, dry_run: bool) -> bool:
    """Whether it was purged. It is marked as deleted first, so that nobody restores half of it."""
    if build.deleted_at is None and (build.archived_at is None or build.archived_at > before):
        return False  # restored meanwhile: the index was behind
    if build.look_at is not None:
        return False
    if not dry_run:
        if build.deleted_at is None:
            build = services.builds.save(replace(build, deleted_at=services.now()))
        _forget(services, build)
    return True


def _purge_project(
    services: Services, project: Project, before: datetime, dry_run: bool, done: Cleaned
) -> None:
    """Purges the project's builds and, once there are none, the project."""
    if project.deleted_at is None and (project.archived_at is None or project.archived_at > before):
        return
    if not dry_run and project.deleted_at is None:
        project = services.projects.save(replace(project, deleted_at=services.now()))
    room = max(MAX_PURGED - done.builds, 0)
    keys = services.archive.builds_of(project.key, room + 1)
    remaining = len(keys) > room
    for key in keys[:room]:
        build = services.builds.get(key)
        if build is None or (dry_run and build.deleted_at is not None):
            continue  # that one is found by itself
        if not build.is_done or build.look_at is not None:
            remaining = True  # it runs, or its log is being kept
            if not dry_run:
                request_stop(services, key)
            continue
        if not dry_run:
            _forget(services, build)
        done.builds += 1
    if not remaining:
        if not dry_run:
            services.archive.purge(project)
        done.projects += 1


def _forget(services: Services, build: Build) -> None:
    """Files first: the record is what the next tick would find them by."""
    services.sources.discard(build)
    services.archive.purge(build)


def _sweep(services: Services, dry_run: bool) -> int:
    """Drops unused uploads; how many."""
    now = services.now()
    prefix = f"{int(now.timestamp()) // SWEEP_SECONDS % 256:02x}"
    count = 0
    try:
        for sha256 in services.sources.stale(now - UNUSED_FOR, prefix, MAX_PURGED):
            if services.code_references.is_referenced(sha256):
                continue
            if not dry_run:
                services.sources.drop(sha256)
            count += 1
    except SlipwayError as error:
        log.warning("unused uploads could not be dropped: %s", error or type(error).__name__)
    return count
