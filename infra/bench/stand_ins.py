"""Replaces what benchmarks of requests cannot really use: a project of a million builds, CodeBuild, and a registry."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import urllib3
from werkzeug import Request, Response

from chalicelib.adapters.dynamodb import keys
from chalicelib.domain.build import BuildKey
from chalicelib.domain.project import ProjectKey
from infra.bench.capacity import size_of
from infra.bench.serving import served

MILLION = ProjectKey("ada", "million")
BUILDS = 1_000_000  # in that project
FIRST_TO_END = 50  # CodeBuild's builds of this number and higher ones have succeeded
PAGE_BYTES = 1024**2  # of one Query
DIGEST = f"sha256:{'d1' * 32}"
Row = Callable[[int], dict[str, Any]]  # the item of a number


@contextmanager
def in_front_of(dynamodb: str, row: Row) -> Iterator[str]:
    """A URL that answers as CodeBuild and as a registry, and passes all else on to `dynamodb`, but for queries for
    the million builds: it answers them by DynamoDB's rules from `row`."""
    http = urllib3.PoolManager(maxsize=10)

    def answer(request: Request) -> Response:
        target = request.headers.get("X-Amz-Target", "")
        if request.path.startswith("/v2/"):
            manifest = json.dumps({"layers": [{"size": 1_000}] * 8})
            return Response(manifest, headers={"Docker-Content-Digest": DIGEST})
        if target.startswith("CodeBuild"):
            return _json({"builds": [_described(each) for each in json.loads(request.data)["ids"]]})
        if target.endswith(".Query") and keys.builds(MILLION).encode() in request.data:
            return _json(_queried(json.loads(request.data), row))
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        url = f"{dynamodb}{request.full_path.rstrip('?')}"
        got = http.request(request.method, url, body=request.data, headers=headers, retries=False)
        passed = {
            name: value for name, value in got.headers.items() if name.lower().startswith(("content-type", "x-amz"))
        }
        return Response(got.data, got.status, passed)

    with served(answer) as address:
        yield f"http://{address}"


def _json(body: Any) -> Response:
    return Response(json.dumps(body), content_type="application/x-amz-json-1.0")


def _queried(asked: dict[str, Any], row: Row) -> dict[str, Any]:
    """Answers a query with the newest builds after `ExclusiveStartKey`: at most `Limit`, and at most 1 MB."""
    assert asked["IndexName"] == "recent", asked
    assert asked["ScanIndexForward"] is False, asked
    start = int(asked["ExclusiveStartKey"]["sk"]["S"]) - 1 if "ExclusiveStartKey" in asked else BUILDS
    total = 0

    def fits(item: dict[str, Any]) -> bool:
        nonlocal total
        total += size_of(item)
        return total <= PAGE_BYTES

    numbers = range(start, max(start - asked["Limit"], 0), -1)
    items = [*takewhile(fits, map(row, numbers))]
    names = ("pk", "sk", "recent", "updated_at")
    more = {"LastEvaluatedKey": {name: items[-1][name] for name in names}} if items else {}
    return {"Items": items, "Count": len(items), "ScannedCount": len(items), **more}


def _described(handle: str) -> dict[str, Any]:
    """CodeBuild's description of the build `builds:NUMBER`, which belongs to the project `few`."""
    number, at = int(handle.rpartition(":")[2]), time.time()
    key = BuildKey(MILLION.owner, "few", number)
    variables = {"SLIPWAY_BUILD": str(key), "SLIPWAY_ATTEMPT": "1"}
    phases = ["SUBMITTED", "QUEUED", "PROVISIONING", "DOWNLOAD_SOURCE", "BUILD"]
    ended = {"buildStatus": "SUCCEEDED", "endTime": at} if number >= FIRST_TO_END else {"buildStatus": "IN_PROGRESS"}
    return {
        "id": handle,
        "startTime": at,
        "phases": [{"phaseType": each, "startTime": at} for each in phases],
        "environment": {
            "environmentVariables": [{"name": name, "value": value} for name, value in variables.items()],
        },
        "logs": {"groupName": "/aws/codebuild/builds", "streamName": str(number)},
        **ended,
    }
