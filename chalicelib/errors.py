"""Domain errors. Only `web.py` knows their HTTP statuses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn


class SlipwayError(Exception):
    """Base of all errors that have a message for users or operators."""


class Invalid(SlipwayError):
    """The request is not valid. `reasons` are sentences by field, or a list of sentences about the whole request; the
    API renders them in this form."""

    def __init__(self, reasons: Mapping[str, Sequence[str]] | Sequence[str]) -> None:
        self.reasons = reasons
        super().__init__(" ".join(self.sentences()))

    def sentences(self) -> list[str]:
        """All reasons as lines, with the names of their fields in front."""
        if isinstance(self.reasons, Mapping):
            return [f"{field}: {text}" for field, texts in self.reasons.items() for text in texts]
        return list(self.reasons)


class Malformed(SlipwayError):
    """The request body cannot be parsed."""


class Unauthenticated(SlipwayError):
    """The request has no valid token."""


class Forbidden(SlipwayError):
    """The caller may not do this."""


class NotFound(SlipwayError):
    """The resource does not exist, or the caller may not know of it."""


class Gone(SlipwayError):
    """The resource existed, and never will again; do not repeat the request."""


class TooLarge(SlipwayError):
    """The body is larger than this route accepts."""


class NoLog(SlipwayError):
    """There is no log yet; if `is_complete`, there never will be. `cursor` is the position of its first line."""

    def __init__(self, words: str = "", cursor: str = "0", *, is_complete: bool = False) -> None:
        super().__init__(words)
        self.cursor, self.is_complete = cursor, is_complete


class Conflict(SlipwayError):
    """Another handler has changed the record: read it again and decide again."""


class KeyReused(SlipwayError):
    """The idempotency key was used with another request before."""


class AlreadyExists(SlipwayError):
    """The resource exists already."""


class Busy(SlipwayError):
    """A service asks to try again later. Nothing was started."""


class Throttled(SlipwayError):
    """The caller made too many requests, and may try again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Request was throttled. Expected available in {seconds} seconds.")
        self.seconds = seconds


class ExecutorRefused(SlipwayError):
    """The executor will never run this build; the message says why."""


class Unavailable(SlipwayError):
    """A service did not answer; try again."""


def refuse(sentence: str) -> NoReturn:
    """Raises Invalid with this sentence."""
    raise Invalid([sentence])


def require(holds: object, sentence: str) -> None:
    """Raises Invalid for this reason unless it `holds`."""
    if not holds:
        refuse(sentence)


def checked(fields: Mapping[str, Any], rules: Mapping[str, Callable[[str, Any], Any]], of: str = "") -> dict[str, Any]:
    """What rules make of the fields that have a value; each gets the field's name, after `of`. Raises Invalid with
    the faults of all."""
    made: dict[str, Any] = {}
    faults: list[str] = []
    for name, rule in rules.items():
        if fields.get(name) is not None:
            try:
                made[name] = rule(f"{of}{name}", fields[name])
            except Invalid as fault:
                faults += fault.sentences()
    if faults:
        raise Invalid(faults)
    return made


def list_of(rule: Callable[[str, Any], Any], of: str, most: int) -> Callable[[str, Any], Any]:
    """The rule of a list of at most `most` entries that follow `rule`. `of` names the entries in messages."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        require(isinstance(value, list) and len(value) <= most, f"`{name}` must be a list of at most {most} {of}.")
        return tuple(rule(f"{name}[{i}]", each) for i, each in enumerate(value))

    return check


def quoted(names: Sequence[str]) -> str:
    """Names for a sentence, cut if they are too long or too many."""
    return ", ".join(f"`{name[:64]}`" for name in names[:10])
