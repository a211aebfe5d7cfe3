"""What a project is: where builds are made, from what code, and where their images go."""

import re
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, order=True)
class ProjectKey:
    """Names a project."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Code:
    """An uploaded archive, named by its content."""

    sha256: str
    bytes: int
    uploaded_at: datetime

    @property
    def commit(self) -> str:
        """What stands for a commit: as many digits of the hash as git's have."""
        return self.sha256[:40]


@dataclass(frozen=True, slots=True)
class Project:
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
    code: Code | None = None  # the newest upload
    git_url: str | None = None  # or where the code is kept; never both
    valid_after_build: int = 0  # layers of this build and of earlier ones are not to be used
    fresh_build: int = 0  # the last one that succeeded without layers of others
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
    """Where a build's image goes: one repository per project, the build's id as tag.

    The project's uuid keeps apart what lower-casing makes equal. ECR allows lower-case letters, digits
    and single separators `.`, `_`, `-` between them, 256 characters in all.
    """
    name = f"{_repository_part(project.owner)}/{_repository_part(project.name)}-{project.uuid[:8]}"
    return f"{registry}/{name}:{build_id}"


def _repository_part(name: str) -> str:
    clean = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return clean[:100].rstrip("-") or "x"
