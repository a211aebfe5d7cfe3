"""The code of projects: an upload, or a git repository."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from typing import IO, Any

from chalicelib.domain import archive
from chalicelib.domain.build import Source
from chalicelib.domain.dockerfile import generate
from chalicelib.domain.project import Code, Project
from chalicelib.domain.record import replace
from chalicelib.domain.spec import Spec, is_slug
from chalicelib.domain.user import User
from chalicelib.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, require
from chalicelib.ports import Offer, Services
from chalicelib.usecases import projects

SPOOLED_BYTES = 32 * 1024**2  # larger archives are in a temporary file
MAX_GIT_URL = 512
_GIT_URL = re.compile(r"(?=[!-~]*\Z)https://(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::[1-9]\d{0,4})?/+[^/?# ][^?# ]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")  # of an upload


def upload(services: Services, caller: User, owner: str, name: str, packed: bytes) -> Project:
    """Makes a gzipped tar the project's code. Raises NotFound, Forbidden, Invalid; nothing is stored then."""
    project = projects.writable(services, caller, owner, name)
    require(packed, "The upload is empty: send a gzipped tar archive.")
    return _take(services, project, io.BytesIO(packed))


def offer(services: Services, caller: User, owner: str, name: str) -> Offer:
    """A signed form to upload an archive that is too large for a request. Raises NotFound, Forbidden."""
    project = projects.writable(services, caller, owner, name)
    _refuse_git(project)
    return services.sources.offer(project, services.settings.max_upload_bytes, services.now())


def complete(services: Services, caller: User, owner: str, name: str, offer_id: str) -> Project:
    """Makes the upload of an offer the project's code. Raises NotFound without an upload; else as `upload`."""
    project = projects.writable(services, caller, owner, name)
    if not is_slug(offer_id):
        raise NotFound
    limit = services.settings.max_upload_bytes
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as packed:
        received = services.sources.received(project, offer_id)
        while block := received.read(1024**2):
            packed.write(block)
            if packed.tell() > limit:
                raise TooLarge(f"The upload has more than {limit} bytes.")
        packed.seek(0)
        return _take(services, project, packed)


def use_git(services: Services, caller: User, owner: str, name: str, fields: dict[str, Any]) -> tuple[Project, bool]:
    """Sets a project's git address, without contacting the host. Returns the project and whether the address changed. A
    project with builds must delete its address before it sets another. Raises NotFound, Forbidden, Invalid."""
    project = projects.writable(services, caller, owner, name)
    url = fields.get("git_url")
    if not isinstance(url, str) or len(url) > MAX_GIT_URL or not _GIT_URL.fullmatch(url):
        raise Invalid({"git_url": ["Must be like https://host/path, without user name and password."]})
    if project.git_url == url:
        return project, False
    if project.git_url is not None and project.last_build_id:
        raise Invalid([f"The project's builds had their code from {project.git_url}: DELETE that address first."])
    if project.code is not None:
        raise Forbidden("The project's code was uploaded; it cannot come from git as well.")
    return projects.save(services, project, lambda known: replace(known, git_url=url, updated_at=services.now())), True


def forget_git(services: Services, caller: User, owner: str, name: str) -> None:
    """Removes the repository of a project; existing builds keep it. Idempotent. Raises NotFound, Forbidden."""
    project = projects.writable(services, caller, owner, name)
    if project.git_url is not None:
        projects.save(services, project, lambda known: replace(known, git_url=None, updated_at=services.now()))


def download_url(services: Services, caller: User, owner: str, name: str, commit: str | None) -> str:
    """A link to the project's uploaded code, or with `commit` to the code of one of its builds. Raises NotFound."""
    project = projects.open_project(services, caller, owner, name)
    if not commit:
        if project.code is None:
            raise NotFound
        return services.sources.url(project.code.sha256)
    sha256 = services.sources.find_archive(commit) if _COMMIT.fullmatch(commit) else None
    if sha256 is None or not services.code_references.has_code(project.key, sha256):
        raise NotFound
    return services.sources.url(sha256)


def source_of(services: Services, project: Project, spec: Spec) -> tuple[Source | None, str | None, str | None]:
    """The source of a build of `spec`, its commit, and the Dockerfile, if it is known. Raises Invalid when the
    project's code does not have what `spec` names."""
    if project.git_url is not None:
        revision = spec.commit or (spec.branch and f"origin/{spec.branch}") or "origin/HEAD"
        source = Source(
            git_url=project.git_url, git_revision=revision, context=spec.context, dockerfile=spec.dockerfile
        )
        return source, spec.commit, None if spec.dockerfile else generate(spec, files=None)
    if project.code is None:
        if spec.dockerfile or spec.context or spec.commit or spec.branch:
            raise Invalid(["`dockerfile`, `context`, `commit` and `branch` need code, and the project has none."])
        return None, None, generate(spec)
    if spec.branch or spec.commit not in (None, project.code.commit):
        raise Invalid([f"The project's code was uploaded and has one commit, {project.code.commit}, and no branches."])
    listing = services.sources.listing(project.code.sha256)
    files = listing.inside(spec.context)
    source = Source(code_sha256=project.code.sha256, context=spec.context, uploaded_at=project.code.uploaded_at)
    if spec.dockerfile is None:
        return source, project.code.commit, generate(spec, files)
    packed = services.sources.open(project.code.sha256)
    return source, project.code.commit, archive.read_text(packed, project.code.bytes, listing, spec.dockerfile)


def _take(services: Services, project: Project, packed: IO[bytes]) -> Project:
    _refuse_git(project)
    size = packed.seek(0, io.SEEK_END)
    packed.seek(0)
    listing = archive.listing(packed, size)
    packed.seek(0)
    sha256 = hashlib.file_digest(packed, "sha256").hexdigest()  # type: ignore[arg-type]
    packed.seek(0)
    now = services.now()
    services.code_references.note(sha256, project.key, now)
    services.sources.keep(packed, sha256, listing)
    if services.code_references.is_being_dropped(sha256, services.now()):
        raise Conflict("The same code, unused for long, is being removed just now; upload it again in ten minutes.")

    def changed(project: Project) -> Project:  # the same code keeps its time, which is in its images
        is_same = project.code is not None and project.code.sha256 == sha256
        return replace(project, code=project.code if is_same else Code(sha256, size, now), updated_at=now)

    return projects.save(services, project, changed)


def _refuse_git(project: Project) -> None:
    if project.git_url is not None:
        raise Forbidden(f"The project's code comes from {project.git_url}; nothing can be uploaded.")
