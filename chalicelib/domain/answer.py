"""The size of an answer as Lambda passes it to API Gateway: as JSON, with the body as one string."""

import json
from collections.abc import Iterable
from itertools import accumulate, takewhile

MAX_ANSWER_BYTES = 6_000_000  # of the whole answer; Lambda refuses more than 6,291,556


def encoded_bytes(value: object) -> int:
    """The most bytes that a value has as JSON: before Python 3.12, Lambda's runtime escapes all but ASCII."""
    return len(json.dumps(value))


def fitting(texts: Iterable[str], limit: int) -> int:
    """How many texts, from the first on, have together at most `limit` bytes when encoded."""
    sizes = accumulate(encoded_bytes(text) - 2 for text in texts)  # without the quotes
    return sum(1 for _ in takewhile(lambda size: size <= limit, sizes))
