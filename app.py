"""Every route and trigger of Slipway. Bodies read input, call one use case, and render."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, NoReturn

from chalice.app import Chalice, Response
from msgspec.structs import asdict

from chalicelib import page, schemas, serializers, settings, telemetry, web, wiring
from chalicelib.domain.build import CODEBUILD, BuildKey
from chalicelib.usecases import (
    accounts,
    announcements,
    automation,
    builds,
    cleanup,
    execution,
    hooks,
    logs,
    materials,
    projects,
    reports,
    schedule,
    secrets,
    sources,
)

app = Chalice(app_name="slipway", configure_logs=False)  # the runtime does
telemetry.start()
wiring.warm_up()
# Else API Gateway garbles uploads.
app.api.binary_types += ["multipart/form-data", "application/gzip", "application/x-gzip"]
app.register_middleware(web.shape_errors_and_cors, "http")

PROJECT = "/{owner}/{project}"
BUILDS = PROJECT + "/builds"
BUILD = BUILDS + "/{build_id}"
SECRET = PROJECT + "/secrets/{secret}"
TOKENS = "/users/{user}/tokens"
HOOK = PROJECT + "/hooks/{hook}"
UPLOAD = PROJECT + "/repo/upload"
PAGE = settings.api_prefix().removesuffix("/v1") + "/ui"
PAGING = ("limit", "offset")
SORTING = (*PAGING, "sort")
OK, CREATED, NO_CONTENT = HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT
BAD_REQUEST, TOO_LARGE = HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
MADE_ONCE: dict[str, Any] = {"status": CREATED, "headers": ("Idempotency-Key",)}
MADE_ONCE["refusals"] = (HTTPStatus.UNPROCESSABLE_ENTITY,)
ROUTES: list[web.Route] = []
Does = Callable[..., object]  # a use case that is called with services and caller first
NAMED = ("key", "owner", "project", "secret", "hook", "offer_id", "user", "token_id")  # then with these of its path


def route(path: str, *methods: str, **about: Any) -> Callable[[Callable[..., Any]], Callable[..., Response]]:
    """Declares a route below the API's prefix; `about` are fields of `web.Route`. `web` reads the body, so Chalice
    accepts every content type. A route for `anybody` needs no token, but refuses a wrong one; the use case of a route
    for a `build` checks the build's secret."""

    def declare(view: Callable[..., Any]) -> Callable[..., Response]:
        declared = web.Route(view, methods, path, **about)
        handle = web.endpoint(app, view, declared.status, anonymous=declared.caller != "user")
        app.route(settings.api_prefix() + path, methods=list(methods), content_types=["*/*"], cors=web.CORS)(handle)
        ROUTES.append(declared)
        return handle

    return declare


# Public routes, and the cleanup


@app.route("/healthz", methods=["GET"])
def healthz() -> Response:
    return Response("", {**web.PLAIN_TEXT})


@app.route(PAGE, methods=["GET", "HEAD"])
def open_page() -> Response:
    """Redirects to the page's HTML file. On every domain, relative links in that file find its assets and the API."""
    assert app.current_request is not None
    path = app.current_request.context["path"].rstrip("/")
    return Response("", {"Location": f"{path}/{page.INDEX}"}, HTTPStatus.FOUND.value)


@app.route(PAGE + "/{file}", methods=["GET", "HEAD"])
def get_page_file(file: str) -> Response:
    return page.answer(file, lambda: wiring.services().sources.upload_url())


@route("/openapi.json", "GET", caller="anybody")
def get_openapi(call: web.Call) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((page.FOLDER / page.OPENAPI).read_bytes())
    described["info"]["version"] = settings.version()
    return described | {"servers": [{"url": call.url().removesuffix("/openapi.json")}]}


@route("/versions/{component}", "GET", caller="anybody")
def get_version(call: web.Call, component: str) -> schemas.Versions | schemas.Version:
    return serializers.version(component, settings.version())


