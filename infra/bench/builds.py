"""Times a build over REST, from the post to the answer that it has succeeded, and the same Dockerfile built and
pushed with the engine by hand, in turns:

    python -m infra.bench.builds [--rounds 5]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from infra.local.demo import DONE, PROJECT, Api
from infra.local.machine.machine import STATE, Machine, installed_machine
from infra.local.machine.run_folder import run_folder
from infra.local.stack import stack

FILES = 2000  # of the code
CASES = {
    "one step": ["true"],
    "three packages": ["pip3 install --no-cache-dir flask rich pydantic"],
}
POLL_SECONDS = 0.25  # seldom: each answer takes time from the build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.bench.builds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with run_folder(say) as run, installed_machine(STATE, say) as machine:
        login = machine.registry_login
        with stack(machine.engine, machine.registry, run / "work", registry_login=login) as running:
            api = Api(running.url + "/api/v1", running.token)
            api.post("/projects/", {"name": PROJECT.rpartition("/")[2]})
            api.upload(f"{PROJECT}/repo/upload/", _code())
            print(f"{'':16}{'service':>10}{'by hand':>10}{'ratio':>8}   (medians of {rounds}, in turns)")
            for name, steps in CASES.items():
                pairs = [_round(api, machine, steps) for _ in range(rounds)]
                service, by_hand = (median(each) for each in zip(*pairs, strict=True))
                ratio = median(ours / theirs for ours, theirs in pairs)
                print(f"{name:16}{service:8.2f} s{by_hand:8.2f} s{ratio:8.2f}", flush=True)
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _round(api: Api, machine: Machine, steps: list[str]) -> tuple[float, float]:
    """Seconds of the service, and of the engine by hand with a folder that is unpacked already."""
    spec = {"version": 1, "kind": "build", "image": machine.base_image, "build_steps": steps, "nocache": True}
    started = time.perf_counter()
    posted = api.post(f"{PROJECT}/builds/", {"content": json.dumps(spec)})
    while (build := api.get(f"{PROJECT}/builds/{posted['id']}"))["last_status"] not in DONE:
        time.sleep(POLL_SECONDS)
    service = time.perf_counter() - started
    if build["last_status"] != "succeeded":
        raise SystemExit(api.log(f"{PROJECT}/builds/{posted['id']}"))
    with _context(build["dockerfile"]) as folder:
        started = time.perf_counter()
        _by_hand(machine, folder, f"{machine.registry}/by-hand:{posted['id']}")
        return service, time.perf_counter() - started


def _by_hand(machine: Machine, folder: Path, image: str) -> None:
    engine = machine.engine
    common = ("--network", "host", "--no-cache", "--file", str(folder / "Dockerfile"))
    if engine.name == "docker":
        engine.run("buildx", "build", "--provenance=false", *common, "--tag", image, "--push", str(folder))
        return
    engine.run("build", "--layers", "--format", "docker", *common, "--tag", image, str(folder))
    engine.run("push", image, f"docker://{image}")


@contextmanager
def _context(dockerfile: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "Dockerfile").write_text(dockerfile)
        with tarfile.open(fileobj=io.BytesIO(_code())) as tar:
            tar.extractall(folder / "build", filter="data")
        yield folder


def _code() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
        for number in range(FILES):
            content = f"value = {number}\n".encode() * 40
            entry = tarfile.TarInfo(f"./package/module_{number}.py")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


if __name__ == "__main__":
    sys.exit(main())
