"""Checks that requests to the local AWS services are signed with the key of this process (Signature Version 4).

Every presigned link contains the id of the key, and loopback is open to all programs of the machine, to build steps
and, through a browser, to web pages. So the id alone must not be enough, and web pages may only send forms that the
API has signed for uploads. As on AWS, there are three kinds of signatures: in the header `Authorization`, in
presigned links, and in presigned forms of S3.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Protocol, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.sts.models import sts_backends
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

KEY_ID = "local"
SECRET = secrets.token_hex(20)  # another one at each start
MAX_SKEW = timedelta(minutes=15)
MAX_LIFE = timedelta(days=7)  # of a link
MAX_CALL_BYTES = 16 * 1024**2  # DynamoDB's batches are the largest
MAX_OBJECT_BYTES = 256 * 1024**2
_IN_MEMORY_BYTES = 1024**2
_ALGORITHM = "AWS4-HMAC-SHA256"
_AUTHORIZATION = re.compile(
    _ALGORITHM + r" Credential=([^,\s]+), *SignedHeaders=([a-z0-9;_-]+), *Signature=([0-9a-f]{64})"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Body(Protocol):
    """The body of a request in memory: the check of the signature reads it, and then the application."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...
    def close(self) -> None: ...


class Refused(Exception):
    """The request is not signed with a key of this stack."""

    code = "AccessDenied"


def verified(method: str, target: str, headers: Mapping[str, str], body: Body) -> Body:
    """Checks the signature of a request, and returns its body, at its start.

    `target` is the path with its query as received; names of `headers` are lower-case. Raises Refused.
    """
    is_form = "authorization" not in headers and headers.get("content-type", "").startswith("multipart/form-data")
    is_link = "authorization" not in headers and method == "GET"
    if "origin" in headers and not is_form and not is_link:  # as the deployed bucket
        raise Refused("Of web pages, only signed forms and links are taken.")
    if "transfer-encoding" in headers or not target.startswith("/") or "#" in target:
        raise Refused("Send a path and a body of known length.")
    try:
        if "authorization" in headers:
            return _signed_in_header(method, target, headers, body)
        if is_form:
            return _signed_form(method, target, headers, body)
        return _signed_link(method, target, headers, body)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Refused("The request is not signed, or not as AWS describes it.") from exc


def _signed_in_header(method: str, target: str, headers: Mapping[str, str], body: Body) -> Body:
    found = _AUTHORIZATION.fullmatch(headers["authorization"])
    if found is None:
        raise Refused(f"`Authorization` is not of the form {_ALGORITHM}.")
    scope, names, signature = found.groups()
    at = headers["x-amz-date"]
    _check_time(at, MAX_SKEW)
    signer = _signer(scope, at, {"s3": S3SigV4Auth})
    signed_digest = headers.get("x-amz-content-sha256")
    if signed_digest is None:  # then the signature covers the body itself
        body = _read(headers, body, MAX_CALL_BYTES)
    request = _request(method, target, headers, names, at, body.read() if signed_digest is None else b"")
    _compare(signer, request, signature)
    if signed_digest is None:
        body.seek(0)
        return body
    digest = hashlib.sha256()
    body = _read(headers, body, MAX_OBJECT_BYTES, digest)
    if _SHA256.fullmatch(signed_digest) and signed_digest != digest.hexdigest():
        raise Refused("`X-Amz-Content-SHA256` is not that of the body.")
    return body


def _signed_link(method: str, target: str, headers: Mapping[str, str], body: Body) -> Body:
    pairs = parse_qsl(urlsplit(target).query, keep_blank_values=True)
    query = dict(pairs)
    if len(query) != len(pairs) or query["X-Amz-Algorithm"] != _ALGORITHM:
        raise Refused("The link is not signed, or not as AWS signs it.")
    at = query["X-Amz-Date"]
    _check_time(at, min(timedelta(seconds=int(query["X-Amz-Expires"])), MAX_LIFE))
    signer = _signer(query["X-Amz-Credential"], at, {"s3": S3SigV4QueryAuth}, only="s3")
    path, _, text = target.partition("?")
    text = "&".join(pair for pair in text.split("&") if not pair.startswith("X-Amz-Signature="))
    request = _request(method, f"{path}?{text}", headers, query["X-Amz-SignedHeaders"], at, b"")
    _compare(signer, request, query["X-Amz-Signature"])
    return _read(headers, body, MAX_OBJECT_BYTES)