@route("/log_handler", "GET", caller="anybody")
def get_log_handler(call: web.Call) -> schemas.LogHandler:
    return schemas.LogHandler()


@route("/cleanup", "GET", refusals=(HTTPStatus.FORBIDDEN,))
def get_cleanup(call: web.Call) -> schemas.Cleanup:
    """For superusers: what is deleted, when and by which service, and which builds and projects are purged next."""
    return serializers.cleanup(*cleanup.preview(call.services, call.user), call.services)


# Users


@route("/users", "GET")
def get_user(call: web.Call) -> schemas.User:
    return serializers.shown(schemas.User, call.user, username=call.user.name)


@route("/users", "POST", status=CREATED, body="UserFields")
def create_user(call: web.Call) -> schemas.NewUser:
    return serializers.new_user(accounts.create_user(call.services, call.token, call.fields()))


@route("/users/token", "POST", refusals=(BAD_REQUEST,), caller="anybody")
def refuse_password_login(call: web.Call) -> NoReturn:
    accounts.refuse_password_login()


@route(TOKENS, "GET")
def list_tokens(call: web.Call, user: str) -> schemas.Page[schemas.Token]:
    """The valid tokens of a user, oldest first, all on one page."""
    found = accounts.tokens(call.services, call.token, user)
    shown = [serializers.shown(schemas.Token, each, last_used=each.used_on) for each in found]
    return schemas.Page(len(found), None, None, shown)


@route(TOKENS, "POST", status=CREATED, body="TokenFields")
def issue_token(call: web.Call, user: str) -> schemas.NewUser:
    return serializers.new_user(accounts.issue_token(call.services, call.token, user, call.fields()))


# Projects


@route("/projects", "POST", status=CREATED, body="NewProjectFields")
def create_project(call: web.Call) -> schemas.ProjectDetail:
    return serializers.project_detail(projects.create(call.services, call.user, call.fields()), bookmarked=False)


@route("/{owner}", "GET", query=PAGING)
def list_projects(call: web.Call, owner: str) -> schemas.Page[schemas.Project]:
    found = projects.page(call.services, call.user, owner, call.offset, call.limit)
    return call.records(found, serializers.project)


@route(PROJECT, "GET")
def get_project(call: web.Call, owner: str, project: str) -> schemas.ProjectDetail:
    found = projects.open_project(call.services, call.user, owner, project)
    return serializers.project_detail(found, projects.is_bookmarked(call.services, call.user, found))


@route(PROJECT, "PATCH", "PUT", body="ProjectFields")
def update_project(call: web.Call, owner: str, project: str) -> schemas.ProjectDetail:
    changed = projects.update(call.services, call.user, owner, project, call.fields())
    return serializers.project_detail(changed, projects.is_bookmarked(call.services, call.user, changed))


@route("/bookmarks/{user}/projects", "GET", query=SORTING)
def list_bookmarked_projects(call: web.Call, user: str) -> schemas.Page[schemas.BookmarkedProject]:
    found = projects.bookmarked(call.services, call.user, user, call.offset, call.limit, ascending=call.is_ascending)
    return call.records(found, lambda *row: schemas.BookmarkedProject(serializers.project(*row)))


# Code


@route(UPLOAD, "PUT", "POST", body=bytes)
def upload_code(call: web.Call, owner: str, project: str) -> None:
    sources.upload(call.services, call.user, owner, project, call.archive())


@route(UPLOAD + "/offers", "POST", status=CREATED)
def offer_upload(call: web.Call, owner: str, project: str) -> schemas.Offer:
    offer = sources.offer(call.services, call.user, owner, project)
    return serializers.shown(schemas.Offer, offer, complete=f"{call.url().rstrip('/')}/{offer.id}")


@route(PROJECT + "/repo/download", "GET", query=("commit",))
def download_code(call: web.Call, owner: str, project: str) -> schemas.Redirect:
    commit = call.query().get("commit")
    return schemas.Redirect(sources.download_url(call.services, call.user, owner, project, commit))


