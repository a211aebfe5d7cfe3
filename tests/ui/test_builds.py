"""What people do with builds in the page."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Route, expect

from chalicelib.adapters.dynamodb.keys import record_key
from chalicelib.adapters.dynamodb.records import encode_build
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.build import BuildKey, Status
from chalicelib.domain.project import ProjectKey
from tests.factories import after, make_archive, make_build
from tests.stack.conftest import Client, wait_until
from tests.ui.conftest import Tab, elsewhere, heap_used, place

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)> & \"quotes' </script>"


BUILDS = 10_000


@pytest.fixture
def ten_thousand(client: Client, project: str) -> None:
    """Builds that ended one a second, in the table of the stack and counted there; requests would take minutes."""
    of = ProjectKey(*project.strip("/").split("/"))
    with Item.batch_write() as batch:
        for number in range(1, BUILDS + 1):
            build = make_build(
                Status.SUCCEEDED if number % 100 else Status.FAILED,
                number=number,
                key=BuildKey(of.owner, of.name, number),
                name=f"train-{number:05}",
                created_at=after(number),
                updated_at=after(number),
            )
            batch.save(encode_build(build))
    Item(*record_key(of)).update([Item.last_build_id.set(BUILDS), Item.live_builds.set(BUILDS)])


@pytest.mark.proof
def test_ten_thousand_builds_are_found_sorted_and_paged(
    tab: Tab, client: Client, project: str, ten_thousand: None
) -> None:
    rows, pages = tab.page.locator("tbody tr"), tab.page.get_by_label("Pages")
    tab.open(f"projects{project}")
    expect(rows.first).to_contain_text("#10000 train-10000")
    expect(pages).to_contain_text("1 to 50 of 10,000")
    used = heap_used(tab)
    for page in range(1, 6):
        tab.click("Older", "link")
        expect(rows.first).to_contain_text(f"train-{BUILDS - 50 * page:05}")
        expect(rows).to_have_count(50)
    tab.click("Last", "link")
    expect(rows.last).to_contain_text("#1 train-00001")
    expect(pages).to_contain_text("9,951 to 10,000 of 10,000")
    expect(pages.get_by_role("link")).to_have_text(["First", "Newer"])
    assert tab.page.locator("*").count() < 3_000
    assert heap_used(tab) < used + 5e6

    tab.page.get_by_label("Order").select_option("created first")
    expect(rows.first).to_contain_text("train-05001")  # of the 5,000 that changed last
    expect(pages).to_contain_text("1 to 50 of at least 5,000")
    tab.fill("Find builds", "status:failed, name:%-09%")
    tab.page.keyboard.press("Enter")
    expect(rows).to_have_count(10)
    expect(rows.first).to_contain_text("train-09000")
    tab.fill("Find builds", "nonsense")
    tab.click("Find")
    tab.see("`nonsense` is not an expression like `field:value`.")
    tab.fill("Find builds", "status:stopped")
    tab.click("Find")
    tab.see("No build matches")

    tab.click("Show all builds", "link")
    expect(rows.first).to_contain_text("train-10000")
    elsewhere(client, project, name="the-next-one")
    expect(rows.first).to_contain_text("#10001 the-next-one")  # the list is live
    expect(pages).to_contain_text("1 to 50 of 10,001")


def test_a_waiting_build_says_why_and_its_place_in_lists_and_on_its_page(
    tab: Tab, client: Client, project: str
) -> None:
    path = elsewhere(client, project)
    words = "The limit of running builds is reached: 1 of this deployment. Place 3 of 12 in line."
    waiting = {**client.get(path), "last_status": "created", "waiting_reason": words}
    page = {"count": 1, "next": None, "previous": None, "results": [waiting]}
    tab.page.route(re.compile(r"/builds\?"), lambda route: route.fulfill(json=page))
    tab.page.route(re.compile(r"/builds/1$"), lambda route: route.fulfill(json=waiting))

    tab.open(f"projects{project}")
    expect(tab.page.locator("tbody tr")).to_contain_text(words)
    tab.open(place(path))
    expect(tab.page.get_by_test_id("reason")).to_have_text(words)


def test_a_build_is_made_again(tab: Tab, client: Client, project: str) -> None:
    path = client.build("true", project=project)
    tab.open(place(path))
    tab.click("Rebuild")
    tab.see("#2")
    tab.click("#1", "link")
    tab.see("#1")
    assert client.get(f"{project}/builds/2")["rebuild_of"] == 1


def test_a_build_is_edited_bookmarked_archived_restored_and_deleted(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    tab.open(place(path))
    tab.click("Edit")
    tab.fill("Name", "renamed")
    tab.fill("Description", HOSTILE)
    tab.fill("Tags", "a, b")
    tab.click("Save")
    tab.see("#1 renamed")
    tab.see(HOSTILE)
    tab.click("☆ Bookmark")
    tab.see("★ Bookmarked")
    tab.click("Bookmarks", "link")
    tab.click(f"{project.removeprefix('/')} #1 renamed", "link")

    tab.click("Archive")
    tab.click("Archive it")
    tab.see("No build yet")
    tab.click("Archive", "link")
    tab.click(f"Restore build 1 of {project.strip('/').replace('/', '.')}")
    tab.see("Nothing is archived")
    tab.open(place(path))
    tab.click("Delete")
    tab.click("Cancel")
    tab.click("Delete")
    tab.click("Delete it")
    tab.see("No build yet")
    assert client.call("GET", path)[0] == 404


def test_an_archived_project_is_restored_by_its_name(tab: Tab, client: Client, project: str) -> None:
    tab.open(f"projects{project}/settings")
    tab.click("Archive project")
    tab.click("Archive it")
    tab.see("Your projects")
    assert client.call("GET", project)[0] == 404
    tab.click("Archive", "link")
    tab.fill("Archived project", "missing")
    tab.click("Restore")
    tab.see("Not found.")
    tab.fill("Archived project", project.removeprefix("/root/"))
    tab.click("Restore")
    tab.see("No build yet")
    assert client.call("GET", project)[0] == 200


def test_foreign_text_is_shown_as_it_is(tab: Tab, client: Client, project: str) -> None:
    client.call("PATCH", project, {"description": HOSTILE})
    path = elsewhere(client, project, description=HOSTILE, tags=["<b>tag</b>"])
    client.call("POST", f"{path}/statuses", {"status": "failed", "message": HOSTILE, "traceback": HOSTILE})
    for at in ("projects", f"projects{project}", place(path), f"{place(path)}/timeline"):
        tab.open(at)
        tab.see(HOSTILE)
        assert tab.page.locator("main img, main b").count() == 0
    tab.see("<b>tag</b>")


def test_keys_lead_through_lists(tab: Tab, client: Client, project: str) -> None:
    for name in ("first", "second", "third"):
        elsewhere(client, project, name=name)
    tab.open(f"projects{project}")
    tab.see("#3 third")
    for key in "jjk":
        tab.page.keyboard.press(key)
    expect(tab.page.get_by_role("link", name="#3 third")).to_be_focused()
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("Enter")
    search = tab.page.get_by_label("Search the log")
    expect(search).to_be_visible()
    tab.see("#2 second")
    tab.page.keyboard.press("?")
    tab.see("next and previous row of a list")
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("dialog")).to_have_count(0)  # a closed one, which has no role any more, may have the focus
    tab.page.keyboard.press("/")
    expect(search).to_be_focused()


@pytest.mark.parametrize("size", [10_000, 5_000_000], ids=["in the request", "straight to storage"])
def test_code_is_uploaded(tab: Tab, client: Client, size: int, tmp_path: Path) -> None:
    name = f"upload-{size}"
    assert client.call("POST", "/projects", {"name": name})[0] == 201
    archive = tmp_path / "code.tar.gz"
    archive.write_bytes(make_archive({"data": random.Random(1).randbytes(size).hex()}))
    tab.open(f"projects/root/{name}/code")
    tab.see("The project has no code yet.")
    tab.page.get_by_label("A gzipped tar archive").set_input_files(archive)
    tab.click("Upload")
    tab.see("code.tar.gz is the project's code now.")
    tab.see("The project has code that was uploaded.")
    assert client.get(f"/root/{name}")["has_code"]
    with tab.page.expect_download() as downloading:
        tab.click("Download it")
    assert downloading.value.path().read_bytes() == archive.read_bytes()
    assert downloading.value.suggested_filename == f"{name}.tar.gz"


def test_steps_are_asked_for_while_the_build_runs_and_once_when_it_has_ended(
    tab: Tab, client: Client, project: str
) -> None:
    path = elsewhere(client, project)
    step: dict[str, Any] = {
        "started_at": datetime.now(UTC).isoformat(),
        "duration_seconds": None,
        "is_cached": False,
        "error": None,
    }
    found = [
        {**step, "name": "[1/4] FROM scratch", "is_cached": True},
        {**step, "name": "[2/4] RUN make", "duration_seconds": 90},
        {**step, "name": "[3/4] RUN make test"},
    ]
    pages: list[list[dict[str, Any]]] = [[], found]
    asked = list[str]()

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        results = pages.pop(0) if len(pages) > 1 else pages[0]
        route.fulfill(json={"count": len(results), "next": None, "previous": None, "results": results})

    tab.page.route(re.compile(r"/steps\?"), answer)
    tab.page.clock.install()
    tab.open(f"{place(path)}/timeline")
    tab.see("The log shows no step yet.")
    steps = tab.page.get_by_label("Steps").get_by_role("listitem")
    tab.page.clock.run_for(5_000)
    expect(steps).to_contain_text(["cached[1/4] FROM scratch", "1 min 30 s[2/4] RUN make", "running, "])

    failed = {"duration_seconds": 45, "error": "exit code: 2"}
    pages[:] = [[*found[:2], {**found[2], **failed}, {**step, "name": "exporting to image"}]]
    client.call("POST", f"{path}/statuses", {"status": "failed", "message": "Exit code 2: make test"})
    tab.page.clock.run_for(10_000)
    expect(steps).to_contain_text(
        ["cached", "1 min 30 s", "failed after 45 s[3/4] RUN make testexit code: 2", "did not end"]
    )
    half, whole = (steps.nth(row).locator(".span").evaluate("bar => bar.offsetWidth") for row in (2, 1))
    assert abs(whole - 2 * half) <= 2
    asked.clear()
    tab.page.reload()
    expect(steps).to_have_count(4)
    with tab.page.expect_request(re.compile(r"/builds/1$")):
        tab.page.clock.run_for(600_000)
    assert len(asked) == 1


# Notes when a list of builds is asked for, and answers 503 as long as `isDown`, without leaving the page.
COUNT_QUESTIONS = """
const direct = window.fetch;
const refusal = {text: async () => '{"detail": "Later."}'};
window.isDown = false;
window.asked = [];
window.fetch = async (request, ...more) => {
  if (!/\\/builds\\?/.test(request.url)) return direct(request, ...more);
  window.asked.push(Date.now() / 1000);
  return window.isDown ? Object.assign(new Response(null, {status: 503}), refusal) : direct(request, ...more);
};
"""


def test_without_an_answer_the_page_asks_less_and_less_often_and_goes_on_after_one(tab: Tab, project: str) -> None:
    clock, waits = tab.page.clock, [1, 2, 4, 8, 16, 30, 30]
    clock.install(time=datetime(2026, 1, 1, tzinfo=UTC))
    tab.page.add_init_script(COUNT_QUESTIONS)
    tab.open(f"projects{project}")
    tab.see("No build yet")
    clock.pause_at(datetime(2026, 1, 2, tzinfo=UTC))

    tab.page.evaluate("isDown = true; asked.length = 0;")

    def asks_after_a_second() -> bool:
        clock.run_for(1000)
        return bool(tab.page.evaluate("asked.length"))

    wait_until(asks_after_a_second)
    tab.see("Later. What you see is from")
    for seconds in waits:
        clock.run_for(seconds * 1000)
    assert tab.page.evaluate("asked.slice(1).map((time, before) => time - asked[before])") == waits

    tab.page.evaluate("isDown = false")
    clock.run_for(30_000)
    tab.see("No build yet")
    expect(tab.page.get_by_text("What you see is from")).to_have_count(0)


HIDE = """(isHidden) => {
  Object.defineProperty(document, 'hidden', {configurable: true, get: () => isHidden});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_a_tab_that_is_hidden_asks_nothing_until_it_is_seen(tab: Tab, client: Client, project: str) -> None:
    asked = list[str]()
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.page.clock.install()
    tab.open(f"projects{project}")
    tab.see("No build yet")
    with tab.page.expect_request(re.compile(r"/builds\?")):
        tab.page.clock.run_for(10_000)

    tab.page.evaluate(HIDE, True)
    tab.page.clock.run_for(10_000)  # what was on its way has come
    before = len(asked)
    tab.page.clock.run_for(600_000)
    assert asked[before:] == []

    elsewhere(client, project, name="meanwhile")
    tab.page.evaluate(HIDE, False)
    tab.see("#1 meanwhile")
