"""The broker behind a function of its own: what is asked and answered arrives as it was."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from chalicelib.adapters.broker import LambdaBroker, answer
from chalicelib.errors import Conflict, Forbidden, Gone, Invalid, SlipwayError, Throttled, Unavailable
from chalicelib.ports import Question

QUESTION = Question("report", "ada/vision/1", 2, "hush", {"digest": "sha256:ab"})


@dataclass
class Function:
    """The broker's, as the SDK invokes it."""

    outcome: str | Exception
    asked: list[Question] = field(default_factory=list)

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - the SDK's names
        assert FunctionName == "broker"
        return {"Payload": io.BytesIO(json.dumps(answer(json.loads(Payload), self.ask)).encode())}

    def ask(self, question: Question) -> str:
        self.asked.append(question)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def broker(on_aws: None) -> LambdaBroker:
    return LambdaBroker("broker")


def test_the_question_and_its_answer_arrive(broker: LambdaBroker) -> None:
    broker._lambda = function = Function("Dockerfile RlJPTSB4\n")
    assert broker.ask(QUESTION) == "Dockerfile RlJPTSB4\n"
    assert function.asked == [QUESTION]


@pytest.mark.parametrize(
    "refusal",
    [
        Forbidden("no"),
        Gone("over"),
        Throttled(7),
        Invalid({"digest": ["wrong"]}),
        Conflict("others"),
        Unavailable("ECR did not answer"),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_refusal_is_the_same_on_this_side(broker: LambdaBroker, refusal: SlipwayError) -> None:
    broker._lambda = Function(refusal)
    with pytest.raises(type(refusal)) as raised:
        broker.ask(QUESTION)
    assert str(raised.value) == str(refusal)


def test_a_function_that_failed_is_unavailable(broker: LambdaBroker) -> None:
    class Failed:
        def invoke(self, **_: Any) -> dict[str, Any]:
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(b'{"errorMessage": "timed out"}')}

    broker._lambda = Failed()
    with pytest.raises(Unavailable, match="The broker did not answer"):
        broker.ask(QUESTION)
