"""Keeps and serves a log of five million lines and says how much memory that takes: `make logs-load`.

The log service and the storage are stubs behind the real clients' calls; adapters and use cases are real.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from botocore.awsrequest import AWSResponse

from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.adapters.s3 import S3LogArchive
from chalicelib.domain.build import BuildBody, Status
from chalicelib.domain.record import replace
from chalicelib.usecases import logs
from tests.factories import NOW, SETTINGS, make_build, make_project, make_user
from tests.fakes import FakeServices

MAX_MIB = 64  # that keeping and serving may need above what the process has before


class ManyLines:
    """CloudWatch's client, with lines that are made when they are asked for: three in a millisecond."""

    def __init__(self, count: int) -> None:
        self.count, self.calls = count, 0

    def get_log_events(self, **query: Any) -> dict[str, Any]:
        self.calls += 1
        limit = query["limit"]
        first = max(0, self.count - limit)
        if query["startFromHead"]:
            first = int(query.get("nextToken", min(query["startTime"] * 3, self.count)))
        found = range(first, min(self.count, first + limit))
        events = [{"timestamp": number // 3, "message": f"#7 {number} Compiling\n"} for number in found]
        return {"events": events, "nextForwardToken": str(found.stop), "nextBackwardToken": str(first)}


class OneFile:
    """S3, as far as one log needs it: answers the real client's requests from a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.table, self.requests = file, b"", 0

    def answer(self, request: Any, **_: Any) -> AWSResponse:
        self.requests += 1
        address = urlsplit(request.url)
        body, headers = b"", {"ETag": '"x"'}
        if request.method == "POST":
            kind = "InitiateMultipartUpload" if "uploads" in address.query else "CompleteMultipartUpload"
            body = f"<{kind}Result><UploadId>1</UploadId></{kind}Result>".encode()
        elif request.method == "PUT" and "partNumber" in parse_qs(address.query):
            self.file.write(request.body.read())
        elif request.method == "PUT" and address.path.endswith(".positions"):
            self.table = request.body if isinstance(request.body, bytes) else request.body.read()
        elif address.path.endswith(".positions"):
            body = self.table
        else:
            start, end = request.headers["Range"].decode().removeprefix("bytes=").split("-")
            self.file.seek(int(start))
            body = self.file.read(int(end) - int(start) + 1)
        return AWSResponse(request.url, 200, {**headers, "Content-Length": str(len(body))}, _Raw(body))


class _Raw:
    """A body as urllib3 gives it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read(self, size: int | None = None, **_: Any) -> bytes:
        taken, self._body = (self._body, b"") if size is None else (self._body[:size], self._body[size:])
        return taken

    def stream(self, **_: Any) -> Any:
        yield self.read()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(lines: int) -> float:
    """Prints what it took, and returns the memory that was needed, in MiB."""
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"  # else bodies come in chunks of their own
    services: Any = FakeServices(replace(SETTINGS, max_stored_log_bytes=10**10))
    services.projects.add(make_project())
    build = make_build(Status.FAILED, log="group:stream", check_at=NOW, finished_at=NOW)
    services.builds.next_id(services.projects.get("ada", "vision"), NOW)
    services.builds.add(build, BuildBody(), None)
    services.clock.forward(minutes=5)
    source = ManyLines(lines)
    services.logs = CloudWatchLogs("", source)
    services.log_archive = S3LogArchive("bucket")
    with tempfile.TemporaryFile() as file:
        storage = OneFile(file)
        services.log_archive._s3.meta.events.register("before-send.s3", storage.answer)
        before, began = peak_mib(), time.perf_counter()
        logs.keep(services, build.key)
        kept, took = services.builds.get(build.key), time.perf_counter() - began
        print(
            f"stored {kept.stored_log_bytes} bytes in {took:.0f} s: "
            f"{source.calls} calls of the log service, {storage.requests} of the storage, "
            f"a table of {len(storage.table)} bytes, {peak_mib() - before:.0f} MiB"
        )
        cursor, served, pages, began = "0", 0, 0, time.perf_counter()
        while True:
            page = logs.read(services, make_user(), build.key, cursor)
            cursor, served, pages = page.next_cursor, served + page.text.count("\n"), pages + 1
            if page.is_complete:
                break
        middle = logs.read(services, make_user(), build.key, f"{lines // 6}.1")
        first = middle.text.partition("\n")[0]
        assert first.endswith(f"#7 {lines // 6 * 3 + 1} Compiling"), first
        took = time.perf_counter() - began
        print(f"served {served} lines in {pages} pages, {took:.0f} s: {peak_mib() - before:.0f} MiB in all")
        assert served == lines
        return peak_mib() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=5_000_000)
    needed = run(parser.parse_args().lines)
    if needed > MAX_MIB:
        raise SystemExit(f"{needed:.0f} MiB were needed; at most {MAX_MIB} should be.")
