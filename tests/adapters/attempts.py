"""The API as steps of builds see it, on loopback."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from werkzeug import Request, Response

from chalicelib.adapters import steps
from chalicelib.domain.materials import text_of
from infra.bench.serving import served

SECRET = "hush-4711"


@dataclass
class AttemptApi:
    """What was asked, and how it is answered."""

    materials: Mapping[str, str] = field(default_factory=dict)  # beside the scripts
    files: Mapping[str, bytes] = field(default_factory=dict)  # that storage has
    url: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # what, and the fields
    logins: list[str | None] = field(default_factory=list)  # the header of each request, to storage as well
    refusals: list[int] = field(default_factory=list)  # for the next requests
    is_open: threading.Event = field(default_factory=threading.Event)  # until then, requests wait

    def answer(self, request: Request) -> Response:
        self.is_open.wait()
        what = request.path.rpartition("/")[2]
        self.logins.append(request.headers.get("Authorization"))
        if what in self.files:
            return Response(self.files[what])
        self.asked.append((what, request.form.to_dict()))
        if self.refusals:
            return Response('{"detail": "Not now."}', status=self.refusals.pop(0))
        if what == "_materials":
            links = {f"{name}_url": f"{self.url}/{name}" for name in self.files}
            return Response(text_of({**steps.texts(), "build-args": "", "labels": "", **links, **self.materials}))
        return Response('{"ServerURL": "r.test"}' if what == "_login" else "")

    def told(self, what: str) -> list[dict[str, str]]:
        """The fields of all requests for one thing."""
        return [fields for asked, fields in self.asked if asked == what]

    def variables(self, memory: Path) -> dict[str, str]:
        """Those of a build that asks here."""
        return {
            "SLIPWAY_API": self.url,
            "SLIPWAY_ATTEMPT": "1",
            "SLIPWAY_SECRET": SECRET,
            "SLIPWAY_MEMORY": str(memory),
            **steps.VARIABLES,
        }


@contextmanager
def attempt_api(materials: Mapping[str, str], files: Mapping[str, bytes] | None = None) -> Iterator[AttemptApi]:
    api = AttemptApi(materials, files or {})
    api.is_open.set()
    with served(api.answer) as address:
        api.url = f"http://{address}"
        yield api


def shell_and_path(name: str, folder: Path) -> tuple[list[str], str]:
    """A shell and a PATH: for busybox one with its own tools alone, as in BuildKit's image."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here")
    if name != "busybox":
        return [found], "/usr/bin:/bin"
    tools = folder / "busybox"
    tools.mkdir()
    (tools / "busybox").symlink_to(found)
    for tool in (
        *("base64", "cat", "chmod", "cp", "cut", "date", "find", "grep", "gzip", "head", "mkdir", "mktemp"),
        *(
            "mv",
            "printf",
            "readlink",
            "rm",
            "sed",
            "sh",
            "sleep",
            "tail",
            "tar",
            "timeout",
            "tr",
            "wc",
            "wget",
        ),
    ):
        (tools / tool).symlink_to(found)
    return [found, "sh"], str(tools)
