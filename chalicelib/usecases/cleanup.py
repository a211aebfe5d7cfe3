"""The scheduled cleanup: what was archived long enough or deleted is purged, unused uploads are dropped.

Each step finds its work anew, so that a cleanup that ended anywhere is continued by the next.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.project import Project, image_reference
from chalicelib.errors import SlipwayError
from chalicelib.ports import Services
from chalicelib.usecases import secrets
from chalicelib.usecases.builds import request_stop
from chalicelib.usecases.conflicts import isolated

log = logging.getLogger(__name__)
MAX_SECONDS = 200  # of one cleanup; the function has 240, and the next one continues
SETTLES = timedelta(hours=1)  # from a deletion to its purge: whatever handles it just now has ended by then
MAX_UPLOADS = 200  # of one cleanup
MAX_RECOUNTS = 100
UNUSED_FOR = timedelta(days=1)  # an upload is stored first and used then
SWEEP_SECONDS = 300  # a tick looks at the uploads whose hash begins with its number: 256 ticks see them all


@dataclass(slots=True)
class Cleaned:
    """What a cleanup did, or a dry run would do."""

    builds: int = 0
    projects: int = 0
    uploads: int = 0


def cleanup(services: Services, *, dry_run: bool = False) -> Cleaned:
    """Purges archived builds and projects `purge_after_days` after they were archived, and deleted ones an
    hour after that, once they have stopped; drops uploads that no project and no build has. It works until
    `MAX_SECONDS` have passed. Images stay in the registry; cached layers go with their project."""
    done = Cleaned()
    limits = _Limits.at(services)
    for key in services.archive.purgeable(limits.deleted_before, limits.archived_before):
        if services.now() >= limits.until:
            break
        with isolated(str(key)):
            if isinstance(key, BuildKey):
                build = services.builds.get(key)
                if build is not None and limits.allow(build):
                    done.builds += _purge_build(services, build, dry_run)
            else:
                project = services.projects.get(key.owner, key.name)
                if project is not None and limits.allow(project):
                    _purge_project(services, project, limits, dry_run, done)
    for place in services.projects.miscounted(services.now(), MAX_RECOUNTS) if not dry_run else ():
        with isolated(str(place)):
            services.projects.recount(place)
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


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of one cleanup: what was deleted or archived before these times may be purged."""

    deleted_before: datetime
    archived_before: datetime
    until: datetime

    @classmethod
    def at(cls, services: Services) -> _Limits:
        now = services.now()
        archived = now - timedelta(days=services.settings.purge_after_days)
        return cls(now - SETTLES, archived, now + timedelta(seconds=MAX_SECONDS))

    def allow(self, record: Build | Project) -> bool:
        """Whether it is purgeable: the index may be behind, and the record restored meanwhile."""
        if record.deleted_at is not None:
            return record.deleted_at <= self.deleted_before
        return record.archived_at is not None and record.archived_at <= self.archived_before


def _purge_build(services: Services, build: Build, dry_run: bool) -> bool:
    """Whether it was purged: what has not ended is stopped first, and a log is awaited until it is stored."""
    if build.is_done and build.look_at is None:
        if not dry_run:
            _forget(services, build)
        return True
    if not dry_run:
        request_stop(services, build.key)
    return False


def _purge_project(services: Services, project: Project, limits: _Limits, dry_run: bool, done: Cleaned) -> None:
    """Purges the project's builds and, once there are none, the project."""
    if project.deleted_at is None:
        # It is marked first, so that nobody restores half of it, and purged an hour later.
        if not dry_run:
            services.projects.save(replace(project, deleted_at=services.now()))
        return
    is_empty = True
    for key in services.archive.builds_of(project.key):
        if services.now() >= limits.until:
            return
        build = services.builds.get(key)
        if build is None or (dry_run and build.deleted_at is not None):
            continue  # the dry run counts that one by itself
        is_purged = False
        with isolated(build):
            is_purged = _purge_build(services, build, dry_run)
        done.builds += is_purged
        is_empty = is_empty and is_purged
    if is_empty:
        if not dry_run:
            services.registry.forget_cache(image_reference(services.settings.registry, project, 0))
            secrets.forget(services, project)
            services.archive.purge(project)
        done.projects += 1


def _forget(services: Services, build: Build) -> None:
    """Files first: the record is what the next cleanup finds them by. It is marked as deleted before, so that
    nobody restores half of it. Raises Conflict when it was changed meanwhile."""
    if build.deleted_at is None:
        build = services.builds.save(replace(build, deleted_at=services.now()))
    services.sources.discard(build)
    services.archive.purge(build)


def _sweep(services: Services, dry_run: bool) -> int:
    """Drops unused uploads; how many."""
    now = services.now()
    prefix = f"{int(now.timestamp()) // SWEEP_SECONDS % 256:02x}"
    count = 0
    try:
        for sha256 in services.sources.stale(now - UNUSED_FOR, prefix, MAX_UPLOADS):
            if not dry_run:
                services.code_references.begin_drop(sha256, services.now())
            if services.code_references.is_referenced(sha256, services.now()):
                if not dry_run:
                    services.code_references.end_drop(sha256)
                continue
            count += 1
            if not dry_run:
                services.sources.drop(sha256)  # the mark stays: an upload may not have looked for it yet
    except SlipwayError as error:
        log.warning("unused uploads could not be dropped: %s", error or type(error).__name__)
    return count
