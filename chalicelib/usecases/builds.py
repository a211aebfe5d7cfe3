"""Operations of users on builds."""

import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from chalicelib.domain import lifecycle
from chalicelib.domain.build import CODEBUILD, EKS, MAX_TEXTS_BYTES, Build, BuildBody, BuildKey, Source, StatusEntry
from chalicelib.domain.build_request import BuildRequest, changed, parse_request
from chalicelib.domain.cleanup import REMEMBERED
from chalicelib.domain.environment import MACHINES, Placement, check_resources, placement
from chalicelib.domain.project import Project, ProjectKey, image_reference
from chalicelib.domain.query import is_default_order, parse_query, sorted_builds
from chalicelib.domain.record import replace
from chalicelib.domain.reuse import bases_of, recipe_of, reusing
from chalicelib.domain.spec import ONLY_BUILDS
from chalicelib.domain.user import User, may_read, may_write
from chalicelib.errors import Forbidden, Invalid, NotFound, Unavailable, refuse, require
from chalicelib.ports import BuildView, IdempotencyKey, Services
from chalicelib.usecases import projects, secrets, slots
from chalicelib.usecases.conflicts import log_change, retry_on_conflict
from chalicelib.usecases.projects import Page, may_list, open_project
from chalicelib.usecases.sources import source_of

MAX_EQUAL = 3  # builds with the same recipe whose image is searched, the newest ones
MAX_EXAMINED = 5_000  # builds that a query reads: about 5 MB of index
READ_AHEAD = 500  # builds that are read before it is known whether the caller may see them


def create(
    services: Services,
    caller: User,
    owner: str,
    project_name: str,
    fields: dict[str, Any],
    *,
    once: str | None = None,
    on_behalf_of: str | None = None,
    reply_to: str | None = None,
    reply_about: str | None = None,
    rebuild_of: int | None = None,
) -> BuildView:
    """Records a build and announces it. Raises NotFound, Forbidden, Invalid; nothing is stored then. What is built
    the fields say, or the build `rebuild_of` of the project: then they say no more than `nocache`.

    `once` is the caller's idempotency key. A repetition with it within `REMEMBERED` returns the build in its current
    state, and announces it again if the first request may not have. Raises KeyReused if the key was used with another
    request.
    """
    project = projects.writable(services, caller, owner, project_name)
    mark = None if once is None else idempotency_key(services, project, once, fields)
    if again := _replayed(services, caller, project, mark):
        return again
    if rebuild_of is None:
        asked = parse_request(fields)
        source, commit, body = _made_of(services, project, asked)
    else:
        opened = writable(services, caller, BuildKey(owner, project_name, rebuild_of))
        asked, source, commit, body = _made_again(services, opened, fields)
    spec = asked.spec
    executor = _executor(services, asked)
    placement = _checked(services, asked, executor)  # the last check: a refused request takes no id
    now = services.now()
    number = services.builds.next_id(project, now)
    look_again = timedelta(seconds=services.settings.look_again_seconds)
    build = Build(
        key=BuildKey(owner, project_name, number),
        uuid=uuid.uuid4().hex,
        user=caller.name,
        created_at=now,
        updated_at=now,
        backend=asked.backend,
        executor=executor,
        nonce=uuid.uuid4().hex,
        image=image_reference(services.settings.registry, project, number),
        history=(lifecycle.first_entry(now),),
        description=asked.description,
        tags=asked.tags,
        is_managed=asked.is_managed,
        image_tags=spec.image_tags if spec and asked.is_managed else (),
        nocache=asked.nocache or project.must_build_afresh,
        resources=spec.environment.resources if spec else None,
        placement=placement,
        commit=commit if asked.is_managed else None,
        source=source,
        on_behalf_of=on_behalf_of,
        reply_to=reply_to,
        reply_about=reply_about,
        rebuild_of=rebuild_of,
        check_at=now + (look_again if asked.is_managed else lifecycle.HEARTBEAT),
    )

    if asked.is_managed and (project.reuse if asked.reuse is None else asked.reuse):
        build = _reusing(services, project, build, body)

    def add() -> BuildView:
        if again := _replayed(services, caller, project, mark):
            return again
        added = services.builds.add(build, body, asked.name, mark)
        if added.is_managed and not added.is_done:
            services.queue.announce(added.key)
        return BuildView(added, body, project, bookmarked=False)

    return retry_on_conflict(add)()


