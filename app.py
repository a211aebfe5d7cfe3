"""Every route and trigger of Slipway. Bodies read input, call one use case, and render."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from chalice.app import Chalice, Response

from chalicelib import openapi, schemas, serializers, settings, telemetry, web, wiring
from chalicelib.domain.build import CODEBUILD, BuildKey
from chalicelib.usecases import (
    accounts,
    builds,
    cleanup,
    code,
    execution,
    logs,
    projects,
    reports,
    requests,
    upkeep,
)

app = Chalice(app_name="slipway", configure_logs=False)  # the runtime does
telemetry.start()
wiring.get_ready()
# Else API Gateway garbles uploads.
app.api.binary_types += ["multipart/form-data", "application/gzip", "application/x-gzip"]
app.register_middleware(web.finish, "http")

PROJECT = "/{owner}/{project}"
BUILDS = PROJECT + "/builds"
BUILD = BUILDS + "/{build_id}"
PAGING = {"limit": "integer", "offset": "integer"}
SORTING = {**PAGING, "sort": "string"}
CREATED, NO_CONTENT, FOUND = HTTPStatus.CREATED, HTTPStatus.NO_CONTENT, HTTPStatus.FOUND


ROUTES: list[openapi.Route] = []


def route(
    path: str,
    *methods: str,
    answers: Any = None,
    status: HTTPStatus = HTTPStatus.OK,
    takes: Any = None,
    asks: Mapping[str, str] = {},
    anonymous: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """A route under the API's prefix: the type and status of its answer, the type of what it takes, and
    the parameters that its query may have, by their types.

    Bodies are read by `web`, whatever content type they claim. `anonymous` ones answer without a token as
    well; a bad one is refused all the same.
    """

    def declare(view: Callable[..., Any]) -> Callable[..., Response]:
        handle = web.endpoint(app, status, anonymous=anonymous)(view)
        app.route(settings.api_prefix() + path, methods=list(methods), content_types=["*/*"], cors=web.CORS)(
            handle
        )
        ROUTES.append(
            openapi.Route(view.__name__, methods, path, int(status), answers, takes, asks, anonymous)
        )
        return handle

    return declare


# What clients ask first


@app.route("/healthz", methods=["GET"])
def healthz() -> Response:
    return web.text("")


@route("/openapi.json", "GET", answers=dict, anonymous=True)
def get_openapi(call: web.Call) -> Any:
    return openapi.document(ROUTES, call.url().removesuffix("/openapi.json"))


@route("/versions/{component}", "GET", answers=dict, anonymous=True)
def get_version(call: web.Call, component: str) -> Any:
    return serializers.version(component)


@route("/log_handler", "GET", answers=schemas.LogHandler, anonymous=True)
def get_log_handler(call: web.Call) -> Any:
    return schemas.LogHandler()


# Users


@route("/users", "GET", answers=schemas.User)
def get_user(call: web.Call) -> Any:
    return serializers.user(call.user)


@route("/users", "POST", answers=schemas.NewUser, status=CREATED, takes=schemas.UserFields)
def create_user(call: web.Call) -> Any:
    new = accounts.create_user(call.services, call.token, call.fields())
    return serializers.new_user(new)


@route("/users/token", "POST", answers=schemas.Detail, anonymous=True)
def log_in(call: web.Call) -> Any:
    accounts.log_in()


@route("/users/{user}/tokens", "POST", answers=schemas.NewUser, status=CREATED)
def issue_token(call: web.Call, user: str) -> Any:
    return serializers.new_user(accounts.issue_token(call.services, call.token, user))


@route("/users/{user}/tokens", "DELETE", status=NO_CONTENT)
def revoke_tokens(call: web.Call, user: str) -> Any:
    accounts.revoke_tokens(call.services, call.token, user)


# Projects


@route("/projects", "POST", answers=schemas.ProjectDetail, status=CREATED, takes=schemas.NewProjectFields)
def create_project(call: web.Call) -> Any:
    project = projects.create(call.services, call.user, call.fields())
    return serializers.project_detail(project, bookmarked=False)


@route("/{owner}", "GET", answers=schemas.Page[schemas.Project], asks=PAGING)
def list_projects(call: web.Call, owner: str) -> Any:
    limit, offset = call.paging()
    page = projects.page(call.services, call.user, owner, offset, limit)
    results = [serializers.project(each, each.key in page.bookmarked) for each in page.projects]
    return call.page(results, page.count)


@route(PROJECT, "GET", answers=schemas.ProjectDetail)
def get_project(call: web.Call, owner: str, project: str) -> Any:
    found = projects.open_project(call.services, call.user, owner, project)
    return serializers.project_detail(found, projects.is_bookmarked(call.services, call.user, found))


@route(PROJECT, "PATCH", "PUT", answers=schemas.ProjectDetail, takes=schemas.ProjectFields)
def update_project(call: web.Call, owner: str, project: str) -> Any:
    changed = projects.update(call.services, call.user, owner, project, call.fields())
    return serializers.project_detail(changed, projects.is_bookmarked(call.services, call.user, changed))


@route(PROJECT, "DELETE", status=NO_CONTENT)
def delete_project(call: web.Call, owner: str, project: str) -> Any:
    projects.archive(call.services, call.user, owner, project, delete=True)


@route(PROJECT + "/archive", "POST")
def archive_project(call: web.Call, owner: str, project: str) -> Any:
    projects.archive(call.services, call.user, owner, project)


@route(PROJECT + "/restore", "POST")
def restore_project(call: web.Call, owner: str, project: str) -> Any:
    projects.restore(call.services, call.user, owner, project)


@route(PROJECT + "/bookmark", "POST", status=CREATED)
def bookmark_project(call: web.Call, owner: str, project: str) -> Any:
    projects.bookmark(call.services, call.user, owner, project)


@route(PROJECT + "/unbookmark", "DELETE", status=NO_CONTENT)
def unbookmark_project(call: web.Call, owner: str, project: str) -> Any:
    projects.unbookmark(call.services, call.user, owner, project)


@route(
    "/bookmarks/{user}/projects",
    "GET",
    answers=schemas.Page[schemas.Bookmarked[schemas.Project]],
    asks=SORTING,
)
def list_bookmarked_projects(call: web.Call, user: str) -> Any:
    limit, offset = call.paging()
    page = projects.bookmarked(
        call.services, call.user, user, offset, limit, oldest_first=call.sorts_ascending()
    )
    return call.page([serializers.bookmarked_project(each) for each in page.projects], page.count)


# Code


@route(PROJECT + "/repo/upload", "PUT", "POST", takes=openapi.BINARY)
def upload_code(call: web.Call, owner: str, project: str) -> Any:
    code.upload(call.services, call.user, owner, project, call.archive())


@route(PROJECT + "/repo/upload/offers", "POST", answers=schemas.Offer, status=CREATED)
def offer_upload(call: web.Call, owner: str, project: str) -> Any:
    offer = code.offer(call.services, call.user, owner, project)
    return serializers.offer(offer, call.url())


@route(PROJECT + "/repo/upload/offers/{offer_id}", "POST")
def complete_upload(call: web.Call, owner: str, project: str, offer_id: str) -> Any:
    code.complete(call.services, call.user, owner, project, offer_id)


@route(PROJECT + "/repo/download", "GET", status=FOUND, asks={"commit": "string"})
def download_code(call: web.Call, owner: str, project: str) -> Any:
    commit = call.query().get("commit")
    return web.redirect(code.download_url(call.services, call.user, owner, project, commit))


@route(PROJECT + "/repo/external", "POST", answers=schemas.ProjectDetail, takes=schemas.GitFields)
def use_git(call: web.Call, owner: str, project: str) -> Any:
    changed, is_new = code.use_git(call.services, call.user, owner, project, call.fields())
    return web.reply(
        serializers.project_detail(changed, bookmarked=False), HTTPStatus.CREATED if is_new else HTTPStatus.OK
    )


# Builds


@route(BUILDS, "GET", answers=schemas.Page[schemas.Build], asks={**SORTING, "query": "string"})
def list_builds(call: web.Call, owner: str, project: str) -> Any:
    limit, offset = call.paging()
    page = builds.page(
        call.services,
        call.user,
        owner,
        project,
        offset,
        limit,
        query=call.query().get("query", ""),
        sort=call.query().get("sort", ""),
    )
    return call.page(
        [serializers.build_summary(build, build.key in page.bookmarked) for build in page.builds], page.count
    )


@route(BUILDS, "POST", answers=schemas.BuildDetail, status=CREATED, takes=schemas.BuildFields)
def create_build(call: web.Call, owner: str, project: str) -> Any:
    created = builds.create(
        call.services, call.user, owner, project, call.fields(), once=call.idempotency_key()
    )
    return call.build_detail(created)


@route(BUILDS + "/invalidate", "POST")
def invalidate_builds(call: web.Call, owner: str, project: str) -> Any:
    builds.invalidate_all(call.services, call.user, owner, project)


@route(
    "/bookmarks/{user}/builds", "GET", answers=schemas.Page[schemas.Bookmarked[schemas.Build]], asks=SORTING
)
def list_bookmarked_builds(call: web.Call, user: str) -> Any:
    limit, offset = call.paging()
    page = builds.bookmarked(
        call.services, call.user, user, offset, limit, oldest_first=call.sorts_ascending()
    )
    return call.page(
        [serializers.bookmarked_build(build) for build in page.builds],
        page.count,
    )


@route("/archives/{user}/builds", "GET", answers=schemas.Page[schemas.ArchivedBuild], asks=PAGING)
def list_archived_builds(call: web.Call, user: str) -> Any:
    limit, offset = call.paging()
    page = builds.archived(call.services, call.user, user, offset, limit)
    return call.page(
        [serializers.archived_build(build, build.key in page.bookmarked) for build in page.builds], page.count
    )


@route(BUILD, "GET", answers=schemas.BuildDetail)
def get_build(call: web.Call, key: BuildKey) -> Any:
    return call.build_detail(builds.get(call.services, call.user, key))


@route(BUILD, "PATCH", "PUT", answers=schemas.BuildDetail, takes=schemas.BuildChanges)
def update_build(call: web.Call, key: BuildKey) -> Any:
    whole = call.request.method == "PUT"
    return call.build_detail(builds.update(call.services, call.user, key, call.fields(), whole=whole))


@route(BUILD, "DELETE", status=NO_CONTENT)
def delete_build(call: web.Call, key: BuildKey) -> Any:
    builds.archive(call.services, call.user, key, delete=True)


@route(BUILD + "/archive", "POST")
def archive_build(call: web.Call, key: BuildKey) -> Any:
    builds.archive(call.services, call.user, key)


@route(BUILD + "/restore", "POST")
def restore_build(call: web.Call, key: BuildKey) -> Any:
    builds.restore(call.services, call.user, key)


@route(BUILD + "/stop", "POST")
def stop_build(call: web.Call, key: BuildKey) -> Any:
    builds.stop(call.services, call.user, key)


@route(BUILD + "/invalidate", "POST")
def invalidate_build(call: web.Call, key: BuildKey) -> Any:
    builds.invalidate(call.services, call.user, key)


@route(BUILD + "/bookmark", "POST", status=CREATED)
def bookmark_build(call: web.Call, key: BuildKey) -> Any:
    builds.bookmark(call.services, call.user, key)


@route(BUILD + "/unbookmark", "DELETE", status=NO_CONTENT)
def unbookmark_build(call: web.Call, key: BuildKey) -> Any:
    builds.unbookmark(call.services, call.user, key)


# What is known of a build, and told by those that run elsewhere


@route(BUILD + "/statuses", "GET", answers=schemas.Page[schemas.Status], asks=PAGING)
def list_statuses(call: web.Call, key: BuildKey) -> Any:
    limit, offset = call.paging()
    build = builds.get(call.services, call.user, key).build
    shown = [serializers.status_entry(build, entry) for entry in build.history[offset : offset + limit]]
    return call.page(shown, len(build.history))


@route(BUILD + "/statuses", "POST", answers=schemas.Status, status=CREATED, takes=schemas.StatusFields)
def report_status(call: web.Call, key: BuildKey) -> Any:
    build = reports.report_status(call.services, call.user, key, call.fields())
    return serializers.status_entry(build, build.history[-1])


@route(BUILD + "/statuses/{status_uuid}", "GET", answers=schemas.Status)
def get_status(call: web.Call, key: BuildKey, status_uuid: str) -> Any:
    build, entry = builds.status(call.services, call.user, key, status_uuid)
    return serializers.status_entry(build, entry)


@route(BUILD + "/logs", "GET", answers=openapi.TEXT, asks={"cursor": "integer"})
def get_logs(call: web.Call, key: BuildKey) -> Any:
    return web.log_page(logs.read(call.services, call.user, key, call.cursor()))


@route(BUILD + "/logs/stream", "GET", answers=openapi.TEXT, asks={"cursor": "integer"})
def stream_logs(call: web.Call, key: BuildKey) -> Any:
    """The same text: there is no WebSocket here."""
    return web.log_page(logs.read(call.services, call.user, key, call.cursor()))


@route(BUILD + "/logs", "POST", takes=schemas.Lines)
def report_lines(call: web.Call, key: BuildKey) -> Any:
    reports.report_lines(call.services, call.user, key, call.json())


@route(BUILD + "/coderef", "GET", answers=schemas.CodeReference)
def get_code_reference(call: web.Call, key: BuildKey) -> Any:
    return serializers.code_reference(builds.get(call.services, call.user, key).build)


@route(
    BUILD + "/coderef",
    "POST",
    answers=schemas.CodeReference,
    status=CREATED,
    takes=schemas.CodeReferenceFields,
)
def set_code_reference(call: web.Call, key: BuildKey) -> Any:
    changed = reports.reference(call.services, call.user, key, call.fields())
    return serializers.code_reference(changed)


@route(BUILD + "/_heartbeat", "POST")
def heartbeat(call: web.Call, key: BuildKey) -> Any:
    reports.heartbeat(call.services, call.user, key)


@route(BUILD + "/_reconcile", "POST", takes=schemas.SettlingFields)
def settle_build(call: web.Call, key: BuildKey) -> Any:
    reports.settle(call.services, call.user, key, call.fields())


# What wakes the service besides requests


@app.on_sqs_message(queue="slipway-dispatch", batch_size=10)
def dispatch(event: Any) -> dict[str, Any]:
    """Builds that need attention. Messages that failed are named, so that only they come again."""

    def attend(body: str, _: object) -> None:
        key = BuildKey.parse(body)
        telemetry.about(key)
        execution.attend(wiring.services(), key)

    return web.each_message(event, attend)


@app.on_sqs_message(queue="slipway-logs", batch_size=1)
def keep_log(event: Any) -> dict[str, Any]:
    """Builds that have ended, whose log is to be kept: one at a time, because a log may be long."""

    def keep(body: str, record: Mapping[str, Any]) -> None:
        key = BuildKey.parse(body)
        telemetry.about(key)
        received = int(record["attributes"]["ApproximateReceiveCount"])
        logs.keep(wiring.services(), key, is_last_try=received >= logs.TRIES)

    return web.each_message(event, keep)


@app.on_sqs_message(queue="slipway-requests", batch_size=10)
def on_request(event: Any) -> dict[str, Any]:
    """What automation asks for, see `usecases.requests`."""

    def handle(body: str, record: Mapping[str, Any]) -> None:
        if key := requests.handle(wiring.services(), body, record["messageId"]):
            telemetry.about(key)

    return web.each_message(event, handle)


@app.on_cw_event(
    {
        "source": ["aws.codebuild"],
        "detail-type": ["CodeBuild Build State Change", "CodeBuild Build Phase Change"],
        "detail": {"project-name": [{"prefix": "slipway"}]},
    }
)
@telemetry.work("on_codebuild_event")
def on_codebuild_event(event: Any) -> None:
    """Something changed in CodeBuild. The event only says where to look."""
    from chalicelib.adapters.codebuild import build_id_of_event

    for key in execution.observe(wiring.services(), CODEBUILD, [build_id_of_event(event.to_dict())]):
        telemetry.about(key)


@app.schedule("rate(1 minute)")
@telemetry.work("reconcile")
def reconcile(event: Any) -> None:
    """Repairs what lost messages and events left undone; observes builds on executors without events."""
    upkeep.tick(wiring.services(), time.sleep)


@app.schedule("rate(5 minutes)")
@telemetry.work("clean_up")
def clean_up(event: Any) -> dict[str, int]:
    """Purges what was deleted or archived long enough. Invoked with `{"dry_run": true}` in the event's
    detail, it only says what it would do."""
    dry_run = event.detail.get("dry_run") is True
    return asdict(cleanup.cleanup(wiring.services(), dry_run=dry_run))
