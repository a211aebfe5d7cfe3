"""The log of a build in the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.stack.conftest import Client
from tests.ui.conftest import Tab, elsewhere, heap_used, place

pytestmark = pytest.mark.slow
LINES, PARTS = 200_000, 5
AREA = "document.querySelector('.log .area')"


def last_line(tab: Tab) -> str:
    return tab.page.locator(".log .row").last.inner_text()


# A log of 200,000 lines in five parts, as the API answers it: in the browser, where it costs no time to send it.
ANSWER_LONG_LOG = """
const direct = window.fetch;
window.fetch = async (asked, ...more) => {
  const cursor = /\\/logs\\?cursor=b?(\\d+)/.exec(String(asked));
  if (!cursor) return direct(asked, ...more);
  const part = Number(cursor[1]), size = LINES / PARTS;
  let text = '';
  for (let n = part * size + 1; n <= (part + 1) * size; n++) {
    text += `2026-11-27 10:00:00 UTC -- line ${n} of it, ${'x'.repeat(60)}\\n`;
  }
  const headers = {'X-Slipway-Next-Cursor': `b${part + 1}`, 'X-Slipway-Log-Complete': String(part === PARTS - 1)};
  return new Response(new TextEncoder().encode(text), {headers});
};
""".replace("LINES", str(LINES)).replace("PARTS", str(PARTS))


@pytest.fixture
def long_log(tab: Tab, client: Client, project: str) -> Iterator[Tab]:
    path = elsewhere(client, project)
    tab.page.add_init_script(ANSWER_LONG_LOG)
    tab.open(place(path))
    expect(tab.page.get_by_test_id("log-state")).to_have_text("200,000 lines")
    yield tab


@pytest.mark.proof
def test_200_000_lines_are_few_nodes_and_little_memory(long_log: Tab) -> None:
    assert long_log.page.locator("*").count() < 3_000
    assert heap_used(long_log) < 150e6
    assert "line 200000 of it" in last_line(long_log)  # the end is in sight


def test_search_and_links_find_their_line_among_200_000(long_log: Tab) -> None:
    page = long_log.page
    page.keyboard.press("/")
    page.keyboard.type("LINE 123456 of")
    expect(page.locator(".log .row.current mark")).to_have_text("line 123456 of")
    expect(page.get_by_test_id("matches")).to_have_text("1 of 1")

    page.get_by_label("Search the log").fill("line 19999")
    expect(page.get_by_test_id("matches")).to_have_text("1 of 11")
    expect(page.locator(".log .row.current")).to_contain_text("line 19999 of")
    page.keyboard.press("Enter")
    expect(page.locator(".log .row.current")).to_contain_text("line 199990 of")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".log .row.current")).to_contain_text("line 199999 of")

    page.get_by_role("link", name="Link to line 199998", exact=True).click()
    assert page.url.endswith("?line=199998")
    page.reload()
    expect(page.locator(".log .row.target")).to_contain_text("line 199998 of")
    expect(page.locator(".log .row.target")).to_be_in_viewport()
    page.evaluate(f"{AREA}.scrollTop = 0")
    expect(page.locator(".log .row").first).to_contain_text("line 1 of")
    long_log.click("Jump to end")
    expect(page.locator(".log .row").last).to_contain_text("line 200000 of")


def report(client: Client, path: str, *lines: str) -> None:
    status, said = client.call("POST", f"{path}/logs", list(lines))  # type: ignore[arg-type]
    assert status == 200, said


@pytest.mark.proof
def test_200_000_lines_come_through_the_service_as_they_were_reported(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    for first in range(1, LINES, 2_500):  # a request carries 300 KB
        report(client, path, *(f"line {n} of it, {'x' * 60}" for n in range(first, first + 2_500)))
    tab.open(place(path))
    expect(tab.page.get_by_test_id("log-state")).to_have_text("200,000 lines, following")
    assert "line 200000 of it" in last_line(tab)
    tab.page.get_by_label("Search the log").fill("line 123456 of")
    expect(tab.page.get_by_test_id("matches")).to_have_text("1 of 1")
    tab.page.get_by_role("link", name="Link to line 123456", exact=True).click()
    expect(tab.page.locator(".log .row.target")).to_contain_text("line 123456 of")
    assert tab.page.locator("*").count() < 3_000


def test_a_log_is_followed_until_one_scrolls_up_and_again_at_the_end(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    tab.open(place(path))
    tab.see("No line yet.")

    report(client, path, *[f"early {n}" for n in range(100)])
    expect(tab.page.locator(".log .row").last).to_contain_text("early 99")
    expect(tab.page.get_by_test_id("log-state")).to_have_text("100 lines, following")

    tab.page.locator(".log .area").hover()
    tab.page.mouse.wheel(0, -600)
    expect(tab.page.get_by_test_id("log-state")).to_have_text("100 lines, more at the end")
    seen = tab.page.evaluate(f"{AREA}.scrollTop")
    report(client, path, "late 1", "late 2")
    expect(tab.page.get_by_test_id("log-state")).to_have_text("102 lines, more at the end")
    assert tab.page.evaluate(f"{AREA}.scrollTop") == seen

    tab.page.mouse.wheel(0, 10_000)
    expect(tab.page.get_by_test_id("log-state")).to_have_text("102 lines, following")
    report(client, path, "last")
    expect(tab.page.locator(".log .row").last).to_contain_text("last")


def test_a_lost_connection_does_not_look_like_a_failed_build(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    report(client, path, "before")
    tab.open(place(path))
    tab.see("before")

    tab.page.context.set_offline(True)
    tab.see("There is no connection to Slipway.")
    tab.see("builds go on without this page")
    expect(tab.page.get_by_test_id("status")).to_have_text(re.compile("running"))
    expect(tab.page.locator(".status.failed")).to_have_count(0)
    tab.see("before")
    tab.picture("lost-connection")

    report(client, path, "meanwhile")
    tab.page.context.set_offline(False)
    tab.see("meanwhile")
    expect(tab.page.get_by_text("There is no connection")).to_have_count(0)


def test_lines_of_a_log_stay_text_and_have_their_colours(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    report(client, path, hostile, "\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[0m", f"\x1b[34m{hostile}\x1b[0m")
    tab.open(place(path))

    expect(tab.page.locator(".log .row .message").nth(0)).to_have_text(hostile)
    expect(tab.page.locator(".log .row .message").nth(2)).to_have_text(hostile)
    expect(tab.page.locator(".ansi-red")).to_have_text("red")
    expect(tab.page.locator(".ansi-green")).to_have_text("green")
    assert tab.page.locator("main img, main script").count() == 0
    tab.page.get_by_label("Search the log").fill("<IMG")
    expect(tab.page.locator("mark")).to_have_text(["<img", "<img"])


def test_steps_fold(tab: Tab, client: Client, project: str) -> None:
    path = elsewhere(client, project)
    report(client, path, "STEP 1/2: FROM base", "STEP 2/2: RUN make", *[f"made {n}" for n in range(50)], "the end")
    tab.open(place(path))
    tab.see("the end")

    tab.page.evaluate(f"{AREA}.scrollTop = 0")
    tab.click("Lines of this step: 51")
    expect(tab.page.locator(".log .row")).to_have_count(2)
    tab.see("… 51 lines")
    tab.page.get_by_label("Search the log").fill("made 49")
    expect(tab.page.get_by_test_id("matches")).to_have_text("1 of 1")
    expect(tab.page.locator(".log .row.current")).to_contain_text("made 49")  # which unfolds its step
    tab.click("Fold steps")
    expect(tab.page.locator(".log .row")).to_have_count(2)
    tab.click("Unfold steps")
    tab.see("the end")