@route(PROJECT + "/repo/external", "POST", body="GitFields")
def use_git(call: web.Call, owner: str, project: str) -> schemas.ProjectDetail | schemas.Created[schemas.ProjectDetail]:
    changed, is_new = sources.use_git(call.services, call.user, owner, project, call.fields())
    detail = serializers.project_detail(changed, bookmarked=False)
    return schemas.Created(detail) if is_new else detail


# Secrets and webhooks


@route(PROJECT + "/secrets", "GET")
def list_secrets(call: web.Call, owner: str, project: str) -> schemas.SecretNames:
    return schemas.SecretNames(list(secrets.names(call.services, call.user, owner, project)))


@route(PROJECT + "/hooks", "GET")
def list_hooks(call: web.Call, owner: str, project: str) -> schemas.Page[schemas.Hook]:
    """All on one page."""
    found = projects.writable(call.services, call.user, owner, project).hooks
    return schemas.Page(len(found), None, None, [serializers.shown(schemas.Hook, each) for each in found])


@route(HOOK, "PUT", body="HookFields")
def put_hook(call: web.Call, owner: str, project: str, hook: str) -> schemas.NewHook:
    made, secret = hooks.put(call.services, call.user, owner, project, hook, call.fields().get("url"))
    return serializers.shown(schemas.NewHook, made, secret=secret)


# Builds


@route(BUILDS, "GET", query=(*SORTING, "query"))
def list_builds(call: web.Call, owner: str, project: str) -> schemas.FoundBuilds:
    query, sort = call.query().get("query", ""), call.query().get("sort", "")
    found = builds.page(call.services, call.user, owner, project, call.offset, call.limit, query=query, sort=sort)
    return serializers.shown(
        schemas.FoundBuilds, call.records(found, serializers.build_summary), count_is_minimum=found.is_minimum
    )


@route(BUILDS, "POST", body="BuildFields", **MADE_ONCE)
def create_build(call: web.Call, owner: str, project: str) -> schemas.Created[schemas.BuildDetail]:
    return _created(call, owner, project)


def _created(call: web.Call, owner: str, project: str, **other: Any) -> schemas.Created[schemas.BuildDetail]:
    """`other` names the build to build again. It belongs to the request that is stored with an idempotency key."""
    once, fields = call.idempotency_key(), {**call.fields(), **other}
    created = builds.create(call.services, call.user, owner, project, fields, once=once, **other)
    return schemas.Created(serializers.build_detail(created, call.services), created.is_replay)


@route(BUILD + "/rebuild", "POST", body="RebuildFields", **MADE_ONCE)
def rebuild_build(call: web.Call, key: BuildKey) -> schemas.Created[schemas.BuildDetail]:
    """A new build of the same specification and the same code."""
    return _created(call, key.owner, key.project, rebuild_of=key.id)


@route(PROJECT + "/dockerfile", "POST", body="BuildFields")
def preview_dockerfile(call: web.Call, owner: str, project: str) -> schemas.Preview:
    return schemas.Preview(builds.preview(call.services, call.user, owner, project, call.fields()))


@route("/bookmarks/{user}/builds", "GET", query=SORTING)
def list_bookmarked_builds(call: web.Call, user: str) -> schemas.Page[schemas.BookmarkedBuild]:
    found = builds.bookmarked(call.services, call.user, user, call.offset, call.limit, ascending=call.is_ascending)
    return call.records(found, lambda *row: schemas.BookmarkedBuild(serializers.build_summary(*row)))


@route("/archives/{user}/builds", "GET", query=PAGING)
def list_archived_builds(call: web.Call, user: str) -> schemas.Page[schemas.ArchivedBuild]:
    found = builds.archived(call.services, call.user, user, call.offset, call.limit)
    return call.records(found, partial(serializers.archived_build, call.services))


@route(BUILD, "GET")
def get_build(call: web.Call, key: BuildKey) -> schemas.BuildDetail:
    return serializers.build_detail(builds.detail(call.services, call.user, key), call.services)


