"""What one machine keeps: AWS answers after the next start as it did before the end."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import boto3
import pytest
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.base_backend import BackendDict

from infra.local import aws
from infra.local.storage import InUse, Storage, backup, events_added, restore, stored

TABLE, BUCKET = "slipway-kept", "slipway-sources"
GROUP, STREAM = "/slipway/reported", "one"
EVENTS = [{"timestamp": int(time.time() * 1000) + n, "message": f"line {n}\n"} for n in range(3)]
PART_BYTES = 5 * 1024**2


class Aws:
    """AWS of one start, as its clients see it."""

    def __init__(self, url: str) -> None:
        def client(service: str) -> Any:
            signed = Config(signature_version="s3v4" if service == "s3" else "v4")
            return boto3.client(service, endpoint_url=url, config=signed)

        self.dynamodb, self.s3, self.sqs = client("dynamodb"), client("s3"), client("sqs")
        self.ssm, self.logs = client("ssm"), client("logs")
        self.requests = self.sqs.get_queue_url(QueueName="slipway-requests")["QueueUrl"]
        self.dead = self.sqs.get_queue_url(QueueName="slipway-requests-dead")["QueueUrl"]

    def rows(self) -> list[Any]:
        return list(self.dynamodb.scan(TableName=TABLE, ConsistentRead=True)["Items"])

    def received(self, queue: str) -> list[Any]:
        answer = self.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
        return list(answer.get("Messages", []))

    def object(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())


class Start(Protocol):
    def __call__(self, is_connected: bool = True) -> Aws:
        """Starts it; unless `is_connected`, calls of DynamoDB go without a connection."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Ends AWS, if it runs, and starts it with what the folder `kept` has."""
    for name, value in aws.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as running:

        def start(is_connected: bool = True) -> Aws:
            running.close()
            BackendDict.reset()
            folder = running.enter_context(closing(Storage(tmp_path / "kept")))
            moto = aws.Moto(folder)
            moto.start()
            running.callback(moto.close)
            monkeypatch.setenv("AWS_ENDPOINT_URL", moto.url)
            aws.create_resources(TABLE, BUCKET)
            assert moto.stored is not None
            moto.stored.restore()
            started = Aws(moto.url)
            if not is_connected:
                moto.take_calls_of(started.dynamodb)
            return started

        yield start


def item(name: str, **more: Any) -> dict[str, Any]:
    return {"pk": {"S": "p"}, "sk": {"S": name}} | more


@pytest.mark.parametrize("is_connected", [True, False])
def test_rows_are_those_that_were_written_last(start: Start, is_connected: bool) -> None:
    client = start(is_connected).dynamodb
    everything = {
        "s": {"S": "ä"}, "n": {"N": "1.50"}, "b": {"B": b"\0\xff"}, "t": {"BOOL": True}, "z": {"NULL": True},
        "m": {"M": {"l": {"L": [{"S": "x"}, {"N": "2"}]}}}, "ss": {"SS": ["a", "b"]},
    }  # fmt: skip
    client.put_item(TableName=TABLE, Item=item("whole", **everything))
    client.put_item(TableName=TABLE, Item=item("changed", v={"N": "1"}))
    add = {"UpdateExpression": "ADD v :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
    client.update_item(TableName=TABLE, Key=item("changed"), **add)
    client.put_item(TableName=TABLE, Item=item("gone"))
    client.delete_item(TableName=TABLE, Key=item("gone"))
    client.batch_write_item(RequestItems={TABLE: [{"PutRequest": {"Item": item("batch")}}]})
    condition = {"ConditionExpression": "attribute_exists(pk)"}
    check = {"ConditionCheck": {"TableName": TABLE, "Key": item("gone"), **condition}}
    with pytest.raises(ClientError, match="TransactionCanceled"):
        client.transact_write_items(
            TransactItems=[{"Put": {"TableName": TABLE, "Item": item("refused")}}, check],
        )
    client.transact_write_items(
        TransactItems=[
            {"Put": {"TableName": TABLE, "Item": item("put")}},
            {"Update": {"TableName": TABLE, "Key": item("updated"), **add}},
            {"Delete": {"TableName": TABLE, "Key": item("batch")}},
        ]
    )

    rows = {row["sk"]["S"]: row for row in start().rows()}
    assert rows == {
        "whole": item("whole", **everything),
        "changed": item("changed", v={"N": "2"}),
        "put": item("put"),
        "updated": item("updated", v={"N": "1"}),
    }


def test_objects_keep_content_type_time_and_size(start: Start) -> None:
    s3 = start().s3
    s3.put_object(Bucket=BUCKET, Key="logs/a.txt", Body=b"first", ContentType="text/plain; charset=utf-8")
    s3.put_object(Bucket=BUCKET, Key="logs/a.txt", Body=b"second", ContentType="text/plain; charset=utf-8")
    s3.put_object(Bucket=BUCKET, Key="gone", Body=b"x")
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "gone"}]})
    form = s3.generate_presigned_post(BUCKET, "uploads/1")
    sent = urllib3.request("POST", form["url"], fields={**form["fields"], "file": ("f", b"by form")})
    assert sent.status < 300, sent.data
    before = s3.head_object(Bucket=BUCKET, Key="logs/a.txt")

    after = start()

    assert after.object("logs/a.txt") == b"second"
    assert after.object("uploads/1") == b"by form"
    head = after.s3.head_object(Bucket=BUCKET, Key="logs/a.txt")
    for name in ("ContentType", "ContentLength", "ETag", "LastModified"):
        assert head[name] == before[name]
    stretch = after.s3.get_object(Bucket=BUCKET, Key="logs/a.txt", Range="bytes=1-2")["Body"].read()
    assert stretch == b"ec"
    assert {each["Key"] for each in after.s3.list_objects_v2(Bucket=BUCKET)["Contents"]} == {"logs/a.txt", "uploads/1"}


