"""What an attempt gets for its secret, and what it reports, whatever is lost, repeated or late."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator

import pytest

from chalicelib.domain.build import CODEBUILD, Build, BuildKey, Source, Status
from chalicelib.domain.lifecycle import Outcome
from chalicelib.domain.materials import attempt_secret
from chalicelib.domain.record import replace
from chalicelib.domain.repositories import rights
from chalicelib.errors import Forbidden, Gone, Invalid, Throttled
from chalicelib.usecases import builds, execution, materials, throttle
from tests.factories import DIGEST, NOW, make_user
from tests.fakes import FakeServices
from tests.usecases.conftest import NESTED, Create, parsed, stored, upload

OTHER_DIGEST = "sha256:" + "cd" * 32


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    throttle._taken.clear()
    yield
    throttle._taken.clear()


@pytest.fixture
def running(services: FakeServices, create: Create) -> Build:
    """A build that its executor has started."""
    key = create()
    execution.process(services, key)
    return stored(services, key)


def test_a_secret_is_of_one_attempt_of_one_build_and_one_deployment() -> None:
    of = [(key, uuid, attempt) for key in (b"a", b"b") for uuid in ("1", "2") for attempt in (1, 11)]
    secrets = {attempt_secret(*each) for each in of}
    assert len(secrets) == 8
    assert attempt_secret(b"a", "1", 1) in secrets
    assert all(len(secret) == 64 for secret in secrets)


def test_materials_have_the_dockerfile_the_scripts_and_who_asks_for_logins(
    services: FakeServices, running: Build
) -> None:
    services.deployment_secrets.docker_hub = ("hub", "t0ken")
    got = parsed(services.broker.ask(services.question("materials", running)))

    body = services.builds.body(running.key)
    assert body is not None
    assert got["Dockerfile"] == body.dockerfile
    assert got["ask"] == services.scripts["ask"]
    configuration = json.loads(got["config.json"])
    assert configuration["credHelpers"] == {"registry.test:5000": "slipway"}
    assert configuration["auths"][materials.DOCKER_HUB] == {"username": "hub", "password": "t0ken"}
    assert "code_url" not in got
    assert services.registry_logins.minted == {}  # a login is only minted when it is asked for


def test_an_upload_comes_as_a_link(services: FakeServices, create: Create) -> None:
    sha256 = upload(services)
    key = create()
    execution.process(services, key)
    got = parsed(services.broker.ask(services.question("materials", stored(services, key))))
    assert got["code_url"] == services.sources.url(sha256)


def test_a_login_is_for_the_builds_image_in_the_form_of_a_credential_helper(
    services: FakeServices, running: Build
) -> None:
    answer = json.loads(services.broker.ask(services.question("login", running)))
    assert answer == {"ServerURL": "registry.test:5000", "Username": "AWS", "Secret": "login-1"}
    assert services.registry_logins.minted == {"login-1": rights(running.image)}


@pytest.mark.parametrize("about", ["materials", "login", "report"])
def test_a_wrong_secret_opens_nothing_and_tells_nothing(
    services: FakeServices, running: Build, create: Create, about: str
) -> None:
    other = stored(services, create())
    good = services.question(about, running)  # type: ignore[arg-type]
    for wrong in (
        replace(good, secret="0" * 64),
        replace(good, secret=""),
        replace(good, attempt=good.attempt + 1),
        replace(good, build=str(other.key)),
        replace(good, build="ada/vision/99"),
    ):
        with pytest.raises(Forbidden, match="not one of this build's attempt"):
            services.broker.ask(wrong)


def test_an_attempt_whose_handle_nobody_noted_yet_is_answered(services: FakeServices, create: Create) -> None:
    key = create()
    asked: list[str] = []

    def ask() -> None:
        asked.append(services.broker.ask(services.question("materials", stored(services, key))))

    services.codebuild.after_start = ask
    execution.process(services, key)
    assert asked


def end(services: FakeServices, build: Build) -> None:
    run = services.codebuild.run_of(build.key)
    services.codebuild.end(run, Outcome.FAILED)
    execution.observe(services, CODEBUILD, [run.handle])


def stop(services: FakeServices, build: Build) -> None:
    builds.stop(services, make_user(), build.key)


def fault(services: FakeServices, build: Build) -> None:
    run = services.codebuild.run_of(build.key)
    services.codebuild.end(run, Outcome.FAULT)
    execution.observe(services, CODEBUILD, [run.handle])


@pytest.mark.parametrize("about", ["materials", "login"])
@pytest.mark.parametrize(
    ("happen", "words"),
    [(end, "has ended"), (stop, "is being stopped"), (fault, "attempt is over")],
    ids=["ended", "stopping", "fault"],
)
def test_an_attempt_that_is_over_gets_nothing(
    services: FakeServices, running: Build, about: str, happen: object, words: str
) -> None:
    happen(services, running)  # type: ignore[operator]
    with pytest.raises(Gone, match=words):
        services.broker.ask(services.question(about, running, running.attempt))  # type: ignore[arg-type]


def test_materials_can_be_asked_for_again_until_the_attempt_has_its_code(
    services: FakeServices, running: Build
) -> None:
    """An answer may get lost, and so may that to the report, which is repeated as well."""
    question = services.question("materials", running)
    assert services.broker.ask(question) == services.broker.ask(question)
    for _ in range(2):
        assert services.broker.ask(services.question("report", running, fetched="1")) == ""

    with pytest.raises(Gone, match="has its code"):
        services.broker.ask(question)
    assert services.broker.ask(services.question("login", running))
    assert services.broker.ask(services.question("report", running, digest=DIGEST)) == ""


def test_a_second_attempt_gets_its_own_materials(services: FakeServices, running: Build) -> None:
    services.broker.ask(services.question("report", running, fetched="1"))
    fault(services, running)
    execution.process(services, running.key)
    again = stored(services, running.key)
    assert again.attempt == 2
    assert services.broker.ask(services.question("materials", again))
    with pytest.raises(Gone):
        services.broker.ask(services.question("materials", again, 1))
    services.broker.ask(services.question("report", again, fetched="1"))
    with pytest.raises(Gone):
        services.broker.ask(services.question("report", again, 1, fetched="1"))


def test_what_git_resolved_is_reported(services: FakeServices, create: Create) -> None:
    key = create()
    execution.process(services, key)
    git = replace(stored(services, key), source=Source(git_url="https://git.test/x"))
    build = services.builds.save(git)
    text = "FROM x\nRUN ü > /a?b\n"
    encoded = urlsafe_b64encode(text.encode()).decode()
    commit = "ab" * 20
    services.broker.ask(services.question("report", build, fetched="1", commit=commit, dockerfile=encoded))

    assert stored(services, key).commit == commit
    body = services.builds.body(key)
    assert body is not None
    assert body.found_dockerfile == text
    # steps run now, and what they could report as the build is not believed
    services.broker.ask(services.question("report", build, digest=DIGEST, commit="0" * 40, dockerfile="RlJPTSB5"))
    assert (stored(services, key).commit, services.builds.body(key)) == (commit, body)


def test_build_arguments_are_lines_of_their_own(services: FakeServices, create: Create) -> None:
    arguments = {"B": " two  'words' $x \\", "A": ""}
    key = create(config={**NESTED, "build": {"image": "x", "build_args": arguments}})
    execution.process(services, key)
    got = parsed(services.broker.ask(services.question("materials", stored(services, key))))
    assert parsed(got["build-args"]) == arguments


def test_labels_say_what_is_built_and_not_which_build_it_is(services: FakeServices, create: Create) -> None:
    sha256 = upload(services)
    config = {**NESTED, "build": {"image": "x", "image_tags": ["v1", "latest"]}}
    first, second = (materials_of(services, create(config=config)) for _ in range(2))
    assert first["labels"] == second["labels"]
    assert parsed(first["labels"]) == {
        "org.opencontainers.image.revision": sha256[:40],
        "org.opencontainers.image.version": "v1",
        "org.opencontainers.image.created": "2024-03-01T12:00:00Z",
    }
    assert first["epoch"] == str(int(NOW.timestamp()))

    services.clock.forward(minutes=1)
    upload(services)  # the same code again is as old as before
    assert materials_of(services, create())["epoch"] == first["epoch"]
    upload(services, {"a": "b"})
    assert materials_of(services, create())["epoch"] == str(int(NOW.timestamp()) + 60)


def test_without_code_an_image_has_no_time_but_its_own(services: FakeServices, create: Create) -> None:
    got = materials_of(services, create())
    assert (got["labels"], "epoch" in got) == ("", False)


def materials_of(services: FakeServices, key: BuildKey) -> dict[str, str]:
    execution.process(services, key)
    return parsed(services.broker.ask(services.question("materials", stored(services, key))))


@pytest.mark.parametrize(
    "told",
    [
        {"digest": "latest"},
        {"digest": DIGEST.upper()},
        {"fetched": "1", "commit": "main"},
        {"fetched": "1", "dockerfile": "ü"},
        {"fetched": "1", "dockerfile": "_w=="},
        {"fetched": "1", "dockerfile": urlsafe_b64encode(b"x" * 65_537).decode()},
    ],
)
def test_a_report_that_cannot_be_is_refused(services: FakeServices, running: Build, told: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        services.broker.ask(services.question("report", running, **told))
    assert stored(services, running.key) == running


def test_a_build_reports_a_bounded_number_of_digests(services: FakeServices, running: Build) -> None:
    for number in range(materials.MAX_DIGESTS):
        services.broker.ask(services.question("report", running, digest=f"sha256:{number:064x}"))
    with pytest.raises(Invalid, match="at most"):
        services.broker.ask(services.question("report", running, digest=DIGEST))


def test_requests_of_a_build_are_limited_by_the_minute_and_never_for_its_life(
    services: FakeServices, running: Build
) -> None:
    question = services.question("login", running)
    for _ in range(3):
        for _ in range(materials.REQUESTS_PER_MINUTE):
            services.broker.ask(question)
        with pytest.raises(Throttled):
            services.broker.ask(question)
        services.clock.forward(minutes=1)


def test_strangers_do_not_use_up_what_a_build_may_ask(services: FakeServices, running: Build) -> None:
    wrong = replace(services.question("login", running), secret="0" * 64)
    for _ in range(2 * materials.REQUESTS_PER_MINUTE):
        with pytest.raises(Forbidden):
            services.broker.ask(wrong)
    assert services.broker.ask(services.question("login", running))


# What reports mean for the end of a build


def observed(services: FakeServices, key: BuildKey, outcome: Outcome) -> Build:
    run = services.codebuild.run_of(key)
    services.codebuild.end(run, outcome)
    execution.observe(services, CODEBUILD, [run.handle])
    return stored(services, key)


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.FAULT, Outcome.GONE])
def test_an_image_that_was_reported_is_success_however_the_attempt_ends(
    services: FakeServices, running: Build, outcome: Outcome
) -> None:
    services.push(running)
    build = observed(services, running.key, outcome)
    assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)


def test_an_image_that_no_attempt_reported_is_somebody_elses(services: FakeServices, running: Build) -> None:
    services.registry.push(running.image)
    build = observed(services, running.key, Outcome.SUCCEEDED)
    assert (build.last_status, build.image_digest) == (Status.FAILED, None)


def test_the_registry_has_the_last_word(services: FakeServices, running: Build) -> None:
    services.push(running)
    services.registry.push(running.image, OTHER_DIGEST)
    build = observed(services, running.key, Outcome.SUCCEEDED)
    assert (build.last_status, build.image_digest) == (Status.FAILED, None)


def test_a_late_report_of_an_earlier_attempt_counts(services: FakeServices, running: Build) -> None:
    services.registry.push(running.image)
    fault(services, running)
    assert stored(services, running.key).last_status is Status.WARNING
    services.broker.ask(services.question("report", running, 1, digest=DIGEST))

    execution.process(services, running.key)
    build = stored(services, running.key)
    assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)
    assert len(services.codebuild.runs) == 1  # it was not built again


def test_a_tag_that_stands_there_before_the_first_claim_fails_the_build(services: FakeServices, create: Create) -> None:
    key = create()
    image = stored(services, key).image
    services.registry.prepare(image)
    services.registry.push(image)
    execution.process(services, key)

    build = stored(services, key)
    assert build.last_status is Status.FAILED
    assert build.history[-1].message == (f"The registry has an image {image} already, which this build did not make.")
    assert services.codebuild.runs == {}


def test_whether_the_tag_was_free_is_asked_once(services: FakeServices, create: Create) -> None:
    """A repeated submission never asks: the build's own image may stand there by then."""
    key = create()
    execution.process(services, key)
    build = stored(services, key)
    assert build.tag_was_free
    services.builds.save(replace(build, handle=None))
    services.push(stored(services, key))
    execution.process(services, key)
    assert stored(services, key).handle is not None


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.GONE, Outcome.FAULT])
def test_a_build_that_an_older_version_started_ends_by_its_rule(
    services: FakeServices, running: Build, outcome: Outcome
) -> None:
    """It reports nothing: the registry's answer is enough."""
    services.builds.save(replace(running, tag_was_free=False))
    services.registry.push(running.image)
    build = observed(services, running.key, outcome)
    assert (build.last_status, build.image_digest) == (Status.SUCCEEDED, DIGEST)


def test_a_failed_build_of_an_older_version_stays_failed(services: FakeServices, running: Build) -> None:
    services.builds.save(replace(running, tag_was_free=False))
    services.registry.push(running.image)
    assert observed(services, running.key, Outcome.FAILED).last_status is Status.FAILED


def test_a_build_that_was_told_to_stop_and_fails_for_that_is_stopped(services: FakeServices, running: Build) -> None:
    stop(services, running)
    assert observed(services, running.key, Outcome.FAILED).last_status is Status.STOPPED


def test_a_purged_build_is_not_answered(services: FakeServices, running: Build) -> None:
    del services.records.builds[running.key]
    with pytest.raises(Forbidden):
        services.broker.ask(services.question("materials", running))