def preview(services: Services, caller: User, owner: str, project_name: str, fields: dict[str, Any]) -> str | None:
    """The Dockerfile of the build that `create` would make; None if it is in a git repository, or if the build runs
    elsewhere: then only the fields are checked. Raises as `create`; nothing is stored."""
    project, asked = projects.writable(services, caller, owner, project_name), parse_request(fields)
    return _made_of(services, project, asked)[2].dockerfile if asked.is_managed else None


def _made_of(services: Services, project: Project, asked: BuildRequest) -> tuple[Source | None, str | None, BuildBody]:
    """The inputs of a build: its code, the commit, and its texts. Raises Invalid."""
    spec, body, source, commit = asked.spec, BuildBody(asked.content), None, None
    if spec is not None:
        source, commit, dockerfile = source_of(services, project, spec)
        secrets.check(services, project, spec)
        build_args, mounts = dict(spec.build_args) or None, dict(spec.secrets) or None
        body = BuildBody(asked.content, spec.config, dockerfile, build_args, mounts)
    require(not body.is_too_large, f"The specification and its Dockerfile exceed {MAX_TEXTS_BYTES} bytes.")
    return source, commit, body


def _made_again(
    services: Services, opened: BuildView, fields: dict[str, Any]
) -> tuple[BuildRequest, Source | None, str | None, BuildBody]:
    """The request for a build with the specification of another, and what it is made of: the other's upload, or
    its commit of the same repository, and never other code. Raises Invalid."""
    build, body, source = opened.build, opened.body, opened.build.source
    require(build.is_managed, "The build ran elsewhere, so it cannot be made again here.")
    repeated = {"description": build.description, "tags": [*build.tags], "backend": build.backend, "reuse": False}
    asked = parse_request({"content": body.content, "nocache": fields.get("nocache"), **repeated})
    if asked.spec is not None:
        secrets.check(services, opened.project, asked.spec)
    if source is not None and source.git_url is not None:
        if source.git_url != opened.project.git_url:
            raise Invalid([f"The build's code is of {source.git_url}, which the project does not use any more."])
        source = replace(source, git_revision=build.commit or source.git_revision)
    return asked, source, build.commit, replace(body, found_dockerfile=None, reported_dockerfile=None)


def _reusing(services: Services, project: Project, build: Build, body: BuildBody) -> Build:
    """The build, ended with the image of an equal build; or as it was, with a first status that says why not."""
    hosts, registry = services.settings.public_registries.split(), services.registry
    try:
        digests = dict.fromkeys(bases_of(build, body), "")
        for name in digests:
            digests[name] = name.partition("@")[2] or registry.base_digest(name, build.image, hosts) or ""
            require(digests[name], f"No registry says what `{name[:100]}` is.")
        build = replace(build, recipe=recipe_of(build, body, services.settings.platforms[build.executor], digests))
        require(not build.nocache, "It is to be built without cached layers.")
        for other in services.builds.equal(build, MAX_EQUAL):
            is_valid = other.key.id > project.valid_after_build and other.archived_at is None and other.image_digest
            image = registry.find(other.image) if is_valid and other.recipe == build.recipe else None
            if image is not None and image.digest == other.image_digest:
                return reusing(build, other)
        refuse("No valid build of the project is equal to it and has its image.")
    except (Invalid, Unavailable) as error:
        first = replace(build.history[0], message=f"No image was reused. {error}"[: lifecycle.MAX_MESSAGE])
        return replace(build, history=(first,))


