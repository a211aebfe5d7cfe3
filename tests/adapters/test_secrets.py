"""What Secrets promise: the fake and SSM alike."""

from __future__ import annotations

import uuid

import boto3
import pytest
from botocore.exceptions import ClientError

from chalicelib.adapters.secrets import SsmSecrets
from chalicelib.domain.record import replace
from chalicelib.errors import Busy, Invalid, NotFound, Unavailable
from chalicelib.ports import Secrets
from tests.factories import make_project
from tests.fakes import FakeSecrets

PROJECT = make_project()
ODD = " two\nlines, 'quotes' \"$HOME\" \\ é\t\n"


@pytest.fixture(params=["fake", "SSM"])
def secrets(request: pytest.FixtureRequest) -> Secrets:
    if request.param == "fake":
        return FakeSecrets()
    request.getfixturevalue("on_aws")
    return SsmSecrets(f"/slipway/{uuid.uuid4().hex}")


def test_a_value_comes_back_as_it_was_and_may_be_replaced(secrets: Secrets) -> None:
    secrets.put(PROJECT, "a", "first")
    secrets.put(PROJECT, "a", ODD)
    secrets.put(PROJECT, "b", "x" * 4096)
    assert secrets.values(PROJECT, ["b", "a"]) == {"a": ODD, "b": "x" * 4096}


def test_more_names_than_a_page_has_are_all_listed_and_read(secrets: Secrets) -> None:
    names = [f"s{number:02}" for number in range(23)]
    for name in reversed(names):
        secrets.put(PROJECT, name, f"v{name}")
    assert secrets.names(PROJECT) == names
    assert secrets.values(PROJECT, names) == {name: f"v{name}" for name in names}


def test_projects_have_their_own_also_one_of_the_same_name_later(secrets: Secrets) -> None:
    secrets.put(PROJECT, "a", "v")
    for other in (replace(PROJECT, uuid="f" * 32), make_project("bob"), make_project(name="other")):
        assert secrets.names(other) == []
        assert secrets.values(other, ["a"]) == {}


def test_what_was_deleted_is_gone(secrets: Secrets) -> None:
    secrets.put(PROJECT, "a", "v")
    secrets.delete(PROJECT, "a")
    assert secrets.names(PROJECT) == []
    assert secrets.values(PROJECT, ["a"]) == {}
    with pytest.raises(NotFound):
        secrets.delete(PROJECT, "a")


def test_names_with_a_slash_are_values_that_no_list_has(secrets: Secrets) -> None:
    secrets.put(PROJECT, "a", "v")
    secrets.put(PROJECT, "hooks/a", "w")
    assert secrets.names(PROJECT) == ["a"]
    assert secrets.values(PROJECT, ["hooks/a", "hooks/b", "a"]) == {"hooks/a": "w", "a": "v"}
    secrets.delete(PROJECT, "hooks/a")
    assert secrets.values(PROJECT, ["hooks/a", "a"]) == {"a": "v"}


def test_parameters_are_encrypted_and_below_the_prefix(on_aws: None) -> None:
    prefix = f"/slipway/{uuid.uuid4().hex}"
    SsmSecrets(prefix).put(PROJECT, "a", "v")
    (found,) = boto3.client("ssm").get_parameters_by_path(Path=prefix, Recursive=True)["Parameters"]
    assert (found["Name"], found["Type"]) == (f"{prefix}/ada/{PROJECT.uuid}/a", "SecureString")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ValidationException", Invalid),
        ("ParameterLimitExceeded", Invalid),
        ("ThrottlingException", Busy),
        ("InternalServerError", Unavailable),
    ],
)
def test_refusals_are_in_our_words_which_never_have_the_value(
    on_aws: None, monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception]
) -> None:
    secrets = SsmSecrets("/slipway/x")

    def refuse(**given: str) -> None:
        raise ClientError({"Error": {"Code": code, "Message": f"Value {given['Value']!r}"}}, "PutParameter")

    monkeypatch.setattr(secrets._ssm, "put_parameter", refuse)
    with pytest.raises(error) as refusal:
        secrets.put(PROJECT, "a", "hush-hush")
    assert "hush" not in str(refusal.value)


def test_throttling_is_retried(on_aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the SDK, with growing pauses; of them this test leaves out the waiting."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    secrets = SsmSecrets("/slipway/x")
    asked: list[int] = []

    def answer(**_: object) -> object:
        from botocore.awsrequest import AWSResponse

        asked.append(1)
        is_last = len(asked) == 4
        body = b'{"Version": 1}' if is_last else b'{"__type": "ThrottlingException", "message": "slow"}'
        response = AWSResponse("https://ssm.test", 200 if is_last else 400, {}, None)
        response._content = body
        return response

    secrets._ssm.meta.events.register("before-send.ssm.PutParameter", answer)
    secrets.put(PROJECT, "a", "v")
    assert len(asked) == 4
