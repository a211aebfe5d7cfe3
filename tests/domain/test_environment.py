"""What an environment may say about a pod on a shared cluster."""

from __future__ import annotations

from typing import Any

import pytest

from chalicelib.domain.environment import _NAMES, Placement, check_resources, machine, parse_environment, placement
from chalicelib.errors import Invalid

KEYS = ("disk",)


def asked(environment: dict[str, Any]) -> Placement | None:
    return placement(parse_environment("environment", environment), KEYS)


def test_what_is_allowed_is_kept_and_labels_get_a_prefix_of_their_own() -> None:
    environment = {
        "resources": {"cpu": {"requests": 1, "limits": 2}},
        "labels": {"team": "vision"},
        "annotations": {"note": "any text, with spaces"},
        "node_selector": {"disk": "ssd"},
        "tolerations": [
            {"key": "disk", "value": "ssd", "effect": "NoSchedule"},
            {"key": "disk", "operator": "Exists"},
        ],
        "max_restarts": 3,
        "affinity": None,
        "secret_refs": [],
    }
    assert asked(environment) == Placement(
        labels={"user.slipway/team": "vision"},
        annotations={"user.slipway/note": "any text, with spaces"},
        node_selector={"disk": "ssd"},
        tolerations=(
            {"key": "disk", "value": "ssd", "effect": "NoSchedule", "operator": "Equal"},
            {"key": "disk", "operator": "Exists"},
        ),
    )


def test_resources_are_numbers_as_polyaxon_writes_them() -> None:
    resources = {"cpu": {"request": "0.5", "limits": 2}, "memory": {"limit": "2048", "requests": None}, "gpu": None}
    parsed = parse_environment("environment", {"resources": resources})
    assert parsed.resources == {"cpu": {"requests": 0.5, "limits": 2}, "memory": {"limits": 2048.0}}
    assert parsed.document["resources"] == resources


@pytest.mark.parametrize("amount", ["500m", "1Gi", "", "1e400", "-1", "٣", True, -1, [1]])
def test_other_amounts_are_refused_in_words(amount: Any) -> None:
    with pytest.raises(Invalid, match=r"resources.cpu.request` must be a number"):
        parse_environment("environment", {"resources": {"cpu": {"request": amount}}})


