"""Each row of `domain.cleanup.RULES`: made, aged, gone, and nothing else gone. On the real adapters; what AWS
does by itself, moto does not, so that stubs do it as AWS documents it."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import boto3
import pytest
from chalice.package import YAMLTemplateSerializer

from chalicelib.adapters.dynamodb.table import Item
from chalicelib.adapters.registry import EcrRegistry, image_lifecycle
from chalicelib.domain.archive import Listing
from chalicelib.domain.build import BuildKey
from chalicelib.domain.cleanup import CLEANUP, RULES
from chalicelib.domain.project import image_reference
from chalicelib.domain.record import replace
from chalicelib.domain.repositories import cache_repository
from chalicelib.usecases import accounts, builds, cleanup, projects, reports, secrets
from chalicelib.usecases.cleanup import SWEEP_SECONDS
from chalicelib.wiring import AwsServices
from infra.aws.package import TEMPLATE
from tests.conftest import TABLE, _empty_table, _reach
from tests.factories import make_user

ADA = make_user()
HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MOMENT = timedelta(minutes=1)
ROUND = 256 * timedelta(seconds=SWEEP_SECONDS)  # of sweeps, each of which looks at some uploads
RESOURCES = YAMLTemplateSerializer().load_template(TEMPLATE.read_text())["Resources"]
DOERS = {rule.what: rule.by for rule in RULES}
# Rows that go by their age alone, together with others of the same moment.
AGES = {
    ("builds", "stored logs"): 7 * DAY,
    ("deleted builds",): HOUR,
    ("projects", "secrets", "caches"): HOUR,
    ("unused offers",): DAY,
    ("staged code",): 3 * DAY,
    ("former versions of files",): 7 * DAY,
    ("tokens",): 31 * DAY,
    ("idempotency keys",): 14 * DAY,
    ("request counts",): HOUR,
    ("marks of dropped uploads",): HOUR,
}
Things = set[str]


class Services(AwsServices):
    """With a clock of its own, which begins with moto's."""

    def __init__(self) -> None:
        self.clock = self.began_at = super().now()

    def now(self) -> datetime:
        return self.clock


