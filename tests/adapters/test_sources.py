"""What Sources promise: the fake and S3 alike."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore
import pytest
import urllib3
from botocore.awsrequest import AWSResponse

from chalicelib.adapters.s3 import S3LogArchive, S3Sources
from chalicelib.domain.archive import Listing
from chalicelib.domain.build_steps import BuildStep
from chalicelib.domain.log_lines import Block
from chalicelib.errors import NoLog, NotFound, Unavailable
from chalicelib.ports import LogArchive, Offer, Sources
from tests.factories import NOW, make_build, make_project
from tests.fakes import Clock, FakeLogArchive, FakeSources
from tests.simulation.http_calls import BrokenRaw

LISTING = Listing(frozenset({"a.py", "app/b.py"}), frozenset({"app"}))


@dataclass
class Place:
    sources: Sources
    upload: Callable[[Offer, bytes], int]  # what a client does with an offer: HTTP status


@pytest.fixture(params=["fake", "S3"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "fake":
        fake = FakeSources(Clock())

        def upload_to_fake(offer: Offer, content: bytes) -> int:
            fake.upload(offer, content)
            return 204

        return Place(fake, upload_to_fake)
    request.getfixturevalue("on_aws")
    bucket, s3 = f"sources-{uuid.uuid4().hex}", boto3.client("s3")
    s3.create_bucket(Bucket=bucket)

    def upload(offer: Offer, content: bytes) -> int:
        return urllib3.request("POST", offer.url, fields={**offer.fields, "file": ("x", content)}).status

    return Place(S3Sources(bucket), upload)


@pytest.fixture(params=["fake", "S3"])
def log_archive(request: pytest.FixtureRequest) -> LogArchive:
    if request.param == "fake":
        return FakeLogArchive()
    request.getfixturevalue("on_aws")
    bucket = f"logs-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3LogArchive(bucket)


def test_an_archive_is_kept_with_its_listing(place: Place) -> None:
    for _ in range(2):
        place.sources.keep(io.BytesIO(b"packed"), "ab", LISTING)

    assert place.sources.open("ab").read() == b"packed"
    assert place.sources.listing("ab") == LISTING
    assert place.sources.find_archive("a") == "ab"
    assert place.sources.find_archive("b") is None


def test_what_was_not_kept_is_not_found(place: Place) -> None:
    for read in (place.sources.open, place.sources.listing):
        with pytest.raises(NotFound):
            read("cd")


def test_what_is_uploaded_under_an_offer_is_received(place: Place) -> None:
    project = make_project()
    offer = place.sources.offer(project, 1_000, NOW)
    with pytest.raises(NotFound):
        place.sources.received(project, offer.id)

    assert place.upload(offer, b"packed") in (200, 204)
    assert place.sources.received(project, offer.id).read() == b"packed"
    assert place.sources.upload_url() == offer.url
    assert offer.expires_at > NOW


def test_an_offer_is_for_one_project(place: Place) -> None:
    offer = place.sources.offer(make_project(), 1_000, NOW)
    place.upload(offer, b"packed")
    with pytest.raises(NotFound):
        place.sources.received(make_project(name="other"), offer.id)


def test_archives_kept_before_a_time_are_stale_until_dropped(place: Place) -> None:
    for sha256 in ("ab1", "ab2", "cd1"):
        place.sources.keep(io.BytesIO(b"packed"), sha256, LISTING)
    future, past = datetime(2100, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)

    assert place.sources.stale(future, "ab", 10) == ["ab1", "ab2"]
    assert place.sources.stale(future, "ab", 1) == ["ab1"]
    assert place.sources.stale(past, "ab", 10) == []
    for _ in range(2):
        place.sources.drop("ab1")
    assert place.sources.stale(future, "ab", 10) == ["ab2"]
    with pytest.raises(NotFound):
        place.sources.open("ab1")


def test_a_kept_log_is_read_by_bytes(log_archive: LogArchive) -> None:
    build = make_build()
    with pytest.raises(NoLog):
        log_archive.read(build, 0, 10)
    log_archive.store(build, io.BytesIO(b"older"))
    log_archive.store(build, io.BytesIO("naïve".encode()))
    assert log_archive.read(build, 0, 100) == "naïve".encode()
    assert log_archive.read(build, 1, 2) == b"a\xc3"
    assert log_archive.url(build)


def test_steps_are_kept_beside_a_log_and_go_with_it(log_archive: LogArchive) -> None:
    build = make_build(uuid=uuid.uuid4().hex)
    assert list(log_archive.steps(build)) == []
    steps = [BuildStep("[1/2] FROM x", NOW, is_cached=True), BuildStep("[2/2] RUN x", NOW, 1.5, error="ERROR: no")]

    log_archive.store_found(build, [], [])
    log_archive.store_found(build, [Block(0, 0, 0, b"")], steps)

    assert (list(log_archive.table(build)), list(log_archive.steps(build))) == ([Block(0, 0, 0, b"")], steps)


def test_links_work_without_credentials(on_aws: None) -> None:
    bucket = f"links-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    sources, logs = S3Sources(bucket), S3LogArchive(bucket)
    sources.keep(io.BytesIO(b"packed"), "ab", LISTING)
    logs.store(make_build(), io.BytesIO(b"a line\n"))

    answer = urllib3.request("GET", logs.url(make_build()))
    assert (answer.data, answer.headers["Content-Type"]) == (b"a line\n", "text/plain; charset=utf-8")
    assert urllib3.request("GET", sources.url("ab")).data == b"packed"


# Links, in every region of AWS

BOTOCORE_DATA = Path(botocore.__file__).with_name("data")  # `infra.aws.package` keeps both files


def regions() -> dict[str, str]:
    """All that the packaged data of botocore name, each with the suffix of its hosts."""
    partitions = json.loads((BOTOCORE_DATA / "partitions.json").read_text())["partitions"]
    suffixes = {
        region: partition["outputs"]["dnsSuffix"]
        for partition in partitions
        for region in partition["regions"]
        if not region.endswith("-global")  # of services that have no region
    }
    endpoints = json.loads((BOTOCORE_DATA / "endpoints.json").read_text())["partitions"]
    return suffixes | {region: partition["dnsSuffix"] for partition in endpoints for region in partition["regions"]}


def signed_links(bucket: str) -> list[str]:
    """One of every kind."""
    sources, logs = S3Sources(bucket), S3LogArchive(bucket)
    return [
        sources.url("ab"),
        logs.url(make_build()),
    ]


def test_links_and_forms_are_for_the_host_of_the_region_and_signed_by_version_4(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    assert {"us-east-1", "me-south-1", "us-gov-west-1", "cn-north-1"} <= regions().keys()

    for region, suffix in regions().items():
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        host = f"a-bucket.s3.{region}.{suffix}"
        for link in map(urlsplit, signed_links("a-bucket")):
            query = parse_qs(link.query)
            assert (link.scheme, link.netloc) == ("https", host)
            assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
            assert query["X-Amz-Credential"][0].split("/")[2:] == [region, "s3", "aws4_request"]
        offer = S3Sources("a-bucket").offer(make_project(), 1_000, NOW)
        assert offer.url == f"https://{host}/"
        assert offer.fields["x-amz-algorithm"] == "AWS4-HMAC-SHA256"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("host", ["127.0.0.1:4566", "localhost:4566"])
def test_storage_elsewhere_has_its_buckets_in_the_path(
    on_aws: None, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    """A host like `a-bucket.localhost` need not exist."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, f"http://{host}")

    assert all(link.startswith(f"http://{host}/a-bucket/") for link in signed_links("a-bucket"))
    assert S3Sources("a-bucket").offer(make_project(), 1_000, NOW).url == f"http://{host}/a-bucket"


@pytest.mark.parametrize("size", [-1, 10])
def test_a_body_that_breaks_off_is_unavailable(on_aws: None, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """It is read later than the beginning of the answer came."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", boto3.Session())

    def break_off(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, 200, {}, BrokenRaw(b"half of it"))

    boto3.DEFAULT_SESSION.events.register("before-send.s3.GetObject", break_off)
    sources = S3Sources("any")

    for body in (sources.open("ab"), sources.received(make_project(), "o1")):
        with pytest.raises(Unavailable):
            body.read(size)
