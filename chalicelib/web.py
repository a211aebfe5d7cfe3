"""HTTP around the use cases: authentication, request bodies, and statuses of errors.

Views raise domain errors. `endpoint` maps them to responses: a middleware could not, because Chalice converts
exceptions before. `shape_errors_and_cors` reformats the errors of Chalice itself.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from http import HTTPStatus
from itertools import chain
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import msgspec
from chalice.app import Chalice, CORSConfig, Request, Response
from msgspec import Struct

from chalicelib import errors, schemas, telemetry, wiring
from chalicelib.domain.answer import MAX_ANSWER_BYTES, encoded_bytes, fitting
from chalicelib.domain.build import DONE, ID_DIGITS, BuildKey
from chalicelib.domain.build_request import checked_key
from chalicelib.domain.record import replace
from chalicelib.domain.spec import is_slug
from chalicelib.domain.user import User
from chalicelib.ports import Question, Services
from chalicelib.schemas import DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET
from chalicelib.usecases import accounts, throttle
from chalicelib.usecases.logs import RETRY_SECONDS, LogPage
from chalicelib.usecases.projects import Page, Record

log = logging.getLogger(__name__)
Row = TypeVar("Row")
Checked = TypeVar("Checked", bound=msgspec.Struct)

JSON = "application/json"
PLAIN_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
FLAGS = {"is_managed", "is_public", "is_superuser", "is_dirty", "merge", "nocache", "reuse"}  # of what may be sent
NEXT_CURSOR, LOG_COMPLETE = "X-Slipway-Next-Cursor", "X-Slipway-Log-Complete"
# Pages of all origins may call, with a token of their own. Chalice answers preflight requests.
CORS = CORSConfig(
    allow_origin="*",
    allow_headers=["Content-Type", "Idempotency-Key", "If-None-Match"],
    expose_headers=["Retry-After", "ETag", "Idempotent-Replay", NEXT_CURSOR, LOG_COMPLETE],
    max_age=600,
)

# Also for subclasses, unless they have their own entry.
_STATUS: dict[type[errors.SlipwayError], HTTPStatus] = {
    errors.SlipwayError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.Invalid: HTTPStatus.BAD_REQUEST,
    errors.Malformed: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Gone: HTTPStatus.GONE,
    errors.NoLog: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.AlreadyExists: HTTPStatus.CONFLICT,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.Throttled: HTTPStatus.TOO_MANY_REQUESTS,
    errors.ExecutorRefused: HTTPStatus.BAD_GATEWAY,
    errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
_DETAIL = {
    HTTPStatus.FORBIDDEN: "You do not have permission to perform this action.",
    HTTPStatus.NOT_FOUND: "Not found.",
}


class Route(Struct, frozen=True):
    """The declaration of a route."""

    view: Callable[..., Any]  # its annotation is the type of the answer
    methods: Sequence[str]
    path: str  # below the API's prefix
    status: HTTPStatus = HTTPStatus.OK  # of a success, unless the type of the answer has its own
    body: str | type[bytes] | None = None  # a type of infra/request_bodies.py; bytes: an archive, or a form with one
    query: Sequence[str] = ()  # names of parameters in infra/openapi.py, all optional
    headers: Sequence[str] = ()  # likewise
    refusals: Sequence[HTTPStatus] = ()  # beside those that follow from the rest
    caller: Literal["user", "anybody", "build"] = "user"  # who shows a token, anyone, an attempt of a build


class PageTooLarge(Exception):
    """The page is too large for an answer; its first `rows` rows would fit."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


