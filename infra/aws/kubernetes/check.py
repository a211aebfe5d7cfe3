#!/usr/bin/env python3
"""Says what a cluster lacks to run Slipway's builds: `python infra/aws/kubernetes/check.py [--context NAME]`.

Asks with kubectl, as whoever its configuration names; changes nothing. Exit status: 0 nothing is missing,
1 something is, 2 the cluster cannot be asked. `!` marks what cannot be seen from here and wants a look.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

NAMESPACE = "slipway-builds"
TAINT = "slipway/builds"
SINCE = (1, 33)  # user namespaces for pods are on by default
PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8")
DNS_PORT = 53


class CannotAsk(Exception):
    """kubectl gave no answer; the message is its own."""


class Kubectl:
    def __init__(self, *options: str) -> None:
        self._options = options

    def get(self, *what: str) -> Any:
        """The parsed answer of `kubectl get`, None when there is no such thing. Raises CannotAsk."""
        command = ["kubectl", *self._options, "get", *what, "--output", "json", "--ignore-not-found"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CannotAsk(str(error)) from error
        if done.returncode:
            raise CannotAsk(done.stderr.strip() or f"kubectl ended with {done.returncode}")
        return json.loads(done.stdout) if done.stdout.strip() else None


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
    yield verdict(
        _enforces_policies(kubectl),
        "Something enforces network policies.",
        "Nothing seems to enforce network policies: turn on `enableNetworkPolicy` of the VPC CNI add-on.",
    )
    yield "!", "VPC CNI: NETWORK_POLICY_ENFORCING_MODE=strict; else a pod has no policy in its first seconds."
    yield from _nodes(kubectl.get("nodes")["items"])
    daemons = kubectl.get("daemonsets", "--all-namespaces")["items"]
    yield verdict(
        any("fluent-bit" in each["metadata"]["name"] for each in daemons),
        "Fluent Bit ships logs.",
        "Nothing ships logs: install the add-on amazon-cloudwatch-observability.",
    )
    yield "!", "IMDS hop limit: launch templates of the nodes should say HttpPutResponseHopLimit 1."
    yield "!", "Access: the functions' role needs an access entry of the cluster with the group `slipway`."


def _private(policy: Any) -> list[str]:
    """The ranges of addresses that a policy opens although they hold private ones. DNS may be anywhere."""
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


def _enforces_policies(kubectl: Kubectl) -> bool:
    daemons = {each["metadata"]["name"]: each for each in kubectl.get("daemonsets", "--all-namespaces")["items"]}
    if daemons.keys() & {"cilium", "calico-node"}:
        return True
    containers = daemons.get("aws-node", {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
    return any("--enable-network-policy=true" in (each.get("args") or ()) for each in containers)


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
        else:
            fit.append(node)
    if fit:
        yield "ok", f"{len(fit)} of {len(nodes)} nodes can run builds in user namespaces."
    else:
        yield "missing", "No node can run builds in user namespaces; Fargate cannot either."
    tainted = [n for n in nodes if any(t["key"] == TAINT for t in n["spec"].get("taints") or ())]
    if not tainted:
        yield "!", f"No node is kept for builds: taint a pool with {TAINT}=:NoSchedule."


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
