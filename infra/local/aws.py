"""DynamoDB, SQS, S3 and CloudWatch Logs on loopback: moto's server, and what a deployment would create."""

from __future__ import annotations

import copy
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from moto.core.base_backend import BackendDict
from moto.core.botocore_stubber import MockRawResponse
from moto.core.common_models import BaseModel
from moto.core.model_instances import reset_model_data
from moto.core.request import normalize_request
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.table import Table
from moto.dynamodb.responses import DynamoHandler
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wsgi import ClosingIterator

from infra.local import queries, signatures
from infra.local.storage import Storage
from infra.local.stored_aws import StoredAws
from infra.local.stream import Stream

log = logging.getLogger(__name__)

REGION = "us-east-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": signatures.KEY_ID,
    "AWS_SECRET_ACCESS_KEY": signatures.SECRET,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
# CORS as of the deployed bucket: a page may only send a signed form, and no headers of its own.
_HEADERS_OF_A_PAGE = "HTTP_ACCESS_CONTROL_REQUEST_HEADERS"
_FOR_PAGES = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Methods", "POST")]
MAX_RECEIVES, HOOK_RECEIVES = 5, 7  # of a message, before it goes to the dead-letter queue


class _Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True

    def log_request(self, *_: Any) -> None:
        """Requests are not logged."""


class Moto:
    """moto's server in threads of this process, for requests that are signed with the key of this process.

    Requests to DynamoDB go one by one: moto checks a condition and writes in two steps, so that concurrent
    ones would break what DynamoDB promises. With storage, all requests do, except those that wait for messages.
    """

    def __init__(self, storage: Storage | None = None, stream: Stream | None = None) -> None:
        self._dispatcher = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = threading.RLock()
        self._stream = stream
        self.stored = None if storage is None else StoredAws(storage, REGION)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="moto")
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def take_calls_of(self, client: Any) -> None:
        """Answers the calls of a DynamoDB client of this process without a connection, which takes a third of the time.
        Does nothing for a client of another endpoint."""
        if client.meta.endpoint_url == self.url:
            client.meta.events.register_last("before-send.dynamodb", self._answer_call)

    def close(self) -> None:
        """Ends the server and forgets its state, which moto keeps for the whole process."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        BackendDict.reset()
        reset_model_data()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD") == "POST" and _HEADERS_OF_A_PAGE not in environ:
            # a browser's preflight request for a form
            start_response("200 OK", [*_FOR_PAGES, ("Content-Length", "0")])
            return []
        try:
            body = signatures.verified(
                environ["REQUEST_METHOD"], environ["REQUEST_URI"], _headers(environ), environ["wsgi.input"]
            )
            if environ["PATH_INFO"].startswith("/moto-api"):
                raise signatures.Refused("moto's own API is shut.")
        except signatures.Refused as refusal:
            return _refuse(environ, start_response, refusal)

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            others = [each for each in headers if not each[0].lower().startswith("access-control-")]
            return start_response(status, others + (_FOR_PAGES if "HTTP_ORIGIN" in environ else []), *more)

        environ["wsgi.input"] = body
        if self.stored is not None:
            return self._answer_and_store(self.stored, environ, start, body)
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            with self._one_at_a_time:
                return self._dispatch(environ, start, body)
        return ClosingIterator(self._dispatcher(environ, start), body.close)

    def _answer_call(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        operation, body = request.headers["X-Amz-Target"].decode().rpartition(".")[2], BytesIO(request.body)
        with self._one_at_a_time, self._stream.watching(operation, body) if self._stream else nullcontext():
            status, headers, text = DynamoHandler.dispatch(normalize_request(request))
            if self.stored is not None and status < 300:
                try:
                    self.stored.save("dynamodb", operation, body)
                except (OSError, sqlite3.Error):
                    log.exception("What a call of %s has changed could not be stored", operation)
                    status, text = 500, "{}"
        return AWSResponse(request.url, status, headers, MockRawResponse(text))

    def _dispatch(
        self, environ: dict[str, Any], start_response: Callable[..., Any], body: signatures.Body
    ) -> list[bytes]:
        """moto's answer; the stream sees what it changes in DynamoDB."""
        is_dynamodb = environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB_")
        with self._stream.watching(_operation(environ), body) if self._stream and is_dynamodb else nullcontext():
            return list(self._dispatcher(environ, start_response))

    def _answer_and_store(
        self, stored: StoredAws, environ: dict[str, Any], start_response: Callable[..., Any], body: signatures.Body
    ) -> Iterable[bytes]:
        """The answer, after what the request has changed was stored."""
        status = ""

        def start(line: str, *more: Any) -> Any:
            nonlocal status
            status = line
            return start_response(line, *more)

        operation = _operation(environ)
        with closing(body), ExitStack() as turn:
            if operation != "ReceiveMessage":
                turn.enter_context(self._one_at_a_time)
            answer = self._dispatch(environ, start, body)
            if status.startswith("2"):
                body.seek(0)
                with self._one_at_a_time:
                    stored.save(_service(environ), operation, body)
        return answer


