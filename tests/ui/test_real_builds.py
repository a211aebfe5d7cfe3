"""Builds of a real container engine in the page."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from infra.local.machine.machine import STATE, machine
from tests.required_engines import ENGINE, skipped_without
from tests.stack.conftest import Client, serving
from tests.ui.conftest import Tab, place

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("page")
    with skipped_without(ENGINE), machine(STATE, print, ENGINE) as tools, serving(tools, folder) as client:
        yield client


def test_a_newcomer_comes_from_a_token_to_an_image(stranger: Tab, client: Client) -> None:
    tab = stranger
    tab.page.goto(f"{tab.url}/api/ui")
    tab.fill("Your token", "not-a-token")
    tab.click("Sign in")
    tab.see("Invalid token.")
    tab.fill("Your token", client.running.token)
    tab.page.keyboard.press("Enter")
    tab.see("Your projects")
    assert tab.page.context.cookies() == []
    assert tab.page.evaluate("localStorage.length") == 0

    tab.click("New project")
    tab.fill("Name", "no spaces please")
    tab.click("Make it")
    tab.page.locator("dialog .refusal").wait_for()
    tab.fill("Name", "newcomer")
    tab.click("Make it")
    tab.see("No build yet")
    tab.click("New build", "link")
    tab.page.get_by_label("Base image").fill(client.machine.base_image)
    tab.page.get_by_label("Build steps").fill(f"echo 'made <b>in</b> the page, {secrets.token_hex()}' | tee /made")
    tab.click("Preview the Dockerfile")
    tab.see(f"FROM {client.machine.base_image}")
    tab.click("Build")

    tab.see("made <b>in</b> the page")
    expect(tab.page.get_by_test_id("status")).to_have_text(re.compile("succeeded"))
    build = client.get("/root/newcomer/builds/1")
    repository = build["image"].rpartition(":")[0]
    tab.see(f"docker pull {repository}@{build['image_digest']}")
    tab.picture("build")
    tab.click("Dockerfile", "link")
    tab.see(f"FROM {client.machine.base_image}")
    tab.click("Timeline", "link")
    tab.see("waits in the queue")
    expect(tab.page.get_by_label("Steps")).to_contain_text("tee /made")
    tab.click("Sign out")
    tab.see("Sign in to Slipway")
    assert tab.page.evaluate("sessionStorage.length") == 0


def test_a_running_build_is_stopped(tab: Tab, client: Client, project: str) -> None:
    path = client.build("echo begun; sleep 600", project=project)
    tab.open(place(path))
    tab.see("begun")
    tab.click("Stop")
    expect(tab.page.get_by_test_id("status")).to_have_text(re.compile("stopped"))
    expect(tab.page.get_by_role("button", name="Stop")).to_have_count(0)
    client.until_done(path)


def test_a_failed_build_says_why(tab: Tab, client: Client, project: str) -> None:
    path = client.build("echo looking for it; exit 3", project=project)
    tab.open(place(path))
    expect(tab.page.get_by_test_id("status")).to_have_text(re.compile("failed"))
    expect(tab.page.get_by_test_id("reason")).to_have_text("Exit code 3: echo looking for it; exit 3")
    tab.see("No image was made.")
    tab.picture("failed-build")
