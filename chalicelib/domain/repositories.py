"""Which repositories of the registry a build's login reaches, and for what."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rights:
    """What a login may do, by the names of repositories without the host. In patterns `*` is any text.

    `own` are pulled and pushed. Of those that match `closed`, nothing else is reached. All others are pulled
    as far as the deployment names them as base repositories. Nothing is deleted.
    """

    own: tuple[str, str]
    closed: tuple[str, ...]


def rights(image: str) -> Rights:
    """Those of the login for the build of `image`, a reference that `image_reference` made: the project's
    repository, its cache, and no other repository of any project."""
    _, images, caches, name = _parts(image)
    return Rights(own=(images + name, caches + name), closed=(images + "*", caches + "*"))


def cache_repository(image: str) -> str:
    """Where the layers of the image's project are cached, `host/name`: beside the prefix of images, so that
    no project's own repository can have that name, and with tags that are moved."""
    host, _, caches, name = _parts(image)
    return f"{host}/{caches}{name}"


def _parts(image: str) -> tuple[str, str, str, str]:
    """Host, what stands before names of images and before those of caches, and `owner/project-<8>`."""
    host, *prefix, owner, project = image.rpartition(":")[0].split("/")
    images = "".join(f"{part}/" for part in prefix)
    caches = f"{images.removesuffix('/')}-cache/" if images else "cache/"
    return host, images, caches, f"{owner}/{project}"