def _operation(environ: dict[str, Any]) -> str:
    return str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]


def _service(environ: dict[str, Any]) -> str:
    """The service that the request was signed for; links and forms are for S3."""
    found = re.search(r"Credential=[^,]*/([a-z0-9-]+)/aws4_request", environ.get("HTTP_AUTHORIZATION", ""))
    return found[1] if found else "s3"


def _headers(environ: dict[str, Any]) -> dict[str, str]:
    """Of a request, by their lower-case names."""
    named = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    }
    return {name: value for name, value in named.items() if value}


def _refuse(
    environ: dict[str, Any], start_response: Callable[..., Any], refusal: signatures.Refused
) -> Iterable[bytes]:
    """Answers 403, in JSON or, as S3 does, in XML."""
    text, kind = (
        f"<Error><Code>{refusal.code}</Code><Message>{escape(str(refusal))}</Message></Error>",
        "application/xml",
    )
    if "HTTP_X_AMZ_TARGET" in environ:
        text = json.dumps({"__type": refusal.code, "message": str(refusal)})
        kind = "application/x-amz-json-1.0"
    body = text.encode()
    # the rest of the body must not be read as another request
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
    start_response("403 Forbidden", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


# Without these patches, moto's memory grows with the square of what it stores: after 400 builds it had 450 MiB more.
_dynamodb: Any = DynamoDBBackend
_table: Any = Table
_model: Any = BaseModel
_moto_transacts = _dynamodb.transact_write_items


def _transact(backend: Any, operations: list[dict[str, Any]]) -> None:
    """All or nothing. moto copies the whole table once for each operation; here only the items that the
    transaction names are copied, and put back when it fails."""
    before = []
    for (operation,) in (each.values() for each in operations):
        table = backend.get_table(operation["TableName"])
        key, sort_key = backend.get_keys_value(table, operation.get("Key") or operation["Item"])
        before.append((table, key, sort_key, copy.deepcopy(table.get_item(key, sort_key))))
    try:
        _moto_transacts(backend, operations)
    except Exception:
        for table, key, sort_key, item in before:
            table.delete_item(key, sort_key)
            if item is not None:
                table.items[key][sort_key] = item
        raise


_dynamodb.transact_write_items = _transact
_table.__deepcopy__ = lambda table, _: table  # moto would copy the table to undo a transaction

queries.replace_reads()

# moto remembers every instance of its models, also copies, for a dashboard, and never forgets one.
_model.__new__ = staticmethod(lambda model, *_, **__: object.__new__(model))


@dataclass(frozen=True)
class Queues:
    """URLs of the queues."""

    dispatch: str
    logs: str
    requests: str
    dead_requests: str
    hooks: str
    dead_hooks: str


def create_resources(table: str, bucket: str) -> Queues:
    """The table (if it is not there), the bucket, the log group, and the queues with their dead letters."""
    from chalicelib.adapters.dynamodb.table import Item, use_table

    use_table(table)
    if not Item.exists():
        Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
    boto3.client("s3").create_bucket(Bucket=bucket)
    boto3.client("logs").create_log_group(logGroupName="/slipway/reported")
    dispatch, _ = _queue("slipway-dispatch")
    logs, _ = _queue("slipway-logs")
    return Queues(dispatch, logs, *_queue("slipway-requests"), *_queue("slipway-hooks", HOOK_RECEIVES))


def create_secret(name: str, value: str) -> None:
    """A secret of Secrets Manager."""
    boto3.client("secretsmanager").create_secret(Name=name, SecretString=value)


def _queue(name: str, most_receives: int = MAX_RECEIVES) -> tuple[str, str]:
    """Makes a queue and its dead-letter queue, and returns their URLs."""
    sqs = boto3.client("sqs")
    dead = str(sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"])
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "{most_receives}"}}'
    attributes = {"VisibilityTimeout": "180", "RedrivePolicy": redrive}
    return str(sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]), dead
