"""Every view of the page: what axe finds, how it fits a phone, and what it looks like; `out/page/` has the pictures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect
from werkzeug import Response

from chalicelib import wiring
from chalicelib.domain.build import BuildKey
from chalicelib.domain.record import replace
from chalicelib.page import FOLDER
from infra.bench.serving import served
from infra.ui import __main__ as build
from tests.stack.conftest import PATIENCE_SECONDS, Client
from tests.ui.conftest import AXE, PHONE, WIDE, Tab, elsewhere, open_tab

pytestmark = pytest.mark.slow
MAX_BYTES = 60_000  # gzipped, of all that is loaded before the API reference
PROJECT = "/root/views"
LOG = [
    "STEP 1/3: FROM python:3.12-slim",
    "--> Using cache 5a3f0c1d2e4b",
    "STEP 2/3: RUN make",
    "STEP 3/3: RUN make test",
]
LOG += [
    'Error: building at STEP "RUN make test": exit status 2',
    "\x1b[31mred\x1b[0m",
    *[f"line {n}" for n in range(90)],
]
# The views, each with a text that it shows when it is complete.
VIEWS = {
    "projects": ("projects", "Images for training"),
    "builds": ("projects/root/views", "the-failed-one"),
    "query": ("projects/root/views?query=nonsense", "is not an expression"),
    "no-builds": ("projects/root/views-empty", "No build yet"),
    "log": ("projects/root/views/builds/1", "line 89"),
    "timeline": ("projects/root/views/builds/2/timeline", "The log shows no step."),
    "steps": ("projects/root/views/builds/1/timeline", "[3/3] RUN make test"),
    "dockerfile": ("projects/root/views/builds/2/dockerfile", "The Dockerfile is shown"),
    "specification": ("projects/root/views/builds/2/specification", "runs elsewhere"),
    "new-build": ("projects/root/views/new", "Build steps"),
    "code": ("projects/root/views/code", "Or use git"),
    "secrets": ("projects/root/views/secrets", "index-token"),
    "hooks": ("projects/root/views/hooks", "ci.example.com"),
    "settings": ("projects/root/views/settings", "Delete project"),
    "bookmarks": ("bookmarks", "views #2"),
    "archive": ("archive", "views #3"),
    "tokens": ("tokens", "for-pictures"),
    "nowhere": ("no/such/place", "There is nothing here"),
}
LOOKS = {"wide": (WIDE, "light"), "phone": (PHONE, "dark")}
FIND_FAULTS = """async () => {
  const {violations} = await axe.run(document, {resultTypes: ['violations']});
  return violations.map(({id, nodes}) => `${id}: ${nodes.map((node) => node.html).join(' ')}`);
}"""


@pytest.fixture(scope="module")
def furnished(client: Client) -> None:
    """Something to see in every view."""
    client.call("POST", "/projects", {"name": "views", "description": "Images for training", "tags": ["ml"]})
    client.call("POST", "/projects", {"name": "views-empty"})
    running = elsewhere(client, PROJECT, name="the-running-one", description="It has a log.", tags=["nightly", "gpu"])
    client.call("POST", f"{running}/logs", LOG)  # type: ignore[arg-type]
    failed = elsewhere(client, PROJECT, name="the-failed-one")
    ending = {"status": "failed", "message": "Exit code 3: make", "traceback": "Traceback …"}
    client.call("POST", f"{failed}/statuses", ending)
    client.call("POST", f"{failed}/bookmark")
    client.call("POST", f"{elsewhere(client, PROJECT)}/archive")
    client.call("PUT", f"{PROJECT}/secrets/index-token", {"value": "s3cr3t"})
    client.call("PUT", f"{PROJECT}/hooks/ci", {"url": "https://ci.example.com/builds"})
    client.call("POST", "/users/root/tokens", {"name": "for-pictures"})


@pytest.fixture(params=[pytest.param("wide", marks=pytest.mark.proof), "phone"])
def look(request: pytest.FixtureRequest, browser: Browser) -> Iterator[tuple[str, BrowserContext]]:
    size, scheme = LOOKS[request.param]
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    yield request.param, context
    context.close()


def faults(tab: Tab) -> list[str]:
    """What axe finds, and whether one has to scroll sideways."""
    found: list[str] = tab.page.evaluate(FIND_FAULTS)
    width = tab.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([f"{width} pixels too wide"] if width > 0 else [])]


def test_axe_finds_nothing_in_any_view_wide_or_on_a_phone(
    look: tuple[str, BrowserContext], client: Client, furnished: None
) -> None:
    name, context = look
    for tab in open_tab(context, client):
        found = dict[str, list[str]]()
        tab.open("")
        tab.see("Sign in to Slipway")
        tab.page.evaluate(AXE.read_text())
        found["login"] = faults(tab)
        tab.picture(f"login-{name}")
        tab.fill("Your token", client.running.token)
        tab.click("Sign in")
        tab.see("Your projects")
        for view, (at, text) in VIEWS.items():
            tab.page.evaluate("place => { location.hash = place; }", f"#/{at}")
            tab.see(text)
            found[view] = faults(tab)
            tab.picture(f"{view}-{name}")
        tab.open("projects/root/views/builds/1")
        tab.page.evaluate(AXE.read_text())
        for question in ("Edit", "Delete"):
            tab.click(question)
            found[question] = faults(tab)
            tab.picture(f"{question.lower()}-{name}")
            tab.click("Cancel")
        tab.click("API", "link")
        tab.see("Create build")
        tab.page.evaluate(AXE.read_text())
        found["reference"] = faults(tab)
        tab.picture(f"reference-{name}")
        tab.page.locator("#operations-builds-create_build button").first.click()
        tab.see("Idempotency-Key")
        found["operation"] = faults(tab)
        tab.picture(f"operation-{name}")
        assert not (faulty := {view: each for view, each in found.items() if each}), json.dumps(faulty, indent=1)


def test_a_revoked_token_leads_back_to_the_login_and_secrets_have_no_value(tab: Tab, client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "keys"})[0] == 201
    tab.open("projects/root/keys/secrets")
    tab.see("No secret yet")
    tab.fill("Name", "index-token")
    tab.page.get_by_label("Value").fill("s3cr3t")
    tab.click("Set")
    tab.see("index-token")
    assert "s3cr3t" not in tab.page.content()
    tab.click("Delete secret index-token")
    tab.click("Delete it")
    tab.see("No secret yet")

    tab.open("tokens")
    tab.page.get_by_label("Name").fill("for-a-program")
    tab.click("Make it")
    made = tab.see("It is shown this once").locator("code").inner_text()
    assert client.call("GET", "/users/")[0] == 200
    tab.click("Sign out")
    tab.fill("Your token", made)
    tab.click("Sign in")
    tab.click("Revoke token for-a-program")
    tab.click("Revoke it")
    tab.see("Sign in to Slipway")
    tab.page.locator(".refusal").wait_for()


def test_a_webhook_is_set_tested_and_deleted_and_its_secret_is_shown_once(tab: Tab, client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "hooked"})[0] == 201
    with served(lambda _: Response(status=503)) as address:
        url = f"http://{address.replace('127.0.0.1', 'localhost')}/builds"
        tab.open("projects/root/hooked/hooks")
        tab.see("No webhook yet")
        tab.fill("Name", "ci")
        tab.page.get_by_label("Address").fill(url)
        tab.click("Set")
        assert tab.see("which is shown this once").locator("code").inner_text().startswith("whsec_")
        tab.see(url)
        tab.click("Test webhook ci")
        tab.see("The receiver answered 503.")
    tab.open("projects/root/hooked/secrets")
    tab.open("projects/root/hooked/hooks")
    tab.see(url)
    assert "whsec_" not in tab.page.content()
    tab.click("Delete webhook ci")
    tab.click("Delete it")
    tab.see("No webhook yet")


def test_a_project_is_set_to_reuse_images(tab: Tab, client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "frugal"})[0] == 201
    tab.open("projects/root/frugal/settings")
    tab.page.get_by_label("Reuse").check()
    tab.click("Save")
    tab.see("Saved.")
    assert client.get("/root/frugal")["reuse"] is True


def test_a_build_with_the_image_of_another_links_to_it(tab: Tab, client: Client) -> None:
    assert client.call("POST", "/projects", {"name": "reused"})[0] == 201
    for _ in range(2):
        elsewhere(client, "/root/reused")
    stored = wiring.services().builds
    build = stored.get(BuildKey("root", "reused", 2))
    assert build is not None
    stored.save(replace(build, reused_from=1))
    tab.open("projects/root/reused/builds/2")
    tab.see("Image reused from")
    tab.click("#1", "link")
    tab.page.get_by_role("heading", name="#1").wait_for()


def test_the_reference_shows_operations_and_tries_them_for_who_has_signed_in(tab: Tab) -> None:
    asked = list[str]()
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.open("projects")
    tab.see("Your projects")
    assert not [url for url in asked if "reference" in url]
    tab.click("API", "link")
    operation = tab.page.locator("#operations-users-get_user")
    operation.get_by_role("button", name="/users").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    expect(operation.locator(".live-responses-table")).to_contain_text('"username": "root"')
    assert not [url for url in asked if not url.startswith(tab.url)]


def test_the_reference_needs_no_token(stranger: Tab) -> None:
    stranger.page.goto(f"{stranger.url}/api/ui/api")
    stranger.see("Create build")


def test_the_page_is_small_and_keeps_the_licences_of_its_packages(stranger: Tab) -> None:
    stranger.open("")
    stranger.see("Sign in to Slipway")
    loaded = [path for path in FOLDER.iterdir() if "." in path.name and not path.name.startswith("reference.")]
    sizes = {path.name: len(gzip.compress(path.read_bytes(), mtime=0)) for path in loaded}
    print(json.dumps(sizes))
    assert sum(sizes.values()) <= MAX_BYTES
    stranger.click("Licences", "link")
    for package in ("preact", "@preact/signals", "openapi-fetch", "anser", "swagger-ui-dist"):
        expect(stranger.page.locator("pre")).to_contain_text(f"{package} ")


@pytest.mark.proof
def test_the_same_sources_make_the_same_files(browser: Browser, tmp_path: Path) -> None:
    build.bundle(build.node_and_npm()[0], tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    there = {path.name: path.read_bytes() for path in FOLDER.glob("*.*")}
    del there["requests-schema.json"]  # of the API
    assert made == there