class Call(Struct, frozen=True):
    """One request, for a view."""

    services: Services
    caller: User | None
    request: Request
    max_rows: int = MAX_LIMIT  # of a page; fewer, if a page with so many was too large

    @property
    def user(self) -> User:
        """The caller; only for routes that are not anonymous."""
        assert self.caller is not None
        return self.caller

    @property
    def token(self) -> str:
        """The caller's token, for use cases that change rights."""
        return _token(self.request, anonymous=False) or ""

    def fields(self) -> dict[str, Any]:
        """The body as a mapping, from JSON or a form; empty for none. Raises Malformed, Invalid, TooLarge."""
        kind = self.request.headers.get("content-type", "")
        if kind.lower().startswith("application/x-www-form-urlencoded"):
            return _form(parse_qsl(self._text(), keep_blank_values=True))
        if kind.lower().startswith("multipart/form-data"):
            return _form([(part.name, part.value) for part in _parts(self._text().encode(), kind)])
        return _object(self._text())

    def json(self) -> Any:
        """The JSON value of the body; None for an empty body. Raises Malformed, TooLarge."""
        return _parsed(self._text())

    def _text(self) -> str:
        raw: bytes = self.request.raw_body  # type: ignore[assignment]  # Chalice has encoded a text
        limit = self.services.settings.max_body_bytes
        if len(raw) > limit:
            raise errors.TooLarge(f"The body has {len(raw)} bytes; at most {limit} are taken here.")
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise errors.Malformed("The body is not valid UTF-8.") from exc

    def idempotency_key(self) -> str | None:
        """The header Idempotency-Key, prefixed with the caller's name; None without one. Raises Invalid."""
        key = self.request.headers.get("idempotency-key")
        return f"{self.user.name}:{checked_key(key)}" if key is not None else None

    def question(self, about: Literal["materials", "login", "report"], key: BuildKey) -> Question:
        """The question of a build: its secret is in the header, its attempt and the reported fields in the body. Raises
        Unauthenticated, Malformed, Invalid, TooLarge."""
        words = self.request.headers.get("authorization", "").split()
        if len(words) != 2 or words[0].lower() != "build":
            raise errors.Unauthenticated("Only builds may ask this: `Authorization: Build <secret>`.")
        reported = {name: str(value) for name, value in self.fields().items() if value not in (None, False)}
        attempt = _number(reported.pop("attempt", None))
        return Question(about, str(key), attempt, words[1], reported)

    def archive(self) -> bytes:
        """The uploaded archive: part `repo` of a form, or the whole body. Raises Invalid, TooLarge."""
        limit = self.services.settings.max_inline_upload_bytes
        raw: bytes = self.request.raw_body  # type: ignore[assignment]
        if len(raw) > limit:
            raise errors.TooLarge(
                f"The upload has {len(raw)} bytes, and a request can carry {limit}. Larger archives go "
                f"straight to storage: POST {self.url().rstrip('/')}/offers, upload to the answered `url` "
                "with its `fields` and the archive as `file`, then POST to the answered `complete`."
            )
        kind = self.request.headers.get("content-type", "")
        if not kind.lower().startswith("multipart/form-data"):
            return raw
        part = next((part for part in _parts(raw, kind) if part.name == "repo"), None)
        if part is None:
            raise errors.Invalid(["The form needs a part `repo` with a gzipped tar archive."])
        return bytes(part.raw)

    def build_ids(self) -> list[int]:
        """The ids in the body, each once. Raises Malformed, Invalid, TooLarge."""
        return [*dict.fromkeys(_checked(self.fields(), schemas.BuildIds).ids)]

    def outcome(self, do: Callable[..., object], key: BuildKey, status: HTTPStatus) -> schemas.Outcome:
        """Calls `do` for one of several builds, as a request of its own. An error becomes an outcome."""
        try:
            throttle.admit(self.services, self.user.name, self.services.settings.requests_per_minute)
            do(self.services, self.user, key)
            outcome = schemas.Outcome(key.id, status)
        except Exception as error:
            answer = _refusal(error, str(key))
            outcome = schemas.Outcome(key.id, answer.status_code, msgspec.json.decode(answer.body)["detail"])
        more = {"build": str(key), "outcome": outcome.status}
        log.info("Answered HTTP status %d for build %s", outcome.status, key, extra=more)
        return outcome

    def query(self) -> dict[str, str]:
        """Query parameters; of repeated ones, the last."""
        return dict(self.request.query_params or {})

    @property
    def limit(self) -> int:
        """The number of rows of the requested page; the default if the parameter is not a valid number."""
        return min(_number(self.query().get("limit")) or DEFAULT_LIMIT, self.max_rows)

    @property
    def offset(self) -> int:
        """The number of rows before that page. Raises Invalid if it is too large."""
        offset = _number(self.query().get("offset"))
        if offset > MAX_OFFSET:
            raise errors.Invalid([f"`offset` can be at most {MAX_OFFSET}."])
        return offset

    def page(self, rows: Sequence[Row], count: int) -> schemas.Page[Row]:
        """A page with these rows, of a list of `count`; `next` ends at the largest offset. Raises PageTooLarge."""
        encoded: Any = [msgspec.Raw(msgspec.json.encode(row)) for row in rows]
        texts = (f"{bytes(row).decode()}," for row in encoded)
        fit = max(fitting(texts, self.services.settings.max_answer_bytes), 1)
        if fit < len(rows):
            raise PageTooLarge(fit)

        def link(offset: int) -> str:
            return f"{self.url()}?{urlencode({**self.query(), 'limit': self.limit, 'offset': offset})}"

        after = self.offset + self.limit
        following = link(after) if after < count and after <= MAX_OFFSET else None
        previous = link(max(self.offset - self.limit, 0)) if self.offset > 0 else None
        return schemas.Page(count, following, previous, results=encoded)

    def records(self, found: Page[Record], show: Callable[[Record, bool], Row]) -> schemas.Page[Row]:
        """A page of builds or projects; `show` makes its rows. Raises PageTooLarge."""
        return self.page([show(each, each.key in found.bookmarked) for each in found.records], found.count)

    @property
    def is_ascending(self) -> bool:
        """Whether a list of bookmarks is requested in ascending order."""
        return self.query().get("sort") in ("created_at", "updated_at")

    def refuse_web_socket(self) -> None:
        """Raises Invalid for a request to upgrade to a WebSocket."""
        if self.request.headers.get("upgrade", "").lower() == "websocket":
            raise errors.Invalid(["There is no WebSocket here: `polyaxon build logs -p` prints the log so far."])

    def url(self) -> str:
        """The absolute URL of this request, without its query."""
        context: Mapping[str, Any] = self.request.context
        headers = self.request.headers
        host = context.get("domainName") or headers.get("host", "localhost")
        scheme = "https" if headers.get("x-forwarded-proto") == "https" else "http"
        return f"{scheme}://{host}{context['path']}"


