"""What is deleted, when, and by which service: one table, for the page on automation, for `GET cleanup`, and for a test
of each row. Services of AWS may take a day or two longer."""

from datetime import datetime, timedelta

from msgspec import Struct

from chalicelib.domain.build import Build, BuildKey
from chalicelib.domain.project import Project, ProjectKey

SETTLES = timedelta(hours=1)  # from a deletion to the purge: every handler that works on it has ended by then
UNUSED_FOR = timedelta(days=1)  # an unused upload stays so long, because it is stored before it is used
REMEMBERED = timedelta(days=14)  # an idempotency key: the longest time that SQS keeps a message
EXPIRED_TOKEN_RETENTION = timedelta(days=1)  # so that its user gets the message "Token expired"
COUNTED_FOR = timedelta(hours=1)  # the requests of a minute
UNTAGGED_DAYS, CACHED_DAYS = 7, 90  # cached layers: without a tag, and all others
OFFERED_DAYS, STAGED_DAYS, REPLACED_DAYS = 1, 3, 7  # files of the bucket, by infra/aws/template.yaml

# The service, and its metric or event. On one machine only CLEANUP runs.
CLEANUP = "clean_up"
TTL = ("DynamoDB TTL", "TimeToLiveDeletedItemCount")
S3 = ("S3 lifecycle", "NumberOfObjects")
ECR = ("ECR lifecycle", "PolicyExecutionEvent of CloudTrail")


class CleanupRule(Struct, frozen=True):
    """`goes` says when; `{}` in it is replaced by the value of `setting`."""

    what: str
    goes: str
    by: str
    metric: str | None
    setting: str | None = None


RULES = (
    CleanupRule("builds", "{} days after archiving, once stopped", CLEANUP, "BuildsPurged", "purge_after_days"),
    CleanupRule("deleted builds", "an hour after deletion, once stopped", CLEANUP, "BuildsPurged"),
    CleanupRule("stored logs", "with their build", CLEANUP, "BuildsPurged"),
    CleanupRule("projects", "as builds, once they have none", CLEANUP, "ProjectsPurged", "purge_after_days"),
    CleanupRule("secrets", "with their project", CLEANUP, "ProjectsPurged"),
    CleanupRule("uploads", "a day after the last of the same code, if nothing has it", CLEANUP, "UploadsPurged"),
    CleanupRule("unused offers", f"{OFFERED_DAYS} day after an upload under them", *S3),
    CleanupRule("staged code", f"after {STAGED_DAYS} days; only an older version laid it out", *S3),
    CleanupRule("former versions of files", f"{REPLACED_DAYS} days after replacement or deletion", *S3),
    CleanupRule("unfinished files", "a day after their upload began", *S3),
    CleanupRule("images by count", "all but the newest {} of a project; with 0 none", *ECR, "keep_images"),
    CleanupRule("images by age", "{} days after their push; with 0 never", *ECR, "keep_image_days"),
    CleanupRule("cached layers", f"{UNTAGGED_DAYS} days after their push without a tag, else {CACHED_DAYS}", *ECR),
    CleanupRule("caches", "with their project", CLEANUP, "ProjectsPurged"),
    CleanupRule("lines of logs", "after the days of the parameter `LogRetentionDays`", "CloudWatch Logs", None),
    CleanupRule("tokens", "a day after their end ({} days after they were made)", *TTL, "token_lifetime_days"),
    CleanupRule("idempotency keys", f"after {REMEMBERED.days} days", *TTL),
    CleanupRule("request counts", "after an hour", *TTL),
    CleanupRule("marks of dropped uploads", "after an hour", *TTL),
)


class Hidden(Struct, frozen=True):
    """A build, or a project with its builds, that was archived or deleted; one of the two times is set."""

    key: BuildKey | ProjectKey
    archived_at: datetime | None = None
    deleted_at: datetime | None = None


def purge_at(it: Build | Project | Hidden, purge_after_days: int) -> datetime | None:
    """The earliest time at which `it` may be purged; None if it is neither archived nor deleted."""
    if it.deleted_at is not None:
        return it.deleted_at + SETTLES
    return it.archived_at and it.archived_at + timedelta(days=purge_after_days)
