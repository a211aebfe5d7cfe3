"""The other services that the adapters call, as their APIs document them, on the state of the fakes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import trustme

from chalicelib.adapters.registry import LOGIN_SECONDS
from chalicelib.adapters.sqs import delivery
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import BuildKey, Status
from chalicelib.domain.log_lines import LogLine, at_of, ms_of
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, Unavailable
from chalicelib.ports import Announcement
from tests.fakes import Run
from tests.simulation.http_calls import CLUSTER, Answer, Refused, Request
from tests.simulation.scheduler import Ended, current

if TYPE_CHECKING:
    from tests.simulation.adapters import AdaptersWorld

Json = dict[str, Any]
PAGE = 2  # builds of a project's list, objects of a bucket's
LOG_PAGE = 3  # events
EMPTY = "-"  # the token of a log without any
_PHASES = {Status.SCHEDULED: "QUEUED", Status.BUILDING: "PRE_BUILD", Status.RUNNING: "BUILD"}


class Aws:
    """SQS, EventBridge, S3, CodeBuild, CloudWatch Logs, ECR, STS, SSM and EKS."""

    def __init__(self, world: AdaptersWorld) -> None:
        self._world, self._services = world, world.services
        self._objects: dict[str, bytes] = {}  # of the bucket
        self._requests: dict[str, Json] = {}  # of StartBuild, by handle
        self._positions: list[LogLine] = []  # in logs, by the number in a token
        self._streams: set[str] = set()

    def answer(self, request: Request) -> Answer:
        """Raises Refused."""
        name = request.service.replace("-", "_")
        if request.service in ("s3", "sts", "registry"):
            answer: Answer = getattr(self, f"_{name}")(request)
            return answer
        answer_json: Callable[[str, Json], Json] = getattr(self, f"_{name}")
        body = json.loads(request.body or b"{}")
        return Answer.of_json(answer_json(request.operation, body))

    def _sqs(self, operation: str, body: Json) -> Json:
        assert operation == "SendMessage"
        text, settings, services = body["MessageBody"], self._world.settings, self._services
        if body["QueueUrl"] == settings.dead_letter_queue_url:
            services.dead_letters.put(text, [body["MessageAttributes"]["reasons"]["StringValue"]])
        elif body["QueueUrl"] == settings.hook_queue_url:
            services.hook_queue.send(delivery(text))
        else:
            queues = {settings.dispatch_queue_url: services.queue, settings.log_queue_url: services.log_queue}
            queues[body["QueueUrl"]].announce(BuildKey.parse(text), body["DelaySeconds"])
        md5 = hashlib.md5(text.encode()).hexdigest()
        return {"MessageId": "-", "MD5OfMessageBody": md5}

    def _eventbridge(self, operation: str, body: Json) -> Json:
        assert operation == "PutEvents"
        (event,) = body["Entries"]
        id_, detail = json.loads(event["Detail"])["id"], event["Detail"]
        self._services.event_bus.put(Announcement(id_, event["DetailType"], self._services.now(), detail))
        return {"FailedEntryCount": 0, "Entries": [{"EventId": id_}]}

    # CodeBuild

    def _codebuild(self, operation: str, body: Json) -> Json:
        executor = self._services.codebuild
        match operation:
            case "StartBuild":
                return {"build": self._describe(self._started(body))}
            case "BatchGetBuilds":
                runs = [executor.runs[each] for each in body["ids"] if each in executor.runs]
                return {"builds": [self._describe(run) for run in runs]}
            case "ListBuildsForProject":
                handles, start = [*reversed(executor.runs)], body.get("nextToken")
                first = handles.index(start) if start else 0
                more = handles[first + PAGE : first + PAGE + 1]
                return {"ids": handles[first : first + PAGE], **({"nextToken": more[0]} if more else {})}
            case "StopBuild":
                run = executor.runs.get(body["id"])
                if run is None:
                    raise Refused("ResourceNotFoundException")
                executor.stop(run.handle)
                return {"build": self._describe(run)}
        raise AssertionError(operation)

    def _started(self, body: Json) -> Run:
        variables = {each["name"]: each["value"] for each in body["environmentVariablesOverride"]}
        build = self._world.known[variables["SLIPWAY_UUID"]].build
        attempt = replace(build, attempt=int(variables["SLIPWAY_ATTEMPT"]))
        executor = self._services.codebuild
        try:
            run = executor.runs[executor.submit(attempt)]
        except Busy as busy:
            raise Refused("AccountLimitExceededException") from busy
        if self._requests.setdefault(run.handle, body) != body:
            raise Refused("InvalidInputException")  # the token came with other parameters
        return run

    def _describe(self, run: Run) -> Json:
        group, _, stream = run.log.partition(":")
        steps = [(_PHASES[step.status], step.at) for step in run.steps]
        phases = [("SUBMITTED", run.started_at), *steps]
        return {
            "id": run.handle,
            "buildStatus": run.outcome.name if run.outcome else "IN_PROGRESS",
            "startTime": run.started_at.timestamp(),
            **({"endTime": run.ended_at.timestamp()} if run.ended_at else {}),
            "phases": [{"phaseType": name, "startTime": at.timestamp()} for name, at in phases],
            "logs": {"groupName": group, "streamName": stream} if run.steps else {},
            "environment": {
                "environmentVariables": self._requests.get(run.handle, {}).get("environmentVariablesOverride", [])
            },
        }

    # CloudWatch Logs

    def _cloudwatch_logs(self, operation: str, body: Json) -> Json:
        name = self._world.log_name(f"{body['logGroupName']}:{body['logStreamName']}")
        logs = self._services.logs.logs
        match operation:
            case "CreateLogStream":
                if name in self._streams:
                    raise Refused("ResourceAlreadyExistsException")
                self._streams.add(name)
                return {}
            case "PutLogEvents":
                lines = [
                    LogLine(at_of(each["timestamp"]), each["message"].removesuffix("\n")) for each in body["logEvents"]
                ]
                logs[name] = sorted([*logs.get(name, []), *lines], key=lambda line: line.at)
                return {}
        if name in self._world.fatal and current():
            raise Ended
        if name not in logs and name not in self._streams:
            raise Refused("ResourceNotFoundException")
        lines, token = logs.get(name, []), body.get("nextToken")
        if not body["startFromHead"]:
            last = {"nextForwardToken": EMPTY, "nextBackwardToken": token or EMPTY}
            return {"events": [] if token else self._events(name, body, lines[-body["limit"] :]), **last}
        after = self._positions[int(token)] if token not in (None, EMPTY) else None
        first = sum(ms_of(line.at) < body["startTime"] for line in lines)
        if after:
            first = 1 + next(index for index, line in enumerate(lines) if line is after)
        page = lines[first : first + LOG_PAGE]
        if page:
            self._positions.append(page[-1])
            token = str(len(self._positions) - 1)
        return {"events": self._events(name, body, page), "nextForwardToken": token or EMPTY}

    def _events(self, name: str, body: Json, lines: list[LogLine]) -> list[Json]:
        is_of_pod = name != f"{body['logGroupName']}:{body['logStreamName']}"
        return [
            {
                "timestamp": ms_of(line.at),
                "message": json.dumps({"log": f"{line.text}\n"}) if is_of_pod else line.text,
            }
            for line in lines
        ]

    # What the images need

    def _ecr(self, operation: str, body: Json) -> Json:
        if operation == "GetAuthorizationToken":
            token = base64.b64encode(b"AWS:password").decode()
            return {"authorizationData": [{"authorizationToken": token}]}
        repositories = self._services.registry.prepared
        name = f"{self._world.settings.registry}/{body['repositoryName']}"
        if operation == "CreateRepository" and name in repositories:
            raise Refused("RepositoryAlreadyExistsException")
        if operation != "CreateRepository" and name not in repositories:
            raise Refused("RepositoryNotFoundException")
        if operation == "CreateRepository":
            repositories.add(name)
        elif operation == "DeleteRepository":
            repositories.remove(name)
        return {}

    def _registry(self, request: Request) -> Answer:
        host, path = urlsplit(request.url).netloc, urlsplit(request.url).path
        name, _, tag = path.removeprefix("/v2/").partition("/manifests/")
        image, registry = f"{host}/{name}:{tag}", self._services.registry
        if request.operation == "PUT":
            try:
                registry.tag(json.loads(request.body)["image"], tag)
            except Unavailable as refusal:
                raise Refused("TAG_INVALID") from refusal
            return Answer(201)
        if (found := registry.find(image)) is None:
            return Answer(404)
        headers = {"Docker-Content-Digest": found.digest, "Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        return Answer(body=json.dumps({"image": image}).encode(), headers=headers)  # stands for the manifest

    def _sts(self, request: Request) -> Answer:
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
        ends_at = self._services.now() + timedelta(seconds=LOGIN_SECONDS)
        lent = "".join(f"<{name}>lent</{name}>" for name in names)
        lent += f"<Expiration>{ends_at.isoformat()}</Expiration>"
        result = f"<AssumeRoleResult><Credentials>{lent}</Credentials></AssumeRoleResult>"
        return Answer(body=f"<AssumeRoleResponse>{result}</AssumeRoleResponse>".encode())

    def _secrets_manager(self, operation: str, body: Json) -> Json:
        assert operation == "GetSecretValue"
        return {"SecretString": self._services.deployment_secrets.build_key().decode()}

    def _ssm(self, operation: str, body: Json) -> Json:
        """Projects have no secrets; their purge asks, and deletes those of webhooks."""
        if operation == "DeleteParameter":
            raise Refused("ParameterNotFound")
        assert operation == "GetParametersByPath"
        return {"Parameters": []}

    def _eks(self, operation: str, body: Json) -> Json:
        assert operation == "DescribeCluster"
        data = base64.b64encode(_authority()).decode()
        return {"cluster": {"endpoint": f"https://{CLUSTER}", "certificateAuthority": {"data": data}}}

    # S3

    def _s3(self, request: Request) -> Answer:
        url, objects = urlsplit(request.url), self._objects
        key = unquote(url.path).removeprefix("/")
        match request.operation:
            case "PutObject":
                self._put(key, request.body)
            case "CopyObject":
                source = unquote(request.headers["x-amz-copy-source"]).partition("/")[2]
                self._put(key, self._object(source))
                return Answer(body=b"<CopyObjectResult><ETag>-</ETag></CopyObjectResult>")
            case "GetObject":
                body = self._object(key)
                first, _, last = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
                if first != "0" and int(first) >= len(body):
                    raise Refused("InvalidRange", 416)
                return Answer(206 if last else 200, body[int(first) : int(last) + 1 if last else None])
            case "DeleteObject":
                self._remove(key)
            case "DeleteObjects":
                for each in ElementTree.fromstring(request.body).iter():
                    if each.tag.endswith("}Key"):
                        self._remove(each.text or "")
                return Answer(body=b"<DeleteResult/>")
            case "ListObjectsV2":
                query = {name: value for name, (value,) in parse_qs(url.query).items()}
                after = query.get("continuation-token", "")
                found = [each for each in sorted(objects) if each.startswith(query["prefix"]) and each > after]
                return Answer(body=self._list(found[:PAGE], is_last=len(found) <= PAGE).encode())
        return Answer(204 if request.operation == "DeleteObject" else 200)

    def _list(self, names: list[str], *, is_last: bool) -> str:
        more = "" if is_last else f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>"
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{self._kept_at(name)}</LastModified></Contents>"
            for name in names
        )
        truncated = str(not is_last).lower()
        return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{contents}</ListBucketResult>"

    def _kept_at(self, name: str) -> str:
        at = self._services.sources.kept_at.get(name.partition("/")[2].partition(".")[0], self._services.now())
        return at.isoformat()

    def _object(self, key: str) -> bytes:
        found = self._services.sources.offers.get(key) or self._objects.get(key)
        if found is None:
            raise Refused("NoSuchKey", 404)
        return found

    def _put(self, key: str, body: bytes) -> None:
        """What the fakes know of it is what `promises` look at."""
        self._objects[key] = body
        folder, _, name = key.partition("/")
        sources = self._services.sources
        if folder == "logs" and name.endswith(".txt"):
            self._services.log_archive.texts[name.removesuffix(".txt")] = body.decode()
        elif folder == "code" and name.endswith(".tar.gz"):
            sha256 = name.removesuffix(".tar.gz")
            sources.archives[sha256] = (body, Listing(frozenset(), frozenset()))
            sources.kept_at[sha256] = self._services.now()

    def _remove(self, key: str) -> None:
        self._objects.pop(key, None)
        folder, _, name = key.partition("/")
        if folder == "logs":
            self._services.log_archive.texts.pop(name.removesuffix(".txt"), None)
        elif folder == "code" and name.endswith(".tar.gz"):
            self._services.sources.drop(name.removesuffix(".tar.gz"))


@cache
def _authority() -> bytes:
    return trustme.CA().cert_pem.bytes()
