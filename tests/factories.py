"""Things to test with: a test states only what matters to it."""

from __future__ import annotations

import gzip
import io
import tarfile
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildBody, BuildKey, Status, StatusEntry
from chalicelib.domain.lifecycle import Observation, Outcome, Step
from chalicelib.domain.project import Project
from chalicelib.domain.record import replace
from chalicelib.domain.user import User
from chalicelib.settings import Settings

NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
KEY = BuildKey("ada", "vision", 1)
SETTINGS = Settings(
    requests_per_minute=0,
    table="slipway",
    dispatch_queue_url="https://queue.test/slipway-dispatch",
    log_queue_url="https://queue.test/slipway-logs",
    hook_queue_url="https://queue.test/slipway-hooks",
    dead_letter_queue_url="https://queue.test/slipway-requests-dead",
    automation_user="robot",
    codebuild_project="slipway-builds",
    bucket="slipway-sources",
    registry="registry.test:5000",
    build_key_secret="slipway-build-key",
    registry_kind="plain",
)
SPEC: dict[str, Any] = {
    "version": 1,
    "kind": "build",
    "image": "python:3.7-slim",
    "build_steps": ["pip install flask==1.1"],
    "env_vars": [["APP_MODE", "prod"], ["RETRIES", 3]],
}


def after(seconds: float) -> datetime:
    """So many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def make_user(name: str = "ada", **changes: Any) -> User:
    return replace(User(name=name, created_at=NOW), **changes)


def make_project(owner: str = "ada", name: str = "vision", **changes: Any) -> Project:
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{owner}/{name}").hex
    project = Project(owner=owner, name=name, uuid=identity, created_at=NOW, updated_at=NOW)
    return replace(project, **changes)


def make_build(status: Status = Status.CREATED, *, number: int = 1, **changes: Any) -> Build:
    """A build of ada/vision that went from created straight to `status`."""
    history = [StatusEntry(1, f"{1:032x}", Status.CREATED, NOW)]
    if status is not Status.CREATED:
        history.append(StatusEntry(2, f"{2:032x}", status, NOW))
    build = Build(
        key=BuildKey("ada", "vision", number),
        uuid=f"{number:032x}",
        user="ada",
        created_at=NOW,
        updated_at=NOW,
        backend="native",
        nonce=f"{number:032d}",
        image=f"registry.test:5000/ada/vision-0000:{number}",
        history=tuple(history),
    )
    return replace(build, **changes)


def make_claimed(attempt: int = 1, **changes: Any) -> Build:
    """A build whose attempt the executor was asked to start at NOW; its tag was free."""
    build = make_build(**{"tag_was_free": True, **changes})
    while build.attempt < attempt:
        build = lifecycle.claim(build, NOW)
    return build


def make_body(**changes: Any) -> BuildBody:
    body = BuildBody(content="{}", config={"build": {}, "version": 1}, dockerfile="FROM scratch\n")
    return replace(body, **changes)


def make_observation(
    *statuses: Status, outcome: Outcome | None = None, attempt: int = 1, **changes: Any
) -> Observation:
    """What an executor says of ada/vision/1: it entered each stage ten seconds after the one before."""
    steps = tuple(Step(status, after(10 * (i + 1))) for i, status in enumerate(statuses))
    seen = Observation(
        key=str(KEY),
        uuid="",
        attempt=attempt,
        handle=f"run-{attempt}",
        log=None,
        steps=steps,
        outcome=outcome,
        ended_at=after(100) if outcome else None,
    )
    return replace(seen, **changes)


def make_archive(files: Mapping[str, str]) -> bytes:
    """A gzipped tar of these texts, with members named as the command line names them (`./name`)."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()
