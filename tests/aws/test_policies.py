"""What each function's role allows, held against what the function calls."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import boto3
import botocore
import pytest
from chalice.local import LambdaContext
from chalice.test import Client

from app import app
from chalicelib import wiring
from chalicelib.domain import lifecycle
from tests.aws import stack
from tests.aws.conftest import FUNCTIONS, Deployed, listed, recorded
from tests.factories import make_archive

pytestmark = pytest.mark.slow
ROLES = dict(
    zip(
        FUNCTIONS,
        ("ApiHandler", "Dispatch", "OnRequest", "OnCodebuildEvent", "Reconcile", "CleanUp"),
        strict=True,
    )
)
CONTENT = "{version: 1, kind: build, image: 'python:3.12-slim', build_steps: ['true']}"
# Allowed, but by nobody called here: by statement, or by function and action.
REASONS = {
    "WritesItsLog": "the runtime does",
    "TracesWhereXRayKnowsNoResources": "the tracing library does, outside of tests",
    "ReceivesItsMessages": "the event source mapping polls with the function's role",
    "ReadsDigests": "the registry's HTTP API asks for it",
    "TellsMissingFromForbidden": "without it S3 answers 403 for a missing key",
    "dispatch:sqs:SendMessage": "a fault of CodeBuild, or an archived project, is announced anew",
    "dispatch:logs:GetLogEvents": "words for a failure that it is the first to see",
    "on_codebuild_event:sqs:SendMessage": "a fault of CodeBuild is announced anew",
    "on_codebuild_event:ecr:GetAuthorizationToken": "asks for the digest after a success",
    "reconcile:sqs:SendMessage": "a fault of CodeBuild, or an archived project, is announced anew",
    "clean_up:dynamodb:PutItem": "a project that is purged a week later is marked first, with its code",
    "clean_up:dynamodb:UpdateItem": "what is purged a week later is marked first",
    "clean_up:sqs:SendMessage": "builds of such a project are stopped first",
    "clean_up:s3:DeleteObject": "uploads are dropped when they are a day old; builds' files were, above",
}


@dataclass
class Calls:
    """What is called while a function runs: action and resource."""

    function: str = ""
    seen: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        if self.function:
            service = model.service_model.service_name
            self.seen.setdefault(self.function, set()).update(asked(service, model.name, params))

    @contextmanager
    def by(self, function: str) -> Iterator[None]:
        self.function = function
        yield
        self.function = ""


def asked(service: str, operation: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The IAM actions behind a call, each with its resource."""
    here = "us-east-1:123456789012"
    match service, operation:
        case "dynamodb", "TransactWriteItems":
            for item in params["TransactItems"]:
                for kind, each in item.items():
                    action = kind if kind == "ConditionCheck" else f"{kind}Item"
                    yield f"dynamodb:{action}", f"arn:aws:dynamodb:{here}:table/{each['TableName']}"
        case "dynamodb", "BatchGetItem":
            for table in params["RequestItems"]:
                yield "dynamodb:BatchGetItem", f"arn:aws:dynamodb:{here}:table/{table}"
        case "dynamodb", _:
            index = f"/index/{params['IndexName']}" if "IndexName" in params else ""
            yield f"dynamodb:{operation}", f"arn:aws:dynamodb:{here}:table/{params['TableName']}{index}"
        case "sqs", _:
            yield f"sqs:{operation}", f"arn:aws:sqs:{here}:{params['QueueUrl'].rpartition('/')[2]}"
        case "s3", "ListObjectsV2":
            yield "s3:ListBucket", f"arn:aws:s3:::{params['Bucket']}"
        case "s3", "DeleteObjects":
            for each in params["Delete"]["Objects"]:
                yield "s3:DeleteObject", f"arn:aws:s3:::{params['Bucket']}/{each['Key']}"
        case "s3", "CopyObject":
            yield "s3:PutObject", f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"
            source = params["CopySource"]
            if isinstance(source, dict):
                source = f"{source['Bucket']}/{source['Key']}"
            yield "s3:GetObject", f"arn:aws:s3:::{source}"
        case "s3", _ if "Key" not in params:  # the form of an offer, signed for one upload
            yield "s3:PutObject", f"arn:aws:s3:::{params['Bucket']}/uploads/one"
        case "s3", _:
            action = {"HeadObject": "GetObject", "UploadPart": "PutObject"}.get(operation, operation)
            yield f"s3:{action}", f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"
        case "logs", _:
            # The local CodeBuild writes where the real one would without our LogsConfig.
            group = params["logGroupName"].replace("/aws/codebuild/slipway-test-", "/slipway/slipway-test/")
            yield f"logs:{operation}", f"arn:aws:logs:{here}:log-group:{group}"  # GetAtt adds :* in AWS
        case "codebuild", _:
            ids = [params["id"]] if "id" in params else params.get("ids", [])
            for name in {id_.partition(":")[0] for id_ in ids} or {params["projectName"]}:
                yield f"codebuild:{operation}", f"arn:aws:codebuild:{here}:project/{name}"
        case "ecr", "GetAuthorizationToken":
            yield "ecr:GetAuthorizationToken", "*"
        case "ecr", _:
            yield f"ecr:{operation}", f"arn:aws:ecr:{here}:repository/{params['repositoryName']}"
        case _:
            raise AssertionError(f"say which action {service} {operation} needs")


