"""The types of request bodies in the OpenAPI document, beside those of `chalicelib.schemas`.

They only document fields and limits. The use cases check bodies, because clients expect Polyaxon's error messages.
Other fields are ignored, because clients send whole answers back.
"""

from typing import Annotated

from msgspec import Meta, Struct

from chalicelib.domain.build import MAX_DOCKERFILE_BYTES
from chalicelib.domain.build import Status as StatusName
from chalicelib.domain.build_request import MAX_NODE
from chalicelib.domain.lifecycle import MAX_MESSAGE, MAX_TEXT_BYTES
from chalicelib.domain.materials import MAX_SECRET_BYTES
from chalicelib.schemas import (
    REUSE,
    Backend,
    BuildFields,
    BuildIds,
    Described,
    Description,
    Id,
    Name,
    Object,
    RebuildFields,
    Time,
)
from chalicelib.usecases.hooks import MAX_URL
from chalicelib.usecases.reports import REFERENCE_FIELDS
from chalicelib.usecases.sources import MAX_GIT_URL

__all__ = ["BuildFields", "BuildIds", "RebuildFields"]
MERGE = Meta(description="true: add `tags` to those that are there.")
Lines = str | Annotated[list[str], Meta(min_length=1)]


class UserFields(Struct):
    username: Name
    email: str | None = None
    is_superuser: bool | None = None


class TokenFields(Struct):
    name: Annotated[str, Meta(max_length=64)] | None = None


class ProjectFields(Described):
    readme: Description | None = None
    merge: Annotated[bool | None, MERGE] = None
    is_public: bool | None = None
    reuse: Annotated[bool | None, REUSE] = None


class NewProjectFields(ProjectFields, kw_only=True):
    name: Name


class BuildChanges(Described):
    merge: Annotated[bool | None, MERGE] = None
    dockerfile: Annotated[str, Meta(max_length=MAX_DOCKERFILE_BYTES)] | None = None
    node_scheduled: Annotated[str, Meta(max_length=MAX_NODE)] | None = None
    backend: Backend | None = None


class StatusFields(Struct):
    status: StatusName | None = None
    message: Annotated[str, Meta(max_length=MAX_MESSAGE)] | None = None
    traceback: Annotated[str, Meta(max_length=MAX_TEXT_BYTES)] | None = None
    details: Object | None = None
    created_at: Time | None = None


class ReconciledFields(Struct):
    status: StatusName


class AttemptFields(Struct):
    attempt: Id


class ReportFields(AttemptFields):
    fetched: Annotated[bool, Meta(description="The attempt has its code.")] = False
    commit: Annotated[str, Meta(description="The commit that git has resolved.")] | None = None
    dockerfile: Annotated[str, Meta(description="Base64 for URLs.")] | None = None
    digest: Annotated[str, Meta(description="Of the image that was pushed.")] | None = None


class CodeReferenceFields(Struct):
    branch: Annotated[str, Meta(max_length=REFERENCE_FIELDS["branch"])] | None = None
    commit: Annotated[str, Meta(max_length=REFERENCE_FIELDS["commit"])] | None = None
    head: Annotated[str, Meta(max_length=REFERENCE_FIELDS["head"])] | None = None
    git_url: Annotated[str, Meta(max_length=REFERENCE_FIELDS["git_url"])] | None = None
    is_dirty: bool | None = None


class SecretFields(Struct):
    value: Annotated[str, Meta(min_length=1, max_length=MAX_SECRET_BYTES)]


class HookFields(Struct):
    url: Annotated[str, Meta(max_length=MAX_URL, examples=["https://example.com/builds"])]


class GitFields(Struct):
    git_url: Annotated[str, Meta(max_length=MAX_GIT_URL, examples=["https://example.com/team/code"])]
