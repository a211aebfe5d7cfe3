"""Makes a story that breaks a promise small: without each fault and each request that it does not need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tests.simulation.run import Result, simulate


def shrink(seed: int, promise: str, *, adapters: bool = False) -> Result:
    """The smallest story found of that seed that still breaks the promise, with its lines."""
    run = partial(simulate, seed, adapters=adapters)
    whole = run()
    everything = frozenset(whole.requests)

    def breaks(faults: Sequence[str], requests: Sequence[str]) -> bool:
        result = run(only=frozenset(faults), left_out=everything.difference(requests))
        return any(each.promise == promise for each in result.broken)

    faults, requests = whole.fired, whole.requests
    before = None
    while before != (len(faults), len(requests)):
        before = len(faults), len(requests)
        requests = _fewer(requests, lambda fewer: breaks(faults, fewer))  # noqa: B023 - called at once
        faults = _fewer(faults, lambda fewer: breaks(fewer, requests))  # noqa: B023
    return run(only=frozenset(faults), left_out=everything.difference(requests), traced=True)


def _fewer(items: list[str], breaks: Callable[[list[str]], bool]) -> list[str]:
    """Leaves out ever smaller parts, as long as it still breaks."""
    size = len(items)
    while size >= 1:
        start = 0
        while start < len(items):
            fewer = items[:start] + items[start + size :]
            if breaks(fewer):
                items = fewer
            else:
                start += size
        size //= 2
    return items


def rendered(result: Result, promise: str) -> str:
    """A shrunk story in words, one line per event."""
    words = [str(each) for each in result.broken if each.promise == promise]
    head = [f"seed {result.seed}: {word}" for word in words]
    head.append(f"  {len(result.requests)} requests: {', '.join(result.requests) or '-'}")
    head.append(f"  {len(result.fired)} faults: {'; '.join(result.fired) or '-'}")
    idle = (" -> []", " -> ()", " -> {}")
    lines = [f"  {line}" for line in result.lines if not line.endswith(idle)]
    return "\n".join([*head, *lines])