def test_an_object_of_parts_is_one_file(start: Start, tmp_path: Path) -> None:
    content = b"0123456789" * (PART_BYTES // 6)
    (tmp_path / "large").write_bytes(content)
    parts = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    start().s3.upload_file(str(tmp_path / "large"), BUCKET, "large", Config=parts)

    assert start().object("large") == content
    assert len([*(tmp_path / "kept" / "objects").iterdir()]) == 1


def test_messages_stay_until_they_are_deleted(start: Start) -> None:
    before = start()
    for body in ("done", "waits", "received"):
        before.sqs.send_message(QueueUrl=before.requests, MessageBody=body)
    for message in before.received(before.requests):
        if message["Body"] == "done":
            before.sqs.delete_message(QueueUrl=before.requests, ReceiptHandle=message["ReceiptHandle"])
    reasons = {"reasons": {"DataType": "String", "StringValue": "no name"}}
    reasons["raw"] = {"DataType": "Binary", "BinaryValue": b"\0\xff"}  # type: ignore[dict-item]
    before.sqs.send_message(QueueUrl=before.dead, MessageBody="dead", MessageAttributes=reasons)

    after = start()

    assert {each["Body"] for each in after.received(after.requests)} == {"waits", "received"}
    (dead,) = after.received(after.dead)
    assert (dead["Body"], dead["MessageAttributes"]) == ("dead", reasons)


def test_a_message_that_was_received_too_often_is_kept_where_it_is(start: Start) -> None:
    before = start()
    before.sqs.send_message(QueueUrl=before.requests, MessageBody="poison")
    for _ in range(aws.MAX_RECEIVES + 1):
        for message in before.received(before.requests):
            again = {"ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
            before.sqs.change_message_visibility(QueueUrl=before.requests, **again)

    after = start()

    assert after.received(after.requests) == []
    assert [each["Body"] for each in after.received(after.dead)] == ["poison"]


def test_secrets_stay_secret_parameters(start: Start) -> None:
    ssm = start().ssm
    secret = {"Type": "SecureString", "Tier": "Standard", "Overwrite": True}
    for name, value in (("/slipway/a/b/KEY", "one"), ("/slipway/a/b/KEY", "two"), ("/slipway/a/b/GONE", "x")):
        ssm.put_parameter(Name=name, Value=value, **secret)
    ssm.delete_parameter(Name="/slipway/a/b/GONE")
    before = ssm.get_parameter(Name="/slipway/a/b/KEY", WithDecryption=True)["Parameter"]

    ssm = start().ssm

    assert ssm.get_parameter(Name="/slipway/a/b/KEY", WithDecryption=True)["Parameter"] == before
    (found,) = ssm.get_parameters_by_path(Path="/slipway/a/b")["Parameters"]
    assert (found["Version"], found["Value"] != "two") == (2, True)
    assert ssm.put_parameter(Name="/slipway/a/b/KEY", Value="three", **secret)["Version"] == 3


def test_events_of_logs_are_there_and_more_may_follow(start: Start) -> None:
    names = {"logGroupName": GROUP, "logStreamName": STREAM}
    logs = start().logs
    logs.create_log_stream(**names)
    logs.put_log_events(**names, logEvents=EVENTS[:1])
    logs.put_log_events(**names, logEvents=EVENTS[1:2])

    logs = start().logs
    too_old = {"timestamp": 1_700_000_000_000, "message": "refused\n"}
    logs.put_log_events(**names, logEvents=[too_old, *EVENTS[2:]])

    for found in (read(logs), read(start().logs)):
        assert found == EVENTS


def read(logs: Any, stream: str = STREAM) -> list[Any]:
    events = logs.get_log_events(logGroupName=GROUP, logStreamName=stream, startFromHead=True)["events"]
    return [{name: each[name] for name in EVENTS[0]} for each in events]


def test_a_row_whose_time_is_over_is_forgotten(start: Start) -> None:
    client = start().dynamodb
    for name, ttl in (("over", 1), ("lives", int(time.time()) + 3600)):
        client.put_item(TableName=TABLE, Item=item(name, ttl={"N": str(ttl)}))
    for _ in range(2):
        assert [row["sk"]["S"] for row in start().rows()] == ["lives"]


def test_a_start_makes_the_same_calls_and_reads_no_log_however_much_is_kept(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    counted(calls, monkeypatch, aws.Moto, "_answer")
    counted(calls, monkeypatch, Storage, "events")
    start()
    few = calls.copy()
    changes = [stored("row", json.dumps([TABLE, n]), item(f"{n:04}")) for n in range(1000)]
    changes += [events_added(f"{GROUP}:{n}", EVENTS) for n in range(1000)]
    with closing(sqlite3.connect(tmp_path / "kept" / "kept.sqlite")) as other, other:
        for change in changes:
            other.execute(*change)

    running = start()

    assert calls == few + few
    assert (calls["_answer"] > 0, calls["events"]) == (True, 0)
    assert len(running.rows()) == 1000
    assert len(read(running.logs, stream="999")) == len(EVENTS)


def counted(calls: Counter[str], monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    original = getattr(owner, name)

    def count(*arguments: Any) -> Any:
        calls[name] += 1
        return original(*arguments)

    monkeypatch.setattr(owner, name, count)


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_request_that_is_not_written_is_not_answered(
    start: Start, monkeypatch: pytest.MonkeyPatch, is_connected: bool
) -> None:
    client = start(is_connected).dynamodb
    with monkeypatch.context() as full:
        full.setattr(Storage, "write", raising)
        with pytest.raises(ClientError, match="500"):
            client.put_item(TableName=TABLE, Item=item("refused"))
    client.put_item(TableName=TABLE, Item=item("taken"))

    assert "taken" in {row["sk"]["S"] for row in start().rows()}


def raising(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def test_what_cannot_be_written_is_not_promised_and_comes_with_the_next_change(tmp_path: Path) -> None:
    with closing(Storage(tmp_path / "kept")) as first:
        broken = ("INSERT INTO nowhere VALUES (?)", (1,))
        with pytest.raises(Exception, match="nowhere"):
            first.write([stored("setting", "a", "1"), broken])
        assert first.get("setting", "a") is None
        first._pending.remove(broken)
        first.write([stored("setting", "b", "2")])

        assert (first.get("setting", "a"), first.get("setting", "b")) == ("1", "2")


def test_a_file_whose_transaction_did_not_come_is_removed(tmp_path: Path) -> None:
    with closing(Storage(tmp_path / "kept")) as first:
        first.write([stored("object", "bucket/key", {"file": first.add_file(b"whole")})])
        first.add_file(b"lost")
    with closing(Storage(tmp_path / "kept")) as second:
        told = second.get("object", "bucket/key")
        assert [each.name for each in (tmp_path / "kept" / "objects").iterdir()] == [told["file"]]


def test_only_this_user_and_one_stack_may_use_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "kept"
    with closing(Storage(folder)):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(InUse, match="KEEP=0"):
            Storage(folder)
    Storage(folder).close()


def test_a_backup_of_a_folder_in_use_is_put_back_elsewhere(tmp_path: Path) -> None:
    folder, tar = tmp_path / "kept", tmp_path / "backup.tar"
    with closing(Storage(folder)) as running:
        running.write([stored("object", "bucket/key", {"file": running.add_file(b"content")})])
        blob = running.images / "docker" / "blob"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"layer")
        (running.images / "_uploads").mkdir()
        (running.images / "_uploads" / "half").write_bytes(b"half")
        backup(folder, tar)
        running.write([stored("setting", "later", "1")])
    assert tar.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        restore(folder, tar)
    restore(tmp_path / "other", tar)

    with closing(Storage(tmp_path / "other")) as copy:
        told = copy.get("object", "bucket/key")
        assert copy.path(told["file"]).read_bytes() == b"content"
        assert (copy.images / "docker" / "blob").read_bytes() == b"layer"
        assert not (copy.images / "_uploads").exists()
        assert copy.get("setting", "later") is None


def test_a_tar_that_is_no_backup_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "wrong.tar").write_bytes(b"x" * 2000)
    with pytest.raises(Exception, match="is not a whole tar"):
        restore(tmp_path / "kept", tmp_path / "wrong.tar")
    assert [each.name for each in tmp_path.iterdir()] == ["wrong.tar"]
