"""What a build did, step by step, read from its log: one rule for every engine.

The plain lines are read, not BuildKit's `rawjson`: buildah has no such thing, BuildKit's own lines say name, duration,
cache and error as well, and so the log that people read is the only one there is. When a line was printed, the log
service says. BuildKit numbers what a step prints, so that it is not taken for a line of its own; buildah does not, so
of its lines those alone count that come next.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

MAX_STEPS = 1_000  # of one build
MAX_TEXT = 300  # characters of a name or an error
# BuildKit:   #7 [2/3] RUN pip install flask    #7 DONE 1.4s    #7 CACHED    #7 ERROR: process "…    #7 ...
_NUMBERED = re.compile(r"#(\d{1,6}) (.+)")
_END = re.compile(r"DONE(?: (\d{1,7}\.\d)s)?|(CACHED)|(CANCELED|ERROR: .+)|(?:\.\.\.)")
# buildah:    STEP 2/3: RUN pip install flask   [1/2] STEP 1/1: FROM x AS y    --> Using cache 5a3f…    --> 5a3f…
_STEP = re.compile(r"(\[\d{1,6}/\d{1,6}\] )?STEP (\d{1,6})/(\d{1,6}): (.+)")
_FAILED = "Error: building at STEP "
_STORED = re.compile(r"--> (Using cache )?[0-9a-f]{11,64}")


@dataclass(slots=True)
class BuildStep:
    """A step, and what is known of its end: a step that was cached has no duration, nor has one without an end."""

    name: str
    started_at: datetime
    duration_seconds: float | None = None
    is_cached: bool = False
    error: str | None = None


class Steps:
    """Makes steps of the lines of the log of a build of `image`, in order, as people see them."""

    def __init__(self, image: str) -> None:
        self._found: dict[str, BuildStep] = {}
        self._current: BuildStep | None = None
        self._number: str | None = None  # of BuildKit's step that prints; empty between two
        self._next = "\n"  # how buildah's step begins that may follow
        self._pushing, self._pushed = f"Pushing {image}", f"Pushing finished: {image.rpartition(':')[0]}@"

    @property
    def found(self) -> list[BuildStep]:
        """In the order in which they began."""
        return sorted(self._found.values(), key=lambda step: step.started_at)

    def add(self, at: datetime, line: str) -> None:
        """What was printed at that time."""
        if self._number is not None or (line[:1] == "#" and not self._found):
            if numbered := _NUMBERED.match(line):
                self._add_numbered(at, *numbered.groups())
            return
        for glued in (self._next, _FAILED):  # buildah does not end a line that a step has begun
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
        """The first line with another number than the one before has the name of its step. A second run, which
        pushes, finds everything cached that the first has done: the first counts."""
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
        """Ends the step before as well, if it goes on: buildah's do not say when they end."""
        self._end(at)
        if len(self._found) < MAX_STEPS:
            self._current = self._found.setdefault(name[:MAX_TEXT], BuildStep(name[:MAX_TEXT], at))

    def _end(
        self, at: datetime, *, seconds: float | None = None, is_cached: bool = False, error: str | None = None
    ) -> None:
        """Of the current step, unless it has ended. `seconds` that the engine has measured count: what runs side by
        side is printed later than it happens."""
        step, self._current = self._current, None
        if step is None or step.is_cached or step.duration_seconds is not None:
            return
        step.is_cached, step.error = is_cached, error and error[:MAX_TEXT]
        if seconds is not None:
            step.started_at = min(step.started_at, at - timedelta(seconds=seconds))
        if not is_cached:
            step.duration_seconds = round((at - step.started_at).total_seconds(), 3) if seconds is None else seconds
