"""What people do with builds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from chalicelib.domain import lifecycle
from chalicelib.domain.build import (
    CODEBUILD,
    EKS,
    MAX_DOCKERFILE_BYTES,
    MAX_TEXTS_BYTES,
    Build,
    BuildBody,
    BuildKey,
    StatusEntry,
    User,
    image_reference,
    may_read,
    may_write,
)
from chalicelib.domain.placement import Placement, placement
from chalicelib.domain.query import is_default_order, parse_query, sorted_builds
from chalicelib.domain.spec import (
    Spec,
    checked_tags,
    has_control_characters,
    is_slug,
    parse_config,
    parse_content,
)
from chalicelib.errors import Conflict, Forbidden, Invalid, NotFound
from chalicelib.ports import Once, Opened, Services
from chalicelib.usecases import projects
from chalicelib.usecases.code import source_of
from chalicelib.usecases.fields import MAX_TEXT, is_text
from chalicelib.usecases.projects import may_list, open_project

MAX_EXAMINED = 5_000  # builds that one query looks at: about 3 MB of index
REMEMBERED = timedelta(days=14)  # as long as SQS keeps messages at most
ATTEMPTS = 8  # at writing on top of what somebody else has just written
_SLUG_FAULT = "Enter a valid 'slug': letters, digits, hyphens and underscores, at most 128."


@dataclass(frozen=True, slots=True)
class Page:
    """Builds of one page, which of them the caller bookmarked, and how many there are in all."""

    builds: Sequence[Build]
    bookmarked: frozenset[BuildKey]
    count: int


def create(
    services: Services,
    caller: User,
    owner: str,
    project_name: str,
    fields: dict[str, Any],
    *,
    once: str | None = None,
    on_behalf_of: str | None = None,
) -> Opened:
    """Records a build and announces it. Raises NotFound, Forbidden, Invalid; nothing is stored then.

    `once` is a key of the caller's for this request: asked again with it within `REMEMBERED`, the build that
    was made is answered, and announced again if it may not have been.
    """
    project = projects.writable(services, caller, owner, project_name)
    wish = _wish(fields)
    source, commit, dockerfile = None, None, None
    if wish.spec is not None:
        source, commit, dockerfile = source_of(services, project, wish.spec)
    body = BuildBody(wish.content, wish.spec.config if wish.spec else None, dockerfile)
    if body.is_too_large:
        raise Invalid([f"The specification and its Dockerfile exceed {MAX_TEXTS_BYTES} bytes."])
    executor = _executor(services, wish)
    for _ in range(ATTEMPTS):
        now = services.now()
        if once is not None and (made := services.store.made_once(project.key, once, now)):
            return _announced(services, caller, made)
        key = BuildKey(owner, project_name, project.last_build_id + 1)
        build = Build(
            key=key,
            uuid=uuid.uuid4().hex,
            user=caller.name,
            created_at=now,
            updated_at=now,
            backend=wish.backend,
            executor=executor,
            nonce=uuid.uuid4().hex,
            image=image_reference(services.settings.registry, project, key.id),
            history=(lifecycle.first_entry(now),),
            description=wish.description,
            tags=wish.tags,
            is_managed=wish.is_managed,
            nocache=wish.spec is not None and wish.spec.nocache,
            resources=wish.spec.resources if wish.spec else None,
            placement=_placement(services, wish, executor),
            commit=commit if wish.is_managed else None,
            source=source,
            on_behalf_of=on_behalf_of,
            look_at=now
            + (
                timedelta(seconds=services.settings.look_again_seconds)
                if wish.is_managed
                else lifecycle.HEARTBEAT
            ),
        )
        mark = Once(once, now, now + REMEMBERED) if once is not None else None
        try:
            build = services.store.add(project, build, body, wish.name, mark)
        except Conflict:
            project = open_project(services, caller, owner, project_name)
            continue
        if build.is_managed:
            services.queue.announce(build.key)
        return Opened(build, body, project, bookmarked=False)
    raise Conflict("Too many builds are being created in this project at once; try again.")


def _announced(services: Services, caller: User, key: BuildKey) -> Opened:
    """A build that was made before, whose maker may have died before announcing it."""
    opened = get(services, caller, key)
    if opened.build.is_managed and opened.build.attempt == 0 and not opened.build.is_done:
        services.queue.announce(key)
    return opened


def page(
    services: Services,
    caller: User,
    owner: str,
    project_name: str,
    offset: int,
    limit: int,
    *,
    query: str = "",
    sort: str = "",
) -> Page:
    """The live builds of a project, newest change first. Raises NotFound, Forbidden, Invalid.

    With a query or another order, the page and its count are of those that match among the `MAX_EXAMINED`
    builds that changed last.
    """
    project = open_project(services, caller, owner, project_name)
    matches = parse_query(query)
    if matches is None and is_default_order(sort):
        builds, count = services.store.page(project, offset, limit), project.live_builds
    else:
        examined = services.store.page(project, 0, MAX_EXAMINED)
        found = [build for build in examined if matches is None or matches(build)]
        builds, count = sorted_builds(found, sort)[offset : offset + limit], len(found)
    bookmarked = services.store.bookmarks(caller.name, [build.key for build in builds])
    return Page(builds, bookmarked, count)


def get(services: Services, caller: User, key: BuildKey, *, archived: bool = False) -> Opened:
    """A build the caller may see, an archived one only if asked for. Raises NotFound, Forbidden."""
    opened = services.store.open(key, caller.name)
    if opened is None or opened.project.archived_at or opened.build.deleted_at:
        raise NotFound
    if opened.build.archived_at and not archived:
        raise NotFound
    if not may_read(caller, key.owner, opened.project.is_public):
        raise Forbidden
    return opened


def status(services: Services, caller: User, key: BuildKey, uuid: str) -> tuple[Build, StatusEntry]:
    """One row of a build's history. Raises NotFound, Forbidden."""
    build = get(services, caller, key).build
    for entry in build.history:
        if entry.uuid == uuid:
            return build, entry
    raise NotFound


