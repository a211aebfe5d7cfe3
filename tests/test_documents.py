"""The pages in Markdown: their commands run, their links lead somewhere, their tables and their diagram agree
with the code. `python -m tests.test_documents` prints the tables and the diagram as they should be."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
from chalice.package import YAMLTemplateSerializer
from msgspec import NODEFAULT
from msgspec.structs import fields
from werkzeug import Response

from chalicelib import settings
from chalicelib.domain import lifecycle
from chalicelib.domain.build import DONE, Status
from chalicelib.domain.cleanup import RULES
from chalicelib.web import queued_request
from infra.bench import serving
from infra.local import aws
from infra.local.machine.machine import STATE, machine
from infra.local.stack import Running, stack
from tests.required_engines import ENGINE, skipped_without

ROOT = Path(__file__).parents[1]
FOR_OPERATORS = ("infra/aws", "infra/aws/kubernetes")
PAGES = {
    "README.md": 150,
    **{f".github/{name}.md": 100 for name in ("SECURITY", "CONTRIBUTING", "CHANGELOG")},
    **{f"infra/docs/{name}.md": 200 for name in ("api", "inputs", "automation", "webhooks", "polyaxon", "settings")},
    **{f"{name}/README.md": 200 for name in ("chalicelib", "infra/local", "infra/ui", "infra/bench", "tests")},
    **{f"chalicelib/adapters/{name}/README.md": 200 for name in ("dynamodb", "steps")},
    **{f"{name}/README.md": 200 for name in FOR_OPERATORS},
}
page = pytest.mark.parametrize("path", PAGES)
ACCOUNT, CLUSTER = "it needs an AWS account.", "it needs a cluster."
ELSEWHERE = "tests/stack/test_published_clients.py runs its commands one by one."
# Every block that is not run, with its reason, in the order of the pages.
NOT_RUN = [
    ("README.md", ELSEWHERE),
    ("README.md", ACCOUNT),
    (
        "infra/docs/polyaxon.md",
        "tests/stack/test_published_clients.py installs the same packages elsewhere.",
    ),
    *[("infra/docs/automation.md", ACCOUNT)] * 2,
    ("infra/docs/polyaxon.md", ELSEWHERE),
    ("infra/docs/polyaxon.md", ACCOUNT),
    ("infra/aws/README.md", ACCOUNT),
    *[("infra/aws/kubernetes/README.md", CLUSTER)] * 3,
]
MADE_BY_MAKE_UI = "chalicelib/ui/"
TOKEN = "a-token-of-yours"
BASE = "docker.io/library/python:3.12-slim"
RUN = ("README.md", *(f"infra/docs/{name}.md" for name in ("api", "inputs", "automation", "webhooks")))


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def blocks(path: str) -> list[tuple[str | None, str]]:
    """The blocks of shell commands of a page, each with the reason why it is not run."""
    pattern = r"(?ms)(?:^\*This block is not run by the tests: ([^*]+)\*\n\n)?^```sh\n(.*?)^```$"
    return [(found[1], found[2]) for found in re.finditer(pattern, text_of(path))]


# The pages as a whole


def test_there_are_no_other_pages() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.split()) - {".github/pull_request_template.md"} == set(PAGES)


@page
def test_a_page_is_short_and_begins_with_whom_it_is_for(path: str) -> None:
    lines = text_of(path).splitlines()
    assert len(lines) <= PAGES[path]
    if path != "README.md":
        assert re.fullmatch(r"# .+, for \w.+", lines[0])


def test_the_front_page_says_at_once_what_for_whom_and_how_far() -> None:
    beginning = "\n".join(text_of("README.md").splitlines()[:30])
    assert all(each in beginning for each in ("**For**", "nothing has run in an AWS account yet", "```mermaid"))


def anchors(path: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", text_of(path))
    headings = re.findall(r"(?m)^#+ (.+)$", prose)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@page
def test_links_lead_to_files_and_headings(path: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (ROOT / path).parent / file if file else ROOT / path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(str(linked.resolve().relative_to(ROOT))), target


@page
def test_files_and_commands_of_make_that_a_page_names_exist(path: str) -> None:
    text = text_of(path)
    for name in re.findall(r"`((?:infra|tests|chalicelib)/[\w./-]+)`", text):
        assert name == MADE_BY_MAKE_UI or (ROOT / name).exists(), name
    targets = set(re.findall(r"(?m)^([a-z-]+):", text_of("Makefile")))
    assert set(re.findall(r"(?:`|\$ |^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


# Commands


def test_blocks_that_are_not_run_say_why_and_are_known() -> None:
    found = [(path, reason) for path in PAGES for reason, _ in blocks(path) if reason is not None]
    assert sorted(found) == sorted(NOT_RUN)
    assert {path for path in PAGES for reason, _ in blocks(path) if reason is None} == set(RUN)


@page
def test_blocks_are_bash(path: str) -> None:
    for _, text in blocks(path):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True)


@pytest.fixture(params=["none", pytest.param(ENGINE, marks=[pytest.mark.engine, pytest.mark.proof])])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Running, str]]:
    """`make up`, and a base image; without an engine every build fails."""
    engine: Any = SimpleNamespace(environment={"SLIPWAY_ENGINE": "none"}, clean_up=lambda *_: None)
    with ExitStack() as closing:
        if request.param == "none":
            registry = closing.enter_context(serving.served(lambda _: Response(status=404)))
            yield closing.enter_context(stack(engine, registry, tmp_path, root_token=TOKEN)), BASE
        else:
            with skipped_without(request.param):
                tools = closing.enter_context(machine(STATE, print, request.param))
            on = stack(tools.engine, tools.registry, tmp_path, registry_login=tools.registry_login, root_token=TOKEN)
            yield closing.enter_context(on), tools.base_image


def test_the_commands_of_the_pages_work(served: tuple[Running, str], tmp_path: Path) -> None:
    """Page after page, as somebody reads them: with `make up` at another port, and what its line says."""
    running, base = served
    given = {
        "AWS_ENDPOINT_URL": running.aws_url,
        "AWS_SECRET_ACCESS_KEY": aws.ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        "QUEUE": running.queues.requests,
    }
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    for path in RUN:
        commands = "\n".join(text for reason, text in blocks(path) if reason is None)
        commands = commands.replace("http://127.0.0.1:8000", running.url).replace(BASE, base)
        for name, value in given.items():
            commands = commands.replace(f"{name}=…", f"{name}={value}")
        assert "…" not in commands, path
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{path}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        if path == "infra/docs/api.md" and base != BASE:
            assert '"last_status": "succeeded"' in done.stdout or '"last_status":"succeeded"' in done.stdout


def test_what_the_aws_cli_of_a_page_sends_is_a_request(tmp_path: Path) -> None:
    """The blocks that need an account, with a program in place of the CLI that only notes what it is given."""
    sent, cli = tmp_path / "sent", tmp_path / "aws"
    cli.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >>{sent}\necho arn:aws:sqs:us-east-1:1:requests\n')
    cli.chmod(0o755)
    commands = "\n".join(text for reason, text in blocks("infra/docs/automation.md") if reason == ACCOUNT)
    given = {
        "QUEUE": "https://sqs.test/1/requests",
        "ROLE": "arn:aws:iam::1:role/r",
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], env={**os.environ, **given}, check=True)

    words = sent.read_text().split("\0")
    (target,) = [json.loads(word) for name, word in pairwise(words) if name == "--target"]
    messages = [word for name, word in pairwise(words) if name == "--message-body"]
    assert (target["Arn"], target["RoleArn"]) == ("arn:aws:sqs:us-east-1:1:requests", given["ROLE"])
    assert [queued_request(message)["action"] for message in [*messages, target["Input"]]] == ["create"] * 2


def test_the_live_tests_need_what_their_command_names() -> None:
    needed = re.search(r"NEEDED = \((.*?)\)", text_of("tests/live/test_eks.py"))
    assert needed is not None
    (command,) = [text for _, text in blocks("infra/aws/kubernetes/README.md") if "tests/live" in text]
    assert all(f"{name}=" in command for name in re.findall(r'"(\w+)"', needed[1]))


# Tables and the diagram


def template() -> Any:
    return YAMLTemplateSerializer().load_template(text_of("infra/aws/template.yaml"))


def settings_table() -> str:
    """Every setting with the parameter that sets it on AWS, and its default."""
    rows = ["| setting `SLIPWAY_…` | parameter | default | meaning |", "|---|---|---|---|"]
    written = template()
    values = written["Globals"]["Function"]["Environment"]["Variables"]
    for prefix, kind in (("", settings.Settings), ("EKS_", settings.EksSettings)):
        hints = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            if each.name == "eks":
                continue
            default = "required" if each.required and not prefix else ""
            if each.default not in (NODEFAULT, ""):
                default = f"`{each.default}`" if each.default != () else ""
            meta = get_args(hints[each.name])[1]
            value = values.get(f"SLIPWAY_{prefix}{each.name.upper()}")
            name = value.get("Ref") if isinstance(value, dict) else None
            parameter = f"`{name}`" if name in written["Parameters"] else ""
            meaning = (meta.description or "").replace("|", "\\|")
            rows.append(f"| `{prefix}{each.name.upper()}` | {parameter} | {default} | {meaning} |")
    return "\n".join(rows)


def parameters_table() -> str:
    """The parameters of the template that are no setting of the functions."""
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    known = settings_table()
    for name, each in template()["Parameters"].items():
        if f"| `{name}` |" not in known:
            default = f"`{each['Default']}`" if each.get("Default", "") != "" else ""
            rows.append(f"| `{name}` | {default} | {each['Description']} |")
    return "\n".join(rows)


def cleanup_table() -> str:
    """What is forgotten, with the values of the settings' defaults."""
    known = {each.name: each.default for each in fields(settings.Settings)}
    parameters = dict(re.findall(r"\| `(\w+)` \| `(\w+)` \|", settings_table()))
    rows = ["| what | goes | who does it | seen in | parameter |", "|---|---|---|---|---|"]
    for rule in RULES:
        parameter = f"`{parameters[rule.setting.upper()]}`" if rule.setting else ""
        goes = rule.goes.format(known.get(rule.setting or ""))
        metric = f"`{rule.metric}`" if rule.metric else ""
        rows.append(f"| {rule.what} | {goes} | {rule.by} | {metric} | {parameter} |")
    return "\n".join(rows)


def diagram() -> str:
    """The moves between statuses that are not final; to the final ones every other leads."""
    lines = ["stateDiagram-v2", "    [*] --> created"]
    for status, following in lifecycle._NEXT.items():
        lines += [f"    {status} --> {each}" for each in sorted(following - DONE)]
    return "\n".join(lines)


def test_the_page_of_settings_says_what_the_code_says() -> None:
    text = text_of("infra/docs/settings.md")
    assert settings_table() in text
    assert parameters_table() in text


def test_the_page_of_automation_says_what_is_forgotten() -> None:
    assert cleanup_table() in text_of("infra/docs/automation.md")


def test_the_diagram_shows_the_table_of_statuses() -> None:
    assert f"```mermaid\n{diagram()}\n```" in text_of("chalicelib/README.md")
    assert all(following >= DONE for following in lifecycle._NEXT.values())
    assert set(lifecycle._NEXT) | DONE == set(Status)


if __name__ == "__main__":
    print(settings_table(), parameters_table(), cleanup_table(), diagram(), sep="\n\n")
