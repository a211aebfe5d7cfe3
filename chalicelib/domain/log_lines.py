"""Makes the lines of a log that users see from the pieces in the log service.

A piece is a line, or a part of a line that was too long. Pieces are joined, messages of CodeBuild and of our own steps
are removed, and control characters are made visible.
"""

import re
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

END_MARK = "slipway-end"  # the steps print it with the build's nonce as the last line
MAX_LINE_BYTES = 64 * 1024  # longer lines are cut
GOES_ON = " … (cut here: the line goes on)"
_MAX_JOINED = 100_000  # characters of a line's pieces that are held in memory, more than are shown
# Messages of CodeBuild itself, with the echo of our commands; one line each.
_CODEBUILD = re.compile(r"\[Container\] \d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})? ")
# After such a failure, CodeBuild does not run the step that prints the end mark.
_FAILED_EARLY = re.compile(_CODEBUILD.pattern + r"Phase complete: (?:INSTALL|PRE_BUILD) State: FAILED")
# Characters that control a terminal, end a line for some readers, or change the direction of text; tabs stay.
_HARMLESS: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if code != 9}
_HARMLESS |= {0x7F: 0x2421, **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}
_HARMLESS |= {
    code: f"\\u{code:04x}"
    for first, last in ((0x80, 0x9F), (0x61C, 0x61C), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069))
    for code in range(first, last + 1)
}
_START = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


class LogLine(Struct, frozen=True):
    """A line, or a piece of a line that `goes_on`, with its time in whole milliseconds."""

    at: datetime
    text: str
    goes_on: bool = False


class Position(Struct, frozen=True, order=True):
    """A position in a log: after `count` pieces with the time `at`. It stays valid when the log grows."""

    at: datetime = _START
    count: int = 0

    def after(self, at: datetime) -> "Position":
        """The position after one more piece."""
        return Position(at, self.count + 1 if at == self.at else 1)


def shown(line: str) -> str:
    """A line that is safe to print; every line that users see passes here.

    If carriage returns divide it, the last part that is not blank: the last state of a progress bar. Control characters
    become Unicode's pictures of them. More than `MAX_LINE_BYTES` are cut, with a mark.
    """
    if "\r" in line:
        line = next((state for state in reversed(line.split("\r")) if state.strip()), "")
    if not line.isprintable():
        line = line.translate(_HARMLESS)
    if len(line) * 4 > MAX_LINE_BYTES and len(encoded := line.encode()) > MAX_LINE_BYTES:
        line = encoded[:MAX_LINE_BYTES].decode(errors="ignore") + GOES_ON
    return line


class Lines:
    """Makes lines from pieces, which are added in order. It can start at any position that is `between_lines`."""

    def __init__(self, nonce: str) -> None:
        self.has_ended = False  # the end mark was seen, or CodeBuild has reported the end
        self._end_mark = f"{END_MARK} {nonce}"
        self._begun = ""  # the beginning of a line that goes on
        self._has_empty = False  # an empty line is held back, because CodeBuild prints one before its own lines

    @property
    def between_lines(self) -> bool:
        return not self._begun and not self._has_empty

    def add(self, piece: LogLine) -> Sequence[str]:
        """The lines that this piece completes, as users see them."""
        text = self._begun + piece.text if self._begun else piece.text
        if len(text) > _MAX_JOINED:
            states = text.rstrip("\r").rpartition("\r")[2] + "\r" * text.endswith("\r")
            text = (states if "\r" in text else text)[:_MAX_JOINED]
        self._begun = text if piece.goes_on else ""
        if piece.goes_on:
            return ()
        had_empty, self._has_empty = self._has_empty, not text and not self._has_empty
        if not text:
            return ("", "") if had_empty else ()
        if text[0] == "[" and _CODEBUILD.match(text):
            self.has_ended = self.has_ended or _FAILED_EARLY.match(text) is not None
            return ()
        if text.endswith(self._end_mark):  # after output without a newline
            self.has_ended = True
            text = text.removesuffix(self._end_mark)
            if not text:
                return ()
        return ("", shown(text)) if had_empty else (shown(text),)

    def rest(self) -> Sequence[str]:
        """The unfinished last line, at the end of the log."""
        return self.add(LogLine(_START, "")) if self._begun else ()


class Block(Struct, frozen=True):
    """A part of a stored log: where it begins, in the log (milliseconds since 1970, count) and in the text (byte). For
    each piece, `pieces` has 4 * milliseconds since the piece before + lines that it added."""

    at_ms: int
    count: int
    byte: int
    pieces: bytes  # 64-bit numbers, compressed


class Table:
    """Finds positions in a stored text, whose times are only seconds. Made while the log is stored."""

    BLOCK_BYTES = 64 * 1024  # of text in a block, about
    BLOCK_PIECES = 8_192  # at most

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._position, self._begin, self._pieces = Position(), (0, 0, 0), array("Q")

    def add(self, at: datetime, lines: int, byte: int) -> None:
        """Adds a piece that added `lines` to the text, which then has `byte` bytes."""
        since = max(0, (at - self._position.at) // _MILLISECOND) if at != self._position.at else 0
        self._pieces.append(since * 4 + lines)
        self._position = self._position.after(at)
        if len(self._pieces) >= self.BLOCK_PIECES or byte - self._begin[2] >= self.BLOCK_BYTES:
            self.close(byte)

    def close(self, byte: int) -> None:
        """Ends the current block."""
        self.blocks.append(Block(*self._begin, zlib.compress(self._pieces.tobytes(), 1)))
        self._begin = (ms_of(self._position.at), self._position.count, byte)
        self._pieces = array("Q")


def find(blocks: Sequence[Block], position: Position) -> tuple[int, int]:
    """Where a position is in the text: a byte, and how many lines to skip from there, at most those of a block."""
    wanted = (ms_of(position.at), position.count)
    number = bisect_right(blocks, wanted, key=lambda block: (block.at_ms, block.count)) - 1
    if number < 0:
        return 0, 0
    at_ms, count, lines = blocks[number].at_ms, blocks[number].count, 0
    pieces = array("Q")
    pieces.frombytes(zlib.decompress(blocks[number].pieces))
    for piece in pieces:
        since, added = divmod(piece, 4)
        at_ms, count = at_ms + since, 1 if since else count + 1
        if (at_ms, count) > wanted:
            break
        lines += added
    return blocks[number].byte, lines


def ms_of(at: datetime) -> int:
    """A time in milliseconds since 1970, exactly: floats would round."""
    return (at - _START) // _MILLISECOND


def at_of(ms: int) -> datetime:
    """The inverse of `ms_of`."""
    return _START + ms * _MILLISECOND
