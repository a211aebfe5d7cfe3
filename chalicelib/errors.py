"""What can go wrong, in the language of builds. HTTP numbers live in `web.py`, nowhere else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn


class SlipwayError(Exception):
    """Something went wrong that we can say in a sentence."""


class Invalid(SlipwayError):
    """The request says something that cannot be done. `reasons` is rendered as the API's clients expect it: a mapping
    of field to sentences, or a bare list of sentences for what is wrong with the whole."""

    def __init__(self, reasons: Mapping[str, Sequence[str]] | Sequence[str]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons

    def sentences(self) -> list[str]:
        """Every reason as one line of its own, field names in front."""
        if isinstance(self.reasons, Mapping):
            return [f"{field}: {text}" for field, texts in self.reasons.items() for text in texts]
        return list(self.reasons)


class Malformed(SlipwayError):
    """The request body cannot be read at all."""


class Unauthenticated(SlipwayError):
    """The caller did not say who it is, or not believably."""


class Forbidden(SlipwayError):
    """The caller is known, and may not do this."""


class NotFound(SlipwayError):
    """There is no such thing, or none that the caller may know of."""


class Gone(SlipwayError):
    """It was there, and never will be again: asking again is in vain."""


class TooLarge(SlipwayError):
    """The body exceeds what this way in can carry."""


class NoLog(SlipwayError):
    """Nothing was logged yet, or nothing will be if it `is_complete`. `cursor` is where lines will begin."""

    def __init__(self, words: str = "", cursor: str = "0", *, is_complete: bool = False) -> None:
        super().__init__(words)
        self.cursor, self.is_complete = cursor, is_complete


class Conflict(SlipwayError):
    """Another handler changed the record first: read it again and decide again."""


class KeyReused(SlipwayError):
    """An idempotency key came with another request before."""

    def __init__(self, words: str = "This idempotency key came with another request before; use a new one.") -> None:
        super().__init__(words)


class AlreadyExists(SlipwayError):
    """The thing to be made is there already."""


class Busy(SlipwayError):
    """A service we depend on asks us to come back later. Nothing was started."""


class Throttled(SlipwayError):
    """The caller made too many requests; after `seconds` there is room again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Request was throttled. Expected available in {seconds} seconds.")
        self.seconds = seconds


class NotReusable(SlipwayError):
    """No other build's image can stand for this one's; the message says why, without its subject."""


class ExecutorRefused(SlipwayError):
    """The executor will never run this build as it stands; the message says why."""


class Unavailable(SlipwayError):
    """A service we depend on did not answer; trying again may help."""


def refuse(sentence: str) -> NoReturn:
    """Raises Invalid for this reason."""
    raise Invalid([sentence])


def require(holds: object, sentence: str) -> None:
    """Raises Invalid for this reason unless it `holds`."""
    if not holds:
        refuse(sentence)


def checked(fields: Mapping[str, Any], rules: Mapping[str, Callable[[str, Any], Any]], of: str = "") -> dict[str, Any]:
    """What rules make of the fields that have a value; each is told the field's name, after `of`. Raises Invalid with
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


def quoted(names: Sequence[str]) -> str:
    """Names in a sentence, cut where they are too long or too many."""
    return ", ".join(f"`{name[:64]}`" for name in names[:10])
