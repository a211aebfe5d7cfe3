"""A build's log: as the API shows it, and kept once the build has ended."""

import codecs
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain

from chalicelib.domain.answer import encoded_bytes, fitting
from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.build_steps import BuildStep, Steps
from chalicelib.domain.log_lines import MAX_LINE_BYTES, Lines, LogLine, Position, Table, at_of, find, ms_of
from chalicelib.domain.user import User
from chalicelib.errors import Conflict, Invalid, NoLog, Unavailable
from chalicelib.ports import Services
from chalicelib.usecases import builds

log = logging.getLogger(__name__)
QUIET = timedelta(minutes=2)  # after which a log without an end mark is taken for complete
LOOK_AGAIN = timedelta(minutes=1)
KEEPS_FOR = timedelta(minutes=6)  # one function, which lives for five; then another may begin anew
TAIL_LINES = 20  # of which one is the end mark, if the log has it
TRIES = 3  # to keep a log; the queue's dead letters begin after more
MAX_READS = 100  # of the log service for one answer
MAX_READS_FOR_STEPS = 5  # about 50,000 lines: followers ask again and again
FEW_LINES = 1_000  # a read that finds fewer has come to what is just being written
RAW_FACTOR = 4  # of what is kept may be read for it: a progress bar's earlier states are not kept
RETRY_SECONDS = 2  # until a follower should ask again
START = "0"  # the cursor before the first line
CURSOR = re.compile(r"0|b(\d{1,12})|(\d{1,14})\.(\d{1,12})")


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of a log that ends with a line, or where the whole can be fetched, and the cursor behind it."""

    next_cursor: str
    is_complete: bool  # nothing follows
    text: str = ""
    url: str | None = None
    is_cut: bool = False  # more is there already


def read(services: Services, caller: User, key: BuildKey, cursor: str | None = None) -> LogPage:
    """The log from a cursor on, one line each as `YYYY-MM-DD HH:MM:SS UTC -- message`.

    Without a cursor it is the whole: a kept log that exceeds one answer by its address, one that still grows
    cut with a last line that says how to go on. A cursor is a position in the log until that is kept, then a
    byte of the text. Raises NotFound, Forbidden, NoLog, Invalid for a cursor that no answer gave.
    """
    build = builds.look(services, caller, key).build
    limit = services.settings.max_answer_bytes  # no text has fewer bytes encoded than before
    at = _parsed(START if cursor is None else cursor)
    if build.stored_log_bytes is not None:
        page = _kept_page(services, build, at, build.stored_log_bytes, limit)
        if cursor is None and page.is_cut:
            return LogPage(f"b{build.stored_log_bytes}", is_complete=True, url=services.log_archive.url(build))
        return page
    if build.log is None or isinstance(at, int):
        page = LogPage(cursor or START, is_complete=_never_kept(build))
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
    """What the build did, in the order in which it began. They are kept with the log; until then the log's first
    lines are read, `MAX_READS_FOR_STEPS` times. Raises NotFound, Forbidden."""
    build = builds.look(services, caller, key).build
    if build.stored_log_bytes is not None:
        return services.log_archive.steps(build)
    found, lines = Steps(build.image), Lines(build.nonce)
    for piece in _pieces(services, build.log, MAX_READS_FOR_STEPS) if build.log else ():
        for line in lines.add(piece):
            found.add(piece.at, line)
    return found.found


def _pieces(services: Services, name: str, reads: int = sys.maxsize) -> Iterator[LogLine]:
    """Those of a log from its beginning, as far as so many reads come."""
    after = Position()
    for _ in range(reads):
        part = services.logs.read(name, after)
        yield from part.lines
        if part.is_end:
            return
        after = part.next


def _parsed(cursor: str) -> Position | int:
    """A position in the log, or a byte of the kept text."""
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
            if lines.has_ended:  # the cursor stays before the mark, so that its owner hears of the end again
                return LogPage(_cursor(end), build.is_done, "".join(texts))
            if lines.between_lines:
                end = after
        if part.is_end or (texts and len(part.lines) < FEW_LINES):
            break
        after = part.next
    is_complete = part.is_end and _never_kept(build)
    return LogPage(_cursor(end), is_complete, "".join(texts))


def _never_kept(build: Build) -> bool:
    """Whether it has ended and its log, if any, stays with the log service."""
    return build.is_done and (build.look_at is None or build.log is None)


def _cursor(position: Position) -> str:
    return f"{ms_of(position.at)}.{position.count}" if position.count else START


def _rows(piece: LogLine, lines: Iterable[str]) -> list[str]:
    return [f"{piece.at:%Y-%m-%d %H:%M:%S} UTC -- {line}\n" for line in lines]


def _kept_page(services: Services, build: Build, at: Position | int, size: int, limit: int) -> LogPage:
    """As much of the text as fits one answer; it ends with a line, if it has the end of one."""
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
    # Only older texts have longer lines. A byte becomes six at most: \u0001.
    part = b"".join(lines[:count]) or part[: limit // 6]
    goes_on = start + len(part) < size
    if goes_on:
        part = part[: part.rfind(b"\n") + 1] or part
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(part, final=not goes_on)
    end = start + len(part) - len(decoder.getstate()[0])
    return LogPage(f"b{end}", is_complete=not goes_on, text=text, is_cut=goes_on)


def ask_to_keep(services: Services, build: Build, after_seconds: int = 0) -> bool:
    """Has the log of a build that has ended kept, by a function of its own: that may take long. False: it has none, or
    it is kept already."""
    if build.log is None or build.deleted_at is not None or build.stored_log_bytes is not None:
        return False
    services.log_queue.announce(build.key, after_seconds)
    return True


def keep(services: Services, key: BuildKey, *, is_last_try: bool = False) -> None:
    """Keeps the log of a build that has ended, if it is complete; else has it looked at again. Raises Unavailable.

    Whatever the log's size, little of it is in memory. If the function ends in between, the next begins anew:
    as much as is kept is read within a minute or two. The last try keeps what can be read, with a mark where
    it is cut: a log that cannot be kept must not be tried for ever.
    """
    build, now = services.builds.get(key), services.now()
    if build is None or not build.is_done or build.look_at is None or build.stored_log_bytes is not None:
        return
    if build.log is None or build.deleted_at is not None:
        return
    if build.keeping_log_until is not None and now < build.keeping_log_until:
        # What two write is not what either has recorded. This message is not done: it comes again.
        raise Unavailable(f"Another function keeps the log of build {key}.")
    with suppress(Conflict):  # the build was changed meanwhile: the schedule sends it again
        if not is_last_try and not _is_complete(services, build, build.log):
            services.builds.save(replace(build, look_at=now + LOOK_AGAIN))
        else:
            leased = services.builds.save(replace(build, keeping_log_until=now + KEEPS_FOR))
            text = _Text(services, leased, build.log, is_last_try=is_last_try)
            try:
                kept = _kept(services, leased, text, is_last_try=is_last_try)
            except Unavailable:  # the next try need not wait
                services.builds.save(replace(leased, keeping_log_until=None))
                raise
            services.builds.save(kept)


def _is_complete(services: Services, build: Build, log: str) -> bool:
    """Whether the log has its end mark, or nothing was added to it for a while."""
    tail, lines = services.logs.tail(log, TAIL_LINES), Lines(build.nonce)
    for piece in tail:
        lines.add(piece)
    quiet_since = max([build.finished_at or services.now(), *(line.at for line in tail[-1:])])
    return lines.has_ended or services.now() - quiet_since >= QUIET


def _kept(services: Services, build: Build, text: "_Text", *, is_last_try: bool) -> Build:
    """The build's record once its log was stored."""
    look_at = build.look_at if build.has_tags_to_move(services.now()) else None
    done = replace(build, look_at=look_at, keeping_log_until=None)
    pieces = iter(text)
    if (first := next(pieces, None)) is None:
        return done
    try:
        services.log_archive.store(build, chain((first,), pieces))
        services.log_archive.store_found(build, text.table.blocks, text.steps.found)
    except Unavailable:
        if not is_last_try:
            raise
        log.exception("The log of build %s was not kept.", build.key, extra={"build": str(build.key)})
        return done
    return replace(done, stored_log_bytes=text.size)


class _Text:
    """A log on its way into storage, and what is known of it at its end. Of one that cannot be read further,
    the last try keeps the beginning, and at most a tenth of what is kept else."""

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
                    why = f"the log goes on, and at most {room} bytes are kept"
                    break
                if rows:
                    yield self._counted(encoded)
                self.table.add(last.at, len(rows), self.size)
        except Unavailable:
            if not self._is_last_try:
                raise
            why = "the rest of the log could not be read"
        rest = [f"… cut here: {why}.\n"] if why else _rows(last, lines.rest())
        end = self._counted("".join(rest).encode())
        self.table.close(self.size)
        if end:
            yield end

    def _counted(self, text: bytes) -> bytes:
        self.size += len(text)
        return text
