"""A build's log: as the API shows it, and kept once the build has ended."""

from __future__ import annotations

import base64
import binascii
import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from chalicelib.domain.answer import encoded_bytes, fitting
from chalicelib.domain.build import MAX_DOCKERFILE_BYTES, Build, BuildKey, User
from chalicelib.errors import NoLog
from chalicelib.ports import LogLine, Services
from chalicelib.usecases import builds

END_MARK = "slipway-end"  # the buildspec prints it with the build's nonce as the last line
DOCKERFILE_MARK = "slipway-dockerfile"  # and this, with the Dockerfile in base64, when only it knows that
QUIET = timedelta(minutes=2)  # after which a log without an end mark is taken for complete
LOOK_AGAIN = timedelta(minutes=1)
MAX_KEPT_BYTES = 100 * 1024**2  # of a kept log; the rest is cut with a mark, so that a function's memory does


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of a log, or where the whole can be fetched. `next_cursor` is the byte the next page begins at,
    None when this one ends where the log ends by now."""

    text: str = ""
    next_cursor: int | None = None
    url: str | None = None


def read(services: Services, caller: User, key: BuildKey, cursor: int | None = None) -> LogPage:
    """The log from byte `cursor` on, one line each as `YYYY-MM-DD HH:MM:SS UTC -- message`.

    Without a cursor it is the whole: a kept log that exceeds one answer by its address, one that still grows
    cut with a last line that says how to go on. Raises NotFound, Forbidden, NoLog.
    """
    build = builds.get(services, caller, key).build
    limit = services.settings.max_answer_bytes  # no text has fewer bytes encoded than before
    start = cursor or 0
    if (size := build.kept_log_bytes) is not None:
        if start >= size:
            return LogPage()
        if cursor is None and size > limit:
            return LogPage(url=services.kept_logs.url(build))
        page = _page(services.kept_logs.read(build, start, limit), start, size, limit)
        if cursor is None and page.next_cursor is not None:
            return LogPage(url=services.kept_logs.url(build))
        return page
    if build.log is None:
        raise NoLog(f"File not found: build {key} has no log yet.")
    whole = render(services.logs.lines(build.log), build.nonce).encode()
    page = _page(whole[start : start + limit], start, len(whole), limit)
    if cursor is None and page.next_cursor is not None:
        more = f"… the log goes on: ask for it with ?cursor={page.next_cursor}\n"
        return replace(page, text=page.text + more)
    return page


def keep(services: Services, build: Build) -> None:
    """Keeps the log of a build that has ended, if it is complete; else has it looked at again. Raises
    Conflict."""
    now = services.now()
    if build.log is None or build.deleted_at is not None:
        services.store.save(replace(build, look_at=None))
        return
    try:
        lines = services.logs.lines(build.log)
    except NoLog:
        lines = ()
    quiet_since = max([build.finished_at or now, *(line.at for line in lines[-1:])])
    if not any(line.text == f"{END_MARK} {build.nonce}" for line in lines) and now - quiet_since < QUIET:
        services.store.save(replace(build, look_at=now + LOOK_AGAIN))
        return
    text = render(lines, build.nonce)
    encoded = text.encode()
    if len(encoded) > MAX_KEPT_BYTES:
        cut = encoded[:MAX_KEPT_BYTES].rpartition(b"\n")[0].decode()
        text = f"{cut}\n… cut here: the log had {len(encoded)} bytes.\n"
    if lines:
        services.kept_logs.keep(build, text)
    if dockerfile := _dockerfile(lines, build.nonce):
        services.store.save_dockerfile(build.key, dockerfile)
    size = len(text.encode()) if lines else None
    services.store.save(replace(build, look_at=None, kept_log_bytes=size))


def render(lines: Sequence[LogLine], nonce: str) -> str:
    """Log lines in the API's text form, without our own marks."""
    ours = (f"{END_MARK} {nonce}", f"{DOCKERFILE_MARK} {nonce} ")
    return "".join(
        f"{line.at:%Y-%m-%d %H:%M:%S} UTC -- {line.text}\n"
        for line in lines
        if not line.text.startswith(ours)
    )


def _page(part: bytes, start: int, size: int, limit: int) -> LogPage:
    """As much of `part` as fits one answer; it ends with a line, if one ends in it, else with a character."""
    if encoded_bytes(part.decode(errors="replace")) > limit:
        lines = part.splitlines(keepends=True)
        count = fitting((line.decode(errors="replace") for line in lines), limit)
        part = b"".join(lines[:count]) or part[: limit // 6]  # a byte becomes six at most: \u0001
    goes_on = start + len(part) < size
    if goes_on:
        part = part[: part.rfind(b"\n") + 1] or part
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(part, final=not goes_on)
    end = start + len(part) - len(decoder.getstate()[0])
    return LogPage(text, end if goes_on else None)


def _dockerfile(lines: Sequence[LogLine], nonce: str) -> str | None:
    for line in lines:
        if line.text.startswith(f"{DOCKERFILE_MARK} {nonce} "):
            try:
                text = base64.b64decode(line.text.split()[2], validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
            return text if len(text.encode()) <= MAX_DOCKERFILE_BYTES else None
    return None
