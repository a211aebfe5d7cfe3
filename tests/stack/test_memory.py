"""Memory of the one-machine stack: it grows with what is stored, and with nothing else."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.stack.conftest import PROJECT, Client

pytestmark = [pytest.mark.slow, pytest.mark.proof]
CLIENTS = 8


def post_builds(client: Client, count: int) -> None:
    """Records that run nothing, from some clients at once."""
    content = json.dumps({"version": 1, "kind": "build", "image": "scratch", "build_steps": ["true"]})

    def post(_: int) -> None:
        fields = {"content": content, "is_managed": False}
        status, body = client.call("POST", f"{PROJECT}/builds/", fields)
        assert status == 201, body

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(post, range(count)))


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_a_record_costs_the_same_however_many_there_are(client: Client) -> None:
    post_builds(client, 20)  # what is only made once is there
    counts = [objects()]
    for _ in range(4):
        post_builds(client, 40)
        counts.append(objects())

    # A build's item has some ten columns. One object for each pair of builds would be 7,000 in the last round.
    assert max(after - before for before, after in pairwise(counts)) < 40 * 50
