"""Many builds at once from several clients, who stop some of them: each ends once, as it did, with its whole
log. `make load` runs the full size."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import boto3
import pytest

from chalicelib import wiring
from chalicelib.adapters.registry import HttpRegistry
from chalicelib.domain.build import BuildKey
from infra.local.machine.machine import Machine
from tests.required_engines import ENGINE
from tests.stack.conftest import DONE, PROJECT, Client, serving

pytestmark = pytest.mark.engine
LINES = 20  # that a build prints
PATIENCE_SECONDS = 3600  # for all builds: generous, as machines are shared
MOMENTS = ("at once", "created", "scheduled", "building", "running")  # of a stop: a status, when it is seen


@dataclass
class Planned:
    """What a client does with one build, and what became of it."""

    number: int
    fails: bool
    stop_when: str | None
    path: str = ""
    posted_at: float = 0
    post_seconds: float = 0

    def step(self) -> str:
        """The command prints texts that are not in itself, so that they are not mistaken for it."""
        say = f"for n in $(seq {LINES}); do echo said-$((n*7))-by-{self.number}; done"
        half = say.replace("done", f"[ $n != {LINES // 2} ] || sleep 0.3; done")
        return f"{half}; exit 3" if self.fails else half

    def lines(self) -> list[str]:
        return [f"said-{n * 7}-by-{self.number}" for n in range(1, LINES + 1)]

    def printed(self, log: str) -> list[str]:
        """What the build said, as the log has it. BuildKit puts a number and a time before each line, and
        repeats the last ones of a failed step with the time alone."""
        said = rf"^\S+ \S+ UTC -- (?:#\d+ [\d.]+ )?(said-\d+-by-{self.number})$"
        return re.findall(said, log, re.MULTILINE)


def plan(builds: int, seed: int) -> list[Planned]:
    """A third of the builds is to be stopped, a tenth fails."""
    random = Random(seed)
    return [
        Planned(n, random.random() < 0.1, random.choice(MOMENTS) if random.random() < 1 / 3 else None)
        for n in range(builds)
    ]


@dataclass
class Load:
    """Clients side by side, and what they saw."""

    client: Client
    planned: Sequence[Planned]
    random: Random
    samples: list[Counter[str]] = field(default_factory=list)  # statuses of all builds, every two seconds

    def work(self, planned: Sequence[Planned], random: Random) -> None:
        """One client: posts its builds without waiting for their ends, then stops what it wants to stop."""
        for each in planned:
            self._post(each)
            if each.stop_when == "at once":
                self._stop(each)
            time.sleep(random.uniform(0, 0.1))
        to_stop = [each for each in planned if each.stop_when not in (None, "at once")]
        while to_stop:
            for each in list(to_stop):
                status = self.client.get(each.path)["last_status"]
                if status == each.stop_when or status in DONE:
                    time.sleep(random.uniform(0, 0.5))
                    self._stop(each)
                    to_stop.remove(each)
            time.sleep(0.5)

    def _post(self, each: Planned) -> None:
        spec = {"version": 1, "kind": "build", "image": self.client.machine.base_image, "nocache": True}
        content = json.dumps({**spec, "build_steps": [each.step()]})
        each.posted_at = time.monotonic()
        status, build = self.client.call("POST", f"{PROJECT}/builds", {"content": content})
        each.post_seconds = time.monotonic() - each.posted_at
        assert status == 201, build
        each.path = f"{PROJECT}/builds/{build['id']}"

    def _stop(self, each: Planned) -> None:
        assert self.client.call("POST", f"{each.path}/stop") == (200, "")

    def until_all_are_done(self, working: Sequence[Future[None]]) -> None:
        """Also until their logs are kept, and while no client has failed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._is_over():
            for each in working:
                if each.done():
                    each.result()
            assert time.monotonic() < deadline, self.samples[-1]
            time.sleep(2)

    def _is_over(self) -> bool:
        results = self.client.get(f"{PROJECT}/builds?limit={len(self.planned)}")["results"]
        self.samples.append(Counter(build["last_status"] for build in results))
        if len(results) < len(self.planned) or any(build["last_status"] not in DONE for build in results):
            return False
        stored = [wiring.services().builds.get(BuildKey("root", "quick-start", b["id"])) for b in results]
        return all(build is not None and build.check_at is None for build in stored)


def run(machine: Machine, folder: Path, *, builds: int, clients: int, seed: int, **options: Any) -> None:
    planned = plan(builds, seed)
    with serving(machine, folder, concurrency=2, **options) as client:
        load = Load(client, planned, Random(seed))
        began = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            working = [pool.submit(load.work, planned[n::clients], Random(seed + n)) for n in range(clients)]
            load.until_all_are_done(working)
            for client_work in working:
                client_work.result()
        report(load, machine.engine.name, time.monotonic() - began)
        registry = HttpRegistry(machine.registry_login)
        for each in planned:
            check(client, each, registry)
        assert max(starts().values()) == 1, "no build was started twice"


def check(client: Client, each: Planned, registry: HttpRegistry) -> None:
    build, statuses, printed = (
        client.get(each.path),
        client.statuses(each.path),
        each.printed(client.log(each.path)),
    )
    final = build["last_status"]
    assert [status for status in statuses if status in DONE] == [final] == statuses[-1:], (each, statuses)
    if each.stop_when is None or final != "stopped":
        assert final == ("failed" if each.fails else "succeeded"), (
            each,
            statuses,
            client.last_message(each.path),
        )
        assert printed == each.lines(), (each, printed)
    assert printed == each.lines()[: len(printed)], (each, printed)
    found = registry.find(build["image"]) if final == "succeeded" else None
    assert build["image_digest"] == (found and found.digest)
    assert (build["image_digest"] is not None) == (final == "succeeded")


def starts() -> Counter[str]:
    """How often each build was started in CodeBuild."""
    codebuild, counted = boto3.client("codebuild"), Counter[str]()
    for page in codebuild.get_paginator("list_builds_for_project").paginate(projectName="slipway-builds"):
        for build in codebuild.batch_get_builds(ids=page["ids"])["builds"]:
            variables = {each["name"]: each["value"] for each in build["environment"]["environmentVariables"]}
            counted[variables["SLIPWAY_BUILD"]] += 1
    return counted


def report(load: Load, engine: str, seconds: float) -> None:
    posts = [each.post_seconds for each in load.planned]
    idle = [s for s in load.samples if s["created"] and not (s["scheduled"] + s["building"] + s["running"])]
    ends = ", ".join(f"{count} {status}" for status, count in sorted(load.samples[-1].items()))
    print(f"\n{engine}: {len(posts)} builds in {seconds:.0f} s: {ends}.")
    print(f"A POST took {statistics.median(posts):.2f} s (median), {max(posts):.2f} s at most.")
    print(f"Builds waited while none was with the executor: {len(idle)} of {len(load.samples)} looks.")


@pytest.mark.proof
@pytest.mark.parametrize("local_machine", [ENGINE], indirect=True)
def test_twelve_builds_from_four_clients(local_machine: Machine, tmp_path: Path) -> None:
    run(local_machine, tmp_path, builds=12, clients=4, seed=1, reconcile_every_seconds=5)


@pytest.mark.load
def test_150_builds_from_eight_clients(local_machine: Machine, tmp_path: Path) -> None:
    run(local_machine, tmp_path, builds=150, clients=8, seed=2)
