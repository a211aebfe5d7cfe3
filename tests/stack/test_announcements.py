"""What other programs hear of builds, through the stack: from the table's rows to a rule's target."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
import urllib3
from standardwebhooks import Webhook
from werkzeug import Request, Response

from chalicelib.adapters.eventbridge import SOURCE
from infra.aws.package import ROOT
from infra.bench.serving import served
from tests.stack.conftest import PROJECT, Client, serving_without_engine, wait_until

ANSWERS = "arn:aws:sqs:us-east-1:123456789012:answers"
SETTINGS = {"SLIPWAY_PRIVATE_HOOK_HOSTS": "localhost", "SLIPWAY_REPLY_QUEUES": ANSWERS}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with serving_without_engine(tmp_path_factory.mktemp("stack"), settings=SETTINGS) as client:
        yield client


def receiving(url: str) -> Callable[[], list[Any]]:
    """What returns all messages that a queue has had."""
    heard: list[Any] = []

    def receive() -> list[Any]:
        about = {"MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"]}
        heard.extend(boto3.client("sqs").receive_message(QueueUrl=url, **about).get("Messages", []))
        return heard

    return receive


def test_a_rule_of_the_bus_hears_each_status_of_a_build_in_order(client: Client) -> None:
    sqs, events = boto3.client("sqs"), boto3.client("events")
    url = sqs.create_queue(QueueName="heard")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    wanted = {"source": [SOURCE], "detail": {"data": {"build": {"user": ["root"]}}}}
    events.put_rule(Name="builds", EventPattern=json.dumps(wanted))
    events.put_targets(Rule="builds", Targets=[{"Id": "heard", "Arn": arn}])
    receive = receiving(url)

    path = client.build("true")  # it fails: there is no engine
    assert client.until_done(path)["last_status"] == "failed"

    wait_until(lambda: any('"build.failed"' in each["Body"] for each in receive()))
    heard = [json.loads(each["Body"])["detail"] for each in receive()]
    rows = client.get(f"{path}/statuses")["results"]
    reported = {each["data"]["status"]["id"]: (each["id"], each["data"]["status"]) for each in heard}
    assert reported == {row["id"]: (row["uuid"], row) for row in rows}
    assert {each["data"]["build"]["project"] for each in heard} == {PROJECT.strip("/").replace("/", ".")}


def test_requests_at_once_with_a_key_get_the_same_build(client: Client) -> None:
    url, token = f"{client.running.url}/api/v1{PROJECT}/builds", client.running.token
    headers = {"Authorization": f"token {token}", "Idempotency-Key": "release-1"}
    together = threading.Barrier(4)

    def post(_: int) -> urllib3.BaseHTTPResponse:
        together.wait()
        return urllib3.request("POST", url, headers=headers, json={"is_managed": False}, retries=False)

    with ThreadPoolExecutor(4) as pool:
        answers = [*pool.map(post, range(4))]
    assert [answer.status for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replay", "") for answer in answers) == ["", "true", "true", "true"]


def test_a_message_gets_the_id_of_its_build_and_the_end_as_replies(client: Client) -> None:
    sqs = boto3.client("sqs")
    receive = receiving(sqs.create_queue(QueueName="answers")["QueueUrl"])
    content = {"version": 1, "kind": "build", "image": "scratch", "build_steps": ["true"]}
    message = {"version": 1, "action": "create", "owner": "root", "project": "quick-start", "content": content}
    for key, queue in (("refused", f"{ANSWERS}-of-others"), ("night-1", ANSWERS)):
        body = json.dumps(message | {"idempotency_key": key, "reply_to": queue})
        sqs.send_message(QueueUrl=client.running.queues.requests, MessageBody=body)

    wait_until(lambda: len(receive()) >= 2)
    replies = [json.loads(each["Body"]) for each in receive()]
    assert {each["MessageAttributes"]["request"]["StringValue"] for each in receive()} == {"night-1"}
    assert [each["type"] for each in replies] == ["build.created", "build.failed"]
    (made,) = {each["data"]["build"]["id"] for each in replies}
    assert client.get(f"{PROJECT}/builds/{made}")["last_status"] == "failed"


def test_a_webhook_is_told_of_the_end_of_a_build_by_its_secret(client: Client) -> None:
    got: list[Any] = []
    status = [503]

    def answer(request: Request) -> Response:
        got.append((request.get_data(), dict(request.headers)))
        return Response(status=status[0])

    def is_noted(failure: str | None) -> bool:
        (hook,) = client.get(f"{PROJECT}/hooks")["results"]
        return hook["updated_at"] is not None and hook["failure"] == failure

    with served(answer) as address:
        url = f"http://{address.replace('127.0.0.1', 'localhost')}/builds"
        made = client.call("PUT", f"{PROJECT}/hooks/deploy", {"url": url})[1]
        assert client.call("POST", f"{PROJECT}/hooks/deploy/test")[0] == 202
        wait_until(lambda: is_noted("The receiver answered 503."))
        status[0] = 204
        client.until_done(client.build("true"))  # it fails: there is no engine
        wait_until(lambda: is_noted(None))
    assert client.call("DELETE", f"{PROJECT}/hooks/deploy")[0] == 204
    test, told = (Webhook(made["secret"]).verify(*each) for each in got)
    assert (test["type"], test["data"]) == ("test", None)
    assert (told["type"], told["data"]["status"]["status"]) == ("build.failed", "failed")
    assert got[1][1]["Webhook-Id"] == told["id"]


def test_a_receiver_of_this_machine_is_not_connected_to_unless_the_operator_named_it(client: Client) -> None:
    got: list[Request] = []

    def answer(request: Request) -> Response:
        got.append(request)
        return Response(status=204)

    with served(answer) as address:
        url = f"https://{address}/builds"
        assert client.call("PUT", f"{PROJECT}/hooks/deploy", {"url": f"http://{address}/builds"})[0] == 400
        assert client.call("PUT", f"{PROJECT}/hooks/deploy", {"url": url})[0] == 200
        assert client.call("POST", f"{PROJECT}/hooks/deploy/test")[0] == 202
        wait_until(lambda: client.get(f"{PROJECT}/hooks")["results"][0]["updated_at"] is not None)
    (hook,) = client.get(f"{PROJECT}/hooks")["results"]
    assert hook["failure"] == "127.0.0.1 has an address that is not of the Internet."
    assert got == []
    assert client.call("DELETE", f"{PROJECT}/hooks/deploy")[0] == 204


def test_the_receiver_of_the_page_takes_what_is_ours_and_nothing_else(client: Client, tmp_path: Path) -> None:
    (text,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "infra/docs/webhooks.md").read_text())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://localhost:{port}/builds"
    made = client.call("PUT", f"{PROJECT}/hooks/ci", {"url": url})[1]
    program = tmp_path / "receiver.py"
    program.write_text(text.replace("whsec_…", made["secret"]).replace("8080", str(port)))
    with subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL) as receiver:
        try:
            wait_until(lambda: answers(url) == 401)
            assert client.call("POST", f"{PROJECT}/hooks/ci/test")[0] == 202
            wait_until(lambda: client.get(f"{PROJECT}/hooks")["results"][0]["updated_at"] is not None)
            assert client.get(f"{PROJECT}/hooks")["results"][0]["failure"] is None
        finally:
            receiver.terminate()
            client.call("DELETE", f"{PROJECT}/hooks/ci")


def answers(url: str) -> int | None:
    """What is answered to somebody who knows no secret; None while nobody answers."""
    forged = {"webhook-id": "1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
    try:
        return urllib3.request("POST", url, body=b"{}", headers=forged, retries=False).status
    except urllib3.exceptions.HTTPError:
        return None