def update(
    services: Services, caller: User, key: BuildKey, fields: dict[str, Any], *, whole: bool = False
) -> Opened:
    """Changes what may be changed of a build; fields that may not are ignored, as clients send them all.

    `whole` (PUT) takes a missing name for none. Raises NotFound, Forbidden, Invalid.
    """
    if whole:
        fields = {"name": None, **fields}
    for _ in range(ATTEMPTS):
        opened = writable(services, caller, key)
        changed = _changed(opened.build, fields)
        renames = changed.name is not None and changed.name != opened.build.name
        now = services.now()
        try:
            if changed != opened.build:
                changed = replace(changed, updated_at=max(now, opened.build.updated_at))
                if renames:
                    changed = services.store.rename(changed, str(changed.name))
                else:
                    changed = services.store.save(changed)
        except Conflict:
            continue
        body = opened.body
        if "dockerfile" in fields:
            body = replace(body, reported_dockerfile=fields["dockerfile"])
            services.store.save_dockerfile(key, body.reported_dockerfile)
        return replace(opened, build=changed, body=body)
    raise Conflict("The build is being changed by others at this moment; try again.")


def stop(services: Services, caller: User, key: BuildKey) -> None:
    """Has the build stopped: at once when nothing was started, soon otherwise; nothing if it has ended.
    Raises NotFound, Forbidden."""
    writable(services, caller, key)
    request_stop(services, key)


def archive(services: Services, caller: User, key: BuildKey, *, delete: bool = False) -> None:
    """Hides the build at once and has it stopped; `delete` also has it purged, else it can be restored until
    the cleanup comes. Raises NotFound, Forbidden."""
    for _ in range(ATTEMPTS):
        build = writable(services, caller, key, archived=not delete).build
        if build.archived_at is None:
            now = services.now()
            hidden = replace(build, archived_at=now, deleted_at=now if delete else None, updated_at=now)
            try:
                services.store.archive(hidden)
            except Conflict:
                continue
        request_stop(services, key)
        return
    raise Conflict("The build is being changed by others at this moment; try again.")


def restore(services: Services, caller: User, key: BuildKey) -> None:
    """The inverse of archiving; idempotent. Raises NotFound, Forbidden."""
    for _ in range(ATTEMPTS):
        build = writable(services, caller, key, archived=True).build
        if build.archived_at is None:
            return
        try:
            services.store.restore(replace(build, archived_at=None, updated_at=services.now()))
        except Conflict:
            continue
        return
    raise Conflict("The build is being changed by others at this moment; try again.")