def endpoint(app: Chalice, view: Callable[..., Any], status: HTTPStatus, *, anonymous: bool) -> Callable[..., Response]:
    """What Chalice calls for a view, which is called with a Call and the path's parameters, and returns a type of
    `schemas`, a text, a part of a log, or None for an empty body. `status` is a success's, unless the type has its own.
    """

    @wraps(view)
    def handle(**captured: str) -> Response:
        started_at, user, request = time.perf_counter(), None, app.current_request
        assert request is not None, "views run within a request"
        with telemetry.span(view.__name__):
            try:
                services = wiring.services()
                token, parameters = _token(request, anonymous), _path_parameters(captured)
                opening = parameters.get("key") if request.method == "GET" else None
                user = accounts.authenticate(services, token, opening) if token is not None else None
                if user is not None:
                    throttle.admit(services, user.name, services.settings.requests_per_minute)
                if "key" in parameters:
                    telemetry.set_build(parameters["key"])
                answer = _shown(view, Call(services, user, request), parameters)
                response = _unless_known(request, _response(answer, status))
            except Exception as error:
                response = _refusal(error, view.__name__)
            response = _bounded(response)
            duration_ms = round((time.perf_counter() - started_at) * 1000)
            fields: dict[str, Any] = {"status": response.status_code, "duration_ms": duration_ms}
            if request.method != "GET":  # one line for an audit: who changed what
                fields |= {"action": view.__name__, "by": user and user.name, **captured}
            log.info("%s %s answered status %d", request.method, request.path, response.status_code, extra=fields)
        return response

    return handle


def _shown(view: Callable[..., Any], call: Call, parameters: Mapping[str, Any]) -> Any:
    """Calls the view. If its page is too large, calls it again with fewer rows. The next page begins after the last row
    that was sent, also in lists that omit rows which the caller may not see."""
    while True:
        try:
            return view(call, **parameters)
        except PageTooLarge as page:
            call = replace(call, max_rows=page.rows)


