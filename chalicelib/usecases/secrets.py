"""A project's secrets: its owner sets and lists them, and only builds get their values."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from chalicelib.domain.build import Build, BuildBody
from chalicelib.domain.materials import MAX_SECRETS, checked_value, git_credential, masks
from chalicelib.domain.project import Project
from chalicelib.domain.spec import GIT_TOKEN, Spec
from chalicelib.domain.user import User
from chalicelib.errors import Gone, Invalid, NotFound, require
from chalicelib.ports import Services
from chalicelib.usecases import projects

OF_HOOK = "hooks/{}"  # the name of a webhook's secret; those that builds may mount have no slash


def put(services: Services, caller: User, owner: str, name: str, secret: str, fields: dict[str, Any]) -> None:
    """Sets the secret named `secret` of the project `name`. Raises NotFound, Forbidden, Invalid."""
    project = projects.writable(services, caller, owner, name)
    value = checked_value(secret, fields.get("value"))
    known = services.secrets.names(project)
    require(secret in known or len(known) < MAX_SECRETS, f"A project can have {MAX_SECRETS} secrets; delete one first.")
    services.secrets.put(project, secret, value)


def names(services: Services, caller: User, owner: str, name: str) -> Sequence[str]:
    """The names of all secrets. Raises NotFound, Forbidden."""
    return services.secrets.names(projects.writable(services, caller, owner, name))


def delete(services: Services, caller: User, owner: str, name: str, secret: str) -> None:
    """Deletes a secret. Raises NotFound, Forbidden."""
    services.secrets.delete(projects.writable(services, caller, owner, name), secret)


def check(services: Services, project: Project, spec: Spec) -> None:
    """Raises Invalid when the spec names secrets that the project does not have."""
    if not spec.secrets:
        return
    known = services.secrets.names(project)
    if missing := [name for _, name in spec.secrets if name not in known]:
        raise Invalid([f"The project has no secret `{name}`; PUT it first." for name in missing])


def forget(services: Services, project: Project) -> None:
    """Deletes all secrets of a project, and of its webhooks. Idempotent."""
    for name in [*services.secrets.names(project), *(OF_HOOK.format(hook.name) for hook in project.hooks)]:
        with suppress(NotFound):
            services.secrets.delete(project, name)


def materials(services: Services, build: Build, body: BuildBody) -> dict[str, str]:
    """A project's secrets as files for a build; nothing else reads values. Raises Gone for a deleted one."""
    wanted = body.secrets or {}
    is_fetched = build.source is not None and build.source.git_url is not None
    names = {*wanted.values(), *([GIT_TOKEN] if is_fetched else [])}
    if not names:
        return {}
    project = services.projects.get(build.key.owner, build.key.project)
    if project is None or project.deleted_at is not None:
        raise Gone("The project was deleted.")
    values = services.secrets.values(project, sorted(names))
    if missing := sorted({*wanted.values()} - values.keys()):
        raise Gone(f"The project has no secret {', '.join(missing)} any more.")
    files = {f"secrets/{mount}": values[name] for mount, name in wanted.items()}
    files["masks"] = masks(files.values())
    if (token := values.get(GIT_TOKEN)) is not None:
        files["git-login"] = git_credential(token)
        files["git-masks"] = masks([token.rpartition(":")[2]])
    return files
