"""Users' code and logs in S3. An older version stored code with the prefix `builds/`: the bucket deletes that code."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import IO, Any, cast

import boto3
import msgspec
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from chalicelib.adapters.aws import answered
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build
from chalicelib.domain.build_steps import BuildStep
from chalicelib.domain.log_lines import Block
from chalicelib.domain.project import Project
from chalicelib.errors import NoLog, NotFound
from chalicelib.ports import Offer
from chalicelib.settings import has_own_s3

OFFER_SECONDS = 900
LINK_SECONDS = 60
STORAGE = "The storage"
ARCHIVE, LISTING = "code/{}.tar.gz", "code/{}.json"  # by a SHA-256: an uploaded archive, and what is in it
UPLOAD = "uploads/{}/{}"  # by the uuid of a project and the id of an offer; the bucket deletes it
# By a build's uuid: the log of a build that has ended, a table of its positions (MessagePack), the steps in it (JSON).
LOG, TABLE, STEPS = "logs/{}.txt", "logs/{}.positions", "logs/{}.steps"


class _Bucket:
    def __init__(self, bucket: str) -> None:
        """Links name the host of the region and have a signature of version 4. The SDK's defaults fail: opt-in regions
        refuse `BUCKET.s3.amazonaws.com`, others redirect it for hours after a bucket was made, and new buckets may
        refuse signatures of version 2."""
        style = "path" if has_own_s3() else "virtual"
        s3 = {"addressing_style": style, "us_east_1_regional_endpoint": "regional"}
        self._s3: Any = boto3.client("s3", config=Config(signature_version="s3v4", s3=s3))
        self._bucket = bucket

    def _open(self, key: str, **part: str) -> IO[bytes]:
        """The content of an object, or the given `Range` of it. Raises NotFound."""
        with answered(STORAGE, missing=NotFound):
            return cast("IO[bytes]", _Body(self._s3.get_object(Bucket=self._bucket, Key=key, **part)["Body"]))

    def _link(self, key: str, content_type: str) -> str:
        shown = f'attachment; filename="{key.rpartition("/")[2]}"'
        wanted = {"ResponseContentType": content_type, "ResponseContentDisposition": shown}
        wanted |= {"Bucket": self._bucket, "Key": key}
        return str(self._s3.generate_presigned_url("get_object", Params=wanted, ExpiresIn=LINK_SECONDS))


class S3Sources(_Bucket):
    """`Sources` in one bucket."""

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        with answered(STORAGE, missing=NotFound):
            self._s3.upload_fileobj(packed, self._bucket, ARCHIVE.format(sha256))
            # Last: where there is a listing, there is an archive.
            self._s3.put_object(Bucket=self._bucket, Key=LISTING.format(sha256), Body=msgspec.json.encode(listing))

    def listing(self, sha256: str) -> Listing:
        return msgspec.json.decode(self._open(LISTING.format(sha256)).read(), type=Listing)

    def open(self, sha256: str) -> IO[bytes]:
        return self._open(ARCHIVE.format(sha256))

    def find_archive(self, commit: str) -> str | None:
        with answered(STORAGE, missing=NotFound):
            page = self._s3.list_objects_v2(Bucket=self._bucket, Prefix=f"code/{commit}", MaxKeys=1)
        found = page.get("Contents", [])
        return found[0]["Key"].removeprefix("code/").partition(".")[0] if found else None

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        offer_id = uuid.uuid4().hex
        with answered(STORAGE, missing=NotFound):
            form = self._s3.generate_presigned_post(
                self._bucket,
                UPLOAD.format(project.uuid, offer_id),
                Conditions=[["content-length-range", 1, max_bytes]],
                ExpiresIn=OFFER_SECONDS,
            )
        return Offer(offer_id, form["url"], form["fields"], now + timedelta(seconds=OFFER_SECONDS))

    def upload_url(self) -> str:
        with answered(STORAGE):
            return str(self._s3.generate_presigned_post(self._bucket, "x")["url"])

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        return self._open(UPLOAD.format(project.uuid, offer_id))

    def discard(self, build: Build) -> None:
        objects = [{"Key": name.format(build.uuid)} for name in (LOG, TABLE, STEPS)]
        with answered(STORAGE, missing=NotFound):
            self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})

    def stale(self, before: datetime, prefix: str, limit: int) -> Sequence[str]:
        with answered(STORAGE, missing=NotFound):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"code/{prefix}")
            files = (each for page in pages for each in page.get("Contents", ()) if each["Key"].endswith(".tar.gz"))
            old = (each["Key"] for each in files if each["LastModified"] < before)
            return [key.removeprefix("code/").removesuffix(".tar.gz") for key in islice(old, limit)]

    def url(self, sha256: str) -> str:
        return self._link(ARCHIVE.format(sha256), "application/gzip")

    def drop(self, sha256: str) -> None:
        """Deletes the archive last: `stale` finds archives."""
        with answered(STORAGE, missing=NotFound):
            for key in (LISTING.format(sha256), ARCHIVE.format(sha256)):
                self._s3.delete_object(Bucket=self._bucket, Key=key)


class _Body:
    """The body of an answer. Reading raises Unavailable if it breaks off."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int = -1) -> bytes:
        with answered(STORAGE):
            return bytes(self._body.read(None if size < 0 else size))


class S3LogArchive(_Bucket):
    """`LogArchive` in the bucket that also has the code. Logs are plain text."""

    def store(self, build: Build, text: Iterable[bytes]) -> None:
        """Without threads, only one part of 8 MB is in memory. The bucket deletes the parts of an unfinished upload
        after a day."""
        with answered(STORAGE, missing=NotFound):
            self._s3.upload_fileobj(
                _Stream(text),
                self._bucket,
                LOG.format(build.uuid),
                ExtraArgs={"ContentType": "text/plain; charset=utf-8"},
                Config=TransferConfig(use_threads=False),
            )

    def store_found(self, build: Build, table: Sequence[Block], steps: Sequence[BuildStep]) -> None:
        found = {TABLE: msgspec.msgpack.encode(table), STEPS: msgspec.json.encode(steps)}
        with answered(STORAGE, missing=NotFound):
            for name, body in found.items():
                self._s3.put_object(Bucket=self._bucket, Key=name.format(build.uuid), Body=body)

    def table(self, build: Build) -> Sequence[Block]:
        with suppress(NotFound):
            return msgspec.msgpack.decode(self._open(TABLE.format(build.uuid)).read(), type=list[Block])
        return ()

    def steps(self, build: Build) -> Sequence[BuildStep]:
        with suppress(NotFound):
            return msgspec.json.decode(self._open(STEPS.format(build.uuid)).read(), type=list[BuildStep])
        return ()

    def read(self, build: Build, start: int, size: int) -> bytes:
        try:
            stretch = f"bytes={start}-{start + size - 1}"
            return self._open(LOG.format(build.uuid), Range=stretch).read()
        except NotFound as exc:
            raise NoLog("File not found: the log was removed.") from exc

    def url(self, build: Build) -> str:
        return self._link(LOG.format(build.uuid), "text/plain; charset=utf-8")


class _Stream:
    """Pieces of a text as a file; only at its end, `read` returns less than asked for."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._left = iter(pieces), bytearray()

    def read(self, size: int = sys.maxsize) -> bytes:
        while len(self._left) < size and (piece := next(self._pieces, b"")):
            self._left += piece
        read = bytes(self._left[:size])
        del self._left[:size]
        return read