def _bounded(response: Response) -> Response:
    """The response, or an error instead of a response that is too large for Lambda."""
    size = len(response.body)
    if size * 12 > MAX_ANSWER_BYTES:  # a character has at most twelve bytes when encoded
        size = encoded_bytes(response.to_dict())
    if size <= MAX_ANSWER_BYTES:
        return response
    log.error("An answer of %d bytes was too large to be sent", size)
    return reply({"detail": "The answer is too large to be sent."}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _response(answer: Any, status: HTTPStatus) -> Response:
    """The HTTP response for the result of a view."""
    match answer:
        case str():
            return Response(answer, {**PLAIN_TEXT})
        case LogPage(url=None):
            about = _about_log(answer.next_cursor, answer.is_complete, is_cut=answer.is_cut)
            return Response(answer.text, {**about, **PLAIN_TEXT})
        case LogPage(url=str(url)):
            about = _about_log(answer.next_cursor, answer.is_complete)
            return Response("", {**about, "Location": url}, HTTPStatus.FOUND.value)
        case schemas.Redirect(url):
            return Response("", {"Location": url}, HTTPStatus.FOUND.value)
        case schemas.BuildDetail(last_status=now) if now not in DONE:
            return reply(answer, status, {"Retry-After": str(RETRY_SECONDS)})
        case schemas.Created(body, is_replay):
            return reply(body, HTTPStatus.CREATED, {"Idempotent-Replay": "true"} if is_replay else None)
    return reply(answer, status)


def _unless_known(request: Request, response: Response) -> Response:
    """A GET's JSON with its ETag, or 304 for a caller who has the same already. The ETag is weak,
    because proxies may compress the body."""
    if request.method != "GET" or response.status_code != 200 or response.headers["Content-Type"] != JSON:
        return response
    digest = hashlib.sha256(response.body.encode()).hexdigest()[:32]
    response.headers |= {"ETag": f'W/"{digest}"', "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if digest in request.headers.get("if-none-match", ""):
        response.body, response.status_code = "", HTTPStatus.NOT_MODIFIED.value
    return response


def _about_log(cursor: str, is_complete: bool, *, is_cut: bool = False) -> dict[str, str]:
    headers = {NEXT_CURSOR: cursor, LOG_COMPLETE: str(is_complete).lower()}
    return headers if is_complete or is_cut else {**headers, "Retry-After": str(RETRY_SECONDS)}


def reply(body: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; None is an empty body."""
    text = "" if body is None else msgspec.json.encode(body).decode()
    return Response(text, {**(headers or {}), "Content-Type": JSON}, int(status))


def shape_errors_and_cors(request: Request, get_response: Callable[[Request], Response]) -> Response:
    """HTTP middleware: formats Chalice's own errors like those of the API, and adds CORS headers to all answers."""
    response = get_response(request)
    body = response.body
    if isinstance(body, dict) and set(body) == {"Code", "Message"}:
        detail = str(body["Message"])
        if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f'Method "{request.method}" not allowed.'
        response.body = msgspec.json.encode({"detail": detail}).decode()
        response.headers["Content-Type"] = JSON
    response.headers.update(CORS.get_access_control_headers())
    response.headers["X-Content-Type-Options"] = "nosniff"  # browsers must not guess another type for users' texts
    return response


def each_message(event: Any, handle: Callable[[str, Mapping[str, Any]], None]) -> dict[str, Any]:
    """Calls `handle` with body and record of each message of an SQS event; returns the messages that failed. Records of
    DynamoDB's stream are in order: those after one that failed are left alone, because Lambda sends them again too."""
    failed = []
    for message in event:
        record = message.to_dict()
        message_id = record.get("messageId") or record["dynamodb"]["SequenceNumber"]
        with telemetry.span("message"):
            try:
                handle(record.get("body", ""), record)
            except Exception:
                log.exception("The message or record %s could not be handled", message_id)
                failed.append({"itemIdentifier": message_id})
        if failed and "dynamodb" in record:
            break
    return {"batchItemFailures": failed}


def queued_request(body: str) -> dict[str, Any]:
    """The fields of a message of the queue of requests, which are as `schemas` has them. Raises Malformed, Invalid."""
    fields = _object(body)
    kinds = [kinds for actions, kinds in schemas.REQUESTS.items() if fields.get("action") in actions]
    if not kinds:
        raise errors.Invalid([f"`action` must be one of {errors.quoted([*chain(*schemas.REQUESTS)])}."])
    for kind in kinds[0]:
        _checked(fields, kind)
    return fields


def _checked(fields: Mapping[str, Any], kind: type[Checked]) -> Checked:
    """The fields as this type of `schemas`. Raises Invalid."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as exc:
        why, _, where = str(exc).partition(" - at `$.")
        raise errors.Invalid({where.rstrip("`").partition("[")[0] or "non_field_errors": [f"{why}."]}) from exc


def _refusal(error: Exception, name: str) -> Response:
    """An error as the API's clients expect it; those that are not the caller's are logged, with the view's name."""
    if not isinstance(error, errors.SlipwayError):
        log.error("Unexpected error in %s", name, exc_info=error)
        return reply({"detail": "Internal error; it has been logged."}, HTTPStatus.INTERNAL_SERVER_ERROR)
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
    if isinstance(error, errors.Invalid):
        return reply(error.reasons, status)
    if isinstance(error, errors.NoLog):
        return reply(str(error), status, _about_log(error.cursor, error.is_complete))
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Token"
    if isinstance(error, errors.Throttled):
        headers["Retry-After"] = str(error.seconds)
    elif isinstance(error, errors.Conflict):
        headers["Retry-After"] = "1"
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "5"
    return reply({"detail": str(error) or _DETAIL.get(status, status.phrase)}, status, headers)


def _token(request: Request, anonymous: bool) -> str | None:
    """The token of `Authorization: Token <key>` or `Bearer <key>`. Without a token: None if `anonymous`."""
    words = request.headers.get("authorization", "").split()
    if not words or words[0].lower() not in ("token", "bearer"):
        if anonymous:
            return None
        raise errors.Unauthenticated("Authentication credentials were not provided.")
    if len(words) == 1:
        raise errors.Unauthenticated("Invalid token header. No credentials provided.")
    if len(words) > 2:
        raise errors.Unauthenticated("Invalid token header. Token string should not contain spaces.")
    return str(words[1])


def _path_parameters(captured: Mapping[str, str]) -> dict[str, Any]:
    """Decoded path parameters; those of a build as a BuildKey. Raises NotFound for names that cannot exist."""
    decoded = {name: unquote(value) for name, value in captured.items()}
    number = decoded.pop("build_id", None)
    if not all(is_slug(name) for name in decoded.values()):
        raise errors.NotFound
    if number is None:
        return decoded
    if not (number.isascii() and number.isdigit() and len(number) <= ID_DIGITS):
        raise errors.NotFound
    return {"key": BuildKey(decoded.pop("owner"), decoded.pop("project"), int(number)), **decoded}


def _parsed(text: str) -> Any:
    """The value of a JSON text; None for an empty text. Raises Malformed."""
    if not text.strip():
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:  # half a character is no better explained
        is_half = "\\ud" in text.lower()
        raise errors.Malformed(f"JSON parse error - {'a lone surrogate, or ' if is_half else ''}{exc}") from exc


def _object(text: str) -> dict[str, Any]:
    """The object in a JSON text; empty for an empty text. Raises Malformed; Invalid if the value is not an object."""
    parsed = _parsed(text)
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise errors.Invalid({"non_field_errors": ["The body must be a JSON object."]})
    return parsed


def _form(given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a form, which has only texts: each tag is a field, and an empty flag is null."""
    fields: dict[str, Any] = dict(given)
    if "tags" in fields:
        fields["tags"] = [text for name, text in given if name == "tags" and text]
    words = {"true": True, "false": False, "": None}
    return fields | {name: words.get(fields[name].lower(), fields[name]) for name in FLAGS & fields.keys()}


def _parts(raw: bytes, content_type: str) -> Sequence[Any]:
    """The parts of a multipart form. Raises Invalid."""
    from io import BytesIO

    from multipart import MultipartError, MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get("boundary", "")
    try:
        return [*MultipartParser(BytesIO(raw), boundary, len(raw), memory_limit=len(raw))]
    except (MultipartError, ValueError) as exc:
        raise errors.Invalid(["The form cannot be read; is its boundary right, and is it complete?"]) from exc


def _number(text: str | None) -> int:
    """A positive number of at most `ID_DIGITS` digits, or 0."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= ID_DIGITS else 0
