"""The broker in a separate Lambda function, which the API's function invokes."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import boto3
from botocore.config import Config
from msgspec.structs import asdict

from chalicelib.adapters.aws import answered
from chalicelib.errors import Busy, Conflict, Forbidden, Gone, Invalid, SlipwayError, Throttled, Unavailable
from chalicelib.ports import Question

READ_SECONDS = 20  # the broker's timeout; the API's function has a little more
_REFUSALS = {kind.__name__: kind for kind in (Busy, Conflict, Forbidden, Gone, Invalid, Throttled, Unavailable)}


class LambdaBroker:
    """`Broker` in a Lambda function."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._lambda: Any = boto3.client("lambda", config=Config(read_timeout=READ_SECONDS))

    def ask(self, question: Question) -> str:
        with answered("The broker"):
            answer = self._lambda.invoke(FunctionName=self._function, Payload=json.dumps(asdict(question)))
            said = json.loads(answer["Payload"].read())
        if "answer" in said:
            return str(said["answer"])
        if (kind := _REFUSALS.get(said.get("refused", ""))) is not None:
            raise kind(said["words"])
        raise Unavailable("The broker did not answer; try again.")


def answer(event: Mapping[str, Any], ask: Callable[[Question], str]) -> dict[str, Any]:
    """The result of the function: the answer to the event's question, or the error."""
    try:
        return {"answer": ask(Question(**event))}
    except SlipwayError as error:
        seconds_or_words = error.seconds if isinstance(error, Throttled) else str(error)
        words = error.reasons if isinstance(error, Invalid) else seconds_or_words
        return {"refused": type(error).__name__, "words": words}