def refuse_other_kinds(services: Services, caller: User, owner: str, project_name: str) -> NoReturn:
    """Refuses a polyaxonfile whose kind is not `build`. Raises NotFound, Forbidden, else Invalid."""
    projects.writable(services, caller, owner, project_name)
    refuse(ONLY_BUILDS)


def idempotency_key(services: Services, project: Project, once: str, fields: dict[str, Any]) -> IdempotencyKey:
    """The caller's key of a request, made unique for the project, with the hash of the request's fields."""
    now = services.now()
    request = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    # with the uuid, because a later project may have the same name
    return IdempotencyKey(f"{project.uuid}:{once}", request, now, now + REMEMBERED)


def _replayed(services: Services, caller: User, project: Project, mark: IdempotencyKey | None) -> BuildView | None:
    """The build that an earlier request with this key made, if any. Raises KeyReused; NotFound if it was purged."""
    key = None if mark is None else services.builds.replay(project.key, mark)
    if key is None:
        return None
    view = services.builds.open(key, caller.name)
    if view is None:
        raise NotFound(f"Build {key} was made with this idempotency key, and was purged since.")
    announce_again(services, view.build)
    return replace(view, is_replay=True)


def announce_again(services: Services, build: Build) -> None:
    """Announces the build unless a handler has it already: the first announcement may have been lost."""
    if build.is_managed and build.attempt == 0 and not build.is_done:
        services.queue.announce(build.key)


def page(
    services: Services, caller: User, owner: str, name: str, offset: int, limit: int, *, query: str = "", sort: str = ""
) -> Page[Build]:
    """The live builds of a project, newest change first. With a query or another order, page and count only consider
    the `MAX_EXAMINED` builds that changed last. Raises NotFound, Forbidden, Invalid."""
    matches, of = parse_query(query), ProjectKey(owner, name)
    is_whole = matches is None and is_default_order(sort)
    first, most = (offset, limit) if is_whole else (0, MAX_EXAMINED)
    if first + most > READ_AHEAD:
        open_project(services, caller, owner, name)
    listed = services.aside(lambda: services.builds.list_builds(of, first, most))
    project = open_project(services, caller, owner, name)
    builds, count = listed(), project.live_builds
    is_minimum = not is_whole and len(builds) == MAX_EXAMINED
    if not is_whole:
        found = [build for build in builds if matches is None or matches(build)]
        builds, count = sorted_builds(found, sort)[offset : offset + limit], len(found)
    bookmarked = services.bookmarks.among(caller.name, [build.key for build in builds])
    return Page(slots.with_places(services, builds), bookmarked, count, is_minimum)


def get(services: Services, caller: User, key: BuildKey, *, archived: bool = False) -> BuildView:
    """A build that the caller may see; an archived one only with `archived`. Raises NotFound, Forbidden."""
    return _visible(services.builds.open(key, caller.name), caller, archived=archived)


def look(services: Services, caller: User, key: BuildKey) -> BuildView:
    """`get` for callers that only show the build, which may be a second old. Errors come from current data."""
    with suppress(NotFound, Forbidden):
        return _visible(services.builds.open(key, caller.name, may_lag=True), caller)
    return get(services, caller, key)


def detail(services: Services, caller: User, key: BuildKey) -> BuildView:
    """`look`, with the place in line of a build that waits."""
    opened = look(services, caller, key)
    return replace(opened, build=slots.with_places(services, [opened.build])[0])


def _visible(opened: BuildView | None, caller: User, *, archived: bool = False) -> BuildView:
    if opened is None or opened.project.archived_at or opened.build.deleted_at:
        raise NotFound
    if opened.build.archived_at and not archived:
        raise NotFound
    if not may_read(caller, opened.project.owner, opened.project.is_public):
        raise Forbidden
    return opened


