"""Projects, their code, and the names of their images."""

import re
from datetime import datetime

from msgspec import Struct


class ProjectKey(Struct, frozen=True, order=True):
    """Names a project."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


class Code(Struct, frozen=True):
    """An uploaded archive, named by its content."""

    sha256: str
    bytes: int
    uploaded_at: datetime

    @property
    def commit(self) -> str:
        """The commit of an upload: the first 40 digits of its hash, as long as git's."""
        return self.sha256[:40]


class Hook(Struct, frozen=True):
    """A webhook: a receiver that is called when a build of the project has ended."""

    name: str
    url: str
    id: str  # another one whenever it is put
    failure: str | None = None  # why its receiver did not accept the last call
    updated_at: datetime | None = None  # when `failure` changed, or when the webhook was tested
    is_disabled: bool = False  # because of `failure`, until it is put again


class Project(Struct, frozen=True):
    owner: str
    name: str
    uuid: str
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    readme: str | None = None
    tags: tuple[str, ...] = ()
    is_public: bool = True
    archived_at: datetime | None = None  # hidden since then, with all its builds
    deleted_at: datetime | None = None  # to be purged; implies archived_at
    reuse: bool = False  # builds take the image of an equal one, unless they say otherwise
    code: Code | None = None  # the newest upload
    git_url: str | None = None  # or the repository with the code; never both
    valid_after_build: int = 0  # cached layers of this build and of earlier ones must not be used
    fresh_build: int = 0  # the last build that succeeded without cached layers
    hooks: tuple[Hook, ...] = ()
    version: int = 1
    last_build_id: int = 0
    live_builds: int = 0  # builds that are neither archived nor deleted

    @property
    def key(self) -> ProjectKey:
        return ProjectKey(self.owner, self.name)

    @property
    def must_build_afresh(self) -> bool:
        """Whether the cache may still hold layers that were invalidated."""
        return self.valid_after_build > self.fresh_build

    @property
    def unique_name(self) -> str:
        return f"{self.owner}.{self.name}"


def image_reference(registry: str, project: Project, build_id: int) -> str:
    """The reference of a build's image: one repository per project, with the build's id as tag.

    The project's uuid makes names unique that are equal in lower case. ECR allows lower-case letters and digits, with
    single separators `.`, `_`, `-` between them, and 256 characters.
    """
    name = f"{_repository_part(project.owner)}/{_repository_part(project.name)}-{project.uuid[:8]}"
    return f"{registry}/{name}:{build_id}"


def _repository_part(name: str) -> str:
    clean = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return clean[:100].rstrip("-") or "x"