@route(BUILD, "PATCH", "PUT", body="BuildChanges")
def update_build(call: web.Call, key: BuildKey) -> schemas.BuildDetail:
    changed = builds.update(call.services, call.user, key, call.fields(), whole=call.request.method == "PUT")
    return serializers.build_detail(changed, call.services)


# Actions on tokens, a project or a build; the answer has no body


def act(
    name: str, method: str, path: str, do: Does, status: HTTPStatus = OK, *, many: Does | None = None, **about: Any
) -> None:
    """A route that calls `do` for what its path names, with the fields of the body if it takes one; for a user, with
    the caller's token. With `many`, which raises what refuses a caller any build of a project, another route does it
    for builds that its body names."""

    def view(call: web.Call, **named: Any) -> None:
        where = [named[each] for each in NAMED if each in named]
        who = call.token if "user" in named else call.user
        do(call.services, who, *where, *([call.fields()] if "body" in about else []))

    view.__name__ = name
    route(path, method, status=status, **about)(view)
    if many is None:
        return

    def view_of_many(call: web.Call, owner: str, project: str) -> schemas.Page[schemas.Outcome]:
        ids = call.build_ids()
        many(call.services, call.user, owner, project)
        found = [call.outcome(do, BuildKey(owner, project, each), status) for each in ids]
        return schemas.Page(len(found), None, None, found)

    view_of_many.__name__ = f"{name}s"
    route(f"{BUILDS}/{name.partition('_')[0]}", "POST", body="BuildIds")(view_of_many)


act("revoke_tokens", "DELETE", TOKENS, accounts.revoke_tokens, NO_CONTENT)
act("revoke_token", "DELETE", TOKENS + "/{token_id}", accounts.revoke_token, NO_CONTENT)
act("delete_project", "DELETE", PROJECT, partial(projects.archive, delete=True), NO_CONTENT)
act("archive_project", "POST", PROJECT + "/archive", projects.archive)
act("restore_project", "POST", PROJECT + "/restore", projects.restore)
act("complete_upload", "POST", UPLOAD + "/offers/{offer_id}", sources.complete, refusals=(BAD_REQUEST, TOO_LARGE))
act("put_secret", "PUT", SECRET, secrets.put, NO_CONTENT, body="SecretFields")
act("delete_secret", "DELETE", SECRET, secrets.delete, NO_CONTENT)
act("delete_hook", "DELETE", HOOK, hooks.delete, NO_CONTENT)
act("test_hook", "POST", HOOK + "/test", hooks.test, HTTPStatus.ACCEPTED)
act("forget_git", "DELETE", PROJECT + "/repo/external", sources.forget_git, NO_CONTENT)
act("bookmark_project", "POST", PROJECT + "/bookmark", projects.bookmark, CREATED)
act("unbookmark_project", "DELETE", PROJECT + "/unbookmark", projects.unbookmark, NO_CONTENT)
act("invalidate_builds", "POST", BUILDS + "/invalidate", builds.invalidate_all)
# What `polyaxon run` calls with a file of another kind: it prints the refusal.
for other in ("experiment", "group", "job"):
    act(f"refuse_{other}", "POST", f"{PROJECT}/{other}s", builds.refuse_other_kinds, BAD_REQUEST)
act("delete_build", "DELETE", BUILD, partial(builds.archive, delete=True), NO_CONTENT, many=projects.writable)
act("archive_build", "POST", BUILD + "/archive", builds.archive, many=projects.writable)
act("restore_build", "POST", BUILD + "/restore", builds.restore, many=projects.writable)
act("stop_build", "POST", BUILD + "/stop", builds.stop, many=projects.writable)
act("invalidate_build", "POST", BUILD + "/invalidate", builds.invalidate)
act("bookmark_build", "POST", BUILD + "/bookmark", builds.bookmark, CREATED, many=projects.open_project)
act("unbookmark_build", "DELETE", BUILD + "/unbookmark", builds.unbookmark, NO_CONTENT)
act("heartbeat", "POST", BUILD + "/_heartbeat", reports.heartbeat)
act("report_reconciled", "POST", BUILD + "/_reconcile", reports.report_reconciled, body="ReconciledFields")