def status(services: Services, caller: User, key: BuildKey, uuid: str) -> tuple[Build, StatusEntry]:
    """One status of a build's history. Raises NotFound, Forbidden."""
    build = look(services, caller, key).build
    for entry in build.history:
        if entry.uuid == uuid:
            return build, entry
    raise NotFound


@retry_on_conflict
def update(
    services: Services, caller: User, key: BuildKey, fields: dict[str, Any], *, whole: bool = False
) -> BuildView:
    """Changes a build. Fields that cannot be changed are ignored, since clients send back what they got. With `whole`
    (PUT), a request without `name` removes the name. Raises NotFound, Forbidden, Invalid."""
    if whole:
        fields = {"name": None, **fields}
    opened = writable(services, caller, key)
    build, body = changed(opened.build, fields), opened.body
    if "dockerfile" in fields:
        body = replace(body, reported_dockerfile=fields["dockerfile"])
    if (build, body) == (opened.build, opened.body):
        return opened
    new = replace(build, updated_at=max(services.now(), build.updated_at))
    written = body if body != opened.body else None
    if build.name != opened.build.name:
        new = services.builds.rename(replace(new, name=opened.build.name), build.name, written)
    else:
        new = services.builds.save(new, written)
    return replace(opened, build=new, body=body)


def stop(services: Services, caller: User, key: BuildKey) -> None:
    """Requests the stop of a build; does nothing if it has ended. Raises NotFound, Forbidden."""
    request_stop(services, key, lambda: writable(services, caller, key).build)


def archive(services: Services, caller: User, key: BuildKey, *, delete: bool = False) -> None:
    """Hides the build and requests its stop, in one write. With `delete` it will be purged soon; otherwise it can be
    restored until the cleanup purges it. Idempotent. Raises NotFound, Forbidden."""

    def write() -> bool:
        build = writable(services, caller, key, archived=not delete).build
        if build.archived_at is not None:
            return False
        now = services.now()
        hidden = replace(build, archived_at=now, deleted_at=now if delete else None, updated_at=now)
        stopped = services.archive.archive(lifecycle.request_stop(hidden, now) or hidden)
        return not log_change(build, stopped).is_done

    if retry_on_conflict(write)():
        services.queue.announce(key)


@retry_on_conflict
def restore(services: Services, caller: User, key: BuildKey) -> None:
    """Restores an archived build; idempotent. Raises NotFound, Forbidden."""
    build = writable(services, caller, key, archived=True).build
    if build.archived_at is not None:
        services.archive.restore(replace(build, archived_at=None, updated_at=services.now()))


def archived(services: Services, caller: User, user: str, offset: int, limit: int) -> Page[Build]:
    """A user's archived builds, newest change first; none if the caller may not see them. Raises NotFound."""
    if not may_list(services, caller, user):
        return Page()
    builds, count = services.archive.list_archived(user, offset, limit)
    shown = _readable(services, caller, builds)
    return Page(shown, services.bookmarks.among(caller.name, [build.key for build in shown]), count)


def bookmarked(services: Services, caller: User, user: str, offset: int, limit: int, *, ascending: bool) -> Page[Build]:
    """A user's bookmarked builds, latest first; none if the caller may not see them. Raises NotFound."""
    if not may_list(services, caller, user):
        return Page()
    builds, count = services.bookmarks.list_builds(user, offset, limit, ascending=ascending)
    shown = _readable(services, caller, builds)
    return Page(shown, frozenset(build.key for build in shown), count)


def _readable(services: Services, caller: User, builds: Sequence[Build]) -> Sequence[Build]:
    """The builds that the caller may see: a project may have become private, or was deleted."""
    shown = set()
    for place in {build.key.project_key for build in builds}:
        with suppress(NotFound, Forbidden):
            shown.add(open_project(services, caller, place.owner, place.name, archived=True).key)
    return [build for build in builds if build.key.project_key in shown]


