"""A project's secrets, from their owner to a build that names them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chalicelib.domain.build import BuildKey
from chalicelib.errors import Forbidden, Gone, Invalid
from chalicelib.usecases import builds, cleanup, execution, projects, secrets, sources
from tests.factories import DIGEST, make_project, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, Create, parsed, stored

ADA, BOB = make_user(), make_user("bob")
VALUE = "hush-3f9a\nsecond line"


def with_secret(name: str, mount: str = "pip") -> dict[str, object]:
    return {"config": {**NESTED, "build": {**NESTED["build"], "secrets": [{"id": mount, "from": name}]}}}  # type: ignore[dict-item]


def put(services: FakeServices, name: str = "token", value: object = VALUE) -> None:
    secrets.put(services, ADA, "ada", "vision", name, {"value": value})


def materials(services: FakeServices, key: BuildKey) -> dict[str, str]:
    """What the build gets once it runs."""
    execution.process(services, key)
    return parsed(services.broker.ask(services.question("materials", stored(services, key))))


def test_a_build_gets_the_values_that_it_names_as_they_are_then(services: FakeServices, create: Create) -> None:
    put(services)
    put(services, "other")
    key = create(**with_secret("token"))
    put(services, value="newer")
    got = materials(services, key)
    assert got["secrets/pip"] == "newer"
    assert [name for name in materials(services, create()) if name.startswith("secrets/")] == []


def test_no_record_has_a_value(services: FakeServices, create: Create) -> None:
    put(services)
    key = create(**with_secret("token"))
    records = repr(vars(services.records)) + repr(builds.get(services, ADA, key))
    assert "'token'" in records
    assert "hush" not in records


def test_a_secret_that_the_project_does_not_have_is_refused_at_once(services: FakeServices, create: Create) -> None:
    before = services.written()
    with pytest.raises(Invalid, match="has no secret `token`; PUT it first"):
        create(**with_secret("token"))
    assert services.written() == before


def test_a_build_whose_secret_was_deleted_since_is_refused_in_words(services: FakeServices, create: Create) -> None:
    put(services)
    key = create(**with_secret("token"))
    secrets.delete(services, ADA, "ada", "vision", "token")
    with pytest.raises(Gone, match="has no secret token any more"):
        materials(services, key)


def test_once_an_attempt_has_its_code_its_secret_opens_no_others(services: FakeServices, create: Create) -> None:
    put(services)
    key = create(**with_secret("token"))
    materials(services, key)
    services.secrets.values = lambda *_: pytest.fail("values were read")  # type: ignore[method-assign]
    for about, told in (("report", {"fetched": "1"}), ("login", {}), ("report", {"digest": DIGEST})):
        answer = services.broker.ask(services.question(about, stored(services, key), **told))  # type: ignore[arg-type]
        assert "hush" not in answer
    with pytest.raises(Gone, match="has its code"):
        materials(services, key)


@pytest.mark.parametrize("value", [None, 1, "", "é" * 2049, "a\0b"], ids=repr)
def test_odd_values_are_refused_without_being_repeated(services: FakeServices, create: Create, value: object) -> None:
    with pytest.raises(Invalid) as refusal:
        put(services, value=value)
    assert refusal.value.reasons == {"value": ["Must be a text of 1 to 4096 bytes, without NUL."]}


def test_a_project_has_fifty_at_most(services: FakeServices, create: Create) -> None:
    for number in range(50):
        put(services, f"s{number}")
    with pytest.raises(Invalid, match="can have 50 secrets"):
        put(services, "one-more")
    put(services, "s7")


def test_others_may_not_even_know_the_names(services: FakeServices, create: Create) -> None:
    for touch in (
        lambda: secrets.names(services, BOB, "ada", "vision"),
        lambda: secrets.put(services, BOB, "ada", "vision", "token", {"value": "v"}),
        lambda: secrets.delete(services, BOB, "ada", "vision", "token"),
    ):
        with pytest.raises(Forbidden):
            touch()


def test_they_go_with_the_project_and_another_of_its_name_has_none(services: FakeServices, create: Create) -> None:
    put(services)
    projects.archive(services, ADA, "ada", "vision", delete=True)
    services.clock.now += timedelta(hours=2)
    cleanup.cleanup(services)
    assert services.secrets.stored == {}
    services.projects.add(make_project())
    assert secrets.names(services, ADA, "ada", "vision") == []


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("/t0k", "username=x-access-token\npassword=/t0k\n"),
        ("ci:/t0k", "username=ci\npassword=/t0k\n"),
    ],
)
def test_a_git_token_is_for_fetching_the_code_alone(
    services: FakeServices, create: Create, token: str, said: str
) -> None:
    put(services, "git-token", token)
    without = create()
    sources.use_git(services, ADA, "ada", "vision", {"git_url": "https://git.test/x"})
    assert "git-login" not in materials(services, without)
    got = materials(services, create())
    assert (got["git-login"], got["git-masks"]) == (said, "s/\\/t0k/***/g\n")
    with pytest.raises(Invalid, match="for fetching code only"):
        create(**with_secret("git-token"))
    secrets.delete(services, ADA, "ada", "vision", "git-token")
    assert "git-login" not in materials(services, create())


def test_a_git_token_cannot_say_more_to_git_than_itself(services: FakeServices, create: Create) -> None:
    with pytest.raises(Invalid, match="one line"):
        put(services, "git-token", "t0k\nhost=elsewhere")