def _signed_form(method: str, target: str, headers: Mapping[str, str], body: Body) -> Body:
    """Checks the fields of a form against its policy, which is signed. Raises Refused."""
    body = _read(headers, body, MAX_OBJECT_BYTES)
    mime, options = parse_options_header(headers["content-type"])
    # The bound must exceed the 64 KB that the parser reads at once: it counts what is left of one read with the next.
    parser = FormDataParser(max_form_memory_size=256 * 1024, max_form_parts=50)
    length = int(headers["content-length"])
    _, fields, files = parser.parse(cast("IO[bytes]", body), mime, length, options)
    form = {name.lower(): value for name, value in fields.items(multi=True)}
    (file,) = files.values()
    at = form["x-amz-date"]
    signer = _signer(form["x-amz-credential"], at, {}, only="s3")
    request = AWSRequest(method, "http://form/")
    request.context["timestamp"] = at
    if not _same(signer.signature(form["policy"], request), form["x-amz-signature"]):
        raise Refused("The signature of the form is not ours.")
    policy = json.loads(base64.b64decode(form["policy"], validate=True))
    if datetime.fromisoformat(policy["expiration"]) < datetime.now(UTC):
        raise Refused("The form has expired.")
    size = file.stream.seek(0, 2)
    file.close()
    given = form | {"bucket": unquote(target).strip("/")}
    for condition in policy["conditions"]:
        if not _holds(condition, given, size):
            raise Refused(f"The form does not keep its condition {json.dumps(condition)}.")
    named = {_field(condition) for condition in policy["conditions"]}
    free = form.keys() - named - {"policy", "x-amz-signature"}
    if method != "POST" or len(fields) != len(form) or free or not {"bucket", "key"} <= named:
        raise Refused("The form has fields that its policy does not name.")
    body.seek(0)
    return body


def _holds(condition: Any, form: Mapping[str, str], size: int) -> bool:
    if isinstance(condition, dict):
        ((name, value),) = condition.items()
        return bool(form.get(name.lower()) == value)
    kind, name, value = condition
    if kind == "content-length-range":
        return bool(int(name) <= size <= int(value))
    given = form.get(name.removeprefix("$").lower(), "")
    return bool(given == value if kind == "eq" else kind == "starts-with" and given.startswith(value))


def _field(condition: Any) -> str:
    """The name of the field of a condition."""
    name = next(iter(condition)) if isinstance(condition, dict) else str(condition[1]).removeprefix("$")
    return str(name).lower()


def _check_time(at: str, life: timedelta) -> None:
    signed = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if not -MAX_SKEW <= datetime.now(UTC) - signed <= life:
        raise Refused("The signature has expired.")


def _signer(scope: str, at: str, kinds: Mapping[str, type[SigV4Auth]], only: str = "") -> SigV4Auth:
    """botocore's signer, with our secret; `scope` is `<key id>/<day>/<region>/<service>/aws4_request`."""
    key_id, day, region, service, end = scope.split("/")
    secret = SECRET if key_id == KEY_ID else _lent(key_id)
    if secret is None or end != "aws4_request" or day != at[:8] or only not in ("", service):
        raise Refused("The credential is not one of this stack.")
    return kinds.get(service, SigV4Auth)(Credentials(key_id, secret), service, region)


def _lent(key_id: str) -> str | None:
    """The secret of a temporary key of moto's STS; None if there is no such key or it has expired."""
    for account in list(sts_backends.values()):
        for backend in list(account.values()):
            for role in backend.assumed_roles:
                if role.access_key_id == key_id and role.expiration > datetime.now(UTC).replace(tzinfo=None):
                    return str(role.secret_access_key)
    return None


def _request(method: str, target: str, headers: Mapping[str, str], names: str, at: str, body: bytes) -> AWSRequest:
    """The signed part of a request. Raises Refused if a header that changes its meaning is not signed."""
    signed = names.split(";")
    if "host" not in signed or [n for n in headers if n.startswith("x-amz-") and n not in signed]:
        raise Refused("`Host` and all headers `X-Amz-…` have to be signed.")
    signed_headers = {name: headers[name] for name in signed}
    request = AWSRequest(method, f"http://{headers['host']}{target}", headers=signed_headers, data=body)
    request.context["timestamp"] = at
    return request


def _compare(signer: SigV4Auth, request: AWSRequest, signature: str) -> None:
    text = signer.string_to_sign(request, signer.canonical_request(request))
    if not _same(signer.signature(text, request), signature):
        raise Refused("The signature does not match.")


def _same(one: str, other: str) -> bool:
    return bool(hmac.compare_digest(one.encode(), other.encode()))


def _read(headers: Mapping[str, str], body: Body, most: int, digest: Any = None) -> Body:
    """A copy of the body, on disk if it is large. Raises Refused if it exceeds `most` bytes or is incomplete."""
    left = int(headers.get("content-length") or 0)
    if not 0 <= left <= most:
        raise Refused(f"A body has at most {most} bytes here.")
    copy = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (the caller closes it)
    while left > 0:
        block = body.read(min(left, 65536))
        if not block:
            raise Refused("The body ended early.")
        copy.write(block)
        left -= len(block)
        if digest:
            digest.update(block)
    copy.seek(0)
    return copy
