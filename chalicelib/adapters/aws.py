"""What adapters on AWS share: the translation of the SDK's errors."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.errors import SlipwayError, Unavailable

_MISSING = ("NoSuchKey", "404", "NotFound", "ResourceNotFoundException")


@contextmanager
def answered(
    service: str,
    missing: type[SlipwayError] | None = None,
    refusal: Callable[[str, str], SlipwayError | None] = lambda code, words: None,
    ignored: Collection[str] = (),
) -> Iterator[None]:
    """Converts errors of AWS calls in the block: to `missing` if the resource does not exist, else to what `refusal`
    returns for the error's code and message, else to Unavailable. An error with a code in `ignored` ends the block."""
    try:
        yield
    except BotoCoreError as exc:
        raise Unavailable(f"{service} did not answer; try again.") from exc
    except ClientError as exc:
        # Threads that first use a client at the same time can get different classes from `client.exceptions`.
        code = exc.response["Error"]["Code"]
        if code in ignored:
            return
        if missing is not None and code in _MISSING:
            raise missing from exc
        raise refusal(code, str(exc)) or Unavailable(f"{service} did not answer; try again.") from exc
