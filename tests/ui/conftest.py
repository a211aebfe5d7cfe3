"""The page in a real browser, against the whole service on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, ViewportSize, expect, sync_playwright

from chalicelib import page as page_files
from infra.local.machine.engine import NoEngine
from tests.required_engines import skipped_without
from tests.stack.conftest import PATIENCE_SECONDS, Client, serving_without_engine

expect.set_options(timeout=PATIENCE_SECONDS * 1000)
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "out" / "page"
AXE = ROOT / "infra/ui/node_modules/axe-core/axe.min.js"
WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
# Chromium's sandbox does not start as root, and what runs in the background asks hosts of the Internet.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--js-flags=--expose-gc"]


@dataclass
class Tab:
    """The page as somebody uses it who has signed in; places are what stands behind `#/`."""

    page: Page
    url: str

    def open(self, place: str) -> None:
        self.page.goto(f"{self.url}/api/ui/index.html#/{place}")

    def see(self, text: str) -> Locator:
        """Waits until a text is in sight."""
        found = self.page.get_by_text(text).filter(visible=True).first
        found.wait_for()
        return found

    def click(self, name: str, role: Any = "button") -> None:
        self.page.get_by_role(role, name=name, exact=True).click()

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_label(label, exact=True).fill(text)

    def until(self, script: str, argument: Any = None) -> Any:
        """What a function of JavaScript returns, as soon as it is true."""
        return self.page.wait_for_function(script, arg=argument).json_value()

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack without an engine for the tests of a file; each test makes projects of its own."""
    with serving_without_engine(
        tmp_path_factory.mktemp("page"), settings={"SLIPWAY_PRIVATE_HOOK_HOSTS": "localhost"}
    ) as client:
        yield client


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with skipped_without("chromium"):
        program = shutil.which("chromium")
        if program is None:
            raise NoEngine("not installed")
        if not (page_files.FOLDER / page_files.INDEX).exists():
            raise NoEngine("it would show a page that is not built: run make ui")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport=WIDE)
    made.set_default_timeout(PATIENCE_SECONDS * 1000)
    yield made
    made.close()


@pytest.fixture
def tab(context: BrowserContext, client: Client) -> Iterator[Tab]:
    """A tab of somebody who has signed in. Whatever the page throws fails the test."""
    token = json.dumps(client.running.token)
    context.add_init_script(f"sessionStorage.setItem('slipway-token', {token})")
    yield from open_tab(context, client)


@pytest.fixture
def stranger(context: BrowserContext, client: Client) -> Iterator[Tab]:
    yield from open_tab(context, client)


def open_tab(context: BrowserContext, client: Client) -> Iterator[Tab]:
    thrown = list[str]()
    page = context.new_page()
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.on("console", lambda message: thrown.append(message.text) if "Security Policy" in message.text else None)
    yield Tab(page, client.running.url)
    assert thrown == []


@pytest.fixture
def project(client: Client, request: pytest.FixtureRequest) -> str:
    """A project of the test's own."""
    name = request.node.name.removeprefix("test_")[:60]
    assert client.call("POST", "/projects", {"name": name})[0] == 201
    return f"/root/{name}"


def elsewhere(client: Client, project: str, **fields: object) -> str:
    """A build that runs elsewhere: the test reports what happens to it."""
    status, build = client.call("POST", f"{project}/builds", {"is_managed": False, **fields})
    assert status == 201, build
    path = f"{project}/builds/{build['id']}"
    assert client.call("POST", f"{path}/statuses", {"status": "running"})[0] == 201
    return path


def place(path: str) -> str:
    return f"projects{path}"


def heap_used(tab: Tab) -> float:
    """Bytes that a tab's scripts hold, with their texts."""
    session = tab.page.context.new_cdp_session(tab.page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")
    return float(sum(heap[kind] for kind in ("usedSize", "embedderHeapUsedSize", "backingStorageSize")))
