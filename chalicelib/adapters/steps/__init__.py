"""The shell steps of builds, a file each: what CodeBuild, a pod on EKS and the local node run.

`fetch_code` and `complete_dockerfile` are POSIX: they run in bash and, in BuildKit's image, in busybox.

| variable                                       | set by, value                                        |
|------------------------------------------------|------------------------------------------------------|
| SLIPWAY_IMAGE, SLIPWAY_NONCE, SLIPWAY_NOCACHE  | each build                                           |
| SLIPWAY_GIT_URL, SLIPWAY_GIT_REVISION          | each build; empty without a git repository           |
| SLIPWAY_CONTEXT, SLIPWAY_DOCKERFILE            | each build; paths in its code                        |
| SLIPWAY_BUILDKIT_IMAGE                         | each build on CodeBuild: BuildKit's image            |
| SLIPWAY_CACHE_REPOSITORY                       | each build on CodeBuild: where its layers are cached |
| SLIPWAY_LINKS                                  | each pod: the folder with the source's URLs          |
| SLIPWAY_SPECIAL_FILES, …_MARK                  | `VARIABLES`                                          |
| SLIPWAY_ENGINE                                 | the project: docker-container, docker, podman, buildah |
| SLIPWAY_TOOLS_REPOSITORY                       | the project: where a copy of BuildKit's image may be |
| SLIPWAY_ECR_HOST                               | the project: log in there; empty: no login           |
| SLIPWAY_DOCKER_HUB_USERNAME, …_TOKEN           | the project: log in to Docker Hub as well            |
| SLIPWAY_NETWORK                                | the project: network of RUN steps, may be empty      |
"""

from __future__ import annotations

from pathlib import Path

from chalicelib.domain.build import SPECIAL_FILES_MARK
from chalicelib.domain.dockerfile import SPECIAL_FILES

# What `complete_dockerfile` needs: groups separated by spaces, the names of a group by colons.
VARIABLES = {
    "SLIPWAY_SPECIAL_FILES": " ".join(":".join(group) for group in SPECIAL_FILES),
    "SLIPWAY_SPECIAL_FILES_MARK": SPECIAL_FILES_MARK,
}


def step(name: str) -> str:
    """The text of one step, without its first line, which names the shell to editors and shellcheck."""
    return Path(__file__).with_name(f"{name}.sh").read_text().partition("\n")[2]
