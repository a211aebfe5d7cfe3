"""What is applied to a cluster, and the check that says what it lacks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from chalicelib.adapters.eks.job import job_of
from chalicelib.settings import EksSettings
from tests.factories import SETTINGS, make_build

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
STRICT = [{"name": "NETWORK_POLICY_ENFORCING_MODE", "value": "strict"}]
CNI: dict[str, Any] = {
    "metadata": {"name": "aws-node"},
    "spec": {"template": {"spec": {"containers": [{"args": ["--enable-network-policy=true"]}, {"env": STRICT}]}}},
    "status": {"numberReady": 2, "desiredNumberScheduled": 2},
}


class Cluster:
    """Answers like kubectl, from the manifests and what a test says."""

    def __init__(self, manifests: list[Any], nodes: list[Any], daemons: list[Any], **lists: list[Any]) -> None:
        self.manifests = manifests
        self.lists: dict[str, list[Any]] = {"nodes": nodes, "daemonsets": daemons, **lists}
        self.refusal, self.added = "", list[Any]()

    def try_out(self, thing: Any) -> tuple[str, Any]:
        containers = [*thing["spec"]["containers"], *self.added]
        return self.refusal, None if self.refusal else {**thing, "spec": {**thing["spec"], "containers": containers}}

    def get(self, kind: str, name: str = "", *_: str) -> Any:
        if kind in self.lists:
            return {"items": self.lists[kind]}
        kinds = {"networkpolicies": "NetworkPolicy", "resourcequotas": "ResourceQuota"}
        if kind in kinds:
            return {"items": [each for each in self.manifests if each["kind"] == kinds[kind]]}
        found = [each for each in self.manifests if each["kind"].lower() == kind and each["metadata"]["name"] == name]
        return found[0] if found else None


def test_a_cluster_with_everything_lacks_nothing() -> None:
    cluster = Cluster(MANIFESTS, [NODE], [CNI, {"metadata": {"name": "fluent-bit"}}])
    told = list(check.findings(cluster))
    assert not [sentence for mark, sentence in told if mark == "missing"]
    fine = [sentence for mark, sentence in told if mark == "ok"]
    assert "A pod has the network policy from its first second on." in fine
    assert "aws-node enforces network policies on all nodes." in fine
    assert "The cluster takes the pod of a build as it is." in fine


def findings(
    *daemons: Any, nodes: Any = (NODE,), cluster: Cluster | None = None, **lists: Any
) -> list[tuple[str, str]]:
    return list(check.findings(cluster or Cluster(MANIFESTS, list(nodes), list(daemons), **lists)))


def test_the_pod_that_is_tried_is_that_of_a_build() -> None:
    job = job_of(make_build(), EksSettings("lab"), SETTINGS)
    pod, tried = job["spec"]["template"]["spec"], check.POD["spec"]
    for field in ("restartPolicy", "automountServiceAccountToken", "hostUsers"):
        assert tried[field] == pod[field]
    for field in ("name", "securityContext", "resources"):
        assert tried["containers"][0][field] == pod["containers"][0][field]
    assert EksSettings("lab").namespace == check.NAMESPACE


def test_policies_that_nobody_enforces_everywhere_and_at_once_are_found() -> None:
    assert ("missing", "Nothing enforces network policies: turn on `enableNetworkPolicy` of the VPC CNI add-on.") in (
        findings()
    )
    half = {**CNI, "status": {"numberReady": 1, "desiredNumberScheduled": 2}}
    assert ("missing", "aws-node enforces network policies on 1 of 2 nodes.") in findings(half)
    agent = {"containers": [{"args": ["--enable-network-policy=true"]}]}
    late = {**CNI, "spec": {"template": {"spec": agent}}}
    assert (
        "!",
        "VPC CNI: NETWORK_POLICY_ENFORCING_MODE is not strict: a pod has no policy in its first seconds.",
    ) in findings(late)
    calico = {"metadata": {"name": "calico-node"}, "status": CNI["status"]}
    assert ("ok", "calico-node enforces network policies on all nodes.") in findings(calico)


@pytest.mark.parametrize("value", [None, "false", "true"])
def test_auto_mode_enforces_policies_where_its_config_says_so(value: str | None) -> None:
    node = {**NODE, "metadata": {"name": "n1", "labels": {"eks.amazonaws.com/compute-type": "auto"}}}
    config = {"kind": "ConfigMap", "metadata": {"name": "amazon-vpc-cni"}}
    manifests = [*MANIFESTS, {**config, "data": {"enable-network-policy-controller": value}}] if value else MANIFESTS
    told = findings(cluster=Cluster(manifests, [node], []))
    assert (("ok", "EKS Auto Mode enforces network policies.") in told) == (value == "true")
    assert any(mark == "missing" and "amazon-vpc-cni" in words for mark, words in told) == (value != "true")


@pytest.mark.parametrize(
    ("words", "mark", "said"),
    [
        ('admission webhook "kyverno" denied the request: no privileged pods', "missing", "refuses the pod"),
        ("exceeded quota: builds, requested: pods=1", "missing", "refuses the pod"),
        ('pods is forbidden: User "ann" cannot create resource "pods"', "!", "could not be tried"),
        ('admission webhook "x" does not support dry run', "!", "could not be tried"),
    ],
)
def test_what_refuses_a_build_is_told_in_its_words(words: str, mark: str, said: str) -> None:
    cluster = Cluster(MANIFESTS, [NODE], [CNI])
    cluster.refusal = words
    assert [m for m, sentence in findings(cluster=cluster) if said in sentence and words in sentence] == [mark]


def test_a_webhook_that_puts_containers_into_pods_is_found() -> None:
    cluster = Cluster(MANIFESTS, [NODE], [CNI])
    cluster.added = [{"name": "istio-proxy"}]
    assert any(mark == "missing" and "puts istio-proxy into pods" in words for mark, words in findings(cluster=cluster))


@pytest.mark.parametrize(
    ("selector", "resources", "is_named"),
    [
        ({}, ["pods"], True),
        ({}, ["*"], True),
        ({}, ["services"], False),
        ({"matchLabels": {"istio-injection": "enabled"}}, ["pods"], False),
        ({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}, ["jobs"], True),
        (
            {
                "matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["slipway-builds"]}
                ]
            },
            ["pods"],
            True,
        ),
        ({"matchExpressions": [{"key": "skip", "operator": "Exists"}]}, ["pods"], False),
    ],
)
def test_webhooks_that_see_pods_of_builds_are_named(selector: Any, resources: list[str], is_named: bool) -> None:
    hook = {"name": "a.hook", "namespaceSelector": selector, "rules": [{"resources": resources}]}
    told = findings(CNI, validatingwebhookconfigurations=[{"webhooks": [hook]}])
    words = "The webhook a.hook sees pods of builds; without its answer there are no builds."
    assert (("!", words) in told) == is_named
    told = findings(CNI, mutatingwebhookconfigurations=[{"webhooks": [{**hook, "failurePolicy": "Ignore"}]}])
    assert (("!", "The webhook a.hook sees pods of builds.") in told) == is_named


@pytest.mark.parametrize(
    ("hard", "used", "mark"),
    [
        ({"requests.memory": "200Gi"}, {"requests.memory": "10Gi"}, None),
        ({"requests.memory": "1Gi"}, {}, "missing"),
        ({"requests.cpu": "4"}, {"requests.cpu": "3500m"}, "missing"),
        ({"cpu": "4"}, {"cpu": "1500m"}, "!"),
        ({"limits.ephemeral-storage": "100Gi"}, {"limits.ephemeral-storage": "81920Mi"}, "!"),
        ({"pods": "10"}, {"pods": "10"}, "missing"),
        ({"services": "0"}, {}, None),
    ],
)
def test_a_quota_that_lets_few_builds_in_is_named(hard: Any, used: Any, mark: str | None) -> None:
    quota = {"kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {"used": used}}
    told = findings(cluster=Cluster([*MANIFESTS, quota], [NODE], [CNI]))
    assert [m for m, words in told if "The quota team lets" in words] == ([mark] if mark else [])


def test_nodes_whose_soci_snapshotter_starts_no_user_namespaces_are_named() -> None:
    def node(image: str) -> Any:
        return {**NODE, "status": {"nodeInfo": {"kubeletVersion": "v1.35.1", "osImage": image}}}

    old, new = "Bottlerocket OS 1.61.0 (aws-k8s-1.35)", "Bottlerocket OS 1.62.0 (aws-k8s-1.35)"
    told = findings(CNI, nodes=[node(old), node(new)])
    named = [words for _, words in told if "snapshotter = soci" in words]
    assert named == [f"n1: {old} starts no user namespaces with snapshotter = soci."]
    soci = {"metadata": {"name": "soci-snapshotter-grpc"}}
    assert any("soci-snapshotter-grpc: with the SOCI snapshotter" in words for _, words in findings(CNI, soci))


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
    assert any("No node is reserved for builds" in sentence for _, sentence in told)
