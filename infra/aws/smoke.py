"""A user's day with a deployed stack, step by step: each says whether the service does what it promises.

What only AWS can show (a login that ends after an hour, alarms) is a step as well. A step that cannot run says why.
The tests run the same script against the stack of one machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import boto3
import urllib3

IMAGE = "public.ecr.aws/docker/library/python:3.12-slim"
PATIENCE_SECONDS = 1_200  # for one build; its machine may have to be started
LONG_MINUTES = 70  # what a registry's login lives, and ten minutes
LARGE_BYTES = 8_000_000  # more than a request to the API can carry
LINES = 20_000  # of the long log
_DONE = ("succeeded", "failed", "stopped")


class Broken(Exception):
    """A step did not end as it should; the message says how."""


class Refused(Broken):
    """The service answered with another status than the expected one."""

    def __init__(self, asked: str, answer: urllib3.BaseHTTPResponse) -> None:
        super().__init__(f"{asked} answered {answer.status}: {answer.data[:300].decode(errors='replace')}")
        self.status = answer.status


class Skipped(Exception):
    """A step cannot run here; the message says why."""


@dataclass(frozen=True)
class Smoke:
    """What the steps run against. `stack` names a stack in AWS; without it, steps that need AWS are skipped."""

    url: str  # of the API, with /api/v1
    token: str  # of a superuser
    image: str = IMAGE  # a base with a shell and coreutils
    queue: str | None = None  # URL of the requests queue
    stack: str | None = None
    is_long: bool = False  # also the build that outlives its login
    project: str = field(default_factory=lambda: f"smoke-{secrets.token_hex(4)}")
    _http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False, timeout=60))

    def ask(self, method: str, path: str, expected: int = 200, **body: Any) -> urllib3.BaseHTTPResponse:
        """The response of the service. Raises Refused if its status is not `expected`."""
        headers = {"Authorization": f"token {self.token}", **body.pop("headers", {})}
        answer = self._http.request(method, path if "://" in path else self.url + path, headers=headers, **body)
        if answer.status != expected:
            raise Refused(f"{method} {path}", answer)
        return answer

    @cached_property
    def place(self) -> str:
        """OWNER/PROJECT."""
        return f"{self.ask('GET', '/users').json()['username']}/{self.project}"

    def build(self, *steps: str, **fields: Any) -> str:
        """Starts a build; returns its path."""
        content = {"version": 1, "kind": "build", "image": self.image, "nocache": True, "build_steps": list(steps)}
        made = self.ask("POST", f"/{self.place}/builds", 201, json={"content": json.dumps(content | fields)})
        return f"/{self.place}/builds/{made.json()['id']}"

    def until(self, path: str, *statuses: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Waits until the build has one of these statuses; returns it. Raises Broken for another end, or too late."""
        deadline = time.monotonic() + seconds
        while (build := self.ask("GET", path).json())["last_status"] not in (*statuses, *_DONE):
            expect(time.monotonic() < deadline, f"{path} is {build['last_status']} after {seconds:.0f} seconds")
            time.sleep(1)
        words = "" if build["last_status"] in statuses else self.reason(path)
        expect(build["last_status"] in statuses, f"{path} {build['last_status']}, not {statuses[0]}: {words}")
        return build

    def reason(self, path: str) -> str:
        return str(self.ask("GET", f"{path}/statuses").json()["results"][-1]["message"])

    def log(self, path: str) -> str:
        """The whole log, read in parts with cursors."""
        cursor, parts = "0", []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            answer = self.ask("GET", f"{path}/logs?cursor={cursor}")
            parts.append(answer.data.decode())
            cursor = answer.headers["X-Slipway-Next-Cursor"]
            if answer.headers["X-Slipway-Log-Complete"] == "true":
                return "".join(parts)
            expect(time.monotonic() < deadline, f"the log of {path} does not become complete")
            time.sleep(0 if parts[-1] else 1)


def expect(holds: bool, words: str) -> None:
    if not holds:
        raise Broken(words)


