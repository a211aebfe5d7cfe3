"""A fake Kubernetes API on loopback, with TLS and JSON, and one fake node whose Jobs really run.

As in a real cluster, objects must follow the official schemas, and further rules of servers; a caller is identified by
an EKS token and has the rights of the deployed Role; names are unique; lists have selectors and pages; deletion
propagates. The node runs a limited number of pods, their containers as processes of this machine. It pulls no images:
a script stands in for BuildKit and passes the build to the local engine. It enforces deadlines, and ships logs as
EKS's add-on does.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import secrets
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import kubernetes_validate
import trustme
import yaml

from infra.local.cluster.node import Node
from infra.local.cluster.objects import Cluster, Json, timestamp
from infra.local.cluster.rules import refusal

log = logging.getLogger(__name__)

SCHEMAS = "1.33"
MANIFESTS = Path(__file__).parents[2] / "aws" / "kubernetes"
TOKEN_MINUTES = 15
MAX_BODY = 3 * 1024**2
KINDS = {  # path below the namespace's: apiVersion and kind
    "/api/v1": {"pods": ("v1", "Pod"), "secrets": ("v1", "Secret")},
    "/apis/batch/v1": {"jobs": ("batch/v1", "Job")},
}
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "AlreadyExists",
    422: "Invalid",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
}


class Refused(Exception):
    """The request is answered with this error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeKubernetes(Cluster):
    """The API of one cluster with one namespace. `node` runs its Jobs; without a node, no Job runs."""

    def __init__(self, cluster: str, namespace: str) -> None:
        super().__init__(cluster)
        self.namespace = namespace
        self.admin_token = secrets.token_urlsafe()  # may do everything, for kubectl
        self.calls: deque[tuple[str, str]] = deque(maxlen=1000)  # method, path with query; guarded by the lock
        self._refusals: list[int] = []
        self._lost = 0
        self._rules = _role_rules()
        self._clock_skew = timedelta()
        self._server: ThreadingHTTPServer | None = None
        self.node: Node | None = None

    def start(self) -> tuple[str, str]:
        """Serves on loopback; returns the URL and the certificate of its authority, PEM in base64."""
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server = _server(self, context)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"https://127.0.0.1:{self._server.server_address[1]}"
        return url, base64.b64encode(authority.cert_pem.bytes()).decode()

    def close(self) -> None:
        """Ends what runs, then the server."""
        if self.node is not None:
            self.node.close()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    # For tests

    def answer_next(self, status: int, times: int = 1) -> None:
        """The next calls are refused with this status."""
        with self.lock:
            self._refusals += [status] * times

    def lose_next_answer(self, times: int = 1) -> None:
        """The next calls are executed, but their answers are lost."""
        with self.lock:
            self._lost += times

    def pass_time(self, span: timedelta) -> None:
        """Makes all tokens older."""
        self._clock_skew += span

    # What requests do

    def answer(self, method: str, target: str, token: str, body: bytes) -> tuple[int, Json]:
        """Status and body of the answer. Raises ConnectionAbortedError if it shall be lost."""
        try:
            with self.lock:
                self.calls.append((method, target))
                if self._refusals:
                    raise Refused(self._refusals.pop(0), "Asked for by a test.")
                is_admin = self._authenticate(token)
            status, answer = self._route(method, target, is_admin, body)
        except Refused as error:
            status, answer = error.status, _status(error.status, str(error))
        with self.lock:
            if self._lost:
                self._lost -= 1
                raise ConnectionAbortedError
        return status, answer

    def _route(self, method: str, target: str, is_admin: bool, body: bytes) -> tuple[int, Json]:
        parts = urlsplit(target)
        if (found := _discovery(parts.path)) is not None:
            return 200, found
        pattern = r"(/api/v1|/apis/batch/v1)/namespaces/([^/]+)/(\w+)(?:/([^/]+))?"
        match = re.fullmatch(pattern, parts.path)
        if match is None or match[3] not in KINDS[match[1]]:
            raise Refused(404, "the server could not find the requested resource")
        root, namespace, resource, name = match.groups()
        verb = _verb(method, name)
        group = root.removeprefix("/apis/").split("/")[0] if root != "/api/v1" else ""
        allowed = namespace == self.namespace and self._may(group, resource, verb)
        if not (allowed or is_admin):
            raise Refused(403, f'{resource} is forbidden: cannot {verb} in the namespace "{namespace}"')
        query = dict(parse_qsl(parts.query))
        with self.lock:
            if verb == "create":
                return 201, self._create(root, resource, namespace, _json(body))
            if verb == "list":
                return 200, self._list(root, resource, namespace, query)
            described = self.objects[resource].get(unquote(str(name)))
            if described is None or namespace != self.namespace:
                raise Refused(404, f'{resource} "{name}" not found')
            if verb == "get":
                return 200, described
            if verb == "patch":
                return 200, self._patch(resource, described, _json(body))
            options = json.loads(body) if body else {}
            policy = query.get("propagationPolicy") or options.get("propagationPolicy") or "Background"
            return 200, self._delete(resource, described, policy)

    def _authenticate(self, token: str) -> bool:
        """Whether the token is the administrator's; False if it is Slipway's. Raises Refused for other tokens."""
        if token == self.admin_token:
            return True
        try:
            padded = token.removeprefix("k8s-aws-v1.") + "=="
            query = parse_qs(urlsplit(base64.urlsafe_b64decode(padded).decode()).query)
            signed_at = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            signs_cluster = "x-k8s-aws-id" in query["X-Amz-SignedHeaders"][0].split(";")
        except (KeyError, ValueError, binascii.Error) as error:
            raise Refused(401, "Unauthorized") from error
        age = datetime.now(UTC) + self._clock_skew - signed_at
        if not signs_cluster or age > timedelta(minutes=TOKEN_MINUTES):
            raise Refused(401, "Unauthorized")
        return False

    def _may(self, group: str, resource: str, verb: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self._rules
        )

    def _create(self, root: str, resource: str, namespace: str, described: Json) -> Json:
        version, kind = KINDS[root][resource]
        if (described.get("apiVersion"), described.get("kind")) != (version, kind):
            raise Refused(400, f"the object must be a {kind} of {version}")
        metadata = described.get("metadata")
        if not isinstance(metadata, dict) or metadata.setdefault("namespace", namespace) != namespace:
            raise Refused(400, "the namespace of the object does not match the namespace on the request")
        if namespace != self.namespace:
            raise Refused(404, f'namespaces "{namespace}" not found')
        self._validate(described)
        if metadata["name"] in self.objects[resource]:
            raise Refused(409, f'{resource} "{metadata["name"]}" already exists')
        self.add(resource, described)
        if resource == "jobs" and self.node is not None:
            self.node.run(described)
        return described

    def _validate(self, described: Json) -> None:
        try:
            kubernetes_validate.validate(described, SCHEMAS, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            raise Refused(422, str(error)) from error
        if fault := refusal(described):
            raise Refused(422, f'{described["kind"]} "{described["metadata"]["name"]}" is invalid: {fault}')

    def _list(self, root: str, resource: str, namespace: str, query: Mapping[str, str]) -> Json:
        version, kind = KINDS[root][resource]
        matches = _selector(query.get("labelSelector", ""))
        names = sorted(
            name
            for name, each in self.objects[resource].items()
            if each["metadata"]["namespace"] == namespace and matches(each["metadata"].get("labels", {}))
        )
        if after := query.get("continue"):
            names = [name for name in names if name > base64.b64decode(after).decode()]
        limit = int(query.get("limit") or 0) or len(names)
        metadata = {"resourceVersion": str(self.version)}
        if len(names) > limit:
            metadata["continue"] = base64.b64encode(names[limit - 1].encode()).decode()
        items = [self.objects[resource][name] for name in names[:limit]]
        return {"apiVersion": version, "kind": f"{kind}List", "metadata": metadata, "items": items}

    def _patch(self, resource: str, described: Json, change: Json) -> Json:
        if resource == "jobs" and set(change) - {"metadata"}:
            raise Refused(422, "a Job's template is immutable")
        merged = _merged(described, change)
        bare = {**merged, "metadata": {**merged["metadata"]}}
        bare.pop("status", None)
        self._validate(bare)
        described.clear()
        described.update(merged)
        self.touch(described)
        return described

    def _delete(self, resource: str, described: Json, policy: str) -> Json:
        if policy not in ("Foreground", "Background", "Orphan"):
            raise Refused(422, f"propagationPolicy: Unsupported value: {policy!r}")
        has_pod = self.node is not None and self.node.has_pod(described)
        if resource != "secrets" and has_pod and policy != "Orphan":
            described["metadata"].setdefault("deletionTimestamp", timestamp(self.now()))
        if resource == "pods" and has_pod:
            self.touch(described)  # it is removed when its containers have ended
        elif resource == "jobs" and has_pod and policy == "Foreground":
            described["metadata"]["finalizers"] = ["foregroundDeletion"]
            self.touch(described)
        else:
            self.remove(resource, described)
        return described


def _role_rules() -> list[Json]:
    """What the deployed Role allows."""
    documents = yaml.safe_load_all((MANIFESTS / "access.yaml").read_text())
    return [rule for each in documents if each["kind"] == "Role" for rule in each["rules"]]


def _verb(method: str, name: str | None) -> str:
    verbs = {"GET": "get", "DELETE": "delete", "PATCH": "patch"} if name else {"GET": "list", "POST": "create"}
    if method not in verbs:
        raise Refused(405, "the server does not allow this method on the requested resource")
    return verbs[method]


def _json(body: bytes) -> Json:
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise Refused(400, f"the object provided is unrecognized: {error}") from error
    if not isinstance(parsed, dict):
        raise Refused(400, "the object provided is unrecognized")
    return parsed


def _merged(whole: Any, change: Any) -> Any:
    """The result of a JSON merge patch (RFC 7396)."""
    if not isinstance(change, dict):
        return change
    merged = dict(whole) if isinstance(whole, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _selector(text: str) -> Callable[[Mapping[str, str]], bool]:
    """A filter for labels from a label selector: tests of equality or existence, joined by commas. Raises Refused."""
    parts = [_requirement(part) for part in text.split(",") if part]

    def matches(labels: Mapping[str, str]) -> bool:
        return all(
            (key in labels if value is None else labels.get(key) == value) == wanted for key, value, wanted in parts
        )

    return matches


def _requirement(text: str) -> tuple[str, str | None, bool]:
    """The key, the value (None: any), and whether a label must match them. Raises Refused."""
    match = re.fullmatch(r"\s*(!?)([^=!\s]+)\s*(?:(!?==?)\s*(\S*))?\s*", text)
    if match is None:
        raise Refused(400, f"unable to parse requirement: {text!r}")
    absent, key, operator, value = match.groups()
    return key, value, not (absent or (operator or "").startswith("!"))


def _status(code: int, message: str) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": _REASONS.get(code, "InternalError"),
        "code": code,
    }


def _discovery(path: str) -> Json | None:
    """Answers to kubectl's discovery requests; None for another path."""
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0-fake", "platform": "fake"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        batch = {"groupVersion": "batch/v1", "version": "v1"}
        group = {"name": "batch", "versions": [batch], "preferredVersion": batch}
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    if path in KINDS:
        verbs = ["create", "delete", "get", "list", "patch"]
        resources = [
            {"name": name, "singularName": name[:-1], "namespaced": True, "kind": kind, "verbs": verbs}
            for name, (_, kind) in KINDS[path].items()
        ]
        version = path.removeprefix("/apis/").removeprefix("/api/")
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": resources,
        }
    return None


def _server(fake: FakeKubernetes, context: ssl.SSLContext) -> ThreadingHTTPServer:
    # not werkzeug's server, which closes the connection after each answer: every request would need a TLS handshake
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = 60

        def _handle(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(min(size, MAX_BODY))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            try:
                status, answer = fake.answer(self.command, self.path, token, body)
                with fake.lock:
                    text = json.dumps(answer).encode()
            except ConnectionAbortedError:
                self.close_connection = True
                return
            except Exception:
                log.exception("The request %s %s could not be answered", self.command, self.path)
                status, text = 500, json.dumps(_status(500, "see the log")).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def get_request(self) -> tuple[Any, Any]:
            connection, address = super().get_request()
            # the handshake happens in the request's own thread, at its first read
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Does not report clients that close the connection."""

    return Server(("127.0.0.1", 0), Handler)
