"""Reads the steps of a build from its log, for all engines.

It reads the plain log, not BuildKit's `rawjson`: buildah has nothing like it, and BuildKit's plain lines have name,
duration, cache and error, too. So there is only one log, the one that users read. The log service knows when a line
was printed. BuildKit puts numbers before the output of a step, so that output cannot be taken for a line of BuildKit.
buildah puts none, so a line starts a step only if it is the line of the next step.
"""

import re
from datetime import datetime, timedelta

from msgspec import Struct

MAX_STEPS = 1_000  # of one build
MAX_TEXT = 300  # characters of a name or an error
# BuildKit:   #7 [2/3] RUN pip install flask    #7 DONE 1.4s    #7 CACHED    #7 ERROR: process "…    #7 ...
_NUMBERED = re.compile(r"#(\d{1,6}) (.+)")
_END = re.compile(r"DONE(?: (\d{1,7}\.\d)s)?|(CACHED)|(CANCELED|ERROR: .+)|(?:\.\.\.)")
# buildah:    STEP 2/3: RUN pip install flask   [1/2] STEP 1/1: FROM x AS y    --> Using cache 5a3f…    --> 5a3f…
_STEP = re.compile(r"(\[\d{1,6}/\d{1,6}\] )?STEP (\d{1,6})/(\d{1,6}): (.+)")
_FAILED = "Error: building at STEP "
_STORED = re.compile(r"--> (Using cache )?[0-9a-f]{11,64}")


class BuildStep(Struct):
    """A step. It has no duration if it was cached, or has not ended."""

    name: str
    started_at: datetime
    duration_seconds: float | None = None
    is_cached: bool = False
    error: str | None = None


class Steps:
    """Collects the steps of a build of `image` from the lines of its log, which are added in order."""

    def __init__(self, image: str) -> None:
        self._found: dict[str, BuildStep] = {}
        self._current: BuildStep | None = None
        self._number: str | None = None  # of the BuildKit step that prints; empty between two steps
        self._next = "\n"  # the beginning of the line of buildah's next step
        self._pushing, self._pushed = f"Pushing {image}", f"Pushing finished: {image.rpartition(':')[0]}@"

    @property
    def found(self) -> list[BuildStep]:
        """The steps, in the order of their starts."""
        return sorted(self._found.values(), key=lambda step: step.started_at)

    def add(self, at: datetime, line: str) -> None:
        """Adds a line that was printed at this time."""
        if self._number is not None or (line[:1] == "#" and not self._found):
            if numbered := _NUMBERED.match(line):
                self._add_numbered(at, *numbered.groups())
            return
        for glued in (self._next, _FAILED):  # buildah does not start a new line after the output of a step
            line = line[max(line.find(glued), 0) :]
        if (step := _STEP.match(line)) and (step[2] == "1" or line.startswith(self._next)):
            stage, number, total, instruction = step.groups()
            self._next = f"{stage or ''}STEP {int(number) + 1}/{total}: "
            self._begin(at, f"{stage or ''}[{number}/{total}] {instruction}")
        elif line == self._pushing:
            self._begin(at, line)
        elif (stored := _STORED.fullmatch(line)) or line.startswith(self._pushed):
            self._end(at, is_cached=bool(stored and stored[1]))
        elif line.startswith((_FAILED, "error building at STEP ")):
            self._end(at, error=line)

    def _add_numbered(self, at: datetime, number: str, text: str) -> None:
        """The first line with a new number has the name of the step. Of two runs, the first counts: the second one,
        which pushes, finds everything cached."""
        if number != self._number:
            self._number, self._current = number, None
            if number != "0":  # the name of the builder
                self._begin(at, text)
        elif end := _END.fullmatch(text):
            self._number = ""
            if text != "...":  # others are printing
                took, cached, error = end.groups()
                seconds = float(took or 0) if text.startswith("DONE") else None
                self._end(at, seconds=seconds, is_cached=bool(cached), error=error)

    def _begin(self, at: datetime, name: str) -> None:
        """Begins a step; ends the one before, because buildah does not print when a step ends."""
        self._end(at)
        if len(self._found) < MAX_STEPS:
            self._current = self._found.setdefault(name[:MAX_TEXT], BuildStep(name[:MAX_TEXT], at))

    def _end(
        self, at: datetime, *, seconds: float | None = None, is_cached: bool = False, error: str | None = None
    ) -> None:
        """Ends the current step, unless it has ended. `seconds` is the engine's measure, which is exact also for
        parallel steps, whose lines are printed late."""
        step, self._current = self._current, None
        if step is None or step.is_cached or step.duration_seconds is not None:
            return
        step.is_cached, step.error = is_cached, error and error[:MAX_TEXT]
        if seconds is not None:
            step.started_at = min(step.started_at, at - timedelta(seconds=seconds))
        if not is_cached:
            step.duration_seconds = round((at - step.started_at).total_seconds(), 3) if seconds is None else seconds
