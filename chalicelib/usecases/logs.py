"""A build's log: as the API shows it, and kept once the build has ended."""

from __future__ import annotations

import codecs
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import IO

from chalicelib.domain.answer import encoded_bytes, fitting
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.user import User
from chalicelib.errors import Conflict, NoLog, Unavailable
from chalicelib.ports import LogLine, Services
from chalicelib.usecases import builds

log = logging.getLogger(__name__)
END_MARK = "slipway-end"  # the buildspec prints it with the build's nonce as the last line
QUIET = timedelta(minutes=2)  # after which a log without an end mark is taken for complete
LOOK_AGAIN = timedelta(minutes=1)
TAIL_LINES = 20  # of which one is the end mark, if the log has it
TRIES = 3  # to keep a log; the queue's dead letters begin after more
MAX_KEPT_BYTES = 100 * 1024**2  # of a kept log; the rest is cut with a mark
SPOOLED_BYTES = 8 * 1024**2  # of it in memory; more is in a temporary file


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
            return LogPage(url=services.log_archive.url(build))
        page = _page(services.log_archive.read(build, start, limit), start, size, limit)
        if cursor is None and page.next_cursor is not None:
            return LogPage(url=services.log_archive.url(build))
        return page
    if build.log is None:
        raise NoLog(f"File not found: build {key} has no log yet.")
    part, end = _growing(services.logs.lines(build.log), build.nonce, start, limit)
    if not end:
        raise NoLog("File not found: the log is still empty.")
    page = _page(part, start, end, limit)
    if cursor is None and page.next_cursor is not None:
        more = f"… the log goes on: ask for it with ?cursor={page.next_cursor}\n"
        return replace(page, text=page.text + more)
    return page


def _growing(lines: Iterator[LogLine], nonce: str, start: int, limit: int) -> tuple[bytes, int]:
    """At most `limit` bytes of a log's text from byte `start` on, and how far it was read: beyond them if the
    log goes on."""
    part, end = bytearray(), 0
    for line in lines:
        encoded = render((line,), nonce).encode()
        part += encoded[max(start - end, 0) :] if start < end + len(encoded) else b""
        end += len(encoded)
        if len(part) > limit:
            break
    return bytes(part[:limit]), end


def ask_to_keep(services: Services, build: Build) -> None:
    """Has the log of a build that has ended kept, by a function of its own: that may take long. Raises
    Conflict."""
    if build.log is None or build.deleted_at is not None:
        services.builds.save(replace(build, look_at=None))
    else:
        services.log_queue.announce(build.key)


def keep(services: Services, key: BuildKey, *, is_last_try: bool = False) -> None:
    """Keeps the log of a build that has ended, if it is complete; else has it looked at again. Raises
    Unavailable.

    Whatever the log's size, at most about one page of it is in memory. The last try keeps what can be read,
    with a mark where it is cut: a log that cannot be kept must not be tried for ever.
    """
    build = services.builds.get(key)
    if build is None or not build.is_done or build.look_at is None or build.kept_log_bytes is not None:
        return
    with suppress(Conflict):  # the build was changed meanwhile: the schedule sends it again
        services.builds.save(_kept(services, build, is_last_try=is_last_try))


def _kept(services: Services, build: Build, *, is_last_try: bool) -> Build:
    """The build's record once its log was kept, or when it is to be looked at again."""
    if build.log is None or build.deleted_at is not None:
        return replace(build, look_at=None)
    if not is_last_try and not _is_complete(services, build, build.log):
        return replace(build, look_at=services.now() + LOOK_AGAIN)
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as text:
        _copy(services.logs.lines(build.log), build.nonce, text, is_last_try=is_last_try)
        size: int | None = text.tell()
        text.seek(0)
        try:
            if size:
                services.log_archive.store(build, text)
        except Unavailable:
            if not is_last_try:
                raise
            log.exception("The log of build %s was not kept.", build.key, extra={"build": str(build.key)})
            size = None
    return replace(build, look_at=None, kept_log_bytes=size or None)


def _is_complete(services: Services, build: Build, log: str) -> bool:
    """Whether the log has its end mark, or nothing was added to it for a while."""
    tail = services.logs.tail(log, TAIL_LINES)
    quiet_since = max([build.finished_at or services.now(), *(line.at for line in tail[-1:])])
    has_end = any(line.text == f"{END_MARK} {build.nonce}" for line in tail)
    return has_end or services.now() - quiet_since >= QUIET


def _copy(lines: Iterator[LogLine], nonce: str, to: IO[bytes], *, is_last_try: bool) -> None:
    """Writes lines as text, up to `MAX_KEPT_BYTES`, or a tenth of that in the last try."""
    room = MAX_KEPT_BYTES // 10 if is_last_try else MAX_KEPT_BYTES
    try:
        for line in lines:
            encoded = render((line,), nonce).encode()
            if to.tell() + len(encoded) > room:
                to.write(f"… cut here: the log goes on, and at most {room} bytes are kept.\n".encode())
                break
            to.write(encoded)
    except Unavailable:
        if not is_last_try:
            raise
        to.write("… cut here: the rest of the log could not be read.\n".encode())


def render(lines: Iterable[LogLine], nonce: str) -> str:
    """Log lines in the API's text form, without our own mark."""
    return "".join(
        f"{line.at:%Y-%m-%d %H:%M:%S} UTC -- {line.text}\n"
        for line in lines
        if not line.text.startswith(f"{END_MARK} {nonce}")
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