@dataclass
class World:
    """A deployment that has something of each row, and as much that stays. `name` is of its bucket and more."""

    name: str
    services: Services = field(default_factory=Services)
    made: dict[str, Things] = field(default_factory=dict)  # by row
    made_at: dict[str, datetime] = field(default_factory=dict)  # likewise, and of files by their keys

    @cached_property
    def s3(self) -> Any:
        return boto3.client("s3")

    def make(self, row: str, how: Callable[[], object], only: str = "") -> None:
        """Makes what belongs to a row, ten minutes after what was made before."""
        before = self.things()
        self.services.clock += 10 * MOMENT
        how()
        new = self.things() - before
        self.made_at |= dict.fromkeys([row, *(each.split()[1] for each in new)], self.services.clock)
        self.made[row] = {each for each in new if each.startswith(only)}
        assert self.made[row], row

    def things(self) -> Things:
        """Rows, files with all their versions, secrets and repositories."""
        found = {f"row {item.pk} {item.sk}" for item in Item.scan(attributes_to_get=["pk", "sk"])}
        for each in self.s3.list_object_versions(Bucket=self.name).get("Versions", ()):
            found |= {f"version {each['Key']} {each['VersionId']}"}
            found |= {f"file {each['Key']}"} if each["IsLatest"] else set()
        stored = boto3.client("ssm").get_parameters_by_path(Path=f"/{self.name}", Recursive=True)["Parameters"]
        listed = boto3.client("ecr").describe_repositories()["repositories"]
        names = [each["repositoryName"] for each in listed]
        return found | {f"secret {each['Name']}" for each in stored} | {f"repository {name}" for name in names}

    def pass_by(self, doer: str) -> None:
        """Whoever does a row's part comes by, now."""
        if doer == CLEANUP:
            cleanup.cleanup(self.services)
        elif doer == "DynamoDB TTL":
            for item in Item.scan(Item.ttl <= int(self.services.now().timestamp())):
                item.delete()
        else:
            assert doer == "S3 lifecycle"
            for rule in RESOURCES["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]:
                self.expire(rule)

    def expire(self, rule: Any) -> None:
        """By the prefix: a file gets a mark of deletion, a former version goes."""
        found = self.s3.list_object_versions(Bucket=self.name, Prefix=rule.get("Prefix", ""))
        former = rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
        for each in found.get("Versions", ()):
            days = rule.get("ExpirationInDays") if each["IsLatest"] else former
            if days is not None and self.services.now() - self.made_at[each["Key"]] >= days * DAY:
                version = {} if each["IsLatest"] else {"VersionId": each["VersionId"]}
                self.s3.delete_object(Bucket=self.name, Key=each["Key"], **version)

    def goes(self, doer: str, before: datetime, after: datetime) -> Things:
        """What goes between two visits of whoever does it."""
        self.services.clock = before
        self.pass_by(doer)
        there = self.things()
        self.services.clock = after
        self.pass_by(doer)
        return there - self.things()

    def image(self, project: str) -> str:
        found = self.services.projects.get("ada", project)
        assert found is not None
        return image_reference(self.services.settings.registry, found, 1)

    def end_a_build(self, project: str, once: str | None = None) -> None:
        if self.services.projects.get("ada", project) is None:
            projects.create(self.services, ADA, {"name": project})
        made = builds.create(self.services, ADA, "ada", project, {"is_managed": False}, once=once).build
        ended = reports.report_status(self.services, ADA, made.key, {"status": "succeeded"})
        self.services.builds.save(replace(ended, check_at=None))

    def keep_a_log(self, number: int) -> None:
        build = self.services.builds.get(BuildKey("ada", "vision", number))
        assert build is not None
        self.services.log_archive.store(build, [b"a line\n"])
        self.services.log_archive.store_found(build, [], [])

    def use_an_offer(self) -> None:
        project = self.services.projects.get("ada", "vision")
        assert project is not None
        offer = self.services.sources.offer(project, 100, self.services.now())
        self.s3.put_object(Bucket=self.name, Key=offer.fields["key"], Body=b"x")

    def put(self, key: str) -> None:
        self.s3.put_object(Bucket=self.name, Key=key, Body=b"x")


@pytest.fixture(scope="module")
def passed(moto: str) -> Iterator[dict[str, tuple[Things, Things]]]:
    """A month passes. By row, what belongs to it and what went at its moment."""
    world = World(uuid.uuid4().hex)
    with pytest.MonkeyPatch.context() as environment:
        _reach(moto, environment)
        queue = boto3.client("sqs").create_queue(QueueName=world.name)["QueueUrl"]
        for name, value in {
            **{
                "TABLE": TABLE,
                "DISPATCH_QUEUE_URL": queue,
                "LOG_QUEUE_URL": queue,
                "HOOK_QUEUE_URL": queue,
                "DEAD_LETTER_QUEUE_URL": queue,
            },
            **{"CODEBUILD_PROJECT": "x", "BUCKET": world.name, "REGISTRY": f"{HOST}/{world.name}"},
            **{"REGISTRY_KIND": "ecr", "BUILD_KEY_SECRET": "x", "SECRET_PREFIX": f"/{world.name}"},
        }.items():
            environment.setenv(f"SLIPWAY_{name}", value)
        _empty_table()
        fill(world)
        yield month_of(world)
        _empty_table()


def fill(on: World) -> None:
    services = on.services
    on.s3.create_bucket(Bucket=on.name)
    on.s3.put_bucket_versioning(Bucket=on.name, VersioningConfiguration={"Status": "Enabled"})
    on.make("what stays", lambda: stay(on))
    on.make("tokens", lambda: accounts.ensure_superuser(services, "ada"))
    on.make("request counts", lambda: services.accounts.count_requests("ada", services.now(), 10))
    on.make("idempotency keys", lambda: on.end_a_build("vision", once="again"), "row I#")
    on.make("marks of dropped uploads", lambda: services.code_references.begin_drop("f" * 64, services.now()))
    nothing, turn = Listing(frozenset(), frozenset()), (services.began_at + ROUND / 2).timestamp()
    unused = f"{int(turn) // SWEEP_SECONDS % 256:02x}" * 32
    on.make("uploads", lambda: services.sources.keep(io.BytesIO(b"x"), unused, nothing), "file")
    on.make("unused offers", on.use_an_offer, "file")
    on.make("staged code", lambda: on.put("builds/1/code.tar.gz"), "file")
    on.make("former versions of files", lambda: on.put("logs/x"), "version")
    on.put("logs/x")
    on.make("builds", lambda: on.end_a_build("vision"), "row")
    on.make("stored logs", lambda: on.keep_a_log(3), "file")
    builds.archive(services, ADA, BuildKey("ada", "vision", 3))
    on.make("deleted builds", lambda: on.end_a_build("vision"), "row")
    builds.archive(services, ADA, BuildKey("ada", "vision", 4), delete=True)
    on.make("projects", lambda: on.end_a_build("old"), "row")
    on.make("secrets", lambda: secrets.put(services, ADA, "ada", "old", "token", {"value": "v"}))
    on.make("caches", lambda: services.registry.prepare(on.image("old")), f"repository {on.name}-cache/")
    projects.archive(services, ADA, "ada", "old", delete=True)


def stay(on: World) -> None:
    """As much as goes."""
    accounts.ensure_superuser(on.services, "ada")
    on.end_a_build("vision")
    on.keep_a_log(1)
    secrets.put(on.services, ADA, "ada", "vision", "token", {"value": "v"})
    on.services.registry.prepare(on.image("vision"))


def month_of(on: World) -> dict[str, tuple[Things, Things]]:
    due = {rows: on.made_at[rows[-1]] + age for rows, age in AGES.items()}
    seen: dict[str, tuple[Things, Things]] = {}
    for rows, at in sorted(due.items(), key=lambda each: each[1]):
        (doer,) = {DOERS[row] for row in rows}
        gone = on.goes(doer, at - MOMENT, at + MOMENT)
        seen |= dict.fromkeys(rows, (set().union(*(on.made[row] for row in rows)), gone))
    # The file of an upload has moto's time, and its turn comes once in a round.
    first = on.services.began_at + ROUND / 2
    seen["uploads"] = on.made["uploads"], on.goes(CLEANUP, first, first + ROUND)
    return seen


@pytest.mark.parametrize("row", [*(row for rows in AGES for row in rows), "uploads"])
def test_what_is_as_old_as_its_row_says_goes_and_nothing_else(
    passed: dict[str, tuple[Things, Things]], row: str
) -> None:
    made, gone = passed[row]
    assert gone == made


# ECR, by the rules of its user guide: in the order of priority; what the tags of a rule select is out of reach
# of all later rules.


@dataclass
class Ecr:
    """A project's repository, which builds prepare, beside another's that nobody prepares any more."""

    name: str
    now: datetime = datetime(2024, 3, 1, tzinfo=UTC)
    pushed: dict[str, tuple[datetime, str, str | None]] = field(default_factory=dict)  # time, repository and tag

    @cached_property
    def client(self) -> Any:
        return boto3.client("ecr")

    @property
    def image(self) -> str:
        return f"{HOST}/{self.name}/ada/vision-1:7"

    def prepare(self, count: int = 0, days: int = 0) -> None:
        lifecycle = image_lifecycle(count, days, ["release", "v", "release"])
        EcrRegistry(("latest",), self.client, lifecycle).prepare(self.image)

    def push(self, *tags: str | None, image: str | None = None) -> None:
        for tag in tags:
            repository = (image or self.image).partition("/")[2].partition(":")[0]
            self.pushed[uuid.uuid4().hex] = self.now, repository, tag
            self.now += MOMENT

    def left(self) -> list[str | None]:
        """The tags of the images that are left after ECR has come by."""
        for name in {name for _, name, _ in self.pushed.values()}:
            images = {key: each for key, each in self.pushed.items() if each[1] == name}
            try:
                text = self.client.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"]
            except self.client.exceptions.LifecyclePolicyNotFoundException:
                continue
            for rule in sorted(json.loads(text)["rules"], key=lambda rule: rule["rulePriority"]):
                assert rule["action"] == {"type": "expire"}
                chosen = [key for key, (_, _, tag) in images.items() if selects(rule["selection"], tag)]
                chosen.sort(key=lambda key: images[key][0], reverse=True)
                for number, key in enumerate(chosen, 1):
                    if expires(rule["selection"], number, self.now - images.pop(key)[0]):
                        del self.pushed[key]
        return [tag for _, _, tag in self.pushed.values()]


def selects(selection: Any, tag: str | None) -> bool:
    match selection["tagStatus"]:
        case "any":
            return True
        case "untagged":
            return tag is None
    return tag is not None and all(tag.startswith(prefix) for prefix in selection["tagPrefixList"])


def expires(selection: Any, number: int, age: timedelta) -> bool:
    if selection["countType"] == "imageCountMoreThan":
        return number > int(selection["countNumber"])
    assert (selection["countType"], selection["countUnit"]) == ("sinceImagePushed", "days")
    return age / DAY >= int(selection["countNumber"])


@pytest.fixture
def ecr(on_aws: None) -> Ecr:
    ecr = Ecr(uuid.uuid4().hex)
    ecr.prepare()
    return ecr


def test_without_the_settings_all_images_stay(ecr: Ecr) -> None:
    ecr.push("1", "2")
    ecr.now += 10_000 * DAY
    assert ecr.left() == ["1", "2"]


def test_the_newest_images_of_a_project_stay_and_those_with_a_protected_tag(ecr: Ecr) -> None:
    ecr.push("1", "release-2", "v3", "4", "5")
    ecr.prepare(count=3)
    ecr.now += 10_000 * DAY
    assert ecr.left() == ["1", "release-2", "v3", "4", "5"]
    ecr.push("6")
    assert ecr.left() == ["release-2", "v3", "4", "5", "6"]


def test_images_go_at_their_age_but_for_those_with_a_protected_tag(ecr: Ecr) -> None:
    ecr.push("1", "release-2", "v3")
    ecr.prepare(days=30)
    ecr.now += 30 * DAY - 4 * MOMENT
    assert ecr.left() == ["1", "release-2", "v3"]
    ecr.push("4")
    assert ecr.left() == ["release-2", "v3", "4"]


def test_a_setting_that_is_taken_back_ends_with_the_next_build(ecr: Ecr) -> None:
    ecr.push("1", "2", "3")
    ecr.prepare(count=1)
    ecr.prepare()
    assert ecr.left() == ["1", "2", "3"]


def test_cached_layers_go_after_their_days_and_images_stay(ecr: Ecr) -> None:
    ecr.push("1")
    ecr.push("layers", None, image=f"{cache_repository(ecr.image)}:1")
    ecr.now += 7 * DAY - 2 * MOMENT
    assert ecr.left() == ["1", "layers", None]
    ecr.now += MOMENT
    assert ecr.left() == ["1", "layers"]
    ecr.now += 83 * DAY - 2 * MOMENT
    assert ecr.left() == ["1", "layers"]
    ecr.now += MOMENT
    assert ecr.left() == ["1"]


# The rest


def test_lines_of_logs_go_after_the_days_of_the_parameter() -> None:
    groups = [each["Properties"] for each in RESOURCES.values() if each.get("Type") == "AWS::Logs::LogGroup"]
    assert groups
    assert all(each["RetentionInDays"] == {"Ref": "LogRetentionDays"} for each in groups)


def test_parts_of_a_file_whose_upload_broke_off_go_after_a_day() -> None:
    rules = RESOURCES["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    found = [each for each in rules if "AbortIncompleteMultipartUpload" in each]
    assert [(each["AbortIncompleteMultipartUpload"], "Prefix" in each) for each in found] == [
        ({"DaysAfterInitiation": 1}, False)
    ]


def test_every_row_has_a_test() -> None:
    apart = ["uploads", "images by count", "images by age", "cached layers", "lines of logs", "unfinished files"]
    assert sorted([*apart, *(row for rows in AGES for row in rows)]) == sorted(DOERS)
