"""Who is let in to the local AWS endpoint and CodeBuild: who signs with this start's key, and nobody else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from infra.local import signatures
from infra.local.aws import REGION
from infra.local.codebuild.api import CodeBuild

pytestmark = pytest.mark.usefixtures("on_aws")

BUCKET = "private"
V4 = Config(signature_version="s3v4")
CALL = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "DynamoDB_20120810.ListTables"}


def s3(**more: Any) -> Any:
    return boto3.client("s3", config=V4, **more)


@pytest.fixture
def bucket() -> str:
    s3().create_bucket(Bucket=BUCKET)
    s3().put_object(Bucket=BUCKET, Key="a/file", Body=b"ahoy")
    return BUCKET


@pytest.fixture
def codebuild(tmp_path: Any) -> Iterator[str]:
    service = CodeBuild({"builds": {}}, logs=boto3.client("logs"), deliver=lambda _: None, state=tmp_path)
    yield service.start()
    service.close()


def link(key: str = "a/file", *, client: Any = None, seconds: int = 60) -> str:
    place = {"Bucket": BUCKET, "Key": key}
    return str((client or s3()).generate_presigned_url("get_object", place, ExpiresIn=seconds))


def form(key: str = "up/load", *, client: Any = None, seconds: int = 60, most: int = 10) -> Any:
    rules = [["content-length-range", 1, most]]
    return (client or s3()).generate_presigned_post(BUCKET, key, Conditions=rules, ExpiresIn=seconds)


def post(form: Any, content: bytes = b"ahoy", *, url: str = "", headers: Any = None, **more: Any) -> int:
    fields = {**form["fields"], **more, "file": ("name", content)}
    return urllib3.request("POST", url or form["url"], fields=fields, headers=headers, retries=False).status


def get(url: str, **headers: str) -> int:
    return urllib3.request("GET", url, headers=headers, retries=False).status


def call(url: str, headers: dict[str, str], body: bytes = b"{}") -> urllib3.BaseHTTPResponse:
    return urllib3.request("POST", url, headers=headers, body=body, retries=False)


def signed(
    url: str,
    secret: str = signatures.SECRET,
    body: bytes = b"{}",
    service: str = "dynamodb",
    headers: dict[str, str] = CALL,
) -> dict[str, str]:
    request = AWSRequest("POST", url, headers=headers, data=body)
    SigV4Auth(Credentials(signatures.KEY_ID, secret), service, REGION).add_auth(request)
    return dict(request.headers)


def stranger() -> Any:
    """A client that knows the id of the key only."""
    return s3(aws_access_key_id=signatures.KEY_ID, aws_secret_access_key="guessed")


def test_a_signed_call_is_answered(moto: str) -> None:
    assert call(moto, signed(moto)).status == 200


def without_signature(url: str) -> dict[str, str]:
    return CALL


def with_a_guessed_secret(url: str) -> dict[str, str]:
    return signed(url, "guessed")


def with_the_id_alone(url: str) -> dict[str, str]:
    scope = f"{signatures.KEY_ID}/{datetime.now(UTC):%Y%m%d}/{REGION}/dynamodb/aws4_request"
    proof = "SignedHeaders=host;x-amz-date;x-amz-target, Signature="
    return {
        **CALL,
        "X-Amz-Date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, {proof}{'0' * 64}",
    }


def as_the_first_version(url: str) -> dict[str, str]:
    return {**CALL, "Authorization": f"AWS {signatures.KEY_ID}:c2lnbmF0dXJl"}


def with_another_target(url: str) -> dict[str, str]:
    return signed(url) | {"X-Amz-Target": "DynamoDB_20120810.Scan"}


def with_a_target_that_is_not_signed(url: str) -> dict[str, str]:
    return signed(url, headers={}) | CALL


STRANGERS = (
    without_signature,
    with_a_guessed_secret,
    with_the_id_alone,
    as_the_first_version,
    with_another_target,
    with_a_target_that_is_not_signed,
)


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_call_without_the_secret_is_refused(moto: str, stranger: Callable[[str], Any]) -> None:
    answer = call(moto, stranger(moto))
    assert answer.status == 403
    assert answer.json()["__type"] == "AccessDenied"


def test_a_signature_is_good_for_its_own_body_and_path(moto: str) -> None:
    assert call(moto, signed(moto), b'{"Limit": 1}').status == 403
    assert call(f"{moto}/other", signed(moto)).status == 403


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_signature_is_good_for_a_quarter_of_an_hour(moto: str, monkeypatch: pytest.MonkeyPatch, minutes: int) -> None:
    at = datetime.now(UTC) + timedelta(minutes=minutes)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: at)
    assert call(moto, signed(moto)).status == 403


@pytest.mark.parametrize("value", ["", "AWS4-HMAC-SHA256 Credential=a", "AWS4-HMAC-SHA256 é", "Basic YTpi"])
def test_nonsense_in_the_header_is_refused(moto: str, value: str) -> None:
    assert call(moto, {**CALL, "Authorization": value}).status == 403


def test_a_body_is_refused_by_its_announced_size(moto: str) -> None:
    headers = signed(moto) | {"Content-Length": str(signatures.MAX_CALL_BYTES + 1)}
    assert call(moto, headers).status == 403


def test_an_object_that_is_not_the_one_that_was_signed_is_refused(bucket: str, moto: str) -> None:
    url = f"{moto}/{bucket}/a/file"
    digest = {"X-Amz-Content-SHA256": hashlib.sha256(b"one").hexdigest()}
    request = AWSRequest("PUT", url, headers=digest)
    SigV4Auth(Credentials(signatures.KEY_ID, signatures.SECRET), "s3", REGION).add_auth(request)
    assert urllib3.request("PUT", url, headers=dict(request.headers), body=b"two").status == 403
    assert urllib3.request("PUT", url, headers=dict(request.headers), body=b"one").status == 200


def test_large_objects_go_in_and_out_whole(bucket: str) -> None:
    content = bytes(range(256)) * 4096 * 9  # 9 MiB: in parts
    s3().upload_fileobj(io.BytesIO(content), bucket, "large é ü/+ file")
    assert s3().get_object(Bucket=bucket, Key="large é ü/+ file")["Body"].read() == content


def test_a_link_opens_its_own_object_for_as_long_as_it_says(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = link()
    assert get(url) == 200
    assert get(url, Range="bytes=0-1") == 206
    assert get(url.replace("a/file", "another")) == 403
    assert get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")) == 403
    assert get(f"{url}&X-Amz-Expires=600") == 403
    assert urllib3.request("PUT", url, body=b"mine", retries=False).status == 403
    earlier = datetime.now(UTC) - timedelta(seconds=120)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: earlier)
    assert get(link()) == 403
    assert get(link(seconds=600)) == 200


def test_a_link_without_the_secret_opens_nothing(bucket: str, moto: str) -> None:
    assert get(f"{moto}/{bucket}/a/file") == 403
    assert get(link(client=stranger())) == 403
    assert get(re.sub("X-Amz-Signature=.*", f"X-Amz-Signature={'0' * 64}", link())) == 403
    old = Config(signature_version="s3")  # the second version: botocore's default for links of this region
    assert get(link(client=boto3.client("s3", config=old))) == 403


@pytest.mark.parametrize("extra", [{"X-Amz-Target": CALL["X-Amz-Target"]}, {"X-Amz-Acl": "public-read"}])
def test_a_link_takes_no_headers_that_it_does_not_sign(bucket: str, extra: dict[str, str]) -> None:
    assert get(link(), **extra) == 403


def test_a_form_takes_one_object_of_its_size_in_its_place(bucket: str) -> None:
    assert post(form()) == 204
    assert s3().get_object(Bucket=bucket, Key="up/load")["Body"].read() == b"ahoy"
    assert post(form(), b"more than ten bytes") == 403
    assert post(form(), key="a/file") == 403
    assert post(form(), acl="public-read") == 403
    s3().create_bucket(Bucket="another")
    assert post(form(), url=form()["url"].replace(BUCKET, "another")) == 403
    assert s3().get_object(Bucket=bucket, Key="a/file")["Body"].read() == b"ahoy"


def test_a_form_takes_a_large_object_whatever_is_in_it(bucket: str) -> None:
    content = secrets.token_bytes(8 * 1024**2)
    assert post(form(most=len(content)), content) == 204
    assert s3().get_object(Bucket=bucket, Key="up/load")["Body"].read() == content


def test_a_form_without_the_secret_or_too_late_is_refused(bucket: str) -> None:
    assert post(form(client=stranger())) == 403
    unsigned: dict[str, Any] = {"x-amz-signature": "0" * 64}
    assert post(form(), **unsigned) == 403
    assert post(form(seconds=-1)) == 403
    wider = json.loads(base64.b64decode(form()["fields"]["policy"]))
    wider["conditions"] = [each for each in wider["conditions"] if "key" not in each]
    changed = base64.b64encode(json.dumps(wider).encode()).decode()
    assert post(form(), policy=changed, key="a/file") == 403
    assert post({"url": form()["url"], "fields": {"key": "a/file"}}) == 403


def test_of_pages_only_signed_forms_and_links_are_taken(bucket: str, moto: str) -> None:
    page = {"Origin": "https://evil.example"}
    asks = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for answer in (
        call(moto, signed(moto) | page),
        urllib3.request("OPTIONS", moto, headers=asks),
        urllib3.request("OPTIONS", moto, headers={**page, "Access-Control-Request-Method": "PUT"}),
        urllib3.request("GET", link(client=stranger()), headers=page),
        urllib3.request("GET", link().partition("?")[0], headers=page),
    ):
        assert answer.status == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert post(form(), headers=page) == 204
    assert post(form(client=stranger()), headers=page) == 403

    fetched = urllib3.request("GET", link(), headers=page)
    assert (fetched.status, fetched.headers["Access-Control-Allow-Origin"]) == (200, "*")
    plain = urllib3.request("OPTIONS", form()["url"], headers={**page, "Access-Control-Request-Method": "POST"})
    assert (plain.status, plain.headers["Access-Control-Allow-Origin"]) == (200, "*")


def test_no_answer_allows_other_pages_to_read_it(moto: str, bucket: str) -> None:
    for answer in (call(moto, signed(moto)), urllib3.request("GET", link())):
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_motos_own_api_is_shut_for_everybody(moto: str) -> None:
    for path in ("/moto-api/reset", "/moto-api%2freset", "/%6doto-api/reset"):
        url = f"{moto}{path}"
        assert call(url, {}).status == 403
        assert call(url, signed(url, service="s3", headers={})).status == 403


def test_a_boto_client_understands_the_refusal(bucket: str) -> None:
    sqs = boto3.client("sqs", aws_secret_access_key="guessed", aws_access_key_id=signatures.KEY_ID)
    for call_ in (partial(stranger().list_objects_v2, Bucket=bucket), sqs.list_queues):
        with pytest.raises(ClientError) as refusal:
            call_()
        assert refusal.value.response["Error"]["Code"] == "AccessDenied"


def test_codebuild_asks_for_the_same(codebuild: str) -> None:
    target = {"X-Amz-Target": "CodeBuild_20161006.ListBuildsForProject"}
    body = b'{"projectName": "builds"}'

    def headers(secret: str = signatures.SECRET) -> dict[str, str]:
        return signed(codebuild, secret, body, "codebuild", target)

    assert call(codebuild, headers(), body).json() == {"ids": []}
    for refused in (target, headers("guessed"), headers() | {"Origin": "https://evil.example"}):
        answer = call(codebuild, refused, body)
        assert answer.status == 403
        assert answer.json()["__type"] == "AccessDenied"


def test_a_key_that_sts_lent_is_good_with_its_own_secret() -> None:
    role = "arn:aws:iam::123456789012:role/builds"
    lent = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="build")["Credentials"]

    def client(secret: str) -> Any:
        return boto3.client(
            "sqs",
            aws_access_key_id=lent["AccessKeyId"],
            aws_secret_access_key=secret,
            aws_session_token=lent["SessionToken"],
        )

    assert client(lent["SecretAccessKey"]).list_queues()["ResponseMetadata"]["HTTPStatusCode"] == 200
    with pytest.raises(ClientError, match="AccessDenied"):
        client(signatures.SECRET).list_queues()


def test_the_secret_is_not_the_id_and_long_enough() -> None:
    assert len(signatures.SECRET) >= 40
    assert signatures.KEY_ID in link()
    assert signatures.SECRET not in link()
    assert urlsplit(link()).hostname == "127.0.0.1"
