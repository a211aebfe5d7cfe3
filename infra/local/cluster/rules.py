"""What a Kubernetes server refuses, although the official schemas allow it."""

from __future__ import annotations

import re

from infra.local.cluster.objects import Json

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i?|e\d+)?")


def refusal(described: Json) -> str | None:
    """Why a server would not take an object that the schemas allow; None when it would."""
    for check in (_name_fault, _label_fault, _job_fault):
        if fault := check(described):
            return fault
    return None


def _name_fault(described: Json) -> str | None:
    name = described["metadata"].get("name", "")
    longest = 63 if described["kind"] == "Job" else 253
    if not _SUBDOMAIN.fullmatch(name) or len(name) > longest:
        return f"metadata.name: Invalid value: {name!r}: a lowercase RFC 1123 subdomain is expected"
    return None


def _label_fault(described: Json) -> str | None:
    found = [described["metadata"]]
    if described["kind"] == "Job":
        found.append(described["spec"]["template"].get("metadata", {}))
    for metadata in found:
        for kind in ("labels", "annotations"):
            for key, value in metadata.get(kind, {}).items():
                prefix, _, name = key.rpartition("/")
                if not name or not _LABEL.fullmatch(name) or (prefix and not _SUBDOMAIN.fullmatch(prefix)):
                    return f"metadata.{kind}: Invalid value: {key!r}: a qualified name is expected"
                if kind == "labels" and not _LABEL.fullmatch(value):
                    return f"metadata.labels: Invalid value: {value!r}: a label value is expected"
    return None


def _job_fault(described: Json) -> str | None:
    if described["kind"] != "Job":
        return None
    pod = described["spec"]["template"]["spec"]
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        return f"spec.template.spec.restartPolicy: Unsupported value: {pod.get('restartPolicy')!r}"
    if pod.get("hostUsers") is False and (pod.get("hostNetwork") or pod.get("hostPID")):
        return "spec.template.spec.hostUsers: Forbidden: with the host's network or processes"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    names = []
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        names.append(container["name"])
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                return f"volumeMounts: Not found: {mount['name']!r}"
        resources = container.get("resources", {})
        for which in ("requests", "limits"):
            for what, amount in resources.get(which, {}).items():
                if not _QUANTITY.fullmatch(str(amount)):
                    return f"resources.{which}.{what}: quantities must match {_QUANTITY.pattern}"
        for what, amount in resources.get("requests", {}).items():
            limit = resources.get("limits", {}).get(what)
            if limit is not None and _amount(amount) > _amount(limit):
                return f"resources.requests: Invalid value: {amount!r}: must be at most the {what} limit"
    if len(set(names)) < len(names) or any(not _SUBDOMAIN.fullmatch(name) for name in names):
        return "containers: names must be unique DNS labels"
    for toleration in pod.get("tolerations", ()):
        if toleration.get("operator") == "Exists" and toleration.get("value"):
            return "tolerations: value must be empty when operator is Exists"
    return None


def _amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(.*)", quantity).groups()  # type: ignore[union-attr]
    powers = ["", "K", "M", "G", "T", "P", "E"]
    if unit == "m":
        return float(number) / 1000
    base = 1024 if unit.endswith("i") else 1000
    return float(number) * float(base ** powers.index(unit.rstrip("i").upper()))
