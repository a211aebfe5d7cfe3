"""Code and sources in S3.

| key                          | what                                             |
|------------------------------|--------------------------------------------------|
| code/<sha256>.tar.gz, .json  | an uploaded archive and what is in it            |
| builds/<build uuid>/…        | what CodeBuild fetches for a build               |
| uploads/<project uuid>/<id>  | uploaded under an offer, until it is completed   |
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import IO, Any, cast

import boto3
import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.domain.archive import Listing
from chalicelib.domain.build import Build, Project, source_folder
from chalicelib.errors import NotFound, Unavailable
from chalicelib.ports import Offer

OFFER_SECONDS = 900
_MISSING = ("NoSuchKey", "404", "NotFound")


class S3Sources:
    """`Sources` in one bucket."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._s3: Any = boto3.client("s3")

    def keep(self, packed: IO[bytes], sha256: str, listing: Listing) -> None:
        with _translated():
            self._s3.upload_fileobj(packed, self._bucket, _archive_key(sha256))
            # Last, so that whoever finds the listing finds the archive.
            self._s3.put_object(
                Bucket=self._bucket, Key=_listing_key(sha256), Body=msgspec.json.encode(listing)
            )

    def listing(self, sha256: str) -> Listing:
        with _translated():
            answer = self._s3.get_object(Bucket=self._bucket, Key=_listing_key(sha256))
            return msgspec.json.decode(answer["Body"].read(), type=Listing)

    def open(self, sha256: str) -> IO[bytes]:
        return self._open(_archive_key(sha256))

    def stage(self, build: Build, dockerfile: str | None) -> None:
        folder = source_folder(build)
        with _translated():
            if build.source and build.source.code_sha256:
                archive = {"Bucket": self._bucket, "Key": _archive_key(build.source.code_sha256)}
                self._s3.copy_object(Bucket=self._bucket, Key=f"{folder}code.tar.gz", CopySource=archive)
            body = (dockerfile or "").encode()
            self._s3.put_object(Bucket=self._bucket, Key=f"{folder}Dockerfile", Body=body)

    def offer(self, project: Project, max_bytes: int, now: datetime) -> Offer:
        offer_id = uuid.uuid4().hex
        with _translated():
            form = self._s3.generate_presigned_post(
                self._bucket,
                _upload_key(project, offer_id),
                Conditions=[["content-length-range", 1, max_bytes]],
                ExpiresIn=OFFER_SECONDS,
            )
        return Offer(offer_id, form["url"], form["fields"], now + timedelta(seconds=OFFER_SECONDS))

    def received(self, project: Project, offer_id: str) -> IO[bytes]:
        return self._open(_upload_key(project, offer_id))

    def _open(self, key: str) -> IO[bytes]:
        with _translated():
            return cast("IO[bytes]", self._s3.get_object(Bucket=self._bucket, Key=key)["Body"])


def _archive_key(sha256: str) -> str:
    return f"code/{sha256}.tar.gz"


def _listing_key(sha256: str) -> str:
    return f"code/{sha256}.json"


def _upload_key(project: Project, offer_id: str) -> str:
    return f"uploads/{project.uuid}/{offer_id}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ClientError as exc:
        if exc.response["Error"]["Code"] in _MISSING:
            raise NotFound from exc
        raise Unavailable("The storage did not answer; try again.") from exc
    except BotoCoreError as exc:
        raise Unavailable("The storage did not answer; try again.") from exc
