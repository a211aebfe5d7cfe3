"""Requests of automation, from a queue: the same use cases as over REST.

A request runs as the user it names. One that names nobody whom the service knows runs as the configured user
of automation, and the name is recorded.
"""

import json
import logging
from typing import Any

from chalicelib.domain.build import BuildKey
from chalicelib.domain.build_request import checked_key
from chalicelib.domain.spec import has_control_characters, is_slug
from chalicelib.domain.user import User
from chalicelib.errors import Forbidden, Invalid, KeyReused, Malformed, NotFound, Unavailable, require
from chalicelib.ports import Services
from chalicelib.usecases import builds

log = logging.getLogger(__name__)
_HOPELESS = (Invalid, Malformed, NotFound, Forbidden, KeyReused)  # however often it is tried
_WORDS = {NotFound: "There is no such project or build.", Forbidden: "The user may not do this."}


def handle(services: Services, body: str, message_id: str) -> BuildKey | None:
    """Does what a message asks for, once, however often it is delivered, and returns to which build. What can never
    succeed goes to the dead letters with its reasons; that is None. Raises what may be better next time."""
    name = services.settings.automation_user
    caller = services.accounts.user(name) if name else None
    if caller is None:
        raise Unavailable("Requests wait: the setting SLIPWAY_AUTOMATION_USER names no user.")
    fields: dict[str, Any] = {}
    try:
        fields = _fields(body)
        done = _do(services, caller, fields, message_id)
        told = {"by": caller.name, "on_behalf_of": fields.get("user"), "build": str(done)}
        log.info("Request of the queue", extra={"action": f"queue_{fields['action']}", **told})
        return done
    except _HOPELESS as error:
        if isinstance(error, NotFound) and (key := _done_before(services, fields, message_id)):
            return key
        reasons = error.sentences() if isinstance(error, Invalid) else [_WORDS.get(type(error), str(error))]
        services.dead_letters.put(body, reasons)
        return None


def _done_before(services: Services, fields: dict[str, Any], message_id: str) -> BuildKey | None:
    """The build for which a request was done whose message came again after the build or its project was
    archived or deleted. Both stay for an hour at least, which is longer than a message comes again."""
    owner, name, number = str(fields.get("owner")), str(fields.get("project")), fields.get("build")
    if fields.get("action") == "stop":
        build = services.builds.get(BuildKey(owner, name, number)) if isinstance(number, int) else None
        return build.key if build is not None and (build.is_done or build.stop_requested_at is not None) else None
    project = services.projects.get(owner, name)
    if project is None:
        return None
    once = f"{project.uuid}:{_once(fields, message_id)}"
    replay = services.builds.replay(project.key, once, services.now())
    return replay.build if replay is not None else None


def _do(services: Services, caller: User, fields: dict[str, Any], message_id: str) -> BuildKey:
    require(fields.get("version") == 1 and not isinstance(fields["version"], bool), "`version` must be 1.")
    owner, project = fields.get("owner", ""), fields.get("project", "")
    require(is_slug(owner) and is_slug(project), "`owner` and `project` must name a project.")
    named = fields.get("user")
    if named is not None and (not isinstance(named, str) or len(named) > 128 or has_control_characters(named)):
        raise Invalid(["`user` must be a name of at most 128 characters."])
    caller = (services.accounts.user(named) if is_slug(named) else None) or caller
    match fields.get("action"):
        case "create":
            once, served = _once(fields, message_id), named if named not in ("", caller.name) else None
            created = builds.create(services, caller, owner, project, fields, once=once, on_behalf_of=served)
            return created.build.key
        case "stop":
            number = fields.get("build")
            if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 10**12:
                raise Invalid(["`build` must be the id of a build."])
            stopped = BuildKey(owner, project, number)
            builds.stop(services, caller, stopped)
            return stopped
        case _:
            raise Invalid(["`action` must be `create` or `stop`."])


def _fields(body: str) -> dict[str, Any]:
    try:
        fields = json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # half characters cannot be stored
    except (ValueError, RecursionError) as exc:
        raise Malformed(f"The message is not JSON: {exc}") from exc
    if not isinstance(fields, dict):
        raise Malformed("The message must be a JSON object.")
    return fields


def _once(fields: dict[str, Any], message_id: str) -> str:
    """A request's key among those of the queue; REST's begin with a user's name and `:`. Raises Invalid."""
    return f"queue/{checked_key(fields.get('idempotency_key') or message_id)}"
