"""Why a build failed, read from the last lines of its log: one rule for every executor and engine.

A build's own steps write most of these lines. So a line is cut before it is searched, only lines that begin
as an engine's error count, and the search takes time linear in the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TAIL_LINES = 200  # how much of the log's end is worth reading
MAX_LINE = 8_192  # characters that are read from each end of a line

# What stands before and after the failed command; its exit code follows.
_REPORTS = (
    # BuildKit:   ERROR: process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1
    ('process "', '" did not complete successfully: exit code: '),
    # older ones: ERROR: executor failed running [/bin/sh -c pip install nope]: exit code: 1
    ("executor failed running [", "]: exit code: "),
    # buildah:    Error: building at STEP "RUN pip install nope": while running runtime: exit status 1
    ('building at STEP "', '": while running runtime: exit status '),
)
# How an engine's error line begins, up to what it says. BuildKit numbers the lines that steps print.
_ERROR = re.compile(r"(?:#\d{1,9} )?(?:(?:ERROR|Error|error)[:\s]\s*|(?=failed to solve))")
_SHELL = re.compile(r"\A(?:RUN (?:--mount=\S{1,200} ){0,20}|/bin/(?:ba)?sh -c )")
_CODE = re.compile(r"\d{1,10}")
KILLED_CODE = "137"  # 128 + SIGKILL, as shells and engines report it
KILLED = "was killed (signal 9); the machine may have run out of memory"
_DISK_FULL = "no space left on device"
# Docker Hub's answer to too many anonymous pulls from one address, which CodeBuild's shared ones hit.
_RATE_LIMIT = re.compile(r"toomanyrequests|You have reached your (?:unauthenticated )?pull rate limit", re.I)


def failure_reason(lines: Sequence[str]) -> str | None:
    """The failing command with its exit code where the log names one, else its last error line, else None.

    A full disk is said first, because tools that are no engines also meet it: tar, git, a command.
    """
    lines = [*map(_cut, lines)]
    reason = _command_or_error(lines)
    is_full = any(_DISK_FULL in line.lower() for line in lines)
    if is_full and _DISK_FULL not in (reason or "").lower():
        return f'The log says "{_DISK_FULL}"' + (f"; {reason}" if reason else ".")
    return reason


def _command_or_error(lines: Sequence[str]) -> str | None:
    errors = [line[mark.end() :] for line in reversed(lines) if (mark := _ERROR.match(line))]
    for line in errors:
        if step := _failed_step(line):
            return step
    if any(_RATE_LIMIT.search(line) for line in errors):
        return "The base image's registry refuses more anonymous pulls for now; use a mirror or log in."
    return next(filter(None, errors), None)


def _cut(line: str) -> str:
    if len(line) > 2 * MAX_LINE:
        line = f"{line[:MAX_LINE]}…{line[-MAX_LINE:]}"
    return line.strip()


def _failed_step(line: str) -> str | None:
    """The command may hold any of these texts: only the first beginning and the last end are the engine's."""
    end, before, after = max((line.rfind(after), before, after) for before, after in _REPORTS)
    start, code = line.find(before, 0, max(end, 0)), _CODE.match(line, end + len(after))
    if start < 0 or code is None:
        return None
    command = _SHELL.sub("", line[start + len(before) : end], count=1).replace('\\"', '"')
    why = f" ({KILLED})" if code[0] == KILLED_CODE else ""
    return f"Exit code {code[0]}{why}: {command}"  # the code first: messages are cut at their end
