"""What is applied to a cluster, and the check that says what it lacks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "infra" / "aws" / "kubernetes"
MANIFESTS = [
    each
    for path in sorted(FOLDER.glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text().replace("${ENDPOINTS}", "10.0.8.0/26"))
]

specification = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
assert specification is not None
assert specification.loader is not None
check = importlib.util.module_from_spec(specification)
specification.loader.exec_module(check)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']}/{each['metadata']['name']}")
def test_manifests_are_valid(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "slipway-builds"


def test_the_role_is_of_one_namespace_and_reads_no_secrets() -> None:
    (role,) = [each for each in MANIFESTS if each["kind"] == "Role"]
    allowed = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert set(allowed) == {"jobs", "pods", "secrets"}
    assert set(allowed["secrets"]) == {"create"}
    assert not [each for each in MANIFESTS if each["kind"].startswith("ClusterRole")]


NODE = {
    "metadata": {"name": "n1"},
    "spec": {"taints": [{"key": "slipway/builds", "effect": "NoSchedule"}]},
    "status": {"nodeInfo": {"kubeletVersion": "v1.33.2-eks-1", "osImage": "Amazon Linux 2023"}},
}
CNI = {
    "metadata": {"name": "aws-node"},
    "spec": {"template": {"spec": {"containers": [{"args": ["--enable-network-policy=true"]}]}}},
}


class Cluster:
    """Answers like kubectl, from the manifests and what a test says."""

    def __init__(self, manifests: list[Any], nodes: list[Any], daemons: list[Any]) -> None:
        self.manifests, self.lists = manifests, {"nodes": nodes, "daemonsets": daemons}

    def get(self, kind: str, name: str = "", *_: str) -> Any:
        if kind in self.lists:
            return {"items": self.lists[kind]}
        if kind == "networkpolicies":
            return {"items": [each for each in self.manifests if each["kind"] == "NetworkPolicy"]}
        found = [each for each in self.manifests if each["kind"].lower() == kind and each["metadata"]["name"] == name]
        return found[0] if found else None


def test_a_cluster_with_everything_lacks_nothing() -> None:
    cluster = Cluster(MANIFESTS, [NODE], [CNI, {"metadata": {"name": "fluent-bit"}}])
    assert not [sentence for mark, sentence in check.findings(cluster) if mark == "missing"]


def egress(*blocks: dict[str, Any], name: str = "builds", **more: Any) -> dict[str, Any]:
    rule = {"to": [{"ipBlock": block} for block in blocks], **more}
    return {"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": {"egress": [rule]}}


@pytest.mark.parametrize(
    ("policy", "is_fine"),
    [
        (egress({"cidr": "0.0.0.0/0", "except": list(check.PRIVATE[:5])}), True),
        (egress({"cidr": "0.0.0.0/0", "except": list(check.PRIVATE[1:5])}), False),
        (egress({"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}), False),
        (egress({"cidr": "8.0.0.0/8"}), True),
        (egress({"cidr": "::/0"}), False),
        (egress({"cidr": "::/0", "except": ["fc00::/7"]}), True),
        (egress({"cidr": "10.0.0.10/32"}, ports=[{"port": 53}]), True),
        ({"kind": "NetworkPolicy", "metadata": {"name": "builds"}, "spec": {"egress": [{}]}}, False),
    ],
)
def test_a_policy_that_opens_private_networks_is_found(policy: dict[str, Any], is_fine: bool) -> None:
    marks = {sentence: mark for mark, sentence in check.findings(Cluster([policy], [NODE], [CNI]))}
    kept = "The network policy keeps steps from metadata, cluster and private networks."
    assert (marks.get(kept) == "ok") == is_fine


def test_what_another_policy_opens_is_named() -> None:
    more = egress({"cidr": "10.0.8.0/26"}, name="endpoints")
    told = list(check.findings(Cluster([more], [NODE], [CNI])))
    assert ("!", "The network policy endpoints lets steps reach 10.0.8.0/26.") in told


def test_an_empty_cluster_lacks_everything_and_is_told_what_to_do() -> None:
    old = {
        **NODE,
        "spec": {},
        "status": {"nodeInfo": {"kubeletVersion": "v1.30.0", "osImage": "Bottlerocket"}},
    }
    told = list(check.findings(Cluster([], [old], [])))
    missing = [sentence for mark, sentence in told if mark == "missing"]
    assert len(missing) == 8
    assert any("kubectl apply -f access.yaml" in sentence for sentence in missing)
    assert any("rootless" in sentence for mark, sentence in told if mark == "!")
    assert any("No node is kept for builds" in sentence for _, sentence in told)
