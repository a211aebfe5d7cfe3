"""Runs seeds on all processors, counts what breaks and prints one shrunk story of each kind.

    python -m tests.simulation --seeds 5000 --first 1

Exits with 1 when a promise is broken. One seed alone is printed whole when it breaks nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.run import Result, simulate
from tests.simulation.shrink import rendered, shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that run seeds")
    parser.add_argument("--stories", type=int, default=1, help="to be shrunk and printed, of each broken promise")
    parser.add_argument("--adapters", action="store_true", help="the real adapters, not the fakes")
    asked = parser.parse_args()
    run = partial(simulate, adapters=asked.adapters)
    started = time.monotonic()
    calls = faults = bad = 0
    seeds: dict[str, list[int]] = {}
    with ProcessPoolExecutor(asked.processes) as pool:
        for result in pool.map(run, range(asked.first, asked.first + asked.seeds), chunksize=20):
            calls, faults, bad = calls + result.calls, faults + len(result.fired), bad + bool(result.broken)
            for promise in {each.promise for each in result.broken}:
                seeds.setdefault(promise, []).append(result.seed)
        seconds = time.monotonic() - started
        print(
            f"{asked.seeds} seeds in {seconds:.1f} s ({asked.seeds / seconds:.0f} a second), "
            f"{calls} calls, {faults} faults, {bad} seeds with a broken promise"
        )
        counts = Counter({promise: len(found) for promise, found in seeds.items()})
        for promise, count in counts.most_common():
            print(f"{count:6}  {promise}: seeds {', '.join(map(str, seeds[promise][:8]))}")
        chosen = [(seed, promise) for promise, _ in counts.most_common() for seed in seeds[promise][: asked.stories]]
        stories = pool.map(partial(_story, adapters=asked.adapters), chosen)
        for story in stories:
            print(f"\n{story}")
    if asked.seeds == 1 and not bad:
        _print_whole(run(asked.first, traced=True))
    return 1 if bad else 0


def _story(chosen: tuple[int, str], adapters: bool) -> str:
    seed, promise = chosen
    return rendered(shrink(seed, promise, adapters=adapters), promise)


def _print_whole(result: Result) -> None:
    print("\n".join(result.lines))


if __name__ == "__main__":
    sys.exit(main())
