"""Settings are read from variables, and an error says which one and what is wrong with it."""

from __future__ import annotations

import pytest
from msgspec import Struct
from msgspec.structs import asdict

from chalicelib.ports import Question, RegistryLogin
from chalicelib.settings import BUILDKIT, EksSettings, read

NEEDED = {
    f"SLIPWAY_{name}": "x"
    for name in (
        *("TABLE", "DISPATCH_QUEUE_URL", "LOG_QUEUE_URL", "HOOK_QUEUE_URL", "DEAD_LETTER_QUEUE_URL"),
        *("CODEBUILD_PROJECT", "BUCKET", "REGISTRY", "BUILD_KEY_SECRET"),
    )
} | {"SLIPWAY_REGISTRY_KIND": "ecr"}
CLUSTER = {"SLIPWAY_EKS_CLUSTER": "lab"}


def test_texts_become_numbers() -> None:
    settings = read({**NEEDED, "SLIPWAY_PURGE_AFTER_DAYS": "3", "SLIPWAY_PRICE_PER_MINUTE": "0.005"})
    assert (settings.purge_after_days, settings.price_per_minute) == (3, 0.005)


def test_an_empty_variable_is_not_set() -> None:
    settings = read({**NEEDED, "SLIPWAY_BUILDKIT_IMAGE": "", "SLIPWAY_EKS_CLUSTER": ""})
    assert settings.buildkit_image == BUILDKIT["userns"]
    assert settings.eks is None


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(KeyError, match=r"Set SLIPWAY_TABLE, SLIPWAY_BUCKET in the environment\."):
        read({**NEEDED, "SLIPWAY_TABLE": "", "SLIPWAY_BUCKET": ""})


def test_a_cluster_has_lists_and_pairs() -> None:
    more = {"SLIPWAY_EKS_NODE_KEYS": "disk, pool", "SLIPWAY_EKS_NODE_SELECTOR": "a=b, c="}
    assert read({**NEEDED, **CLUSTER, **more}).eks == EksSettings(
        "lab", node_keys=("disk", "pool"), node_selector={"a": "b", "c": ""}
    )


@pytest.mark.parametrize(
    "record",
    [
        read({**NEEDED, "SLIPWAY_REGISTRY_LOGIN": "AWS:s3cr3t"}),
        RegistryLogin("registry.test", "AWS", "s3cr3t"),
        Question("login", "ada/vision/1", 1, "s3cr3t", {}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_that_is_printed_shows_no_secret(record: Struct) -> None:
    assert "s3cr3t" in str(asdict(record))
    assert "s3cr3t" not in f"{record} {record!r} {[record]}"


def test_limits_on_running_builds_are_of_a_scope() -> None:
    """The deployment, an owner, a project; 0 is no limit, but all together have one where any is set."""
    assert not read(NEEDED).limits_builds
    for name, value in (("", "3"), ("_PER_OWNER", "3"), ("_PER_PROJECT", "3"), ("_OF", "ada=3")):
        assert read({**NEEDED, f"SLIPWAY_MAX_RUNNING_BUILDS{name}": value}).limits_builds
    more = {"SLIPWAY_MAX_RUNNING_BUILDS_PER_OWNER": "4", "SLIPWAY_MAX_RUNNING_BUILDS_OF": "ada=5, eve/vision=2, bob=0"}
    limit_of = read({**NEEDED, **more}).max_running_of
    assert [limit_of(scope) for scope in ("", "ada", "eve", "bob", "ada/vision", "eve/vision")] == [500, 5, 4, 0, 0, 2]
    settings = read({**NEEDED, "SLIPWAY_MAX_RUNNING_BUILDS": "7", "SLIPWAY_MAX_RUNNING_BUILDS_PER_PROJECT": "1"})
    assert [settings.max_running_of(scope) for scope in ("", "ada", "ada/vision")] == [7, 0, 1]


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SLIPWAY_REQUESTS_PER_MINUTE", "many", "Expected `int`, got `str`"),
        ("SLIPWAY_BUILD_TIMEOUT_MINUTES", "3", "Expected `int` >= 5"),
        ("SLIPWAY_QUEUE_TIMEOUT_MINUTES", "481", "Expected `int` <= 480"),
        ("SLIPWAY_REGISTRY_KIND", "docker", "Invalid enum value 'docker'"),
        ("SLIPWAY_BACKEND", "gke", "Invalid enum value 'gke'"),
        ("SLIPWAY_EKS_PROFILE", "root", "Invalid enum value 'root'"),
        ("SLIPWAY_EKS_NODE_SELECTOR", "disk", "Expected `key=value,…`"),
        ("SLIPWAY_MAX_RUNNING_BUILDS", "501", "Expected `int` <= 500"),
        ("SLIPWAY_MAX_RUNNING_BUILDS_OF", "ada", "Expected `key=value,…`"),
        ("SLIPWAY_MAX_RUNNING_BUILDS_OF", "ada=2,eve=some", "Expected `int`, got `str`"),
        ("SLIPWAY_MAX_RUNNING_BUILDS_OF", "ada=-1", "Expected `int` >= 0"),
    ],
)
def test_an_error_names_the_variable_and_what_is_wrong(variable: str, value: str, why: str) -> None:
    with pytest.raises(ValueError) as raised:
        read({**NEEDED, **CLUSTER, variable: value})
    assert str(raised.value) == f"{variable} is {value!r}: {why}."


@pytest.mark.parametrize("value", ["latest", "v*, main", "*-*", "1.*", "a,b,c,d,e"])
def test_tags_that_move_are_patterns(value: str) -> None:
    assert ",".join(read({**NEEDED, "SLIPWAY_MOVABLE_TAGS": value}).tag_patterns) == value.replace(" ", "")


@pytest.mark.parametrize("value", ["*", "1*", "12", "a,*", "a,b,c,d,e,f", "a*b*c*", "a b", "a?", "é", "a,", "x" * 129])
def test_no_tag_that_moves_may_be_a_number_or_nothing_of_ecrs(value: str) -> None:
    with pytest.raises(ValueError, match=r"SLIPWAY_MOVABLE_TAGS is .*: Expected at most five patterns"):
        read({**NEEDED, "SLIPWAY_MOVABLE_TAGS": value})


def test_the_backend_eks_needs_a_cluster() -> None:
    with pytest.raises(ValueError, match=r"^SLIPWAY_BACKEND is eks; offered: codebuild\.$"):
        read({**NEEDED, "SLIPWAY_BACKEND": "eks"})
    assert read({**NEEDED, **CLUSTER, "SLIPWAY_BACKEND": "eks"}).executors == ("codebuild", "eks")
