#!/usr/bin/env python3
"""Prints what a cluster lacks to run Slipway's builds: `python infra/aws/kubernetes/check.py [--context NAME]`.

Uses kubectl with its current user, and lets the cluster validate a pod without creating it; changes nothing. Exit
status: 0 if nothing is missing, 1 if something is, 2 if the cluster cannot be asked. `!` marks what you have to check
yourself.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

NAMESPACE = "slipway-builds"
TAINT = "slipway/builds"
SINCE = (1, 33)  # user namespaces for pods are on by default
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8")
DNS_PORT = 53
SOCI_FAILS_UNTIL = (1, 61)  # of Bottlerocket: github.com/bottlerocket-os/bottlerocket/issues/4854
RESOURCES = {
    "requests": {"cpu": "1000m", "memory": "2048Mi", "ephemeral-storage": "10240Mi"},
    "limits": {"memory": "4096Mi", "ephemeral-storage": "20480Mi"},
}
POD = {  # a build's pod, with all that a cluster may refuse
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "slipway-check", "namespace": NAMESPACE},
    "spec": {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "hostUsers": False,
        "containers": [
            {
                "name": "build",
                "image": "docker.io/moby/buildkit:latest",
                "securityContext": {"privileged": True},
                "resources": RESOURCES,
            }
        ],
    },
}
# What one build uses of a quota.
TAKES = {"pods": "1", "count/jobs.batch": "1", "count/secrets": "1"} | {
    name: amount
    for which, amounts in RESOURCES.items()
    for kind, amount in amounts.items()
    for name in ((f"{which}.{kind}", kind) if which == "requests" else (f"{which}.{kind}",))
}
UNITS = {"": 1, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class CannotAsk(Exception):
    """kubectl failed; the message is its own."""


class Kubectl:
    def __init__(self, *options: str) -> None:
        self._options = options

    def get(self, *what: str) -> Any:
        """The parsed answer of `kubectl get`; None if there is no such object. Raises CannotAsk."""
        done = self._run("get", *what, "--ignore-not-found")
        if done.returncode:
            raise CannotAsk(done.stderr.strip() or f"kubectl ended with {done.returncode}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def try_out(self, thing: Any) -> tuple[str, Any]:
        """A server-side dry run: the cluster's error message, and the object as it would be created. Raises
        CannotAsk."""
        done = self._run("create", "--dry-run=server", "--filename", "-", given=json.dumps(thing))
        return (done.stderr.strip(), None) if done.returncode else ("", json.loads(done.stdout))

    def _run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = ["kubectl", *self._options, *arguments, "--output", "json"]
        try:
            return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotAsk(str(error)) from error


def findings(kubectl: Kubectl) -> Iterator[tuple[str, str]]:
    """Pairs of a mark (ok, missing, !) and a sentence. Raises CannotAsk."""

    def verdict(holds: object, good: str, bad: str) -> tuple[str, str]:
        return ("ok", good) if holds else ("missing", bad)

    namespace = kubectl.get("namespace", NAMESPACE)
    labels = ((namespace or {}).get("metadata") or {}).get("labels") or {}
    yield verdict(
        labels.get("pod-security.kubernetes.io/enforce") == "privileged",
        f"The namespace {NAMESPACE} lets BuildKit's pods in.",
        f"No namespace {NAMESPACE} that enforces `privileged`: kubectl apply -f namespace.yaml",
    )
    for kind, name, file in (
        ("role", "slipway", "access.yaml"),
        ("rolebinding", "slipway", "access.yaml"),
        ("resourcequota", "builds", "namespace.yaml"),
    ):
        found = kubectl.get(kind, name, "--namespace", NAMESPACE)
        yield verdict(found, f"The {kind} {name} is there.", f"No {kind} {name}: kubectl apply -f {file}")
    policies = (kubectl.get("networkpolicies", "--namespace", NAMESPACE) or {}).get("items", [])
    opened = [_private(each) for each in policies if each["metadata"]["name"] == "builds"]
    yield verdict(
        opened == [[]],
        "The network policy keeps steps from metadata, cluster and private networks.",
        "Steps reach metadata, cluster or private networks: kubectl apply -f network.yaml",
    )
    for policy in policies:
        name, ranges = policy["metadata"]["name"], _private(policy)
        if name != "builds" and ranges:
            yield "!", f"The network policy {name} lets steps reach {', '.join(ranges)}."
    daemons = kubectl.get("daemonsets", "--all-namespaces")["items"]
    nodes = kubectl.get("nodes")["items"]
    yield from _enforcement(kubectl, daemons, nodes)
    yield from _admission(kubectl, labels)
    yield from _quotas((kubectl.get("resourcequotas", "--namespace", NAMESPACE) or {}).get("items", []))
    yield from _nodes(nodes)
    if soci := [each["metadata"]["name"] for each in daemons if "soci" in json.dumps(each)]:
        yield (
            "!",
            f"{', '.join(soci)}: with the SOCI snapshotter, a pod with a user namespace starts in new versions only.",
        )
    yield verdict(
        any("fluent-bit" in each["metadata"]["name"] for each in daemons),
        "Fluent Bit ships logs.",
        "Nothing ships logs: install the add-on amazon-cloudwatch-observability.",
    )
    yield "!", "IMDS hop limit: launch templates of the nodes should say HttpPutResponseHopLimit 1."
    yield "!", "Access: the functions' role needs an access entry of the cluster with the group `slipway`."


def _private(policy: Any) -> list[str]:
    """The address ranges of a policy that include private addresses; DNS is allowed everywhere."""
    opened = []
    for rule in (policy.get("spec") or {}).get("egress") or ():
        if {port.get("port") for port in rule.get("ports") or ()} == {DNS_PORT}:
            continue
        for peer in rule.get("to") or [{}]:  # without `to` it is everything
            block = peer.get("ipBlock") or ({"cidr": "0.0.0.0/0"} if not peer else None)
            if block is not None and not _spares_private(block):
                opened.append(block["cidr"])
            elif block is None:
                opened.append("pods")
    return opened


def _spares_private(block: Any) -> bool:
    cidr = ipaddress.ip_network(block["cidr"])
    spared = [ipaddress.ip_network(each) for each in block.get("except") or ()]
    private = [each for each in map(ipaddress.ip_network, PRIVATE) if each.version == cidr.version]
    return all(
        not cidr.overlaps(each) or any(each.subnet_of(wider) for wider in spared)  # type: ignore[arg-type]
        for each in private
    )


def _enforcement(kubectl: Kubectl, daemons: list[Any], nodes: list[Any]) -> Iterator[tuple[str, str]]:
    """Whether policies are enforced on all nodes, and from a pod's first second on."""
    by_name = {each["metadata"]["name"]: each for each in daemons}
    found = [each for name in ("cilium", "calico-node") if (each := by_name.get(name))]
    containers = by_name.get("aws-node", {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
    if any("--enable-network-policy=true" in (each.get("args") or ()) for each in containers):
        found.append(by_name["aws-node"])
        modes = {env.get("name"): env.get("value") for each in containers for env in each.get("env") or ()}
        if modes.get("NETWORK_POLICY_ENFORCING_MODE") == "strict":
            yield "ok", "A pod has the network policy from its first second on."
        else:
            yield "!", "VPC CNI: NETWORK_POLICY_ENFORCING_MODE is not strict: a pod has no policy in its first seconds."
    if any(_labels(node).get("eks.amazonaws.com/compute-type") == "auto" for node in nodes):
        config = kubectl.get("configmap", "amazon-vpc-cni", "--namespace", "kube-system") or {}
        if (config.get("data") or {}).get("enable-network-policy-controller") == "true":
            yield "ok", "EKS Auto Mode enforces network policies."
            return
        yield "missing", "EKS Auto Mode: ConfigMap kube-system/amazon-vpc-cni, enable-network-policy-controller: true"
    elif not found:
        yield "missing", "Nothing enforces network policies: turn on `enableNetworkPolicy` of the VPC CNI add-on."
    for each in found:
        name, status = each["metadata"]["name"], each.get("status") or {}
        ready, wanted = status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
        if ready < wanted or not wanted:
            yield "missing", f"{name} enforces network policies on {ready} of {wanted} nodes."
        else:
            yield "ok", f"{name} enforces network policies on all nodes."


def _labels(thing: Any) -> Any:
    return thing["metadata"].get("labels") or {}


def _admission(kubectl: Kubectl, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Whether webhooks, policies and quotas accept a build's pod unchanged."""
    words, made = kubectl.try_out(POD)
    if "does not support dry run" in words or "forbidden: User" in words:
        yield "!", f"A pod of a build could not be tried: {words}"
    elif words:
        yield "missing", f"The cluster refuses the pod of a build: {words}"
    elif added := [each["name"] for each in made["spec"]["containers"] if each["name"] != "build"]:
        yield (
            "missing",
            f"A webhook puts {', '.join(added)} into pods, and a Job with what runs on never ends: exempt {NAMESPACE}.",
        )
    else:
        yield "ok", "The cluster takes the pod of a build as it is."
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        for configuration in (kubectl.get(kind) or {}).get("items", []):
            for hook in configuration.get("webhooks") or ():
                seen = {each for rule in hook.get("rules") or () for each in rule.get("resources") or ()}
                if seen & {"pods", "jobs", "*", "*/*"} and _selects(hook.get("namespaceSelector") or {}, labels):
                    silent = (
                        "; without its answer there are no builds"
                        if hook.get("failurePolicy", "Fail") == "Fail"
                        else ""
                    )
                    yield "!", f"The webhook {hook['name']} sees pods of builds{silent}."


def _selects(selector: Any, labels: Mapping[str, str]) -> bool:
    wanted = [
        {"key": key, "operator": "In", "values": [value]} for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for each in wanted + (selector.get("matchExpressions") or []):
        has, listed = each["key"] in labels, labels.get(each["key"]) in (each.get("values") or ())
        if not {"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}[each["operator"]]:
            return False
    return True


def _quotas(quotas: list[Any]) -> Iterator[tuple[str, str]]:
    """Warns of each quota of the namespace into which fewer than five more builds of the default size fit."""
    for quota in quotas:
        name, used = quota["metadata"]["name"], (quota.get("status") or {}).get("used") or {}
        for what, hard in (quota["spec"].get("hard") or {}).items():
            if takes := TAKES.get(what):
                fits = int((_amount(hard) - _amount(used.get(what, "0"))) / _amount(takes))
                if fits < 1:
                    yield (
                        "missing",
                        f"The quota {name} lets no build in: {what} has {hard}, and {used.get(what, 0)} are used.",
                    )
                elif fits < 5:
                    yield "!", f"The quota {name} lets {fits} more builds in: {what} has {hard}."


def _amount(quantity: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(quantity))
    return float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else 0.0


def _nodes(nodes: list[Any]) -> Iterator[tuple[str, str]]:
    fit = []
    for node in nodes:
        info = node["status"]["nodeInfo"]
        major, minor = info["kubeletVersion"].lstrip("v").split(".")[:2]
        os_image = info["osImage"]
        if (int(major), int(minor)) < SINCE:
            yield "!", f"{node['metadata']['name']}: Kubernetes {major}.{minor}; before 1.33 use rootless."
        elif "Bottlerocket" in os_image:
            # EKS Auto Mode runs it as well
            sysctl = "user.max_user_namespaces"
            yield (
                "!",
                f"{node['metadata']['name']}: {os_image} ships {sysctl}=0; builds fail until it is raised.",
            )
            version = re.search(r"(\d+)\.(\d+)", os_image)
            if version and (int(version[1]), int(version[2])) <= SOCI_FAILS_UNTIL:
                yield "!", f"{node['metadata']['name']}: {os_image} starts no user namespaces with snapshotter = soci."
        else:
            fit.append(node)
    if fit:
        yield "ok", f"{len(fit)} of {len(nodes)} nodes can run builds in user namespaces."
    else:
        yield "missing", "No node can run builds in user namespaces; Fargate cannot either."
    tainted = [n for n in nodes if any(t["key"] == TAINT for t in n["spec"].get("taints") or ())]
    if not tainted:
        yield "!", f"No node is reserved for builds: taint a pool with {TAINT}=:NoSchedule."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--context", help="of kubectl's configuration; else the current one")
    context = parser.parse_args().context
    try:
        found = list(findings(Kubectl(*(["--context", context] if context else []))))
    except CannotAsk as error:
        print(f"The cluster cannot be asked: {error}", file=sys.stderr)
        return 2
    for mark, sentence in found:
        print(f"{mark:8}{sentence}")
    return 1 if any(mark == "missing" for mark, _ in found) else 0


if __name__ == "__main__":
    sys.exit(main())