def archived(services: Services, caller: User, user: str, offset: int, limit: int) -> Page:
    """Archived builds that a user created, newest change first; none if that is not the caller's to know.
    Raises NotFound."""
    if not may_list(services, caller, user):
        return Page((), frozenset(), 0)
    builds, count = services.store.archived(user, offset, limit)
    return Page(builds, _bookmarks_anywhere(services, caller, builds), count)


def bookmarked(
    services: Services, caller: User, user: str, offset: int, limit: int, *, oldest_first: bool = False
) -> Page:
    """Builds a user bookmarked, latest first; none if that is not the caller's to know. Raises NotFound."""
    if not may_list(services, caller, user):
        return Page((), frozenset(), 0)
    builds, count = services.store.bookmarked_builds(user, offset, limit, oldest_first=oldest_first)
    return Page(builds, frozenset(), count)


def _bookmarks_anywhere(services: Services, caller: User, builds: Sequence[Build]) -> frozenset[BuildKey]:
    """As the store's `bookmarks`, for builds of several projects."""
    places = {build.key.place for build in builds}
    found = [
        services.store.bookmarks(caller.name, [build.key for build in builds if build.key.place == place])
        for place in places
    ]
    return frozenset().union(*found)


def invalidate(services: Services, caller: User, key: BuildKey) -> None:
    """Marks the build's image as not to be taken for a new one. Raises NotFound, Forbidden."""
    for _ in range(ATTEMPTS):
        build = writable(services, caller, key).build
        if not build.is_valid:
            return
        try:
            services.store.save(replace(build, is_valid=False))
        except Conflict:
            continue
        return
    raise Conflict("The build is being changed by others at this moment; try again.")


def bookmark(services: Services, caller: User, key: BuildKey) -> None:
    """Idempotent. Raises NotFound, Forbidden."""
    get(services, caller, key)
    services.store.bookmark(caller.name, key, services.now())


def unbookmark(services: Services, caller: User, key: BuildKey) -> None:
    """Idempotent. Raises NotFound, also when the caller never bookmarked it; Forbidden."""
    get(services, caller, key)
    if not services.store.unbookmark(caller.name, key):
        raise NotFound


def invalidate_all(services: Services, caller: User, owner: str, project_name: str) -> None:
    """Marks the images of all builds until now. Raises NotFound, Forbidden."""
    project = projects.writable(services, caller, owner, project_name)
    last = project.last_build_id
    projects.save(services, project, lambda project: replace(project, valid_after_build=last))


def request_stop(services: Services, key: BuildKey) -> None:
    """Marks the build to be stopped and announces it; nothing if it has ended."""
    for _ in range(ATTEMPTS):
        build = services.store.get(key)
        stopping = build and lifecycle.request_stop(build, services.now())
        if stopping is None:
            return
        try:
            stopping = services.store.save(stopping)
        except Conflict:
            continue
        if not stopping.is_done:
            services.queue.announce(key)
        return
    raise Conflict("The build is being changed by others at this moment; try again.")


def writable(services: Services, caller: User, key: BuildKey, *, archived: bool = False) -> Opened:
    """As `get`, and the caller may change it."""
    opened = get(services, caller, key, archived=archived)
    if not may_write(caller, key.owner):
        raise Forbidden
    return opened


@dataclass(frozen=True, slots=True)
class _Wish:
    """A valid request for a build."""

    name: str | None
    description: str | None
    tags: tuple[str, ...]
    backend: str
    is_managed: bool
    spec: Spec | None
    content: str | None


def _wish(fields: dict[str, Any]) -> _Wish:
    name, description, backend = fields.get("name") or None, fields.get("description"), fields.get("backend")
    is_managed = fields.get("is_managed")
    faults = _field_faults(name, description, fields.get("tags"), backend, is_managed)
    if faults:
        raise Invalid(faults)
    _check_ttl(fields.get("ttl"))
    spec, content = _specification(fields)
    if spec is None and is_managed is not False:
        raise Invalid({"non_field_errors": ["Build expects a `content`."]})
    return _Wish(
        name=name,
        description=description,
        tags=checked_tags(fields.get("tags") or []) or (spec.tags if spec else ()),
        backend=(spec and spec.backend) or backend or "native",
        is_managed=is_managed is not False,
        spec=spec,
        content=content,
    )


