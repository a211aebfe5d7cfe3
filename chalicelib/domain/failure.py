"""Why a build failed, read from the last lines of its log: one rule for every executor and engine."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAIL_LINES = 200  # how much of the log's end is worth reading

# BuildKit:      process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1
_BUILDKIT = re.compile(
    r'process "(?:/bin/(?:ba)?sh -c )?(?P<command>.*)" did not complete successfully: '
    r"exit code: (?P<code>\d+)"
)
# older BuildKit: executor failed running [/bin/sh -c pip install nope]: exit code: 1
_OLD_BUILDKIT = re.compile(
    r"executor failed running \[(?:/bin/(?:ba)?sh -c )?(?P<command>.*)\]: exit code: (?P<code>\d+)"
)
# buildah, podman: building at STEP "RUN pip install nope": while running runtime: exit status 1
_BUILDAH = re.compile(
    r'building at STEP "(?:RUN )?(?P<command>.*?)": while running runtime: exit status (?P<code>\d+)'
)
# Docker Hub's answer to too many anonymous pulls from one address, which CodeBuild's shared ones hit.
_RATE_LIMIT = re.compile(r"toomanyrequests|You have reached your (?:unauthenticated )?pull rate limit", re.I)
_ERROR = re.compile(r"^(?:ERROR|Error)[:\s]\s*(?P<text>.+)$")


def failure_reason(lines: Sequence[str]) -> str | None:
    """The failing command with its exit code where the log names one, else its last error line, else None."""
    for line in reversed(lines):
        step = _BUILDKIT.search(line) or _OLD_BUILDKIT.search(line) or _BUILDAH.search(line)
        if step:
            command = step["command"].replace('\\"', '"')
            return f"Exit code {step['code']}: {command}"  # the code first: messages are cut at their end
    for line in reversed(lines):
        if _RATE_LIMIT.search(line):
            return "The base image's registry refuses more anonymous pulls for now; use a mirror or log in."
    for line in reversed(lines):
        if error := _ERROR.match(line.strip()):
            return error["text"]
    return None
