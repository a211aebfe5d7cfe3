"""The shell steps of builds, one file each. CodeBuild, pods on EKS and the local node run them.

`ask` runs first and fetches all others. Steps for pods are POSIX shell, because BuildKit's image has busybox. README.md
has the variables of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, SPECIAL_FILES_MARK, Build, Source
from chalicelib.domain.dockerfile import SPECIAL_FILES

FOLDER = Path(__file__).parent


def step(name: str) -> str:
    """The text of a step without its first line, which names the shell."""
    return (FOLDER / f"{name}.sh").read_text().partition("\n")[2]


# The same for all builds. Special files: groups separated by spaces, the names of a group by colons.
VARIABLES = {
    "SLIPWAY_ASK": step("ask"),
    "SLIPWAY_SPECIAL_FILES": " ".join(":".join(group) for group in SPECIAL_FILES),
    "SLIPWAY_SPECIAL_FILES_MARK": SPECIAL_FILES_MARK,
    "SLIPWAY_MAX_DOCKERFILE_BYTES": str(MAX_DOCKERFILE_BYTES),
}


def variables_of(build: Build, api_url: str) -> dict[str, str]:
    """Variables for the steps of a build's attempt, without its secret; a pure function of its arguments."""
    source = build.source or Source()
    key = build.key
    return {
        "SLIPWAY_API": f"{api_url}/{key.owner}/{key.project}/builds/{key.id}",
        "SLIPWAY_ATTEMPT": str(build.attempt),
        "SLIPWAY_IMAGE": build.image,
        "SLIPWAY_NONCE": build.nonce,
        "SLIPWAY_NOCACHE": "1" if build.nocache else "",
        "SLIPWAY_GIT_URL": source.git_url or "",
        "SLIPWAY_GIT_REVISION": source.git_revision or "",
        "SLIPWAY_CONTEXT": source.context or "",
        "SLIPWAY_DOCKERFILE": source.dockerfile or "",
    }


def texts() -> Mapping[str, str]:
    """The shell scripts of all steps, by the steps' names."""
    return {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.sh"))}