@pytest.fixture
def calls(deployed: Deployed) -> Calls:
    """From now on, all SDK sessions are listened to; what stands in for AWS has made its own before."""
    calls = Calls()
    botocore.register_initializer(lambda session: session.register("provide-client-params.*.*", calls.note))
    boto3.setup_default_session()
    return calls


def test_roles_allow_what_functions_call_and_nothing_else(deployed: Deployed, calls: Calls) -> None:
    previous = wiring.install(wiring.AwsServices())
    try:
        run_everything(calls, deployed)
    finally:
        wiring.install(previous)
        boto3.DEFAULT_SESSION = None

    trouble: dict[str, Any] = {}
    for function in FUNCTIONS:
        allowed = [
            (statement["Sid"], action, resource)
            for statement in deployed.stack.allowed(f"{ROLES[function]}Role")
            for action in listed(statement["Action"])
            for resource in listed(statement["Resource"])
        ]
        used = {
            (action, on): [each for each in allowed if each[1] == action and fnmatchcase(on, each[2])]
            for action, on in calls.seen[function]
        }
        refused = [call for call, granted in used.items() if not granted]
        needed = {each for granted in used.values() for each in granted}
        idle = [
            each
            for each in allowed
            if each not in needed and not {each[0], f"{function}:{each[1]}"} & REASONS.keys()
        ]
        if refused or idle:
            trouble[function] = {"not allowed": refused, "never done": idle}
    assert trouble == {}, json.dumps(trouble, indent=1)


