"""What a web page and a package in a build step get from the one-machine stack: nothing."""

from __future__ import annotations

import base64
import inspect
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import urllib3

from infra.local import aws
from infra.local.machine.machine import Machine
from infra.local.machine.signed_logins import SignedLogins
from tests.factories import make_archive
from tests.required_engines import with_any_engine
from tests.stack.conftest import PROJECT, Client, serving

pytestmark = pytest.mark.engine

PAGE = {"Origin": "https://evil.example"}
BUILDSPEC = "version: 0.2\nphases: {build: {commands: ['touch /tmp/owned']}}"


@pytest.fixture(scope="module")
def client(local_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving(local_machine, tmp_path_factory.mktemp("stack")) as client:
        client.upload(PROJECT, make_archive({"app.py": "print()"}))
        yield client


def link(client: Client) -> str:
    """Of storage, as the API gives it to every user."""
    url = f"{client.running.url}/api/v1{PROJECT}/repo/download/"
    headers = {"Authorization": f"token {client.running.token}"}
    answer = urllib3.request("GET", url, headers=headers, redirect=False, retries=False)
    assert answer.status == 302
    return str(answer.headers["Location"])


def key_id(client: Client) -> str:
    """As everybody reads it in a link."""
    return parse_qs(urlsplit(link(client)).query)["X-Amz-Credential"][0].partition("/")[0]


def claimed(key_id: str, service: str) -> dict[str, str]:
    """What looks like a signature to whoever does not check it."""
    scope = f"{key_id}/{datetime.now(UTC):%Y%m%d}/{aws.REGION}/{service}/aws4_request"
    claim = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date;x-amz-target, Signature="
    return {"X-Amz-Date": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", "Authorization": claim + "0" * 64}


def attempts(client: Client) -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Service, method, URL, target and fields of what would hurt."""
    running, codebuild = client.running, os.environ["AWS_ENDPOINT_URL_CODEBUILD"]
    message = {"QueueUrl": running.queues.requests, "MessageBody": "{}"}
    start = {"projectName": "slipway-builds", "buildspecOverride": BUILDSPEC}
    return [
        ("dynamodb", "POST", running.aws_url, "DynamoDB_20120810.Scan", {"TableName": "slipway"}),
        ("dynamodb", "POST", running.aws_url, "DynamoDB_20120810.ListTables", {}),
        ("sqs", "POST", running.aws_url, "AmazonSQS.SendMessage", message),
        ("logs", "POST", running.aws_url, "Logs_20140328.DescribeLogGroups", {}),
        ("s3", "GET", f"{running.aws_url}/slipway-sources", "", {}),
        ("s3", "POST", f"{running.aws_url}/moto-api/reset", "", {}),
        ("codebuild", "POST", codebuild, "CodeBuild_20161006.StartBuild", start),
        ("codebuild", "POST", codebuild, "CodeBuild_20161006.ListBuildsForProject", start),
    ]


@with_any_engine
@pytest.mark.parametrize("origin", [PAGE, {}])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-amz-json-1.0"])
def test_a_page_gets_nothing_even_with_the_id_from_a_link(client: Client, origin: dict[str, str], kind: str) -> None:
    waiting = boto3.client("sqs").get_queue_attributes
    known = key_id(client)
    assert known == aws.ENVIRONMENT["AWS_ACCESS_KEY_ID"]
    for service, method, url, target, fields in attempts(client):
        for claim in ({}, claimed(known, service), claimed("AKIAIOSFODNN7EXAMPLE", service)):
            headers = {
                "Content-Type": kind,
                **origin,
                **claim,
                **({"X-Amz-Target": target} if target else {}),
            }
            answer = urllib3.request(method, url, headers=headers, body=json.dumps(fields).encode(), retries=False)
            assert answer.status == 403, (service, target, answer.data)
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert client.get(PROJECT)["name"] == "quick-start"  # nothing was reset
    queue = waiting(QueueUrl=client.running.queues.requests, AttributeNames=["All"])["Attributes"]
    assert (queue["ApproximateNumberOfMessages"], queue["ApproximateNumberOfMessagesNotVisible"]) == (
        "0",
        "0",
    )
    assert client.running.codebuild._builds == {}


@with_any_engine
def test_a_browser_is_not_allowed_to_ask(client: Client) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-amz-target"}
    for url in (client.running.aws_url, os.environ["AWS_ENDPOINT_URL_CODEBUILD"]):
        answer = urllib3.request("OPTIONS", url, headers={**PAGE, **ask}, retries=False)
        assert answer.status in (403, 501)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# The steps run in the image; they may use Python's own library only.


def _knock(ports: dict[str, int], key_id: str, image: str) -> None:
    import http.client
    import json
    from pathlib import Path

    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}

    def ask(to: str, method: str, path: str, target: str = "", body: str = "{}") -> object:
        claim = f"AWS4-HMAC-SHA256 Credential={key_id}/20240101/us-east-1/s3/aws4_request"
        headers = {"Authorization": f"{claim}, SignedHeaders=host, Signature={'0' * 64}"}
        if to == "registry":
            headers = {"Authorization": "Basic QVdTOmd1ZXNzZWQ="}
        connection = http.client.HTTPConnection("127.0.0.1", ports[to], timeout=10)
        connection.request(method, path, body, {**headers, **({"X-Amz-Target": target} if target else {})})
        return connection.getresponse().status

    build = json.dumps({"projectName": "slipway-builds", "buildspecOverride": "version: 0.2"})
    got = {
        "found": {name: port in listening for name, port in ports.items()},
        "scan": ask("aws", "POST", "/", "DynamoDB_20120810.Scan", '{"TableName": "slipway"}'),
        "reset": ask("aws", "POST", "/moto-api/reset"),
        "nonces": ask("codebuild", "POST", "/", "CodeBuild_20161006.BatchGetBuilds", '{"ids": ["a:b"]}'),
        "start": ask("codebuild", "POST", "/", "CodeBuild_20161006.StartBuild", build),
        "catalog": ask("registry", "GET", "/v2/_catalog"),
        "read": ask("registry", "GET", f"/v2/{image}/manifests/1"),
        "push": ask("registry", "POST", f"/v2/{image}/blobs/uploads/"),
        "overwrite": ask("registry", "PUT", f"/v2/{image}/manifests/1"),
        "api": ask("api", "GET", "/api/v1/users"),
    }
    print("got", json.dumps(got))


def _search(beginnings: dict[str, str]) -> None:
    import json
    import os
    import re
    from pathlib import Path

    Path("/tmp/decoy").write_text("decoydec" + "0" * 40)
    beginnings["decoy"] = "decoydec"
    patterns = {
        name: re.compile(re.escape(each.encode()) + rb"[A-Za-z0-9_+/-]{20}") for name, each in beginnings.items()
    }
    found = {name: [] for name in patterns}  # type: ignore[var-annotated]

    def look(path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = file.read(64 * 1024**2)
        except OSError:
            return
        for name, pattern in patterns.items():
            if pattern.search(content):
                found[name].append(str(path))

    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline", "mountinfo"):
            look(process / name)
    for folder, folders, files in os.walk("/"):
        if folder == "/":
            folders[:] = [each for each in folders if each not in ("proc", "sys")]
        for path in (Path(folder, file) for file in files):
            if path.is_file() and not path.is_symlink():
                look(path)
    print("got", json.dumps(found))


def step(function: Any, **arguments: Any) -> str:
    """A build step that runs a function of this file."""
    text = f"{inspect.getsource(function)}\n{function.__name__}(**{arguments!r})\n"
    text = f"from __future__ import annotations\n{text}"
    code = base64.b64encode(text.encode()).decode()
    return f"python3 -c \"import base64; exec(base64.b64decode('{code}'))\""


def log_change(client: Client, *steps: str) -> Any:
    """What the step of a build printed."""
    path = client.build(*steps)
    build = client.until_done(path)
    assert build["last_status"] == "succeeded", client.log(path)
    (text,) = re.findall(r"got (\{.*\})", client.log(path))
    return json.loads(text)


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


@with_any_engine
def test_a_step_that_knocks_at_every_door_gets_nothing(client: Client) -> None:
    secret = client.build("echo secret > /secret.txt", project=PROJECT)
    image = client.until_done(secret)["image"]
    ports = {
        "aws": port(client.running.aws_url),
        "codebuild": port(os.environ["AWS_ENDPOINT_URL_CODEBUILD"]),
        "registry": port(client.machine.registry),
        "api": port(client.running.url),
    }
    repository = image.partition("/")[2].rpartition(":")[0]
    got = log_change(client, step(_knock, ports=ports, key_id=key_id(client), image=repository))

    assert got.pop("found") == dict.fromkeys(ports, True)  # this is what a step can still reach
    aws_calls, others = ("scan", "reset", "nonces", "start"), ("catalog", "read", "push", "overwrite", "api")
    assert got == dict.fromkeys(aws_calls, 403) | dict.fromkeys(others, 401)
    assert len(client.running.codebuild._builds) == 2  # the two that this test posted


def test_an_isolated_step_finds_no_key_in_processes_and_files(client: Client) -> None:
    if not client.machine.engine.isolates_steps:
        pytest.skip("steps are not isolated here, and `make up` says so")
    login = client.machine.registry_login
    own = SignedLogins(login, lambda: datetime.now(UTC)).mint("registry.test/a/b:1").password
    secrets = {
        "aws": aws.ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        "registry": login.partition(":")[2],
        "login": base64.b64encode(login.encode()).decode(),
        "login of a build": own,
        "entry of a build": base64.b64encode(f"AWS:{own}".encode()).decode(),
        "token": client.running.token,
    }
    # The beginning is enough to find the whole, and is not the whole.
    found = log_change(client, step(_search, beginnings={name: each[:12] for name, each in secrets.items()}))

    assert found.pop("decoy") == ["/tmp/decoy"]
    assert found == {name: [] for name in secrets}
