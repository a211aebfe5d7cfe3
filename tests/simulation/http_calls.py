"""HTTP calls of the real adapters, answered in this process: each takes its time, and may go wrong.

The SDK's calls are met at botocore's `before-send`, those of urllib3 (cluster and registry) where a
connection would send them. So what adapters and SDKs do with an answer, retries and pauses included, is done.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import boto3.s3.inject
import botocore.session
import pynamodb.connection.base
import urllib3
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from botocore.retries.quota import RetryQuota
from botocore.signers import RequestSigner

from chalicelib.adapters.dynamodb.table import Item
from tests.simulation.faults import Fault, Faults
from tests.simulation.ports import MAX_LAG_SECONDS, SLOW_SECONDS, Calls, Trace, shown
from tests.simulation.scheduler import Ended, Function, Scheduler, current

SDK_TIMEOUT = 60  # seconds that botocore waits for an answer
LATE_SECONDS = 10  # at most, after its client has given up, a call takes effect
CLUSTER = "cluster.test"
_NEVER = {"codebuild.StartBuild": "InvalidInputException", "kubernetes.POST jobs": "Invalid"}
_BUSY = {"codebuild.StartBuild": "AccountLimitExceededException", "s3": "SlowDown", "sts": "Throttling"}
_STATUS = {"Invalid": 422, "SlowDown": 503}


class Refused(Exception):
    """An error of a service, by its code; `more` is what its body has beside it."""

    def __init__(self, code: str, status: int = 400, words: str = "-", **more: Any) -> None:
        super().__init__(code)
        self.code, self.status, self.words, self.more = code, status, words, more


@dataclass(frozen=True)
class Request:
    service: str
    operation: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout: float  # seconds until the client gives up

    @property
    def name(self) -> str:
        return f"{self.service}.{self.operation}"

    @property
    def special_faults(self) -> tuple[Fault, ...]:
        """What may go wrong with it beside what may go wrong with every call."""
        is_database, reads = (
            self.service == "dynamodb",
            self.operation in ("GetItem", "BatchGetItem", "Query"),
        )
        may_lag = reads and b'"ConsistentRead": true' not in self.body
        return (
            Fault.BUSY,
            *([Fault.NEVER] if self.name in _NEVER else []),
            *([Fault.LAG] if may_lag else []),
            *([Fault.OWN_CONFLICT] if is_database and not reads else []),
        )


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks: bool = False  # the connection, before the body's end

    def __str__(self) -> str:
        return f"{self.status} {shown(self.body.decode(errors='replace'))}"

    @classmethod
    def of_json(cls, body: Any, status: int = 200) -> Answer:
        return cls(status, json.dumps(body).encode())


Model = Callable[[Request, Mapping[str, Any] | None], Answer]  # given the former state of what may lag


class HttpCalls(Calls):
    """Makes HTTP calls to the models of services, with the faults that are due."""

    def __init__(
        self,
        scheduler: Scheduler,
        faults: Faults,
        records: Any,
        model: Model,
        trace: Trace | None,
    ) -> None:
        super().__init__(scheduler, faults, records, frozenset(), trace)
        self._model = model

    def send(self, request: Request) -> Answer:
        """Raises TimeoutError, and ConnectionError when nothing was done."""
        caller = current()
        if caller is None:
            return self._done(request, self._scheduler.seconds)
        self.count += 1
        caller.calls += 1
        identity = request.name, request.url, request.body
        failing = caller.failing[1] if caller.failing and caller.failing[0] == identity else None
        key = f"{caller.name} call {caller.calls}"
        fault, seconds, number = self._faults.of_call(
            request.name, key, request.special_faults, caller.is_spared, failing
        )
        caller.failing = None if fault in (None, Fault.OWN_CONFLICT, Fault.LAG, Fault.SLOW) else (identity, fault)
        result: object = None
        try:
            result = answer = self._sent(caller, request, fault, seconds, number)
            return answer
        except BaseException as error:
            result = type(error).__name__
            raise
        finally:
            if self._trace is not None:
                went_wrong = "" if fault is None else f" !! {fault}"
                self._trace(caller.name, f"{request.name}({_words(request)}){went_wrong} -> {result}")

    def _sent(self, caller: Function, request: Request, fault: Fault | None, seconds: float, number: float) -> Answer:
        sent_at = self._scheduler.seconds
        slow = number * SLOW_SECONDS if fault in (Fault.SLOW, Fault.SLOW_LOST) else 0
        before = seconds / 2 + (slow if number < 0.5 else 0)  # its effect
        after = seconds / 2 + (slow if number >= 0.5 else 0)
        if fault in (Fault.REFUSED, Fault.BUSY, Fault.NEVER, Fault.ENDS_BEFORE):
            caller.pause(before)
        match fault:
            case Fault.ENDS_BEFORE:
                raise Ended
            case Fault.REFUSED if number < 0.5:
                return Answer(500)
            case Fault.REFUSED:
                raise ConnectionError
            case Fault.BUSY:
                return _refusal(request, _refused(_BUSY.get(request.name) or _BUSY.get(request.service)))
            case Fault.NEVER:
                return _refusal(request, _refused(_NEVER[request.name], "This will never run."))
        if before + after > request.timeout:  # the client does not wait for it, and it is done all the same
            self._scheduler.after(min(before, request.timeout + LATE_SECONDS), partial(self._done, request, sent_at))
            caller.pause(request.timeout)
            raise TimeoutError
        caller.pause(before)
        seen_at = self._scheduler.seconds - number * MAX_LAG_SECONDS if fault is Fault.LAG else None
        answer = self._done(request, sent_at, seen_at)
        caller.pause(after)
        match fault:
            case Fault.ENDS_AFTER:
                raise Ended
            case Fault.LOST if request.name == "s3.GetObject" and answer.status < 300:
                return replace(answer, breaks=True)
            case Fault.LOST if number < 0.5:
                return Answer(500)
            case Fault.LOST | Fault.SLOW_LOST | Fault.OWN_CONFLICT:
                raise TimeoutError
        return answer

    def _done(self, request: Request, sent_at: float, seen_at: float | None = None) -> Answer:
        self.sent_at = sent_at
        try:
            answer = self._model(request, None if seen_at is None else self._past.state(seen_at))
        except Refused as refused:
            answer = _refusal(request, refused)
        if self._past.note(self._scheduler.seconds):
            self.after_change()
        return answer


def _refused(code: str | None, words: str = "Wait.") -> Refused:
    return Refused(code or "ThrottlingException", _STATUS.get(code or "", 400), words)


def _refusal(request: Request, refused: Refused) -> Answer:
    """An error as the service's protocol has it."""
    if request.service in ("s3", "sts"):
        error = f"<Error><Code>{refused.code}</Code><Message>{refused.words}</Message></Error>"
        return Answer(refused.status, (error if request.service == "s3" else f"<R>{error}</R>").encode())
    if request.service in ("kubernetes", "registry"):
        status = 429 if refused.code == "ThrottlingException" else refused.status
        return Answer.of_json({"message": refused.words}, status)
    return Answer.of_json({"__type": refused.code, "message": refused.words, **refused.more}, refused.status)


