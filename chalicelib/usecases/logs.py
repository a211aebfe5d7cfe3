"""A build's log: as the API shows it, and stored after the end of the build."""

import codecs
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import chain
from math import ceil

from msgspec import Struct

from chalicelib.domain.answer import encoded_bytes, fitting
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.build_steps import BuildStep, Steps
from chalicelib.domain.lifecycle import LOG_SETTLES
from chalicelib.domain.log_lines import MAX_LINE_BYTES, Lines, LogLine, Position, Table, at_of, find, ms_of
from chalicelib.domain.record import replace
from chalicelib.domain.user import User
from chalicelib.errors import Conflict, Invalid, NoLog, Unavailable
from chalicelib.ports import Services
from chalicelib.usecases import builds

log = logging.getLogger(__name__)
QUIET = timedelta(minutes=2)  # without new lines, a log without an end mark counts as complete
LOOK_AGAIN = timedelta(minutes=1)
KEEPS_FOR = timedelta(minutes=6)  # the lease of one function, which lives for five; then another may start again
TAIL_LINES = 20  # of which one is the end mark, if the log has it
TRIES = 3  # to store a log; after more, the message goes to the dead letters
MAX_READS = 100  # of the log service for one answer
MAX_READS_FOR_STEPS = 5  # about 50,000 lines; clients that follow a build ask often
FEW_LINES = 1_000  # a read that finds fewer has reached the end of a growing log
RAW_FACTOR = 4  # how much more may be read than is stored: earlier states of progress bars are not stored
RETRY_SECONDS = 2  # after which a client that follows a log should ask again
START = "0"  # the cursor before the first line
CURSOR = re.compile(r"0|b(\d{1,12})|(\d{1,14})\.(\d{1,12})")


class LogPage(Struct, frozen=True):
    """A part of a log, whole lines, or a link to the whole log; and the cursor after it."""

    next_cursor: str
    is_complete: bool  # nothing follows
    text: str = ""
    url: str | None = None
    is_cut: bool = False  # there are more lines already


def read(services: Services, caller: User, key: BuildKey, cursor: str | None = None) -> LogPage:
    """The log from a cursor on, with lines like `YYYY-MM-DD HH:MM:SS UTC -- message`.

    Without a cursor, the whole log: as a link, if it is stored and too large for an answer; if it still grows and is
    too large, it is cut, with a last line that says how to continue. A cursor is a position in the log, or, once the
    log is stored, a byte of the text. Raises NotFound, Forbidden, NoLog, and Invalid for an invalid cursor.
    """
    build = builds.look(services, caller, key).build
    limit = services.settings.max_answer_bytes  # encoding never makes a text shorter
    at = _parsed(START if cursor is None else cursor)
    if build.stored_log_bytes is not None:
        page = _stored_page(services, build, at, build.stored_log_bytes, limit)
        if cursor is None and page.is_cut:
            return LogPage(f"b{build.stored_log_bytes}", is_complete=True, url=services.log_archive.url(build))
        return page
    if build.log is None or isinstance(at, int):
        page = LogPage(cursor or START, is_complete=_never_stored(build))
    else:
        page = _growing_page(services, build, build.log, at, limit)
    if cursor is None and not page.text:
        why = "has no log" if page.is_complete else "has printed no line yet; ask again"
        raise NoLog(f"Build {key} {why}.", page.next_cursor, is_complete=page.is_complete)
    if cursor is None and page.is_cut:
        more = f"… the log goes on: ask for it with ?cursor={page.next_cursor}\n"
        return replace(page, text=page.text + more)
    return page


def steps(services: Services, caller: User, key: BuildKey) -> Sequence[BuildStep]:
    """The steps of the build, in the order of their starts. They are stored together with the log. Until then they are
    found in the log's first lines, with at most `MAX_READS_FOR_STEPS` reads. Raises NotFound, Forbidden."""
    build = builds.look(services, caller, key).build
    if build.stored_log_bytes is not None:
        return services.log_archive.steps(build)
    found, lines = Steps(build.image), Lines(build.nonce)
    for piece in _pieces(services, build.log, MAX_READS_FOR_STEPS) if build.log else ():
        for line in lines.add(piece):
            found.add(piece.at, line)
    return found.found