def _executor(services: Services, wish: _Wish) -> str:
    """Where a build will run: where its backend says, else where this deployment's builds do. Raises
    Invalid when the backend is one of ours that is not offered here."""
    offered = services.settings.executors
    if wish.backend not in (CODEBUILD, EKS) or not wish.is_managed:
        return services.settings.backend
    if wish.backend not in offered:
        raise Invalid([f"Nothing runs on `{wish.backend}` here; `backend` may be {' or '.join(offered)}."])
    return wish.backend


def _placement(services: Services, wish: _Wish, executor: str) -> Placement | None:
    """What the spec's environment asks of the pod, where the build gets one. Raises Invalid."""
    if executor != EKS or wish.spec is None or services.settings.eks is None:
        return None
    return placement(wish.spec.document.get("environment") or {}, services.settings.eks.node_keys)


def _field_faults(
    name: Any, description: Any, tags: Any, backend: Any, is_managed: Any
) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    if name is not None and not is_slug(name):
        faults["name"] = [_SLUG_FAULT]
    if description is not None and not is_text(description):
        faults["description"] = [f"Must be a text of at most {MAX_TEXT} characters."]
    if backend is not None and not (
        isinstance(backend, str) and len(backend) <= 16 and not has_control_characters(backend)
    ):
        faults["backend"] = ["Must be a string of at most 16 characters."]
    if is_managed is not None and not isinstance(is_managed, bool):
        faults["is_managed"] = ["Must be true or false."]
    try:
        checked_tags(tags or [])
    except Invalid as fault:
        faults["tags"] = fault.sentences()
    return faults


def _check_ttl(ttl: Any) -> None:
    if ttl is None or (isinstance(ttl, int) and ttl >= 0):
        return
    if not (isinstance(ttl, str) and ttl.isascii() and ttl.isdigit()):
        raise Invalid(["ttl must be an integer."])


def _specification(fields: dict[str, Any]) -> tuple[Spec | None, str | None]:
    """The spec of a request and its text in the top-level layout, from `content` or the older `config`."""
    content, config = fields.get("content"), fields.get("config")
    if content is not None and not isinstance(content, str):
        raise Invalid({"content": ["Must be the text of a specification, as YAML or JSON."]})
    if content and content.strip():
        return parse_content(_document(content)), content
    if config is None:
        return None, None
    if isinstance(config, str):
        config = _document(config)
    spec = parse_config(config)
    document = dict(spec.document)
    if spec.lang_env:
        document.setdefault("lang_env", spec.lang_env)  # what the older layout implied
    return spec, json.dumps(document)


def _document(text: str) -> object:
    """What a text of JSON or YAML says. Raises Invalid."""
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise Invalid(["The specification is nested too deeply."]) from exc
    except ValueError:
        pass  # most likely YAML
    import yaml  # loaded only here: the published command line sends JSON

    class PlainLoader(yaml.SafeLoader):
        """YAML without dates: a value that looks like one is text."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return yaml.load(text, PlainLoader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        where = getattr(exc, "problem_mark", None)
        place = f" near line {where.line + 1}" if where else ""
        raise Invalid([f"The specification is neither JSON nor YAML{place}."]) from exc


def _changed(build: Build, fields: dict[str, Any]) -> Build:
    name, description = fields.get("name") or None, fields.get("description")
    tags, backend, node = fields.get("tags"), fields.get("backend"), fields.get("node_scheduled")
    faults = _field_faults(name, description, tags, backend, None)
    dockerfile = fields.get("dockerfile")
    if dockerfile is not None and not (
        isinstance(dockerfile, str) and len(dockerfile.encode()) <= MAX_DOCKERFILE_BYTES
    ):
        faults["dockerfile"] = [f"Must be a text of at most {MAX_DOCKERFILE_BYTES} bytes."]
    if node is not None and not (isinstance(node, str) and len(node) <= 256):
        faults["node_scheduled"] = ["Must be a string of at most 256 characters."]
    if faults:
        raise Invalid(faults)
    if "name" in fields:
        build = replace(build, name=name)
    if "description" in fields:
        build = replace(build, description=description)
    if "tags" in fields:
        new = checked_tags(tags or [])
        build = replace(
            build, tags=tuple(dict.fromkeys((*build.tags, *new))) if fields.get("merge") is True else new
        )
    return replace(build, node_scheduled=node or build.node_scheduled, backend=backend or build.backend)
