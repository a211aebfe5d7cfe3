"""Finds the reason of a failed build in the last lines of its log, for all executors and engines.

Most of these lines are output of the build's own steps. So lines are cut before they are searched, only lines that
begin like an engine's error count, and the search takes linear time.
"""

import re
from collections.abc import Sequence

TAIL_LINES = 200  # how many of the last lines are read
MAX_LINE = 8_192  # characters that are read from each end of a line

# The texts before and after the failed command; the exit code follows.
_REPORTS = (
    # BuildKit:   ERROR: process "/bin/sh -c pip install nope" did not complete successfully: exit code: 1
    ('process "', '" did not complete successfully: exit code: '),
    # older ones: ERROR: executor failed running [/bin/sh -c pip install nope]: exit code: 1
    ("executor failed running [", "]: exit code: "),
    # buildah:    Error: building at STEP "RUN pip install nope": while running runtime: exit status 1
    ('building at STEP "', '": while running runtime: exit status '),
    # chroot:     Error: building at STEP "RUN pip install nope": exit status 1
    ('building at STEP "', '": exit status '),
)
# The beginning of an engine's error line, up to its message. BuildKit numbers the output of steps.
_ERROR = re.compile(r"(?:#\d{1,9} )?(?:(?:ERROR|Error|error)[:\s]\s*|(?=failed to solve))")
# buildah does not start a new line after the output of a step.
_GLUED = 'Error: building at STEP "'
_OF_TOOLS = re.compile(r"(?=(?:fatal|tar|tar \(child\)|gzip|cp|mv|curl|wget): )")
# Follow-up messages, which come after the cause.
_ECHOES = (
    "tar: Child returned status",
    "tar: Error is not recoverable",
    "tar: Exiting with failure status",
    "tar (child): Error is not recoverable",
)
_SHELL = re.compile(r"\A(?:RUN (?:--mount=\S{1,200} ){0,20}|/bin/(?:ba)?sh -c )")
_CODE = re.compile(r"\d{1,10}")
KILLED_CODE = "137"  # 128 + SIGKILL, as shells and engines report it
KILLED = "was killed (signal 9); the machine may have run out of memory"
_DISK_FULL = "no space left on device"
_CODES = {
    "126": "what it calls cannot be executed",
    "127": "what it calls was not found",
    "132": "illegal instruction; is the image for this processor?",
    KILLED_CODE: KILLED,
    "139": "segmentation fault",
    "143": "ended by SIGTERM",
}
# The meanings of error lines, and the texts that show them, in any case; the first that fits counts. CodeBuild's shared
# addresses often reach Docker Hub's limit for anonymous pulls.
_MEANINGS = {
    "The base image's registry refuses more anonymous pulls for now; use a mirror or log in.": (
        "toomanyrequests|reached your (?:unauthenticated )?pull rate limit|429 Too Many Requests"
    ),
    "The disk is full": "disk quota exceeded|Wrote only \\d{1,9} of",
    "The memory is not enough": "cannot allocate memory|out of memory|signal: killed",
    "The image's tag is there already": "repository is immutable|tag is immutable",
    "A server's certificate is not trusted": "x509: |certificate verif",
    "Access is refused": (
        "pull access denied|insufficient_scope|authorization failed|no basic auth credentials|"
        "unauthorized\\b|: denied\\b|403 Forbidden|could not read Username|returned error: 40[13]"
    ),
    "The Dockerfile cannot be read": "dockerfile parse error|unknown instruction",
    "A file that the Dockerfile copies is missing (code is in `build/`)": (
        "failed to calculate checksum of ref|copier: stat"
    ),
    "A server cannot be reached": (
        "connection refused|no such host|Could not resolve host|i/o timeout|TLS handshake timeout|"
        "Couldn't connect to server|unexpected EOF\\b(?! in)|status: 5\\d\\d|returned error: 5\\d\\d"
    ),
    "The code's archive is damaged": (
        "unexpected end of file|not in gzip format|invalid compressed data|EOF in archive|not look like a tar archive"
    ),
}


def failure_reason(lines: Sequence[str]) -> str | None:
    """The failed command with its exit code, if the log names one, else the last error line with its meaning, else
    None. A full disk is named before all other reasons, because it makes commands fail."""
    lines = [*map(_cut, lines)]
    reason = _command_or_error(lines)
    is_full = any(_DISK_FULL in line.lower() for line in lines)
    if is_full and _DISK_FULL not in (reason or "").lower():
        return f'The log says "{_DISK_FULL}"' + (f"; {reason}" if reason else ".")
    return reason


def _command_or_error(lines: Sequence[str]) -> str | None:
    found = [
        line[mark.end() :]
        for line in reversed(lines)
        if (mark := _ERROR.match(line) or _OF_TOOLS.match(line)) and not line.startswith(_ECHOES)
    ]
    errors = list(filter(None, found))
    for line in errors:
        if step := _failed_step(line):
            return step
    for line in errors:
        for meaning, pattern in _MEANINGS.items():
            if re.search(pattern, line, re.I):
                return meaning if meaning.endswith(".") else f"{meaning}: {line}"
    return errors[0] if errors else None


def _cut(line: str) -> str:
    if len(line) > 2 * MAX_LINE:
        line = f"{line[:MAX_LINE]}…{line[-MAX_LINE:]}"
    line = line.strip()
    return line[max(line.find(_GLUED), 0) :]


def _failed_step(line: str) -> str | None:
    """The command itself may contain these texts, so only the first beginning and the last end count."""
    end, before, after = max((line.rfind(after), before, after) for before, after in _REPORTS)
    start, code = line.find(before, 0, max(end, 0)), _CODE.match(line, end + len(after))
    if start < 0 or code is None:
        return None
    command = _SHELL.sub("", line[start + len(before) : end], count=1).replace('\\"', '"')
    why = f" ({_CODES[code[0]]})" if code[0] in _CODES else ""
    return f"Exit code {code[0]}{why}: {command}"  # the code first: messages are cut at their end