# Statuses, logs and code of a build; clients report those of builds that run elsewhere


@route(BUILD + "/statuses", "GET", query=PAGING)
def list_statuses(call: web.Call, key: BuildKey) -> schemas.Page[schemas.StatusEntry]:
    build = builds.look(call.services, call.user, key).build
    shown = build.history[call.offset : call.offset + call.limit]
    return call.page([serializers.status_entry(build, entry) for entry in shown], len(build.history))


@route(BUILD + "/statuses", "POST", status=CREATED, body="StatusFields")
def report_status(call: web.Call, key: BuildKey) -> schemas.StatusEntry:
    build = reports.report_status(call.services, call.user, key, call.fields())
    return serializers.status_entry(build, build.history[-1])


@route(BUILD + "/statuses/{status_uuid}", "GET")
def get_status(call: web.Call, key: BuildKey, status_uuid: str) -> schemas.StatusEntry:
    return serializers.status_entry(*builds.status(call.services, call.user, key, status_uuid))


@route(BUILD + "/steps", "GET", query=PAGING)
def list_steps(call: web.Call, key: BuildKey) -> schemas.Page[schemas.BuildStep]:
    """The build's steps, read from its log. While the log is not stored, only its first 50,000 lines are read."""
    steps = logs.steps(call.services, call.user, key)
    shown = [serializers.shown(schemas.BuildStep, step) for step in steps[call.offset : call.offset + call.limit]]
    return call.page(shown, len(steps))


@route(BUILD + "/logs", "GET", query=("cursor",))
def get_logs(call: web.Call, key: BuildKey) -> logs.LogPage:
    return logs.read(call.services, call.user, key, call.query().get("cursor"))


@route(BUILD + "/logs/stream", "GET", query=("cursor",))
def stream_logs(call: web.Call, key: BuildKey) -> logs.LogPage:
    """The same text: there is no WebSocket here."""
    call.refuse_web_socket()
    return logs.read(call.services, call.user, key, call.query().get("cursor"))


@route(BUILD + "/logs", "POST", body="Lines")
def report_lines(call: web.Call, key: BuildKey) -> None:
    reports.report_lines(call.services, call.user, key, call.json())


@route(BUILD + "/coderef", "GET")
def get_code_reference(call: web.Call, key: BuildKey) -> schemas.CodeReference:
    return serializers.code_reference(builds.look(call.services, call.user, key).build)


@route(BUILD + "/coderef", "POST", status=CREATED, body="CodeReferenceFields")
def set_code_reference(call: web.Call, key: BuildKey) -> schemas.CodeReference:
    return serializers.code_reference(reports.reference(call.services, call.user, key, call.fields()))


# What a running build requests and reports, authenticated by the secret of its attempt


def ask(about: Literal["materials", "login", "report"], name: str, words: str, body: str = "AttemptFields") -> None:
    """Declares a route for builds, with the operation's name and description."""

    def view(call: web.Call, key: BuildKey) -> str:
        return call.services.broker.ask(call.question(about, key))

    view.__name__, view.__doc__ = name, words
    route(f"{BUILD}/_{about}", "POST", body=body, refusals=(HTTPStatus.GONE,), caller="build")(view)


ask("materials", "get_materials", "The files that an attempt needs before its steps run: lines `name base64`.")
ask("login", "get_login", "A login for the registry, in the JSON of Docker's credential helpers.")
ask("report", "report_attempt", "Reports that an attempt has its code, or has pushed its image.", "ReportFields")


