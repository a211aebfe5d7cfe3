"""Breakages by hand: guards, bounds and fallbacks of rare paths, also in files that mutmut does not mutate.

Each one once survived all tests, or could have.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CORE = ("tests/domain/test_lifecycle.py", "tests/usecases")
TABLE = (
    "tests/adapters/test_build_store.py",
    "tests/adapters/test_accounts.py",
    "tests/adapters/test_cost.py",
)
API = ("tests/api",)
MYPY = ()
MAX_SECONDS = 300  # of the tests of one breakage, which may make a loop endless
PYTEST = ["pytest", "-x", "-p", "no:cacheprovider", "-m", "not slow and not engine"]


@dataclass(frozen=True)
class Breakage:
    """What breaks, in words; the text that stands once in the file, and what takes its place; where a test
    must fail (nowhere: mypy must)."""

    what: str
    file: str
    text: str
    broken: str
    tests: tuple[str, ...]


def of(file: str, tests: tuple[str, ...], *breakages: tuple[str, str, str]) -> list[Breakage]:
    return [Breakage(what, file, text, broken, tests) for what, text, broken in breakages]


BREAKAGES = [
    *of(
        "chalicelib/usecases/execution.py",
        CORE,
        (
            "a message starts a build that runs elsewhere",
            "if known.is_done or not known.is_managed:",
            "if known.is_done:",
        ),
        (
            "a build whose project is gone runs",
            "return project is None or project.archived_at is not None",
            "return project is not None and project.archived_at is not None",
        ),
        (
            "the log overrules the executor's own words",
            " and not effective.has_own_reason:",
            ":",
        ),
        (
            "a stop does not wait for whoever may repeat the start",
            "if may_repeat:  # the claim's handler",
            "if False:  # the claimer",
        ),
        (
            "a start after the window without a claim of its own",
            "if is_wanted:\n        return _start_next(services, build)",
            "if is_wanted:\n        return _start(services, build, is_repeat=False)",
        ),
        ("a busy executor is asked again in an hour", "timedelta(seconds=30)", "timedelta(minutes=50)"),
        (
            "a handle is noted on another attempt",
            " or build.attempt != claimed.attempt",
            "",
        ),
        (
            "a handle is noted on a build that has ended",
            "build.submitting_at is not None and not build.is_done\n",
            "build.submitting_at is not None\n",
        ),
        (
            "a repeated start leaves the first one its decisions",
            "_start(services, _saved_in_time(services, build, leased), is_repeat=True)",
            "_start(services, build, is_repeat=True)",
        ),
        (
            "a build is given up while its start is under way",
            "if build.handle is None and build.submitting_at is not None and _may_repeat(services, build):",
            "if False:",
        ),
        (
            "a waiting build is not leased",
            "leased = services.builds.lease(build, services.now() + WAIT_WHEN_BUSY)",
            "leased = build",
        ),
    ),
    *of(
        "chalicelib/domain/lifecycle.py",
        CORE,
        ("the last change is taken back", "updated_at=max(now, build.updated_at),", "updated_at=now,"),
        ("the first log stays", "log=seen.log or build.log", "log=build.log or seen.log"),
        (
            "a warning of the attempt before counts as this one's",
            "if not is_noted:",
            "if False:",
        ),
        (
            "a deletion does not say why it stopped a build",
            'return "Build is scheduled for deletion." if build.archived_at else "BuildJob was stopped."',
            "return None",
        ),
        ("trouble takes the room of later steps", "_RESERVED_FOR_STEPS = 10", "_RESERVED_FOR_STEPS = 3"),
    ),
    *of(
        "chalicelib/usecases/cleanup.py",
        CORE,
        (
            "code is dropped without a mark",
            "services.code_references.begin_drop(sha256, services.now())",
            "pass",
        ),
    ),
    *of(
        "chalicelib/usecases/conflicts.py",
        CORE,
        ("one conflict ends a whole cleanup", "pass  # another handler works on it", "raise"),
    ),
    *of(
        "chalicelib/usecases/builds.py",
        CORE,
        (
            "a repeat announces a build that runs elsewhere",
            "if build.is_managed and build.attempt == 0",
            "if build.attempt == 0",
        ),
        (
            "one build's layers stay valid",
            "    _invalidate(services, writable(services, caller, key).project, key.id)",
            "    pass",
        ),
        (
            "the layers of all builds stay valid",
            "    _invalidate(services, project, project.last_build_id)",
            "    pass",
        ),
        (
            "an older build makes newer layers valid again",
            "max(known.valid_after_build, last)",
            "last",
        ),
    ),
    *of(
        "chalicelib/web.py",
        API,
        (
            "no last line of defence",
            "_response(answer, status))\n            except Exception",
            "_response(answer, status))\n            except AssertionError",
        ),
        (
            "idempotency keys are shared by all callers",
            'return f"{self.user.name}:{checked_key(key)}" if',
            "return checked_key(key) if",
        ),
        (
            "Busy is an error of ours",
            "errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE",
            "errors.Busy: HTTPStatus.BAD_GATEWAY",
        ),
        ("503 does not say when to come back", 'headers["Retry-After"] = "5"', "pass"),
        (
            "a conflict is the caller's mistake",
            "errors.Conflict: HTTPStatus.CONFLICT",
            "errors.Conflict: HTTPStatus.BAD_REQUEST",
        ),
        ("forms are not read", '"application/x-www-form-urlencoded"', '"application/none"'),
        (
            "a page has any number of rows",
            'min(_number(self.query().get("limit")) or DEFAULT_LIMIT, self.max_rows)',
            '_number(self.query().get("limit")) or DEFAULT_LIMIT',
        ),
        ("links have another host", 'context.get("domainName") or headers', "headers"),
        ("links have another scheme", 'headers.get("x-forwarded-proto") == "https"', "False"),
        (
            "ids may have more digits than keys",
            "number.isdigit() and len(number) <= ID_DIGITS):",
            "number.isdigit()):",
        ),
        ("names are not decoded", "{name: unquote(value) for", "{name: value for"),
    ),
    *of(
        "app.py",
        API,
        (
            "a parameter is missing in the document",
            '@route(BUILD + "/logs", "GET", query=("cursor",))',
            '@route(BUILD + "/logs", "GET")',
        ),
    ),
    *of(
        "app.py",
        MYPY,
        (
            "the document promises another answer than the route's",
            "def get_project(call: web.Call, owner: str, project: str) -> schemas.ProjectDetail:",
            "def get_project(call: web.Call, owner: str, project: str) -> schemas.User:",
        ),
    ),
    *of(
        "chalicelib/usecases/logs.py",
        API,
        ("any text is a cursor", "if match is None or not cursor.isascii():", "if False:"),
    ),
    *of(
        "chalicelib/domain/dockerfile.py",
        ("tests/domain", "tests/adapters/test_steps.py", "tests/local/test_buildspec.py"),
        ("one name of a conda file is not known", ', "conda_env.yml"', ""),
    ),
    *of(
        "chalicelib/adapters/dynamodb/records.py",
        TABLE,
        (
            "nobody looks at a deleted build that still runs",
            "(unfinished, check_at), (keys.DELETED, record.deleted_at),",
            "(keys.DELETED, record.deleted_at), (unfinished, check_at),",
        ),
    ),
    *of(
        "chalicelib/adapters/dynamodb/builds.py",
        TABLE,
        (
            "items of an earlier version refuse their repeats",
            "if item.body_sha256 and item.body_sha256 != once.body_sha256:",
            "if item.body_sha256 != once.body_sha256:",
        ),
        (
            "a removed bookmark is shown",
            "bookmark is not None and bool(bookmark.is_bookmarked)",
            "bookmark is not None",
        ),
        ("a purged project gives ids to those who still know it", "records.is_same(project) & (", "("),
    ),
    *of(
        "chalicelib/adapters/dynamodb/archive.py",
        TABLE,
        ("rows of bookmarks outlive what is bookmarked", "                write.delete(row)\n", ""),
    ),
    *of(
        "chalicelib/adapters/dynamodb/accounts.py",
        TABLE,
        ("counts of requests stay for ever", ", Item.ttl.set(int((minute + COUNTED_FOR).timestamp()))", ""),
        ("a process remembers any number of tokens", "if len(self._remembered) >= CACHE_SIZE:", "if False:"),
    ),
    *of(
        "chalicelib/adapters/dynamodb/slots.py",
        TABLE[:1],
        ("a slot is taken whoever was faster", ", is_same)", ")"),
        ("a slot that is taken has no version", ", Item.version.add(1)]", "]"),
    ),
    *of(
        "chalicelib/settings.py",
        ("tests/test_settings.py",),
        ("all builds have no limit of their own", "return self.max_running_builds or MAX_RUNNING", "return 0"),
        ("owners and projects have one limit", '"/" in scope', "scope"),
    ),
    *of(
        "chalicelib/usecases/builds.py",
        ("tests/usecases/test_slots.py",),
        ("a list shows no place in line", "Page(slots.with_places(services, builds)", "Page(builds"),
    ),
    *of(
        "chalicelib/adapters/dynamodb/table.py",
        TABLE,
        (
            "records are read as they were",
            "return Item.get(*key, consistent_read=True)",
            "return Item.get(*key)",
        ),
        ("another transaction is trouble", ', "TransactionConflict"}', "}"),
    ),
]


def not_found(project: Path) -> Iterator[str]:
    """In words, the breakages that no test of `project` finds, and those whose text is not there."""
    for each in {each.tests: each for each in BREAKAGES}.values():
        if code := _tested(project, each):
            yield f"fails ({code}) without any breakage: {each.tests or 'mypy'}"
    for each in BREAKAGES:
        file = project / each.file
        text = file.read_text()
        if text.count(each.text) != 1:
            yield f"aimed, but its text is there {text.count(each.text)} times: {each.what}"
            continue
        file.write_text(text.replace(each.text, each.broken))
        code = _tested(project, each)
        file.write_text(text)
        print("found" if code == 1 else "SURVIVED", each.what, flush=True)
        if code != 1:
            yield f"no test fails ({code}): {each.what}"


def _tested(project: Path, each: Breakage) -> int:
    """How its tests end: with 0 when they pass, with 1 when one fails or they do not end."""
    command = [*PYTEST, *each.tests] if each.tests else ["mypy", each.file]
    command = [sys.executable, "-m", *command]
    try:
        return subprocess.run(command, cwd=project, capture_output=True, timeout=MAX_SECONDS).returncode
    except subprocess.TimeoutExpired:
        return 1
