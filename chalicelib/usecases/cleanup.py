"""The scheduled cleanup: purges what was deleted, or archived long enough ago, and drops unused uploads.
`domain.cleanup` lists what other services delete.

Each step searches for its work, so that the next cleanup continues one that ended anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice

from msgspec import Struct
from msgspec.structs import asdict

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.cleanup import CLEANUP, RULES, SETTLES, UNUSED_FOR, CleanupRule, Hidden, purge_at
from chalicelib.domain.project import Project, image_reference
from chalicelib.domain.record import replace
from chalicelib.domain.user import User
from chalicelib.errors import Forbidden
from chalicelib.ports import Services
from chalicelib.usecases import secrets
from chalicelib.usecases.builds import request_stop
from chalicelib.usecases.conflicts import isolated

log = logging.getLogger(__name__)
MAX_SECONDS = 200  # of one cleanup; the function has 240, and the next one continues
MAX_UPLOADS = 200  # of one cleanup
MAX_RECOUNTS = 100
MAX_SHOWN = 100  # of what goes next
SWEEP_SECONDS = 300  # a tick checks the uploads whose hash begins with its number: 256 ticks check all


class Cleaned(Struct):
    """What a cleanup did."""

    builds: int = 0
    projects: int = 0
    uploads: int = 0


def preview(services: Services, caller: User) -> tuple[Sequence[CleanupRule], Sequence[Hidden]]:
    """The rules with this deployment's settings, and at most `MAX_SHOWN` of what is purged next, in that order. Reads
    only two pages of an index. Raises Forbidden unless the caller is a superuser."""
    if not caller.is_superuser:
        raise Forbidden
    settings, now = services.settings, services.now()
    rules = []
    for rule in RULES:
        value = getattr(settings, rule.setting) if rule.setting else None
        by = rule.by if rule.by == CLEANUP or not settings.plain_http else "nobody on one machine"
        rules.append(replace(rule, goes=rule.goes.format(value), by=by))
    return rules, list(islice(services.archive.purgeable(now, now, MAX_SHOWN), MAX_SHOWN))


def cleanup(services: Services) -> Cleaned:
    """Purges builds and projects `purge_after_days` after they were archived, or an hour after they were deleted. A
    build is stopped first, if it runs. Drops uploads that no project and no build uses. Ends after about `MAX_SECONDS`.
    Images stay in the registry; the cached layers of a project are deleted with the project."""
    done = Cleaned()
    now, days = services.now(), services.settings.purge_after_days
    until = now + timedelta(seconds=MAX_SECONDS)

    def is_due(record: Build | Project) -> bool:
        """Whether the record itself is due: it may have been restored since the index was written."""
        at = purge_at(record, days)
        return at is not None and at <= now

    for hidden in services.archive.purgeable(now - SETTLES, now - timedelta(days=days)):
        if services.now() >= until:
            break
        key = hidden.key
        with isolated(str(key)):
            if isinstance(key, BuildKey):
                build = services.builds.get(key)
                if build is not None and is_due(build):
                    done.builds += _purge_build(services, build)
            else:
                project = services.projects.get(key.owner, key.name)
                if project is not None and is_due(project):
                    _purge_project(services, project, until, done)
    for place in services.projects.miscounted(services.now(), MAX_RECOUNTS):
        with isolated(str(place)):
            services.projects.recount(place)
    done.uploads = _sweep(services)
    measures = {f"{name.title()}Purged": number for name, number in asdict(done).items()}
    words = "Purged %d builds, %d projects, %d uploads."
    log.info(words, done.builds, done.projects, done.uploads, extra={"measures": measures})
    return done


def _purge_build(services: Services, build: Build) -> bool:
    """Purges the build if it has ended and its log is stored; else stops it. Returns whether it was purged.
    Raises Conflict when it was changed meanwhile."""
    if not build.is_done or build.check_at is not None:
        request_stop(services, build.key)
        return False
    if build.deleted_at is None:  # marked first, so that no user restores half of it
        build = services.builds.save(replace(build, deleted_at=services.now()))
    services.sources.discard(build)  # before the record, by which the next cleanup finds the files
    services.archive.purge(build)
    return True


def _purge_project(services: Services, project: Project, until: datetime, done: Cleaned) -> None:
    """Purges the project's builds and, once there are none, the project."""
    if project.deleted_at is None:
        # It is marked first, so that no user restores half of it, and purged an hour later.
        services.projects.save(replace(project, deleted_at=services.now()))
        return
    is_empty = True
    for key in services.archive.builds_of(project.key):
        if services.now() >= until:
            return
        build = services.builds.get(key)
        if build is None:
            continue
        is_purged = False
        with isolated(build):
            is_purged = _purge_build(services, build)
        done.builds += is_purged
        is_empty = is_empty and is_purged
    if is_empty:
        services.registry.forget_cache(image_reference(services.settings.registry, project, 0))
        secrets.forget(services, project)
        services.archive.purge(project)
        done.projects += 1


def _sweep(services: Services) -> int:
    """Drops unused uploads and returns how many."""
    now = services.now()
    prefix = f"{int(now.timestamp()) // SWEEP_SECONDS % 256:02x}"
    count = 0
    with isolated("unused uploads"):
        for sha256 in services.sources.stale(now - UNUSED_FOR, prefix, MAX_UPLOADS):
            services.code_references.begin_drop(sha256, services.now())
            if services.code_references.is_referenced(sha256, services.now()):
                services.code_references.end_drop(sha256)
                continue
            count += 1
            services.sources.drop(sha256)  # the mark stays: an upload in progress may not have checked it yet
    return count
