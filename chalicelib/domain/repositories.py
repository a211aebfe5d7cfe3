"""Which repositories of the registry a build's login may use, and for what."""

from fnmatch import fnmatchcase

from msgspec import Struct


class Rights(Struct, frozen=True):
    """The rights of a login. Repositories are named without the host; in patterns `*` is any text.

    The login may pull from and push to `own`. It has no access to other repositories that match `closed`. It may
    pull from other repositories only if the deployment lists them as base repositories. It may not delete anything.
    """

    own: tuple[str, str]
    closed: tuple[str, ...]

    def reach(self, repository: str) -> bool:
        """Whether these rights give access to a repository, if the repository exists."""
        return repository in self.own or not any(fnmatchcase(repository, pattern) for pattern in self.closed)


def rights(image: str) -> Rights:
    """The rights of the login for the build of `image`, a reference of `image_reference`: the project's repository and
    cache, and no repository of another project."""
    _, images, caches, name = _parts(image)
    return Rights(own=(images + name, caches + name), closed=(images + "*", caches + "*"))


def cache_repository(image: str) -> str:
    """The cache repository of the image's project, `host/name`. Its prefix differs from that of images, so no project's
    image repository can have this name; its tags can be moved."""
    host, _, caches, name = _parts(image)
    return f"{host}/{caches}{name}"


def image_parts(reference: str) -> tuple[str, str, str]:
    """Host, repository, and tag or digest of an image. A short name is completed: `ubuntu`, `library/ubuntu`."""
    name, _, digest = reference.partition("@")
    host, slash, path = name.partition("/")
    if not slash or (host != "localhost" and not {".", ":"} & {*host}):
        host, path = "docker.io", name if slash else f"library/{name}"
    repository, _, tag = path.partition(":")
    return host, repository, digest or tag or "latest"


def _parts(image: str) -> tuple[str, str, str, str]:
    """Host, prefix of images, prefix of caches, and `owner/project-<8>`."""
    host, *prefix, owner, project = image.rpartition(":")[0].split("/")
    images = "".join(f"{part}/" for part in prefix)
    caches = f"{images.removesuffix('/')}-cache/" if images else "cache/"
    return host, images, caches, f"{owner}/{project}"