def _pieces(services: Services, name: str, reads: int = sys.maxsize) -> Iterator[LogLine]:
    """The pieces of a log from its beginning, with at most `reads` reads."""
    after = Position()
    for _ in range(reads):
        part = services.logs.read(name, after)
        yield from part.lines
        if part.is_end:
            return
        after = part.next


def _parsed(cursor: str) -> Position | int:
    """The cursor as a position in the log, or as a byte of the stored text. Raises Invalid."""
    match = CURSOR.fullmatch(cursor)
    if match is None or not cursor.isascii():
        raise Invalid(["`cursor` must be one that an answer gave, or 0."])
    byte, ms, count = match.groups()
    return int(byte) if byte else Position(at_of(int(ms or 0)), int(count or 0))


def _growing_page(services: Services, build: Build, name: str, after: Position, limit: int) -> LogPage:
    lines, texts, size, end = Lines(build.nonce), list[str](), 0, after
    for _ in range(MAX_READS):
        part = services.logs.read(name, after)
        for piece in part.lines:
            after = after.after(piece.at)
            rows = _rows(piece, lines.add(piece))
            size += encoded_bytes("".join(rows)) - 2  # without the quotes
            if size > limit and texts:
                return LogPage(_cursor(end), is_complete=False, text="".join(texts), is_cut=True)
            texts += rows
            if lines.has_ended:  # the cursor stays before the mark, so that the next request sees the end again
                return LogPage(_cursor(end), build.is_done, "".join(texts))
            if lines.between_lines:
                end = after
        if part.is_end or (texts and len(part.lines) < FEW_LINES):
            break
        after = part.next
    is_complete = part.is_end and _never_stored(build)
    return LogPage(_cursor(end), is_complete, "".join(texts))


def _never_stored(build: Build) -> bool:
    """Whether it has ended and its log, if any, will not be stored."""
    return build.is_done and (build.check_at is None or build.log is None)


def _cursor(position: Position) -> str:
    return f"{ms_of(position.at)}.{position.count}" if position.count else START


def _rows(piece: LogLine, lines: Iterable[str]) -> list[str]:
    return [f"{piece.at:%Y-%m-%d %H:%M:%S} UTC -- {line}\n" for line in lines]