def invalidate(services: Services, caller: User, key: BuildKey) -> None:
    """Invalidates the cached layers of the project: its builds use no cached layers until one of them has succeeded.
    Raises NotFound, Forbidden."""
    _invalidate(services, writable(services, caller, key).project, key.id)


def bookmark(services: Services, caller: User, key: BuildKey) -> None:
    """Idempotent. Raises NotFound, Forbidden."""
    services.bookmarks.add(caller.name, get(services, caller, key).build.key, services.now())


def unbookmark(services: Services, caller: User, key: BuildKey) -> None:
    """Idempotent. Raises NotFound, also when the caller never bookmarked it; Forbidden."""
    if not services.bookmarks.remove(caller.name, get(services, caller, key).build.key):
        raise NotFound


def invalidate_all(services: Services, caller: User, owner: str, project_name: str) -> None:
    """`invalidate` for all builds until now. Raises NotFound, Forbidden."""
    project = projects.writable(services, caller, owner, project_name)
    _invalidate(services, project, project.last_build_id)


def _invalidate(services: Services, project: Project, last: int) -> None:
    projects.save(services, project, lambda known: replace(known, valid_after_build=max(known.valid_after_build, last)))


def request_stop(services: Services, key: BuildKey, read: Callable[[], Build | None] | None = None) -> None:
    """Marks a build as to be stopped and announces it; does nothing if it has ended. `read` returns the build, and is
    called again after each Conflict; by default it reads the record."""

    def write() -> bool:
        build = read() if read else services.builds.get(key)
        stopping = build and lifecycle.request_stop(build, services.now())
        if build is None or stopping is None:
            return False
        return not log_change(build, services.builds.save(stopping)).is_done

    if retry_on_conflict(write)():
        services.queue.announce(key)


def writable(services: Services, caller: User, key: BuildKey, *, archived: bool = False) -> BuildView:
    """Like `get`, but the caller must have the right to change the build."""
    opened = get(services, caller, key, archived=archived)
    if not may_write(caller, key.owner):
        raise Forbidden
    return opened


def _executor(services: Services, request: BuildRequest) -> str:
    """The executor of a build: that of its backend, else the default one, else one with its platform. Raises Invalid
    when this deployment does not offer the backend or the platform."""
    default, offered = services.settings.backend, services.settings.platforms
    if not request.is_managed:
        return default
    possible = [default, *offered]
    if request.backend in (CODEBUILD, EKS):
        if request.backend not in offered:
            raise Invalid([f"Nothing runs on `{request.backend}` here; `backend` may be {' or '.join(offered)}."])
        possible = [request.backend]
    wanted = request.spec and request.spec.platform
    for executor in possible:
        if wanted in (None, offered[executor]):
            return executor
    built = " or ".join(sorted({offered[executor] for executor in possible}))
    raise Invalid([f"`platforms`: this build would be made for {built} here, not for {wanted}."])


def _checked(services: Services, request: BuildRequest, executor: str) -> Placement | None:
    """The placement of the build's pod, if it has one. Raises Invalid for tags, resources or a place that the build
    cannot get."""
    if request.spec is None or not request.is_managed:
        return None
    settings, patterns = services.settings, services.settings.tag_patterns
    strange = [tag for tag in request.spec.image_tags if not any(fnmatchcase(tag, each) for each in patterns)]
    allowed = f"allowed here are {', '.join(patterns)}."
    require(not strange, f"`image_tags` may not have {', '.join(strange)}; {allowed}")
    most: tuple[float, ...] = (settings.max_cpu, settings.max_memory_mib, settings.max_disk_mib)
    if executor == CODEBUILD:
        most = tuple(map(min, most, [*MACHINES.values()][-1]))
    check_resources(request.spec.environment.resources, most)
    node_keys = settings.eks.node_keys if settings.eks and executor == EKS else None
    return placement(request.spec.environment, node_keys)