@app.lambda_function(name="broker")
@telemetry.span("broker")
def broker(event: Any, context: Any) -> dict[str, Any]:
    """Answers running builds, and makes registry logins. Only the API's function may invoke it."""
    from chalicelib.adapters.broker import answer

    return answer(event, materials.OwnBroker(wiring.services()).ask)


# Messages, events and schedules


@app.on_sqs_message(queue="slipway-dispatch", batch_size=10)
def dispatch(event: Any) -> dict[str, Any]:
    """Builds that need to be started, stopped or observed. Returns the messages that failed; only those come again."""

    def process(body: str, _: object) -> None:
        key = BuildKey.parse(body)
        telemetry.set_build(key)
        execution.process(wiring.services(), key)

    return web.each_message(event, process)


@app.on_sqs_message(queue="slipway-logs", batch_size=1)
def keep_log(event: Any) -> dict[str, Any]:
    """Stores the log of a build that has ended: one build per call, because a log may be long."""

    def keep(body: str, record: Mapping[str, Any]) -> None:
        key = BuildKey.parse(body)
        telemetry.set_build(key)
        received = int(record["attributes"]["ApproximateReceiveCount"])
        logs.keep(wiring.services(), key, is_last_try=received >= logs.TRIES)

    return web.each_message(event, keep)


@app.on_sqs_message(queue="slipway-requests", batch_size=10)
def on_request(event: Any) -> dict[str, Any]:
    """Messages of the requests queue, see `usecases.automation`."""

    def handle(body: str, record: Mapping[str, Any]) -> None:
        if key := automation.handle(wiring.services(), body, record["messageId"], web.queued_request):
            telemetry.set_build(key)

    return web.each_message(event, handle)


@app.on_sqs_message(queue="slipway-hooks", batch_size=1)
def deliver(event: Any) -> dict[str, Any]:
    """Calls of webhooks: one at a time, because a receiver may be slow."""

    def call(body: str, record: Mapping[str, Any]) -> None:
        from chalicelib.adapters.sqs import delivery

        tries = int(record["attributes"]["ApproximateReceiveCount"])
        hooks.deliver(wiring.services(), delivery(body), record["receiptHandle"], tries)

    return web.each_message(event, call)


@app.on_dynamodb_record(stream_arn="slipway", batch_size=100)
def announce(event: Any) -> dict[str, Any]:
    """Builds before and after each change, in the order of the changes."""

    def inform(_: object, record: Mapping[str, Any]) -> None:
        from chalicelib.adapters.dynamodb.records import decode_change

        before, build = decode_change(record["dynamodb"])
        telemetry.set_build(telemetry.annotate(build).key)
        announcements.announce(wiring.services(), before, build, serializers.announcement)

    return web.each_message(event, inform)


@app.on_cw_event(
    {
        "source": ["aws.codebuild"],
        "detail-type": ["CodeBuild Build State Change", "CodeBuild Build Phase Change"],
        "detail": {
            "project-name": [{"prefix": "slipway"}],
            # only the phases that change a status; at the end of a build, events of all other phases come at once
            "$or": [{"build-status": [{"exists": True}]}, {"completed-phase": ["PROVISIONING", "PRE_BUILD"]}],
        },
    }
)
@telemetry.span("on_codebuild_event")
def on_codebuild_event(event: Any) -> None:
    """Something changed in CodeBuild. Only the build's id is taken from the event."""
    from chalicelib.adapters.codebuild import build_id_of_event

    for key in execution.observe(wiring.services(), CODEBUILD, [build_id_of_event(event.to_dict())]):
        telemetry.set_build(key)


@app.schedule("rate(1 minute)")
@telemetry.span("reconcile")
def reconcile(event: Any) -> None:
    """Repairs what lost messages and events left undone; observes builds on executors without events."""
    schedule.tick(wiring.services(), time.sleep)


@app.schedule("rate(5 minutes)")
@telemetry.span("clean_up")
def clean_up(event: Any) -> dict[str, int]:
    """Purges builds and projects that were deleted, or archived long enough ago."""
    return asdict(cleanup.cleanup(wiring.services()))