def _stored_page(services: Services, build: Build, at: Position | int, size: int, limit: int) -> LogPage:
    """As much of the stored text as fits into one answer; whole lines, if possible."""
    start, skip = (at, 0) if isinstance(at, int) else (0, 0)
    if isinstance(at, Position) and at.count:
        start, skip = find(services.log_archive.table(build), at)
    part = services.log_archive.read(build, start, limit + 3 * MAX_LINE_BYTES) if start < size else b""
    seen = 0
    for _ in range(skip):
        seen = part.index(b"\n", seen) + 1
    start, part = start + seen, part[seen:]
    if not part:
        return LogPage(f"b{size}", is_complete=True)
    lines = part.splitlines(keepends=True)
    count = fitting((line.decode(errors="replace") for line in lines), limit)
    if count == 0 and len(lines[0]) < 2 * MAX_LINE_BYTES:
        count = 1
    # Only older texts have longer lines. A byte has at most six when encoded: \u0001.
    part = b"".join(lines[:count]) or part[: limit // 6]
    goes_on = start + len(part) < size
    if goes_on:
        part = part[: part.rfind(b"\n") + 1] or part
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(part, final=not goes_on)
    end = start + len(part) - len(decoder.getstate()[0])
    return LogPage(f"b{end}", is_complete=not goes_on, text=text, is_cut=goes_on)


def ask_to_keep(services: Services, build: Build) -> bool:
    """Queues a build that has ended, so that a separate function stores its log when its last lines have arrived. False
    if the build has no log, or if the log is stored already."""
    if build.log is None or build.deleted_at is not None or build.stored_log_bytes is not None:
        return False
    settles_at = (build.finished_at or services.now()) + LOG_SETTLES
    services.log_queue.announce(build.key, max(0, ceil((settles_at - services.now()).total_seconds())))
    return True


def keep(services: Services, key: BuildKey, *, is_last_try: bool = False) -> None:
    """Stores the log of a build that has ended, if it is complete; else schedules another check. Raises Unavailable.

    Only a small part of the log is in memory. If the function dies, the next one starts again, which takes a minute or
    two. The last try stores what can be read, with a mark where it is cut, because a log that cannot be stored must not
    be tried for ever.
    """
    build, now = services.builds.get(key), services.now()
    if build is None or not build.is_done or build.check_at is None or build.stored_log_bytes is not None:
        return
    if build.log is None or build.deleted_at is not None:
        return
    if build.keeping_log_until is not None and now < build.keeping_log_until:
        # Two writers could store another text than either records. The message is delivered again.
        raise Unavailable(f"Another function is storing the log of build {key}.")
    with suppress(Conflict):  # the build was changed meanwhile: the schedule queues it again
        if not is_last_try and not _is_complete(services, build, build.log):
            services.builds.save(replace(build, check_at=now + LOOK_AGAIN))
        else:
            leased = services.builds.save(replace(build, keeping_log_until=now + KEEPS_FOR))
            text = _Text(services, leased, build.log, is_last_try=is_last_try)
            try:
                stored = _store(services, leased, text, is_last_try=is_last_try)
            except Unavailable:  # the next try need not wait
                services.builds.save(replace(leased, keeping_log_until=None))
                raise
            services.builds.save(stored)


def _is_complete(services: Services, build: Build, log: str) -> bool:
    """Whether the log has its end mark, or nothing was added to it for a while."""
    tail, lines = services.logs.tail(log, TAIL_LINES), Lines(build.nonce)
    for piece in tail:
        lines.add(piece)
    quiet_since = max([build.finished_at or services.now(), *(line.at for line in tail[-1:])])
    return lines.has_ended or services.now() - quiet_since >= QUIET


def _store(services: Services, build: Build, text: "_Text", *, is_last_try: bool) -> Build:
    """Stores the text; returns the build's next record."""
    check_at = build.check_at if build.has_tags_to_move(services.now()) else None
    done = replace(build, check_at=check_at, keeping_log_until=None)
    pieces = iter(text)
    if (first := next(pieces, None)) is None:
        return done
    try:
        services.log_archive.store(build, chain((first,), pieces))
        services.log_archive.store_found(build, text.table.blocks, text.steps.found)
    except Unavailable:
        if not is_last_try:
            raise
        log.exception("The log of build %s could not be stored.", build.key, extra={"build": str(build.key)})
        return done
    return replace(done, stored_log_bytes=text.size)


class _Text:
    """The text of a log, made while it is stored; at its end, also its size, table and steps. If the log cannot be read
    further, the last try stores the beginning, and at most a tenth of the usual limit."""

    def __init__(self, services: Services, build: Build, name: str, *, is_last_try: bool) -> None:
        self._services, self._name, self._nonce, self._is_last_try = services, name, build.nonce, is_last_try
        self.size, self.table, self.steps = 0, Table(), Steps(build.image)

    def __iter__(self) -> Iterator[bytes]:
        room = self._services.settings.max_stored_log_bytes // (10 if self._is_last_try else 1)
        lines, raw, last, why = Lines(self._nonce), 0, LogLine(at_of(0), ""), ""
        try:
            for last in _pieces(self._services, self._name):
                raw += len(last.text)
                shown = lines.add(last)
                for line in shown:
                    self.steps.add(last.at, line)
                rows = _rows(last, shown)
                encoded = "".join(rows).encode() if rows else b""
                if self.size + len(encoded) > room or raw > RAW_FACTOR * room:
                    why = f"the log goes on, and at most {room} bytes are stored"
                    break
                if rows:
                    self.size += len(encoded)
                    yield encoded
                self.table.add(last.at, len(rows), self.size)
        except Unavailable:
            if not self._is_last_try:
                raise
            why = "the rest of the log could not be read"
        rest = [f"… cut here: {why}.\n"] if why else _rows(last, lines.rest())
        end = "".join(rest).encode()
        self.size += len(end)
        self.table.close(self.size)
        if end:
            yield end
