"""What each function's role allows, held against what the function calls."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import boto3
import botocore
import pytest
from chalice.local import LambdaContext
from chalice.test import Client
from moto.eks.models import eks_backends
from msgspec.structs import asdict
from werkzeug import Request, Response

from app import ROUTES, app
from chalicelib import ports, wiring
from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.adapters.dynamodb import records
from chalicelib.adapters.registry import EcrRegistry, image_lifecycle
from chalicelib.domain import lifecycle
from chalicelib.domain.build import Build, BuildKey, Status
from chalicelib.domain.log_lines import LogLine
from chalicelib.domain.materials import attempt_secret
from chalicelib.domain.record import replace
from chalicelib.errors import Unavailable
from chalicelib.ports import MAX_READ_LINES
from chalicelib.usecases import cleanup
from infra import openapi
from infra.bench.serving import served
from infra.local.cluster.api import FakeKubernetes
from infra.local.codebuild.api import CodeBuild
from tests.adapters.clusters import container, ended, kubernetes, running
from tests.aws import stack
from tests.aws.conftest import FUNCTIONS, Deployed, listed, recorded
from tests.factories import DIGEST, make_archive, make_build

pytestmark = pytest.mark.slow
ROLES = dict(
    zip(
        FUNCTIONS,
        (
            "Announce",
            "ApiHandler",
            "Broker",
            "Deliver",
            "Dispatch",
            "KeepLog",
            "OnRequest",
            "OnCodebuildEvent",
            "Reconcile",
            "CleanUp",
        ),
        strict=True,
    )
)
CONTENT = "{version: 1, kind: build, image: 'python:3.12-slim', build_steps: ['true']}"
# Allowed for others than our code, by statement.
REASONS = {
    "WritesItsLog": "the runtime does",
    "TracesWhereXRayKnowsNoResources": "X-Ray's daemon, beside the function, does",
    "DecryptsNoSecret": "it denies: who may list parameters could else decrypt them",
    "ReceivesItsMessages": "the event source mapping polls with the function's role",
    "ReadsChanges": "it reads the stream so, too",
    "PutsAsideWhatAlwaysFails": "and tells so of what is put aside",
    "TellsMissingFromForbidden": "without it S3 answers 403 for a missing key",
}


@dataclass
class Calls:
    """What is called while a function runs: action and resource."""

    function: str = ""
    seen: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        service, operation = model.service_model.service_name, model.name
        is_lent = self.function == "broker" and service == "ecr"  # by the rights of the role for builds
        if self.function and not is_lent:
            for action, resource in asked(service, operation, params):
                self.add(action, resource)

    def add(self, action: str, resource: str) -> None:
        if self.function:
            self.seen.setdefault(self.function, set()).add((action, resource))

    @contextmanager
    def by(self, function: str) -> Iterator[None]:
        before, self.function = self.function, function
        yield
        self.function = before


def asked(service: str, operation: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The IAM actions behind a call, each with its resource."""
    here = "us-east-1:123456789012"
    match service, operation:
        case "dynamodb", "TransactWriteItems":
            for item in params["TransactItems"]:
                for kind, each in item.items():
                    yield f"dynamodb:{kind}Item", f"arn:aws:dynamodb:{here}:table/{each['TableName']}"
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
            parts = dict.fromkeys(("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "PutObject")
            action = {"HeadObject": "GetObject", **parts}.get(operation, operation)
            yield f"s3:{action}", f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"
        case "logs", _:
            # The local CodeBuild writes where the real one would without our LogsConfig.
            group = params["logGroupName"].replace("/aws/codebuild/slipway-test-", "/slipway/slipway-test/")
            yield f"logs:{operation}", f"arn:aws:logs:{here}:log-group:{group}:log-stream:any"
        case "codebuild", _:
            ids = [params["id"]] if "id" in params else params.get("ids", [])
            for name in {id_.partition(":")[0] for id_ in ids} or {params["projectName"]}:
                yield f"codebuild:{operation}", f"arn:aws:codebuild:{here}:project/{name}"
        case "events", "PutEvents":
            for entry in params["Entries"]:
                yield "events:PutEvents", f"arn:aws:events:{here}:event-bus/{entry['EventBusName']}"
        case "eks", "DescribeCluster":
            yield "eks:DescribeCluster", f"arn:aws:eks:{here}:cluster/{params['name']}"
        case "ssm", _:
            names = params.get("Names") or [params.get("Name") or f"{params['Path']}/any"]
            for name in names:
                yield f"ssm:{operation}", f"arn:aws:ssm:{here}:parameter{name}"
        case "sts", "AssumeRole":
            yield "sts:AssumeRole", params["RoleArn"]
        case "secretsmanager", "GetSecretValue":
            yield "secretsmanager:GetSecretValue", params["SecretId"]
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


@pytest.fixture
def registry(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """ECR's HTTP API on loopback: the images that it has, by repository:tag."""
    known: set[str] = set()

    def answer(request: Request) -> Response:
        repository, _, tag = request.path.removeprefix("/v2/").rpartition("/manifests/")
        action = "ecr:PutImage" if request.method == "PUT" else "ecr:BatchGetImage"
        calls.add(action, f"arn:aws:ecr:us-east-1:123456789012:repository/{repository}")
        if request.method == "PUT":
            return Response(status=201)
        status = 200 if f"{repository}:{tag}" in known else 404
        return Response(status=status, headers={"Docker-Content-Digest": DIGEST})

    with served(answer) as address:
        monkeypatch.setenv("SLIPWAY_REGISTRY", f"{address}/slipway")
        yield known


@dataclass
class Invoked:
    """The broker's function, as the API's invokes it."""

    services: Services

    def ask(self, question: ports.Question) -> str:
        calls = self.services.calls
        name = os.environ["SLIPWAY_BROKER_FUNCTION"]
        arn = f"arn:aws:lambda:us-east-1:123456789012:function:{name}"
        calls.add("lambda:InvokeFunction", arn)
        self.services.restart()
        with calls.by("broker"):
            said = app.handler_map["broker"](asdict(question), LambdaContext("broker", 512, 20_000))
        return str(said["answer"])


class Services(wiring.AwsServices):
    """With a clock that can be ahead, and ECR over http."""

    ahead = timedelta()
    calls: Calls

    @wiring.lazily
    def broker(self) -> ports.Broker:
        return Invoked(self)

    @wiring.lazily
    def registry(self) -> ports.Registry:
        lifecycle = image_lifecycle(self.settings.keep_images, 0, ())
        registry = EcrRegistry(self.settings.tag_patterns, lifecycle=lifecycle)
        registry.scheme = "http"
        return registry

    def now(self) -> datetime:
        return super().now() + self.ahead

    def restart(self) -> None:
        """As in a new process, nothing is made yet."""
        ahead, calls = self.ahead, self.calls
        vars(self).clear()
        self.ahead, self.calls = ahead, calls


@pytest.fixture
def aws(calls: Calls, registry: set[str]) -> Iterator[Services]:
    """The real adapters, listened to."""
    services = Services()
    services.calls = calls
    previous = wiring.replace_services(services)
    yield services
    wiring.replace_services(previous)
    boto3.DEFAULT_SESSION = None


def differences(calls: Calls, deployed: Deployed, policies: Collection[str] = ()) -> dict[str, Any]:
    """By function, calls that its role does not allow and what it allows and nobody did, of these policies
    alone if they are named."""
    trouble: dict[str, Any] = {}
    for function in FUNCTIONS:
        allowed = [
            (policy, statement["Sid"], action, resource)
            for policy, statement in deployed.stack.allowed(f"{ROLES[function]}Role")
            for action in listed(statement["Action"])
            for resource in listed(statement["Resource"])
        ]
        used = {
            (action, on): [each for each in allowed if each[2] == action and fnmatchcase(on, each[3])]
            for action, on in calls.seen.get(function, ())
        }
        refused = [call for call, granted in used.items() if not granted]
        needed = {each for granted in used.values() for each in granted}
        idle = [
            each
            for each in allowed
            if each not in needed and (not policies or each[0] in policies) and each[1] not in REASONS
        ]
        if refused or idle:
            trouble[function] = {"not allowed": refused, "never done": idle}
    return trouble


def test_roles_allow_what_functions_call_and_nothing_else(
    deployed: Deployed,
    calls: Calls,
    aws: Services,
    registry: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "chalicelib.web")
    stub = tmp_path / "buildah"  # an engine with which every build succeeds
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLIPWAY_BROKER_FUNCTION", deployed.stack.resources["Broker"])
    run_everything(calls, deployed, aws, registry)
    seen = {message.rpartition(" answered ")[0] for message in caplog.messages}
    for route in ROUTES:
        assert seen & {f"{method} /api/v1{route.path}" for method in route.methods}, route.path
    trouble = differences(calls, deployed)
    assert trouble == {}, json.dumps(trouble, indent=1)


@pytest.mark.parametrize("deployed", [{"EksCluster": "lab"}], indirect=True)
def test_roles_allow_what_builds_on_eks_need_beside(
    deployed: Deployed, calls: Calls, aws: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake cluster, of which EKS knows."""
    monkeypatch.setenv("SLIPWAY_WATCH_SECONDS", "1")
    network = {"subnetIds": ["subnet-1", "subnet-2"]}
    role = "arn:aws:iam::123456789012:role/cluster"
    boto3.client("eks").create_cluster(name="lab", roleArn=role, resourcesVpcConfig=network)
    with kubernetes() as (cluster, eks):
        known = eks_backends["123456789012"]["us-east-1"].clusters["lab"]
        known.endpoint, known.certificate_authority = eks.endpoint, {"data": eks.certificate}
        run_on_eks(calls, deployed, aws, cluster)
    trouble = differences(calls, deployed, policies=("eks", "eks-logs"))
    assert trouble == {}, json.dumps(trouble, indent=1)


ANSWERS = "arn:aws:sqs:us-east-1:123456789012:answers"


@pytest.mark.parametrize("deployed", [{"EventBus": "builds", "ReplyQueues": ANSWERS}], indirect=True)
def test_the_function_that_announces_builds_may_use_the_bus_and_the_queues_that_are_named(
    deployed: Deployed, calls: Calls, aws: Services
) -> None:
    boto3.client("sqs").create_queue(QueueName="answers")
    boto3.client("events").create_event_bus(Name="builds")
    event = recorded("changes")
    created = event["Records"][0]["dynamodb"]["NewImage"]["unlisted"]
    created["S"] = json.dumps(json.loads(created["S"]) | {"reply_to": ANSWERS, "reply_about": "nightly"})
    Story(calls, deployed).call("announce", event)
    trouble = differences(calls, deployed, policies=("event-bus", "replies"))
    assert trouble == {}, json.dumps(trouble, indent=1)
    bus = "arn:aws:events:us-east-1:123456789012:event-bus/builds"
    assert calls.seen["announce"] == {("events:PutEvents", bus), ("sqs:SendMessage", ANSWERS)}


@dataclass
class Story:
    """How things happen to functions."""

    calls: Calls
    deployed: Deployed

    def api(self, method: str, path: str, fields: Any = None, expected: int = 200) -> Any:
        headers = {"Authorization": "token ada", "Content-Type": "application/json"}
        if isinstance(fields, bytes):
            headers["Content-Type"] = "application/gzip"
        body = fields if isinstance(fields, bytes) else b"" if fields is None else json.dumps(fields).encode()
        with self.calls.by("api_handler"):
            answer = Client(app).http.request(method, f"/api/v1{path}", headers, body)
        assert answer.status_code == expected, (method, path, answer.body)
        is_json = answer.headers.get("Content-Type") == "application/json" and answer.body
        return json.loads(answer.body) if is_json else None

    def call(self, function: str, event: Any) -> Any:
        with self.calls.by(function):
            return app.handler_map[function](event, LambdaContext(function, 256, 60_000))

    def create(self, content: str = CONTENT) -> Build:
        """A new build of ada/vision."""
        made = self.api("POST", "/ada/vision/builds", {"content": content}, 201)
        return self.deployed.build(made["id"])

    def dispatch(self, number: int) -> None:
        event = recorded("dispatch")
        event["Records"] = [{**event["Records"][0], "body": f"ada/vision/{number}"}]
        assert self.call("dispatch", event) == {"batchItemFailures": []}

    def tick(self, number: int, **changes: Any) -> None:
        """The schedule looks at a build now, which was changed behind its back."""
        services = self.deployed.services
        due = services.now() - timedelta(seconds=1)
        services.builds.save(replace(self.deployed.build(number), check_at=due, **changes))
        self.call("reconcile", recorded("schedule"))

    def succeed(self, registry: set[str]) -> int:
        """A new build runs, pushes and reports its image, and ends."""
        content = CONTENT.replace("{", "{image_tags: [latest], secrets: [{id: a, from: token}], ", 1)
        build, is_open = self.create(content), self.deployed.api.is_open
        is_open.clear()
        self.dispatch(build.key.id)
        registry.add(build.image.partition("/")[2])
        self.ask("_materials", build)
        self.ask("_login", build)
        self.ask("_report", build, fetched="1", dockerfile="RlJPTSB4")
        self.ask("_report", build, digest=DIGEST)
        is_open.set()
        self.deployed.until_ended(self.deployed.build(build.key.id).handle)
        return build.key.id

    def ask(self, what: str, build: Build, **told: str) -> None:
        """What a build asks the API."""
        key = self.deployed.services.deployment_secrets.build_key()
        headers = {
            "Authorization": f"Build {attempt_secret(key, build.uuid, 1)}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode({"attempt": "1", **told}).encode()
        with self.calls.by("api_handler"):
            answer = Client(app).http.request("POST", f"/api/v1/{_path(build.key)}/{what}", headers, body)
        assert answer.status_code == 200, answer.body

    def wait_for_a_turn(self, build: Build) -> None:
        """CodeBuild takes no more builds at this moment."""
        waiting = replace(build, waiting_reason="no slot is free", check_at=build.created_at)
        self.deployed.services.builds.save(waiting)

    def keep(self, number: int) -> None:
        """The schedule sends a build that has ended, and its log is kept."""
        assert self.sent_to_keep(number) == []

    def keep_in_vain(self, number: int) -> None:
        """The log cannot be read to its end while the beginning is being stored, in parts."""
        services, build = self.deployed.services, self.deployed.build(number)
        assert build.log is not None
        lines = ["x" * 900] * MAX_READ_LINES + [f"slipway-end {build.nonce}"]
        services.logs.append(build.log, [LogLine(services.now(), line) for line in lines])
        real = CloudWatchLogs._get

        def get(logs: CloudWatchLogs, log: str, **query: Any) -> Any:
            if query["startFromHead"] and "nextToken" in query:
                raise Unavailable("The log service did not answer; try again.")
            return real(logs, log, **query)

        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(CloudWatchLogs, "_get", get)
            assert self.sent_to_keep(number) != []

    def sent_to_keep(self, number: int) -> Any:
        """The messages that come again."""
        self.tick(number)
        event = recorded("keep_log")
        event["Records"][0]["body"] = f"ada/vision/{number}"
        return self.call("keep_log", event)["batchItemFailures"]

    def deliver(self, owner: str, name: str) -> None:
        """The project's webhook is told, in vain: that is noted."""
        project = self.deployed.services.projects.get(owner, name)
        assert project is not None
        event = recorded("hooks")
        told = json.loads(event["Records"][0]["body"]) | {"hook": project.hooks[0].id}
        event["Records"][0]["body"] = json.dumps(told)
        queue = os.environ["SLIPWAY_HOOK_QUEUE_URL"]
        (message,) = boto3.client("sqs").receive_message(QueueUrl=queue)["Messages"]
        event["Records"][0]["receiptHandle"] = message["ReceiptHandle"]
        assert self.call("deliver", event)["batchItemFailures"] != []

    def ring(self, number: int) -> None:
        """CodeBuild tells that a build has ended, once it has."""
        handle = self.deployed.build(number).handle
        self.deployed.until_ended(handle)
        event = recorded("codebuild_state_change")
        event["detail"]["build-id"] = f"arn:aws:codebuild:us-east-1:123456789012:build/{handle}"
        self.call("on_codebuild_event", event)


def run_everything(calls: Calls, deployed: Deployed, aws: Services, registry: set[str]) -> None:
    """All that can happen, by the function to which it happens."""
    services = deployed.services
    story = Story(calls, deployed)
    api, call, create, dispatch, tick = story.api, story.call, story.create, story.dispatch, story.tick

    project, all_builds = "/ada/vision", "/ada/vision/builds"
    openapi.publish()
    api("GET", "/openapi.json")
    api("GET", "/versions/cli")
    api("GET", "/log_handler")
    api("GET", "/cleanup")
    api("POST", "/users/token", {}, 400)
    api("GET", "/users")
    api("POST", "/users", {"username": "bob"}, 201)
    api("POST", "/users/bob/tokens", None, 201)
    bobs = api("GET", "/users/bob/tokens")["results"][0]["id"]
    api("DELETE", f"/users/bob/tokens/{bobs}", None, 204)
    api("DELETE", "/users/bob/tokens", None, 204)
    api("POST", "/projects", {"name": "vision"}, 201)
    api("GET", "/ada")
    api("GET", project)
    api("PATCH", project, {"description": "x"})
    api("POST", f"{project}/archive")
    api("POST", f"{project}/restore")
    api("POST", "/projects", {"name": "other"}, 201)
    api("POST", "/ada/other/repo/external", {"git_url": "https://git.test/other"}, 201)
    api("DELETE", "/ada/other/repo/external", None, 204)
    for kind in ("experiments", "groups", "jobs"):
        api("POST", f"{project}/{kind}", {"content": CONTENT}, 400)
    api("POST", f"{project}/dockerfile", {"content": CONTENT})
    api("PUT", "/ada/other/secrets/token", {"value": "v"}, 204)
    api("DELETE", "/ada/other", None, 204)
    api("PUT", f"{project}/secrets/token", {"value": "v"}, 204)
    api("GET", f"{project}/secrets")
    api("DELETE", f"{project}/secrets/token", None, 204)
    api("PUT", f"{project}/hooks/deploy", {"url": "https://receiver.test"})
    api("GET", f"{project}/hooks")
    api("DELETE", f"{project}/hooks/deploy", None, 204)
    api("PUT", f"{project}/hooks/deploy", {"url": "https://nobody.invalid"})
    api("POST", f"{project}/hooks/deploy/test", None, 202)
    api("PUT", f"{project}/secrets/token", {"value": "v"}, 204)
    api("POST", f"{project}/bookmark", None, 201)
    api("GET", "/bookmarks/ada/projects")
    api("DELETE", f"{project}/unbookmark", None, 204)
    former, archive = make_archive({"a": "former"}), make_archive({"requirements.txt": "x"})
    api("PUT", f"{project}/repo/upload", former)
    api("PUT", f"{project}/repo/upload", archive)
    offer = api("POST", f"{project}/repo/upload/offers", None, 201)
    boto3.client("s3").upload_fileobj(io.BytesIO(archive), deployed.stack.outputs["Bucket"], offer["fields"]["key"])
    api("POST", f"{project}/repo/upload/offers/{offer['complete'].rpartition('/')[2]}")
    api("GET", f"{project}/repo/download", None, 302)

    api("POST", all_builds, {"content": CONTENT, "name": "first"}, 201)
    dispatch(1)
    story.ring(1)
    api("GET", f"{all_builds}/1/logs")
    story.keep(1)
    api("GET", f"{all_builds}/1/logs")
    api("GET", f"{all_builds}/1/logs/stream")
    api("GET", f"{all_builds}/1/steps")
    api("GET", f"{all_builds}/1")
    rows = api("GET", f"{all_builds}/1/statuses")["results"]
    api("GET", f"{all_builds}/1/statuses/{rows[0]['uuid']}")
    api("POST", f"{all_builds}/1/coderef", {"commit": "0123"}, 201)
    api("GET", f"{all_builds}/1/coderef")
    api("POST", f"{all_builds}/1/invalidate")
    api("POST", f"{all_builds}/invalidate")
    api("GET", all_builds)
    api("GET", f"{all_builds}?query=status:failed&sort=-created_at")
    api("PATCH", f"{all_builds}/1", {"name": "second", "dockerfile": "FROM x\n"})
    api("POST", f"{all_builds}/1/bookmark", None, 201)
    api("GET", "/bookmarks/ada/builds")
    api("DELETE", f"{all_builds}/1/unbookmark", None, 204)
    api("POST", f"{all_builds}/1/archive")
    api("GET", "/archives/ada/builds")
    api("POST", f"{all_builds}/1/restore")
    api("DELETE", f"{all_builds}/1", None, 204)
    call("clean_up", recorded("schedule"))

    api("POST", all_builds, {"is_managed": False}, 201)
    api("POST", f"{all_builds}/2/statuses", {"status": "running"}, 201)
    api("POST", f"{all_builds}/2/logs", ["one line"])
    api("GET", f"{all_builds}/2/logs")
    api("POST", f"{all_builds}/2/_heartbeat")
    api("POST", f"{all_builds}/2/_reconcile", {"status": "succeeded"})
    aws.restart()  # a process remembers how to read on
    story.keep_in_vain(2)  # what was reported
    story.keep(2)

    changes = recorded("changes")  # the last is the end of a build
    ended = records.encode_build(make_build(Status.SUCCEEDED)).serialize()
    changes["Records"][-1]["dynamodb"]["NewImage"] = ended
    changes["Records"][-1]["dynamodb"]["OldImage"] = records.encode_build(make_build()).serialize()
    call("announce", changes)
    story.deliver("ada", "vision")

    call("on_request", recorded("requests"))  # build 3
    call("on_request", recorded("requests"))  # once
    with_secret = recorded("requests")
    body = json.loads(with_secret["Records"][0]["body"])
    spec = {"version": 1, "kind": "build", "image": "x", "secrets": [{"id": "a", "from": "unknown"}]}
    with_secret["Records"][0]["body"] = json.dumps({**body, "content": json.dumps(spec)})
    with_secret["Records"][0]["messageId"] = "with-secret"
    call("on_request", with_secret)
    for action in ("archive", "restore", "rebuild"):
        change = recorded("requests")
        change["Records"][0]["messageId"] = action
        change["Records"][0]["body"] = json.dumps({**body, "action": action, "build": 3 if action == "rebuild" else 2})
        call("on_request", change)
    hopeless = recorded("requests")
    hopeless["Records"][0]["body"] = "{}"
    call("on_request", hopeless)
    aws.restart()
    tick(3)  # starts what was lost
    deployed.until_ended(deployed.build(3).handle)
    again = api("POST", f"{all_builds}/3/rebuild", {}, 201)["id"]
    for action in ("bookmark", "stop", "archive", "restore", "delete"):
        (outcome,) = api("POST", f"{all_builds}/{action}", {"ids": [again]})["results"]
        assert outcome["status"] < 300, outcome

    stopped = create().key.id
    dispatch(stopped)
    api("POST", f"{all_builds}/{stopped}/stop")
    dispatch(stopped)

    # their claimer died long ago; images stay by count meanwhile
    with pytest.MonkeyPatch.context() as keeping:
        keeping.setenv("SLIPWAY_KEEP_IMAGES", "5")
        aws.restart()
        for look in (dispatch, tick):
            claimed = create()
            services.builds.save(lifecycle.claim(claimed, services.now() - timedelta(hours=1)))
            look(claimed.key.id)
    aws.restart()
    # unknown to CodeBuild by now
    for wish in (None, services.now()):
        gone = services.builds.save(lifecycle.claim(create(), services.now()))
        tick(gone.key.id, handle=f"{stack.NAME}-builds:gone", stop_requested_at=wish)
    # ended, and nobody was told: a message is the first to see it
    failed = create().key.id
    dispatch(failed)
    deployed.until_ended(deployed.build(failed).handle)
    dispatch(failed)

    deployed.variables["SLIPWAY_ENGINE"] = "buildah"
    succeeded = story.succeed(registry)
    story.wait_for_a_turn(create())
    story.ring(succeeded)
    assert deployed.build(succeeded).image_digest == DIGEST
    # builds on that image, by both ways in, ask which one it is by now
    content = json.dumps({"version": 1, "kind": "build", "image": deployed.build(succeeded).image})
    made = api("POST", all_builds, {"content": content, "reuse": True}, 201)["id"]
    wanted = recorded("requests")
    body = json.loads(wanted["Records"][0]["body"]) | {"content": content, "reuse": True, "idempotency_key": "reuse"}
    wanted["Records"][0]["body"] = json.dumps(body)
    call("on_request", wanted)
    for number in (made, made + 1):
        assert deployed.build(number).recipe is not None
        api("POST", f"{all_builds}/{number}/stop")
    # the same, seen first by a message and by the schedule, of builds that must be made afresh
    for look in (dispatch, tick):
        api("POST", f"{all_builds}/invalidate")
        fresh = story.succeed(registry)
        story.wait_for_a_turn(create())
        look(fresh)
        assert deployed.build(fresh).image_digest == DIGEST
    # CodeBuild's own fault before anything was pushed, told by its event, by the schedule
    for look in (story.ring, tick):
        with codebuild_at_fault() as fail:
            number = create().key.id
            dispatch(number)
            fail.set()
            deployed.until_ended(deployed.build(number).handle)
            look(number)
        assert deployed.build(number).last_status is Status.WARNING

    with pytest.MonkeyPatch.context() as sooner:  # the builds of a project are counted again
        sooner.setattr(records, "RECOUNT", timedelta(0))
        api("PATCH", project, {"description": "y"})
    call("clean_up", recorded("schedule"))

    # the project of running builds was archived, long ago for the cleanup
    deployed.variables["SLIPWAY_ENGINE"] = "none"
    running = [create().key.id for _ in range(2)]
    for number in running:
        dispatch(number)
        deployed.until_ended(deployed.build(number).handle)
    found = services.projects.get("ada", "vision")
    assert found is not None
    services.projects.save(replace(found, archived_at=services.now() - timedelta(days=8)))
    dispatch(running[0])
    call("clean_up", recorded("schedule"))
    tick(running[1])

    # an upload that nobody has any more, when its turn comes and once more
    digest = hashlib.sha256(former).hexdigest()
    turns = (int(digest[:2], 16) - int(services.now().timestamp()) // cleanup.SWEEP_SECONDS) % 256
    aws.ahead = timedelta(seconds=(512 + turns) * cleanup.SWEEP_SECONDS)
    dropped = [call("clean_up", recorded("schedule"))["uploads"] for _ in range(2)]
    assert dropped == [0, 1]


def _path(key: BuildKey) -> str:
    return f"{key.owner}/{key.project}/builds/{key.id}"


@contextmanager
def codebuild_at_fault() -> Iterator[threading.Event]:
    """Its builds end by a fault of its own, once they are let to."""
    fail, real = threading.Event(), CodeBuild._go_through

    def go_through(*build: Any) -> str:
        real(*build)
        fail.wait(60)
        return "FAULT"

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(CodeBuild, "_go_through", go_through)
        yield fail


def run_on_eks(calls: Calls, deployed: Deployed, aws: Services, cluster: FakeKubernetes) -> None:
    """What is different there: a start, one after a claimer's death, a failure and its log."""
    story = Story(calls, deployed)
    content = CONTENT.replace("{", "{backend: eks, ", 1)
    story.api("POST", "/projects", {"name": "vision"}, 201)
    first, lost = story.create(content).key.id, story.create(content).key.id
    story.dispatch(first)
    aws.restart()
    aws.ahead = timedelta(hours=1)
    story.tick(lost)

    group = "/aws/containerinsights/lab/application"
    logs: Any = boto3.client("logs")
    logs.create_log_group(logGroupName=group)
    for number, look in ((first, story.dispatch), (lost, story.tick)):
        handle = deployed.build(number).handle
        assert handle is not None
        now = f"{aws.now():%Y-%m-%dT%H:%M:%SZ}"
        running(cluster, handle, phase="Failed", **container(**ended(1, at=now)))
        look(number)
        assert deployed.build(number).last_status is not Status.FAILED  # its log may still say why
        aws.ahead += lifecycle.WORDS_WITHIN
        look(number)
        assert deployed.build(number).last_status is Status.FAILED
    story.keep(first)
    aws.restart()  # else a reader shares what was just read
    story.api("GET", f"/ada/vision/builds/{first}/logs", None, 404)