def test_nothing_asked_is_nothing() -> None:
    assert asked({}) is None
    assert asked({"resources": {"cpu": {"requests": 1}}}) is None


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"service_account": "admin"}, "`environment.service_account` is refused for builds on EKS."),
        ({"secret_refs": ["aws"]}, "`environment.secret_refs` is refused for builds on EKS."),
        ({"config_map_refs": ["a"]}, "`environment.config_map_refs` is refused for builds on EKS."),
        ({"configmap_refs": ["a"]}, "`environment.configmap_refs` is refused for builds on EKS."),
        ({"image_pull_secrets": ["a"]}, "`environment.image_pull_secrets` is refused for builds on EKS."),
        ({"affinity": {"nodeAffinity": {}}}, "`environment.affinity` is refused for builds on EKS."),
        ({"persistence": {"data": "x"}}, "`environment.persistence` is refused for builds on EKS."),
        (
            {"node_selector": {"zone": "a"}},
            "`environment.node_selector` may not name this key; this deployment allows only disk.",
        ),
        ({"node_selector": {"disk": 1}}, "`environment.node_selector.disk` must be a text of at most 63"),
        ({"node_selector": ["disk"]}, "`environment.node_selector` must be a mapping."),
        ({"tolerations": [{"operator": "Exists"}]}, "`environment.tolerations[0]` may not name this key"),
        ({"tolerations": [{"key": ["disk"]}]}, "`environment.tolerations[0]` may not name this key"),
        (
            {"tolerations": [{"key": "disk", "operator": "Exists", "value": "a"}]},
            "`environment.tolerations[0].value` must be left out",
        ),
        (
            {"tolerations": [{"key": "disk", "effect": "X"}]},
            "`environment.tolerations[0].effect` must be one of",
        ),
        ({"tolerations": [{"key": "disk", "x": 1}]}, "`environment.tolerations[0]` may have `key`"),
        ({"tolerations": "disk"}, "`environment.tolerations` must be a list"),
        ({"labels": {"kubernetes.io/x": "a"}}, "Names in `environment.labels` are at most 63"),
        ({"labels": {"a": "b c"}}, "Values of `environment.labels` are at most 63"),
        ({"labels": {"a": 1}}, "`environment.labels.a` must be a text."),
        (
            {"labels": {str(n): "a" for n in range(11)}},
            "`environment.labels` must be a mapping of at most 10",
        ),
        ({"annotations": {"a": "x" * 201}}, "Values of `environment.annotations` have at most 200"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused_is_refused_in_a_sentence(environment: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid) as refusal:
        asked(environment)
    (told,) = refusal.value.sentences()
    assert told.startswith(sentence)


def test_without_a_pod_only_what_changes_nothing_is_let_through() -> None:
    """On CodeBuild; labels and annotations are for tools of a cluster."""
    harmless = {"resources": {"cpu": {"limits": 1}}, "labels": {"a/b": "c d"}, "annotations": {"x": "y"}}
    harmless |= {"max_restarts": 3, "index": 1, "node_selector": {}, "tolerations": None}
    assert placement(parse_environment("environment", harmless), None) is None

    kinds: dict[str, Any] = {
        "node_selector": {"disk": "ssd"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"operator": "Exists"}],
        "service_account": "builder",
        "image_pull_secrets": ["a"],
        "secret_refs": ["a"],
        "config_map_refs": ["a"],
        "data_refs": ["a"],
        "artifact_refs": ["a"],
        "configmap_refs": ["a"],
        "persistence": {"data": "a"},
        "outputs": {"jobs": ["a"]},
    }
    assert {*kinds, *harmless} == set(_NAMES)
    with pytest.raises(Invalid) as refusal:
        placement(parse_environment("environment", kinds), None)
    expected = [f"`environment.{kind}` is refused for builds on CodeBuild." for kind in kinds]
    assert refusal.value.sentences() == expected


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"gpu": {"limits": 1}}, "`environment.resources.gpu`: builds have no GPUs."),
        (
            {"memory": {"requests": 2, "limits": 1}},
            "`environment.resources.memory`: `requests` must not exceed",
        ),
        ({"cpu": {"requests": 999_999_999}}, "`environment.resources.cpu`: a build gets 16 at most here."),
        ({"memory": {"limits": 65_537}}, "`environment.resources.memory`: a build gets 65536 at most here."),
        ({"disk": {"requests": 1, "limits": 102_401}}, "`environment.resources.disk`: a build gets 102400"),
    ],
)
def test_what_no_build_gets_is_refused(resources: Any, sentence: str) -> None:
    with pytest.raises(Invalid) as refusal:
        check_resources(resources, (16, 65_536, 102_400))
    (told,) = refusal.value.sentences()
    assert told.startswith(sentence)


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (None, None),
        ({"cpu": {"requests": 0}}, None),
        ({"cpu": {"limits": 0.5}}, "SMALL"),
        ({"cpu": {"requests": 2}, "memory": {"requests": 4_096}}, "SMALL"),
        ({"cpu": {"requests": 1, "limits": 3}}, "MEDIUM"),
        ({"memory": {"limits": 8_193}}, "LARGE"),
        ({"disk": {"requests": 131_073}}, "XLARGE"),
        ({"cpu": {"requests": 37}}, "2XLARGE"),
        ({"cpu": {"requests": 73}}, None),
    ],
)
def test_the_smallest_machine_that_has_the_resources_is_taken(resources: Any, expected: str | None) -> None:
    assert machine(resources) == (expected and f"BUILD_GENERAL1_{expected}")
