"""Every route and trigger of Slipway. Bodies read input, call one use case, and render."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from chalice.app import Chalice, Response

from chalicelib import serializers, settings, web, wiring
from chalicelib.domain.build import CODEBUILD, BuildKey
from chalicelib.usecases import accounts, builds, code, execution, logs, upkeep

app = Chalice(app_name="slipway")
# Else API Gateway garbles uploads.
app.api.binary_types += ["multipart/form-data", "application/gzip", "application/x-gzip"]
app.register_middleware(web.finish, "http")

PROJECT = "/{owner}/{project}"
BUILDS = PROJECT + "/builds"
BUILD = BUILDS + "/{build_id}"


def route(path: str, *methods: str) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """A route under the API's prefix. Bodies are read by `web`, whatever content type they claim."""

    def declare(view: Callable[..., Any]) -> Callable[..., Response]:
        handle = web.endpoint(app)(view)
        app.route(settings.api_prefix() + path, methods=list(methods), content_types=["*/*"])(handle)
        return handle

    return declare


# Users and projects


@route("/users", "GET")
def get_user(call: web.Call) -> Any:
    return serializers.user(call.user)


@route("/users", "POST")
def create_user(call: web.Call) -> Any:
    new = accounts.create_user(call.services, call.user, call.fields())
    return web.reply(serializers.new_user(new), HTTPStatus.CREATED)


@route("/projects", "POST")
def create_project(call: web.Call) -> Any:
    project = accounts.create_project(call.services, call.user, call.fields())
    return web.reply(serializers.project(project), HTTPStatus.CREATED)


@route(PROJECT, "GET")
def get_project(call: web.Call, owner: str, project: str) -> Any:
    return serializers.project(accounts.open_project(call.services, call.user, owner, project))


# Code


@route(PROJECT + "/repo/upload", "PUT", "POST")
def upload_code(call: web.Call, owner: str, project: str) -> Any:
    code.upload(call.services, call.user, owner, project, call.archive())


@route(PROJECT + "/repo/upload/offers", "POST")
def offer_upload(call: web.Call, owner: str, project: str) -> Any:
    offer = code.offer(call.services, call.user, owner, project)
    return web.reply(serializers.offer(offer, call.url()), HTTPStatus.CREATED)


@route(PROJECT + "/repo/upload/offers/{offer_id}", "POST")
def complete_upload(call: web.Call, owner: str, project: str, offer_id: str) -> Any:
    code.complete(call.services, call.user, owner, project, offer_id)


@route(PROJECT + "/repo/external", "POST")
def use_git(call: web.Call, owner: str, project: str) -> Any:
    changed, is_new = code.use_git(call.services, call.user, owner, project, call.fields())
    return web.reply(serializers.project(changed), HTTPStatus.CREATED if is_new else HTTPStatus.OK)


# Builds


@route(BUILDS, "GET")
def list_builds(call: web.Call, owner: str, project: str) -> Any:
    limit, offset = call.paging()
    page = builds.page(call.services, call.user, owner, project, offset, limit)
    results = [serializers.build_summary(build, build.key in page.bookmarked) for build in page.builds]
    return serializers.page(results, page.count, call.url(), call.query(), offset, limit)


@route(BUILDS, "POST")
def create_build(call: web.Call, owner: str, project: str) -> Any:
    created = builds.create(call.services, call.user, owner, project, call.fields())
    return web.reply(serializers.build_detail(created), HTTPStatus.CREATED)


@route(BUILD, "GET")
def get_build(call: web.Call, key: BuildKey) -> Any:
    return serializers.build_detail(builds.get(call.services, call.user, key))


@route(BUILD, "PATCH", "PUT")
def update_build(call: web.Call, key: BuildKey) -> Any:
    whole = call.request.method == "PUT"
    return serializers.build_detail(builds.update(call.services, call.user, key, call.fields(), whole=whole))


@route(BUILD, "DELETE")
def delete_build(call: web.Call, key: BuildKey) -> Any:
    builds.delete(call.services, call.user, key)
    return web.reply(None, HTTPStatus.NO_CONTENT)


@route(BUILD + "/statuses", "GET")
def list_statuses(call: web.Call, key: BuildKey) -> Any:
    limit, offset = call.paging()
    build = builds.get(call.services, call.user, key).build
    shown = [serializers.status_entry(build, entry) for entry in build.history[offset : offset + limit]]
    return serializers.page(shown, len(build.history), call.url(), call.query(), offset, limit)


@route(BUILD + "/stop", "POST")
def stop_build(call: web.Call, key: BuildKey) -> Any:
    builds.stop(call.services, call.user, key)


@route(BUILD + "/logs", "GET")
def get_logs(call: web.Call, key: BuildKey) -> Any:
    return web.text(logs.read(call.services, call.user, key))


@route(BUILD + "/bookmark", "POST")
def bookmark_build(call: web.Call, key: BuildKey) -> Any:
    builds.bookmark(call.services, call.user, key)
    return web.reply(None, HTTPStatus.CREATED)


@route(BUILD + "/unbookmark", "DELETE")
def unbookmark_build(call: web.Call, key: BuildKey) -> Any:
    builds.unbookmark(call.services, call.user, key)
    return web.reply(None, HTTPStatus.NO_CONTENT)


# What wakes the service besides requests


@app.on_sqs_message(queue="slipway-dispatch", batch_size=10)
def dispatch(event: Any) -> dict[str, Any]:
    """Builds that need attention. Messages that failed are named, so that only they come again."""
    return web.each_message(event, lambda body: execution.attend(wiring.services(), BuildKey.parse(body)))


@app.on_cw_event(
    {
        "source": ["aws.codebuild"],
        "detail-type": ["CodeBuild Build State Change", "CodeBuild Build Phase Change"],
        "detail": {"project-name": [{"prefix": "slipway"}]},
    }
)
def on_codebuild_event(event: Any) -> None:
    """Something changed in CodeBuild. The event only says where to look."""
    from chalicelib.adapters.codebuild import build_id_of_event

    execution.observe(wiring.services(), CODEBUILD, [build_id_of_event(event.to_dict())])


@app.schedule("rate(1 minute)")
def reconcile(event: Any) -> None:
    """The net under lost messages and events."""
    upkeep.reconcile(wiring.services())
