"""The limits on builds that run at once: whose turn it is.

A limit belongs to a scope: an owner, a project (`owner/name`), or the deployment (empty text). 0 is no limit.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from msgspec import Struct

from chalicelib.domain.build import BuildKey

LimitOf = Callable[[str], int]


class Running(Struct, frozen=True):
    """The builds that have a slot. `version` changes whenever one is added."""

    builds: frozenset[BuildKey] = frozenset()
    version: int = 0


def why_full(key: BuildKey, running: Iterable[BuildKey], limit_of: LimitOf) -> str | None:
    """The sentence that names the limit because of which a build gets no slot; None if a slot is free."""
    return _why_full(key, _counted(running), limit_of)


def turns(waiting: Iterable[BuildKey], running: Collection[BuildKey], limit_of: LimitOf) -> Iterator[BuildKey]:
    """Those of the waiting builds that can start now, in the order of their turns: each slot goes to the owner with the
    fewest running builds, then to the longest wait. Builds that have a slot already come first. `waiting` begins with
    the longest wait."""
    taken, left = set(running), list(waiting)
    while True:
        counts = _counted(taken)
        left = [key for key in left if key in taken or not _why_full(key, counts, limit_of)]
        if not left:
            return
        ranks = [-1 if key in taken else counts[key.owner] for key in left]
        first = left.pop(ranks.index(min(ranks)))
        taken.add(first)
        yield first


def in_order(waiting: Iterable[BuildKey], running: Collection[BuildKey]) -> list[BuildKey]:
    """The line: all waiting builds in the order in which slots would come to them if only the number of all were
    limited. `waiting` begins with the longest wait."""
    counts = _counted(running)

    def running_before(key: BuildKey) -> int:
        """How many builds of its owner run when its turn comes."""
        if key in running:
            return -1
        counts[key.owner] += 1
        return counts[key.owner]

    return sorted(waiting, key=running_before)


def _counted(running: Iterable[BuildKey]) -> Counter[str]:
    """How many builds each scope runs."""
    return Counter(scope for key in running for scope in _scopes(key))


def _why_full(key: BuildKey, counts: Counter[str], limit_of: LimitOf) -> str | None:
    for scope in _scopes(key):
        if 0 < (limit := limit_of(scope)) <= counts[scope]:
            return f"The limit of running builds is reached: {limit} of {scope or 'this deployment'}."
    return None


def _scopes(key: BuildKey) -> tuple[str, str, str]:
    return "", key.owner, str(key.project_key)
