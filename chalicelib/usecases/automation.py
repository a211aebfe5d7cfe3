"""Requests from a queue, for automation; they call the same use cases as REST.

A request runs as the user that it names. If there is no such user, it runs as the configured automation user, and the
name is recorded.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.build_request import checked_key
from chalicelib.domain.spec import is_slug
from chalicelib.domain.user import User
from chalicelib.errors import Forbidden, Invalid, KeyReused, Malformed, NotFound, Unavailable, require
from chalicelib.ports import IdempotencyKey, Services
from chalicelib.usecases import builds

log = logging.getLogger(__name__)
MAX_LOGGED = 1_000  # characters of the reasons for a refusal
_HOPELESS = (Invalid, Malformed, NotFound, Forbidden, KeyReused)  # a repetition cannot succeed
_WORDS = {NotFound: "There is no such project or build.", Forbidden: "The user may not do this."}
# What is done to a build by its name, and how it is seen that nothing is left to do.
_CHANGES: dict[str, tuple[Callable[[Services, User, BuildKey], None], Callable[[Build], bool]]] = {
    "stop": (builds.stop, lambda build: build.is_done or build.stop_requested_at is not None),
    "archive": (builds.archive, lambda build: build.archived_at is not None),
    "restore": (builds.restore, lambda build: build.archived_at is None),
    "delete": (partial(builds.archive, delete=True), lambda build: build.deleted_at is not None),
}


def handle(services: Services, body: str, message_id: str, read: Callable[[str], dict[str, Any]]) -> BuildKey | None:
    """Executes the request in a message once, however often it is delivered, and returns the build's key. `read` parses
    the message, or raises Malformed, Invalid. A request that can never succeed is logged and put into the dead letters
    with the reasons; the result is None. Errors that a repetition may avoid are raised."""
    name = services.settings.automation_user
    caller = services.accounts.user(name) if name else None
    if caller is None:
        raise Unavailable("Requests wait: the setting SLIPWAY_AUTOMATION_USER names no user.")
    try:
        fields = read(body)
        done = _do(services, caller, fields, message_id)
        about = {"by": caller.name, "on_behalf_of": fields.get("user"), "build": str(done)}
        log.info("A request from the queue was executed", extra={"action": f"queue_{fields['action']}", **about})
        return done
    except _HOPELESS as error:
        reasons = error.sentences() if isinstance(error, Invalid) else [_WORDS.get(type(error), str(error))]
        services.dead_letters.put(body, reasons)
        said = "".join(each if each.isprintable() else " " for each in " ".join(reasons)[:MAX_LOGGED])
        log.warning("Request %s from the queue was refused: %s", message_id, said)
        return None


def _do(services: Services, caller: User, fields: dict[str, Any], message_id: str) -> BuildKey:
    """Executes a request once. If repeated, it gets the same build, even if that or its project is archived or deleted
    by now, or the user has lost the rights. Hidden records stay for an hour at least, longer than SQS redelivers."""
    project = services.projects.get(fields["owner"], fields["project"])
    if project is None:
        raise NotFound
    # Keys of REST begin with a user's name and `:`.
    once = f"queue/{checked_key(fields.get('idempotency_key') or message_id)}"
    mark = builds.idempotency_key(services, project, once, fields)
    if done := services.builds.replay(project.key, mark):
        if build := services.builds.get(done):
            builds.announce_again(services, build)
        return done
    try:
        return _execute(services, caller, fields, message_id, once, mark)
    except _HOPELESS:
        if done := services.builds.replay(project.key, mark):  # another delivery has done it meanwhile
            return done
        raise


def _execute(
    services: Services, caller: User, fields: dict[str, Any], message_id: str, once: str, mark: IdempotencyKey
) -> BuildKey:
    owner, name, action, named = fields["owner"], fields["project"], fields["action"], fields.get("user")
    caller = (services.accounts.user(named) if is_slug(named) else None) or caller
    if action in ("create", "rebuild"):
        served = named if named not in ("", caller.name) else None
        more: dict[str, Any] = {"on_behalf_of": served, "rebuild_of": fields["build"] if action == "rebuild" else None}
        if (queue := fields.get("reply_to")) is not None:
            require(queue in services.settings.reply_queues.split(), "No replies are sent to the queue of `reply_to`.")
            more |= {"reply_to": queue, "reply_about": fields.get("idempotency_key") or message_id}
        return builds.create(services, caller, owner, name, fields, once=once, **more).build.key
    key, (change, is_done) = BuildKey(owner, name, fields["build"]), _CHANGES[action]
    try:
        change(services, caller, key)
    except NotFound:  # an earlier run may have done it and ended before the note
        build = services.builds.get(key)
        if build is None or not is_done(build):
            raise
    services.builds.note(mark, key)
    return key
