"""How large an answer is when Lambda hands it to API Gateway: as JSON, in which its text is one string."""

import json
from collections.abc import Iterable
from itertools import accumulate, takewhile

MAX_ANSWER_BYTES = 6_000_000  # of the whole; Lambda refuses 6,291,556


def encoded_bytes(value: object) -> int:
    """The size of a value as JSON, at most: Lambda's runtimes before Python 3.12 escape all but ASCII."""
    return len(json.dumps(value))


def fitting(texts: Iterable[str], limit: int) -> int:
    """How many of the texts, from the first on, are at most `limit` bytes long together when encoded."""
    sizes = accumulate(encoded_bytes(text) - 2 for text in texts)  # without the quotes
    return sum(1 for _ in takewhile(lambda size: size <= limit, sizes))
