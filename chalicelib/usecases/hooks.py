"""A project's webhooks, and the calls of their receivers."""

import json
import re
import uuid
from base64 import b64encode
from os import urandom

from chalicelib.domain.project import Hook, Project
from chalicelib.domain.record import replace
from chalicelib.domain.user import User
from chalicelib.errors import Invalid, NotFound, Unavailable, require
from chalicelib.ports import Announcement, Delivery, Services
from chalicelib.usecases import projects, secrets

MAX_HOOKS = 10  # of a project
MAX_URL = 512
TEST = "test"
# Before each further try, in seconds. SQS hides a message for twelve hours at most from when it was received.
TRY_AGAIN_AFTER = (60, 300, 1_800, 7_200, 21_600, 42_600)
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+)(?::[1-9]\d{0,4})?(?:/[!\"$-~]*)?")


def put(services: Services, caller: User, owner: str, name: str, hook: str, url: object) -> tuple[Hook, str]:
    """Sets or replaces a webhook and enables it. Returns the secret that signs its calls. Raises NotFound,
    Forbidden, Invalid."""
    project = projects.writable(services, caller, owner, name)
    found = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= MAX_URL else None
    if not found or (found[1] == "http" and found[2] not in services.settings.private_hook_hosts.split()):
        form = f"Must be like https://host/path, in at most {MAX_URL} characters; http needs the operator's permission."
        raise Invalid({"url": [form]})
    made, secret = Hook(hook, found[0], uuid.uuid4().hex), f"whsec_{b64encode(urandom(32)).decode()}"
    projects.save(services, project, lambda known: _with(known, hook, made))
    services.secrets.put(project, secrets.OF_HOOK.format(hook), secret)
    return made, secret


def delete(services: Services, caller: User, owner: str, name: str, hook: str) -> None:
    """Raises NotFound, Forbidden."""
    project = projects.writable(services, caller, owner, name)
    projects.save(services, project, lambda known: _with(known, hook))
    services.secrets.delete(project, secrets.OF_HOOK.format(hook))


def test(services: Services, caller: User, owner: str, name: str, hook: str) -> None:
    """Sends a test call to the receiver: once, about no build. Raises NotFound, Forbidden."""
    project, now, number = projects.writable(services, caller, owner, name), services.now(), uuid.uuid4().hex
    text = json.dumps({"id": number, "type": TEST, "timestamp": now.isoformat(), "data": None})
    named = [each.id for each in project.hooks if each.name == hook]
    if not named:
        raise NotFound
    services.hook_queue.send(Delivery(project.key, named[0], Announcement(number, TEST, now, text)))


def deliver(services: Services, delivery: Delivery, receipt: str, tries: int) -> None:
    """Calls a receiver. Raises Unavailable if it does not accept the call: it is called again after `TRY_AGAIN_AFTER`,
    after the last try the webhook is disabled. Webhooks that were replaced, disabled or deleted are not called."""
    project = services.projects.get(delivery.project.owner, delivery.project.name)
    hook = next((each for each in (project.hooks if project else ()) if each.id == delivery.hook), None)
    if project is None or hook is None or hook.is_disabled:
        return
    is_test, is_last, failure = delivery.announcement.type == TEST, tries > len(TRY_AGAIN_AFTER), None
    if not is_last:  # first, so that it is called again also if this function dies
        services.hook_queue.hide(receipt, TRY_AGAIN_AFTER[tries - 1])
    name = secrets.OF_HOOK.format(hook.name)
    secret = services.secrets.values(project, [name]).get(name)
    try:
        if secret is None:  # it is being put, or that ended half way
            raise Unavailable("The webhook has no secret; put it again.")
        services.webhooks.send(hook.url, secret, delivery.announcement, services.now())
    except Unavailable as exc:
        failure = str(exc)
    called = replace(hook, failure=failure, updated_at=services.now(), is_disabled=bool(failure and is_last))

    def note(known: Project) -> Project:
        return replace(known, hooks=tuple(called if each.id == called.id else each for each in known.hooks))

    if is_test or failure != hook.failure or called.is_disabled:
        projects.save(services, project, note)
    if failure and not is_test:
        raise Unavailable(f"{project.key}, webhook {hook.name}: {failure}")


def _with(project: Project, name: str, *made: Hook) -> Project:
    """The project with these in the place of its webhook of that name. Raises Invalid."""
    others = [each for each in project.hooks if each.name != name]
    require(len(others) + len(made) <= MAX_HOOKS, f"A project can have {MAX_HOOKS} webhooks; delete one first.")
    return replace(project, hooks=(*others, *made))
