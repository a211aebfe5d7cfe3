"""Finds builds that would make an image which exists already: their recipe equals that of an earlier build."""

import hashlib
import json
import re
from collections.abc import Mapping

from msgspec.structs import asdict

from chalicelib.domain.build import Build, BuildBody, Status
from chalicelib.domain.lifecycle import advance
from chalicelib.domain.materials import labels_of
from chalicelib.domain.record import replace
from chalicelib.errors import refuse, require

MAX_BASES = 5  # of one build; each costs a request
# An image, in FROM with a name for its stage, or in a flag of COPY or RUN.
_IMAGE = re.compile(r"^FROM +(?:--platform=\S+ +)?(\S+)(?: +AS +(\S+))?$|\bfrom=([^\s,]+)", re.I)
# What Docker may read differently than this module, or what adds content that is no base image.
_STRANGE = re.compile(r"<<|^#\s*(?:syntax|escape)\s*=|^\s*ADD\s.*(?:://|git@)", re.I | re.M)


def bases_of(build: Build, body: BuildBody) -> list[str]:
    """The images that a build begins with or copies from, as its Dockerfile names them. Raises Invalid, with the
    reason, for a build that may make another image when it is repeated."""
    if body.dockerfile is None:
        refuse("Its Dockerfile is only known where its code is fetched.")
    if build.source and build.source.git_url and not re.fullmatch(r"[0-9a-f]{40}", build.source.git_revision or ""):
        refuse("Its code is named by a branch or tag; give the whole hash of a commit.")
    if strange := _STRANGE.search(body.dockerfile):
        refuse(f"Its Dockerfile has `{strange[0].strip()[:50]}`.")
    stages, bases = {"scratch"}, list[str]()
    for line in re.sub(r"\\[ \t]*\r?\n|[\t\v\f\r]", " ", body.dockerfile).split("\n"):
        found = list(_IMAGE.finditer(line.strip()))
        if "$" in "".join(each[0] for each in found) or (line.strip().upper().startswith("FROM ") and not found):
            refuse(f"`{line.strip()[:100]}` names no image literally.")
        names = [each[1] or each[3] for each in found]
        bases += [name for name in names if name.lower() not in stages and not name.isdigit()]
        stages |= {(each[2] or "").lower() for each in found}
    require(len({*bases}) <= MAX_BASES, f"It begins with more than {MAX_BASES} images.")
    return bases


def recipe_of(build: Build, body: BuildBody, platform: str, digests: Mapping[str, str | None]) -> str:
    """A hash, equal for builds of a project that make the same image; `digests` are of the base images."""
    source = asdict(build.source) | {"uploaded_at": None} if build.source else None
    made_of = [body.dockerfile, body.build_args, body.secrets, source, labels_of(build), platform, digests]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def reusing(build: Build, other: Build) -> Build:
    """A new build, ended at once with the image of an earlier one with the same recipe."""
    same = replace(build, image=other.image, image_digest=other.image_digest, layer_bytes=other.layer_bytes)
    message = f"It has the image of build {other.key.id}, which is made of the same."
    return advance(replace(same, reused_from=other.key.id), Status.SUCCEEDED, build.created_at, message=message)