def run_everything(calls: Calls, deployed: Deployed) -> None:
    """All that can happen, by the function to which it happens."""
    store, services = deployed.services.store, deployed.services

    def api(method: str, path: str, fields: Any = None, expected: int = 200) -> Any:
        headers = {"Authorization": "token ada", "Content-Type": "application/json"}
        if isinstance(fields, bytes):
            headers["Content-Type"] = "application/gzip"
        body = fields if isinstance(fields, bytes) else b"" if fields is None else json.dumps(fields).encode()
        with calls.by("api_handler"):
            answer = Client(app).http.request(method, f"/api/v1{path}", headers, body)
        assert answer.status_code == expected, (method, path, answer.body)
        text = answer.body.decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def call(function: str, event: Any) -> Any:
        with calls.by(function):
            return app.handler_map[function](event, LambdaContext(function, 512, 60_000))

    def message(body: str) -> Any:
        event = recorded("dispatch")
        event["Records"] = [{**event["Records"][0], "body": body}]
        return event

    def due(number: int) -> None:
        """Has the schedule look at a build now."""
        build = deployed.build(number)
        store.save(replace(build, look_at=services.now() - timedelta(seconds=1)))

    def ended(number: int) -> None:
        handle = deployed.build(number).handle
        deployed.until_ended(handle)
        event = recorded("codebuild_state_change")
        event["detail"]["build-id"] = f"arn:aws:codebuild:us-east-1:123456789012:build/{handle}"
        call("on_codebuild_event", event)

    project, all_builds = "/ada/vision", "/ada/vision/builds"
    api("GET", "/users")
    api("POST", "/users", {"username": "bob"}, 201)
    api("POST", "/users/bob/tokens", None, 201)
    api("DELETE", "/users/bob/tokens", None, 204)
    api("POST", "/projects", {"name": "vision"}, 201)
    api("GET", "/ada")
    api("PATCH", project, {"description": "x"})
    api("POST", f"{project}/bookmark", None, 201)
    api("GET", "/bookmarks/ada/projects")
    api("DELETE", f"{project}/unbookmark", None, 204)
    archive = make_archive({"requirements.txt": "x"})
    api("PUT", f"{project}/repo/upload", archive)
    offer = api("POST", f"{project}/repo/upload/offers", None, 201)
    boto3.client("s3").upload_fileobj(
        io.BytesIO(archive), deployed.stack.outputs["Bucket"], offer["fields"]["key"]
    )
    api("POST", f"{project}/repo/upload/offers/{offer['complete'].rpartition('/')[2]}")
    api("GET", f"{project}/repo/download", None, 302)

    api("POST", all_builds, {"content": CONTENT, "name": "first"}, 201)
    assert call("dispatch", message("ada/vision/1")) == {"batchItemFailures": []}
    ended(1)
    api("GET", f"{all_builds}/1/logs")
    due(1)
    call("reconcile", recorded("schedule"))  # keeps the log
    api("GET", f"{all_builds}/1/logs")
    api("GET", f"{all_builds}/1")
    api("GET", all_builds)
    api("GET", f"{all_builds}?query=status:failed&sort=-created_at")
    api("PATCH", f"{all_builds}/1", {"name": "second", "dockerfile": "FROM x\n"})
    api("POST", f"{all_builds}/1/bookmark", None, 201)
    api("GET", "/bookmarks/ada/builds")
    api("POST", f"{all_builds}/1/archive")
    api("GET", "/archives/ada/builds")
    api("POST", f"{all_builds}/1/restore")
    api("DELETE", f"{all_builds}/1", None, 204)
    call("clean_up", recorded("schedule"))

    api("POST", all_builds, {"is_managed": False}, 201)
    api("POST", f"{all_builds}/2/statuses", {"status": "running"}, 201)
    api("POST", f"{all_builds}/2/logs", ["one line"])
    api("GET", f"{all_builds}/2/logs")
    api("POST", f"{all_builds}/2/statuses", {"status": "succeeded"}, 201)
    due(2)
    call("reconcile", recorded("schedule"))  # keeps the reported log

    call("on_request", recorded("requests"))  # build 3
    call("on_request", recorded("requests"))  # once
    hopeless = recorded("requests")
    hopeless["Records"][0]["body"] = "{}"
    call("on_request", hopeless)
    due(3)
    call("reconcile", recorded("schedule"))  # starts what was lost
    deployed.until_ended(deployed.build(3).handle)

    api("POST", all_builds, {"content": CONTENT}, 201)  # 4, stopped while it runs
    call("dispatch", message("ada/vision/4"))
    api("POST", f"{all_builds}/4/stop")
    call("dispatch", message("ada/vision/4"))

    # 5 and 6, whose claimer died long ago; 7 and 8, unknown to CodeBuild by now
    for number, function in ((5, "dispatch"), (6, "reconcile")):
        api("POST", all_builds, {"content": CONTENT}, 201)
        claimed = deployed.build(number)
        store.save(lifecycle.claim(claimed, services.now() - timedelta(hours=1)))
        due(number)
        call(function, message(f"ada/vision/{number}") if function == "dispatch" else recorded("schedule"))
    for number in (7, 8):
        api("POST", all_builds, {"content": CONTENT}, 201)
        gone = lifecycle.claim(deployed.build(number), services.now())
        store.save(replace(gone, handle=f"{stack.NAME}-builds:gone", stop_requested_at=services.now()))
        due(number)
    call("reconcile", recorded("schedule"))
