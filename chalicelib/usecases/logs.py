"""A build's log, as the API shows it."""

from __future__ import annotations

from collections.abc import Iterable

from chalicelib.domain.build import BuildKey, User
from chalicelib.errors import NoLog
from chalicelib.ports import LogLine, Services
from chalicelib.usecases import builds

END_MARK = "slipway-end "  # the buildspec prints it with the build's nonce as the last line


def read(services: Services, caller: User, key: BuildKey) -> str:
    """The whole log so far, one line each as `YYYY-MM-DD HH:MM:SS UTC -- message`.

    What exceeds one response is cut, and a last line says so. Raises NotFound, Forbidden, NoLog.
    """
    build = builds.get(services, caller, key).build
    if build.log is None:
        raise NoLog(f"File not found: build {key} has no log yet.")
    text = render(services.logs.lines(build.log))
    limit = services.settings.max_log_bytes
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    cut = encoded[:limit].rpartition(b"\n")[0].decode()
    return f"{cut}\n… cut here: the log has {len(encoded)} bytes, and one answer holds {limit}.\n"


def render(lines: Iterable[LogLine]) -> str:
    """Log lines in the API's text form, without our end mark."""
    return "".join(
        f"{line.at:%Y-%m-%d %H:%M:%S} UTC -- {line.text}\n"
        for line in lines
        if not line.text.startswith(END_MARK)
    )