def _words(request: Request) -> str:
    """What a request is about, short."""
    if request.service != "dynamodb":
        return shown(urlsplit(request.url).path + " " + request.body[:60].decode(errors="replace"))
    body = json.loads(request.body)
    keys = sorted(_keys(body))
    return ", ".join(keys) or " ".join(value["S"] for value in body.get("ExpressionAttributeValues", {}).values())


def _keys(body: Any) -> Iterator[str]:
    """Of rows, wherever they are in a request."""
    if isinstance(body, dict):
        if "pk" in body:
            yield f"{body['pk']['S']} {body['sk']['S']}"
        for each in body.values():
            yield from _keys(each)
    elif isinstance(body, list):
        for each in body:
            yield from _keys(each)


_calls: HttpCalls


@contextmanager
def answering(calls: HttpCalls) -> Iterator[None]:
    """All clients that are made in here send to these."""
    global _calls
    _calls = calls
    one_thread = partial(boto3.s3.inject.TransferConfig, use_threads=False)
    with (
        mock.patch.object(boto3, "DEFAULT_SESSION", _session()),
        mock.patch.object(RetryQuota, "acquire", return_value=True),  # each function has a process of its own
        mock.patch.object(RequestSigner, "sign"),  # which takes a fifth of the time
        mock.patch.object(pynamodb.connection.base, "get_session", lambda: _session()._session),
        mock.patch.object(boto3.s3.inject, "TransferConfig", one_thread),
        mock.patch.object(urllib3.HTTPSConnectionPool, "ConnectionCls", _Connection),
    ):
        yield


@cache
def _session() -> Any:
    """One for the process: it has read the descriptions of services, which takes long."""
    session = botocore.session.get_session()
    session.register("before-send", _before_send)
    return boto3.Session(botocore_session=session)


def _before_send(request: Any, event_name: str, **_: Any) -> AWSResponse:
    service, operation = event_name.split(".")[1:]
    timeout = Item.Meta.read_timeout_seconds if service == "dynamodb" else SDK_TIMEOUT
    content = request.body.read() if hasattr(request.body, "read") else request.body or b""
    headers = {name.lower(): _text(value) for name, value in request.headers.items()}
    content = content.encode() if isinstance(content, str) else content
    try:
        answer = _calls.send(Request(service, operation, request.url, headers, content, timeout))
    except TimeoutError as exc:
        raise ReadTimeoutError(endpoint_url=request.url) from exc
    except ConnectionError as exc:
        raise EndpointConnectionError(endpoint_url=request.url) from exc
    body = BrokenRaw(answer.body) if answer.breaks else Raw(answer.body)
    return AWSResponse(request.url, answer.status, answer.headers, body)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Raw(io.BytesIO):
    """The body of an HTTP answer."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self.read()


class BrokenRaw(Raw):
    """One whose end does not come."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise urllib3.exceptions.ProtocolError("Connection broken")


class _Connection:
    """What urllib3 asks of a connection; its retries are above it."""

    is_closed, is_connected, is_verified, has_connected_to_proxy = False, True, True, False
    proxy = proxy_is_verified = None

    def __init__(self, host: str, *_: Any, **__: Any) -> None:
        self.host, self.timeout = host, 0.0

    def request(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        self._method, self._url, self._body, self._headers = method, url, body or b"", headers or {}

    def getresponse(self) -> urllib3.HTTPResponse:
        path = urlsplit(self._url).path.split("/")
        service, kind = ("kubernetes", path[path.index("namespaces") + 2]) if self.host == CLUSTER else ("registry", "")
        operation, url = f"{self._method} {kind}".strip(), f"https://{self.host}{self._url}"
        answer = _calls.send(Request(service, operation, url, self._headers, self._body, self.timeout))
        return urllib3.HTTPResponse(
            io.BytesIO(answer.body),
            answer.headers,
            answer.status,
            request_method=self._method,
            request_url=url,
        )

    def close(self) -> None: ...