def packed(files: dict[str, bytes]) -> bytes:
    """A gzipped tar."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


def a_project_is_made(on: Smoke) -> None:
    on.ask("POST", "/projects", 201, json={"name": on.project, "is_public": False})


def uploaded_code_is_built(on: Smoke) -> None:
    marker = secrets.token_hex(8)
    code = packed({"requirements.txt": f"# {marker}".encode()})  # one of the files that come before the steps
    gzip: dict[str, Any] = {"headers": {"Content-Type": "application/gzip"}}
    on.ask("PUT", f"/{on.place}/repo/upload", body=code, **gzip)
    path = on.build(f"grep {marker} requirements.txt")
    build = on.until(path, "succeeded")
    expect(str(build["image_digest"]).startswith("sha256:"), "a build that succeeded has no digest")
    last = on.log(path).rstrip().splitlines()[-1]
    expect(last.endswith(f"{build['image'].rpartition(':')[0]}@{build['image_digest']}"), f"the log ends with {last}")


def equal_inputs_make_equal_images(on: Smoke) -> None:
    """Compares builds without cached layers with one that may use them."""
    digests = []
    for nocache in (True, True, False):
        path = on.build("mkdir /made && touch /made/it", nocache=nocache)
        digests.append(on.until(path, "succeeded")["image_digest"])
    expect(len(set(digests)) == 1, f"the digests are {', '.join(digests)}")


def a_large_upload_goes_straight_to_storage(on: Smoke) -> None:
    code = packed({"noise": secrets.token_bytes(LARGE_BYTES)})
    offer = on.ask("POST", f"/{on.place}/repo/upload/offers", 201).json()
    form = {**offer["fields"], "file": ("code.tar.gz", code)}
    sent = urllib3.request("POST", offer["url"], fields=form, retries=False)
    expect(sent.status < 300, f"storage answered {sent.status}: {sent.data[:300]!r}")
    on.ask("POST", offer["complete"])
    link = on.ask("GET", f"/{on.place}/repo/download", 302, redirect=False).headers["Location"]
    again = urllib3.request("GET", link)
    expect(hashlib.sha256(again.data).digest() == hashlib.sha256(code).digest(), "what is downloaded is something else")


def a_failing_step_is_named(on: Smoke) -> None:
    path = on.build("echo before; exit 7")
    on.until(path, "failed")
    expect("7" in on.reason(path), f"the reason does not name the exit code: {on.reason(path)}")


def a_stop_ends_the_build(on: Smoke) -> None:
    path = on.build("sleep 600")
    on.until(path, "running", "building")
    on.ask("POST", f"{path}/stop")
    on.until(path, "stopped")


def a_long_log_is_whole(on: Smoke) -> None:
    path = on.build(f"for n in $(seq {LINES}); do echo line-$n-of-it; done")
    on.until(path, "succeeded")
    said = [line.split()[-1] for line in on.log(path).splitlines() if line.endswith("-of-it")]
    expect(
        said == [f"line-{n}-of-it" for n in range(1, LINES + 1)], f"{len(said)} lines of {LINES}, or in another order"
    )


def arguments_and_secrets_arrive(on: Smoke) -> None:
    secret, argument = secrets.token_hex(12), 'it\'s $HOME \\ "x"'
    on.ask("PUT", f"/{on.place}/secrets/smoke", 204, json={"value": secret})
    wanted, of_secret = (hashlib.sha256(text.encode()).hexdigest() for text in (argument, secret))
    path = on.build(
        f'test "$(printf %s "$SAID" | sha256sum | cut -d" " -f1)" = {wanted}',
        f'test "$(sha256sum </run/secrets/token | cut -d" " -f1)" = {of_secret} && cat /run/secrets/token',
        build_args={"SAID": argument},
        secrets=[{"id": "token", "from": "smoke"}],
    )
    on.until(path, "succeeded")
    expect(secret not in on.log(path), "a secret stands in the log")
    on.ask("DELETE", f"/{on.place}/secrets/smoke", 204)


def a_message_makes_a_build(on: Smoke) -> None:
    if on.queue is None:
        raise Skipped("no queue was named")
    owner, name = on.place.split("/")
    content = json.dumps({"version": 1, "kind": "build", "image": on.image, "build_steps": ["true"]})
    request = {"version": 1, "action": "create", "owner": owner, "project": name, "content": content, "name": "queued"}
    boto3.client("sqs").send_message(QueueUrl=on.queue, MessageBody=json.dumps(request))
    deadline = time.monotonic() + 120
    while not (found := on.ask("GET", f"/{on.place}/builds?query=name:queued").json()["results"]):
        expect(time.monotonic() < deadline, "no build came of the message")
        time.sleep(1)
    on.until(f"/{on.place}/builds/{found[0]['id']}", "succeeded")


def a_build_on_the_cluster(on: Smoke) -> None:
    fields = {"content": json.dumps({"version": 1, "kind": "build", "image": on.image, "build_steps": ["true"]})}
    try:
        made = on.ask("POST", f"/{on.place}/builds", 201, json=fields | {"backend": "eks"})
    except Refused as refused:
        if refused.status == 400:
            raise Skipped("this deployment has no cluster") from refused
        raise
    on.until(f"/{on.place}/builds/{made.json()['id']}", "succeeded")


def a_build_outlives_its_login(on: Smoke) -> None:
    if not on.is_long:
        raise Skipped(f"it takes {LONG_MINUTES} minutes: LONG=1, and BuildTimeoutMinutes above that")
    path = on.build(f"sleep {LONG_MINUTES * 60}")
    on.until(path, "succeeded", seconds=(LONG_MINUTES + 20) * 60)


def a_status_reaches_the_bus(on: Smoke) -> None:
    bus = "default"  # of one machine
    if on.stack is not None:
        (described,) = boto3.client("cloudformation").describe_stacks(StackName=on.stack)["Stacks"]
        bus = {each["ParameterKey"]: each["ParameterValue"] for each in described["Parameters"]}["EventBus"]
    elif on.queue is None:
        raise Skipped("no queue was named, so AWS is not known")
    if not bus:
        raise Skipped("this deployment names no EventBus")
    sqs, events = boto3.client("sqs"), boto3.client("events")
    queue = sqs.create_queue(QueueName=on.project)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sends = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}
    policy = {"Version": "2012-10-17", "Statement": [sends | {"Resource": arn}]}
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
    ours = {"data": {"build": {"project": [on.place.replace("/", ".")]}}}
    wanted = {"source": ["slipway"], "detail-type": ["build.created"], "detail": ours}
    events.put_rule(Name=on.project, EventBusName=bus, EventPattern=json.dumps(wanted))
    events.put_targets(Rule=on.project, EventBusName=bus, Targets=[{"Id": "queue", "Arn": arn}])
    try:
        deadline = time.monotonic() + 120  # a rule works some time after it was made
        while True:
            on.ask("POST", f"/{on.place}/builds", 201, json={"is_managed": False})
            if sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10).get("Messages"):
                break
            expect(time.monotonic() < deadline, f"no status reached the bus {bus}")
    finally:
        events.remove_targets(Rule=on.project, EventBusName=bus, Ids=["queue"])
        events.delete_rule(Name=on.project, EventBusName=bus)
        sqs.delete_queue(QueueUrl=queue)


def no_alarm_rings(on: Smoke) -> None:
    if on.stack is None:
        raise Skipped("needs AWS")
    alarms = boto3.client("cloudwatch").describe_alarms(AlarmNamePrefix=on.stack)["MetricAlarms"]
    expect(bool(alarms), f"the stack {on.stack} has no alarms")
    ringing = [alarm["AlarmName"] for alarm in alarms if alarm["StateValue"] == "ALARM"]
    expect(not ringing, f"these ring: {', '.join(ringing)}")


def what_was_deleted_is_to_be_purged(on: Smoke) -> None:
    place = on.place
    on.ask("DELETE", f"/{place}", 204)
    on.ask("GET", f"/{place}", 404)
    deadline = time.monotonic() + 60  # the preview reads an index, which may lag behind
    while not (due := [each for each in on.ask("GET", "/cleanup").json()["next"] if each["name"] == place]):
        expect(time.monotonic() < deadline, f"the preview of the cleanup does not name {place}")
        time.sleep(1)
    expect(due[0]["because"] == "deleted", f"{place} goes for another reason: {due}")


STEPS: tuple[Callable[[Smoke], None], ...] = (
    *(
        a_project_is_made,
        uploaded_code_is_built,
        equal_inputs_make_equal_images,
        a_large_upload_goes_straight_to_storage,
        a_failing_step_is_named,
    ),
    *(a_stop_ends_the_build, a_long_log_is_whole, arguments_and_secrets_arrive, a_message_makes_a_build),
    *(
        a_build_on_the_cluster,
        a_build_outlives_its_login,
        a_status_reaches_the_bus,
        no_alarm_rings,
        what_was_deleted_is_to_be_purged,
    ),
)


def run(on: Smoke, say: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Runs all steps, says how each ended, and yields the name and the error message of each broken one."""
    for step in STEPS:
        name, began = step.__name__.replace("_", " "), time.monotonic()
        try:
            step(on)
            how = "ok"
        except Skipped as why:
            how = f"skipped: {why}"
        except (Broken, urllib3.exceptions.HTTPError, LookupError, ValueError) as error:
            how = f"BROKEN: {error}"
            yield name, str(error)
        say(f"{name}: {how} ({time.monotonic() - began:.0f} s)")
