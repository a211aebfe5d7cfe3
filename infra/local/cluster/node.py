"""The fake cluster's one node, and the controller of its Jobs: pods whose containers are processes here.

In a container's description, paths of its volumes are replaced by folders of this machine; nothing else is isolated.
A script stands in for `buildctl-daemonless.sh` of BuildKit's image: it builds with the local engine, by the step
`build_and_push`.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chalicelib.adapters.steps import step
from infra.local.cluster.objects import Cluster, Json, timestamp
from infra.local.codebuild.buildspec import Phase, in_words
from infra.local.codebuild.log_stream import LogStream
from infra.local.machine.engine import MARK

log = logging.getLogger(__name__)

NAME = "fake-node"
WATCH_SECONDS = 0.05
MAX_LINE = 16_000  # containerd splits longer lines
MESSAGE_LINES, MESSAGE_BYTES = 80, 2048  # the end of the log, in the message of a failed container
_JOB_NAME = "batch.kubernetes.io/job-name"

_BUILDCTL = """\
#!/usr/bin/env bash
# Stands in for BuildKit: takes the same arguments, and builds with the local engine.
set -eu
SLIPWAY_NOCACHE= pushes= secrets=
: >"$SLIPWAY_MEMORY/build-args" >"$SLIPWAY_MEMORY/labels"
while [ $# -gt 0 ]; do
  case "$1" in
    --local) case "$2" in context=*) cd "${2#context=}" ;; esac; shift ;;
    --secret) secrets+=" ${2##*/}"; shift ;;
    --opt) # build-arg:NAME=VALUE, or label:NAME=VALUE
      file=labels given=${2#*:}; case "$2" in build-arg:*) file=build-args ;; esac; shift
      echo "${given%%=*} $(printf '%s' "${given#*=}" | base64 -w 0)" >>"$SLIPWAY_MEMORY/$file" ;;
    --no-cache) SLIPWAY_NOCACHE=1 ;;
    --metadata-file) metadata=$2; shift ;;
    --output) SLIPWAY_IMAGE=${2#*name=}; SLIPWAY_IMAGE=${SLIPWAY_IMAGE%%,*} pushes=1; shift ;;
  esac
  shift
done
for file in "$SLIPWAY_MEMORY/secrets"/*; do
  case "$secrets " in *" ${file##*/} "*) ;; *) rm -f "$file" ;; esac
done
# BuildKit is run twice; the engine here only needs the second run.
if [ -z "$pushes" ]; then
  printf '%s' "$SLIPWAY_NOCACHE" >"$SLIPWAY_MEMORY/nocache"
  exit
fi
SLIPWAY_NOCACHE=$(cat "$SLIPWAY_MEMORY/nocache")
"""
_METADATA = """
printf '{"containerimage.digest": "%s"}' "$(cat "$SLIPWAY_MEMORY/digest")" >"$metadata"
"""


class _Ended(Exception):
    """The pod has to be ended while containers still run, for one of the reasons below."""

    DELETED, JOB_DEADLINE, POD_DEADLINE, CLOSING = "deleted", "job deadline", "pod deadline", "closing"


class Node:
    """Runs the Jobs of a fake cluster, `slots` pods at a time.

    `environment` are the engine's variables; `logs` is a CloudWatch client; `seconds_per_minute` shortens deadlines;
    `clean_up` is called after processes of a build were killed.
    """

    def __init__(
        self,
        cluster: Cluster,
        environment: Mapping[str, str],
        *,
        logs: Any,
        state: Path,
        slots: int = 2,
        seconds_per_minute: float = 60,
        clean_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._cluster, self._environment, self._logs, self._state = cluster, environment, logs, state
        self._slots, self._seconds_per_minute, self._clean_up = slots, seconds_per_minute, clean_up
        self._running: set[str] = set()  # names of pods with a place
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._tools = state / "tools"
        self._tools.mkdir(parents=True, exist_ok=True)
        _script(self._tools / "buildctl-daemonless.sh", _BUILDCTL + step("build_and_push") + _METADATA)

    def run(self, job: Json) -> None:
        """Starts a Job that was just created. The caller holds the lock."""
        thread = threading.Thread(target=self._run, args=(job,), daemon=True, name=job["metadata"]["name"])
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def has_pod(self, described: Json) -> bool:
        """Whether an object is, or owns, a pod that has not ended. The caller holds the lock."""
        pod = described if described["kind"] == "Pod" else self._pod_of(described)
        return pod is not None and pod["status"]["phase"] in ("Pending", "Running")

    def close(self) -> None:
        self._closing = True
        with self._cluster.lock:
            self._cluster.lock.notify_all()
        for thread in self._threads:
            thread.join()

    # The controller: one Job, one pod, in one thread

    def _run(self, job: Json) -> None:
        with self._cluster.lock:
            pod = self._new_pod(job)
        why = None
        try:
            succeeded = self._run_pod(job, pod)
        except _Ended as end:
            succeeded, why = False, str(end)
        except Exception as error:
            log.exception("Job %s failed to start", job["metadata"]["name"])
            succeeded = False
            if isinstance(error, OSError):
                pod["status"]["message"] = in_words(error)
        with self._cluster.lock:
            self._running.discard(pod["metadata"]["name"])
            self._finish(job, pod, succeeded, why)

    def _finish(self, job: Json, pod: Json, succeeded: bool, why: str | None) -> None:
        status = pod["status"]
        status["phase"] = "Succeeded" if succeeded else "Failed"
        if why == _Ended.POD_DEADLINE:
            status |= {
                "reason": "DeadlineExceeded",
                "message": "Pod was active on the node longer than allowed",
            }
        self._cluster.touch(pod)
        goes = "deletionTimestamp" in pod["metadata"] or "deletionTimestamp" in job["metadata"]
        if goes or why == _Ended.JOB_DEADLINE or job["metadata"]["name"] not in self._cluster.objects["jobs"]:
            self._cluster.remove("pods", pod)
        if "deletionTimestamp" in job["metadata"]:
            self._cluster.remove("jobs", job)
            return
        kind, reason = ("Complete", "CompletionsReached") if succeeded else ("Failed", "BackoffLimitExceeded")
        if why == _Ended.JOB_DEADLINE:
            reason = "DeadlineExceeded"
        condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": timestamp()}
        job["status"] |= {"active": 0, "conditions": [condition], "succeeded" if succeeded else "failed": 1}
        self._cluster.touch(job)

    def _new_pod(self, job: Json) -> Json:
        template, name = job["spec"]["template"], job["metadata"]["name"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        metadata = {
            "name": f"{name}-{secrets.token_hex(3)[:5]}",
            "namespace": job["metadata"]["namespace"],
            "labels": {**template["metadata"].get("labels", {}), _JOB_NAME: name, "job-name": name},
            "annotations": dict(template["metadata"].get("annotations", {})),
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        spec = json.loads(json.dumps(template["spec"]))
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": {"phase": "Pending", "conditions": []},
        }
        self._cluster.add("pods", pod)
        job["status"] |= {"active": 1, "startTime": timestamp()}
        return pod

    def _pod_of(self, job: Json) -> Json | None:
        for pod in self._cluster.objects["pods"].values():
            if pod["metadata"]["labels"][_JOB_NAME] == job["metadata"]["name"]:
                return pod
        return None

    # The kubelet

    def _run_pod(self, job: Json, pod: Json) -> bool:
        job_ends = time.monotonic() + self._seconds(job["spec"]["activeDeadlineSeconds"])
        self._schedule(job, pod, job_ends)
        pod_ends = time.monotonic() + self._seconds(pod["spec"]["activeDeadlineSeconds"])
        folder = self._state / str(pod["metadata"]["name"])

        def check() -> None:
            self._check(job, pod, job_ends)
            if time.monotonic() > pod_ends:
                raise _Ended(_Ended.POD_DEADLINE)
            self._mount(pod, folder)

        try:
            while not self._mount(pod, folder):
                check()
                time.sleep(WATCH_SECONDS)
            spec = pod["spec"]
            kinds = [("initContainerStatuses", each) for each in spec["initContainers"]]
            kinds += [("containerStatuses", each) for each in spec["containers"]]
            with self._cluster.lock:
                for kind, container in kinds:
                    waiting = {"waiting": {"reason": "PodInitializing"}}
                    described = {"name": container["name"], "image": container["image"], "imageID": ""}
                    statuses = pod["status"].setdefault(kind, [])
                    statuses.append({**described, "ready": False, "restartCount": 0, "state": waiting})
            return all(self._run_container(pod, kind, container, folder, check) == 0 for kind, container in kinds)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _schedule(self, job: Json, pod: Json, job_ends: float) -> None:
        """Waits until fewer than `slots` pods run. Raises _Ended."""
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp()}
        with self._cluster.lock:
            while len(self._running) >= self._slots:
                words = "0/1 nodes are available: 1 Insufficient cpu."
                waits = {"status": "False", "reason": "Unschedulable", "message": words}
                pod["status"]["conditions"] = [{**condition, **waits}]
                self._cluster.lock.wait(WATCH_SECONDS)
                self._check(job, pod, job_ends)
            self._running.add(pod["metadata"]["name"])
            pod["spec"]["nodeName"] = NAME
            pod["status"] |= {
                "conditions": [{**condition, "lastTransitionTime": timestamp()}],
                "startTime": timestamp(),
            }
            self._cluster.touch(pod)

    def _check(self, job: Json, pod: Json, job_ends: float) -> None:
        """Raises _Ended when the pod has to end."""
        if self._closing:
            raise _Ended(_Ended.CLOSING)
        gone = job["metadata"]["name"] not in self._cluster.objects["jobs"]
        if gone or any("deletionTimestamp" in each["metadata"] for each in (job, pod)):
            raise _Ended(_Ended.DELETED)
        if time.monotonic() > job_ends:
            raise _Ended(_Ended.JOB_DEADLINE)

    def _mount(self, pod: Json, folder: Path) -> bool:
        """Writes Secrets into the folders of volumes; False while a Secret is missing."""
        for volume in pod["spec"]["volumes"]:
            place = folder / volume["name"]
            place.mkdir(parents=True, exist_ok=True)
            if (wanted := volume.get("secret")) is None:
                continue
            with self._cluster.lock:
                secret = self._cluster.objects["secrets"].get(wanted["secretName"])
                if secret is None:
                    return False
                data = dict(secret["data"])
            paths = {each["key"]: each["path"] for each in wanted.get("items", ())}
            for key, value in data.items():
                file = place / paths.get(key, key)
                part = file.with_name(f".{file.name}")  # replaced at once, as on a real node
                part.write_bytes(base64.b64decode(value))
                part.replace(file)
        return True

    def _run_container(self, pod: Json, kind: str, container: Json, folder: Path, check: Callable[[], None]) -> int:
        identity = secrets.token_hex(32)
        metadata = pod["metadata"]
        file = f"{metadata['name']}_{metadata['namespace']}_{container['name']}-{identity}.log"
        group = f"/aws/containerinsights/{self._cluster.name}/application"
        stream = LogStream(self._logs, group, f"{NAME}-application.var.log.containers.{file}")
        printed: list[str] = []

        def say(line: str) -> None:
            printed.append(line)
            for at in range(0, len(line) or 1, MAX_LINE):
                piece, is_last = line[at : at + MAX_LINE], at + MAX_LINE >= len(line)
                stream.say(_shipped(pod, container, identity, piece, is_last=is_last))

        def local(text: str) -> str:
            for mount in container["volumeMounts"]:
                text = text.replace(mount["mountPath"], str(folder / mount["name"]))
            return text

        started = timestamp()
        self._state_of(pod, kind, container, identity, {"running": {"startedAt": started}})
        words = [*container["command"], *container.get("args", ())]
        command = [word if at == 2 else local(word) for at, word in enumerate(words)]  # 2 is the script
        own: dict[str, str] = {}
        for each in container["env"]:
            own[each["name"]] = local(expanded(each["value"], own))
        work = Path(local(container["workingDir"]))
        exit_code = 137
        try:
            own.pop("DOCKER_CONFIG", None)  # the engine's own configuration names the credential helper
            phase = Phase([shlex.join(command)], work, {**self._variables(), **own}, say, self._clean_up)
            while (ended := phase.wait(WATCH_SECONDS)) is None:
                try:
                    check()
                except BaseException:
                    phase.end()
                    raise
            exit_code = ended.exit_code
        except OSError as error:
            printed.append(f"ERROR: {in_words(error)}")
            raise
        finally:
            stream.close()
            terminated: Json = {
                "exitCode": exit_code,
                "reason": "Completed" if exit_code == 0 else "Error",
                "startedAt": started,
                "finishedAt": timestamp(),
            }
            if exit_code:
                terminated["message"] = "\n".join(printed[-MESSAGE_LINES:])[-MESSAGE_BYTES:]
            self._state_of(pod, kind, container, identity, {"terminated": terminated})
        return exit_code

    def _state_of(self, pod: Json, kind: str, container: Json, identity: str, state: Json) -> None:
        with self._cluster.lock:
            (status,) = [each for each in pod["status"][kind] if each["name"] == container["name"]]
            status |= {"state": state, "containerID": f"containerd://{identity}"}
            if kind == "containerStatuses":
                pod["status"]["phase"] = "Running"
            self._cluster.touch(pod)

    def _variables(self) -> dict[str, str]:
        """Variables of every container: the tools of its image, and the engine's."""
        inherited = {name: os.environ[name] for name in ("HOME", "LANG", MARK) if name in os.environ}
        path = f"{self._tools}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**inherited, **self._environment, "PATH": path}

    def _seconds(self, deadline_seconds: int) -> float:
        return deadline_seconds / 60 * self._seconds_per_minute


def expanded(value: str, variables: Mapping[str, str]) -> str:
    """A variable's value, with references `$(NAME)` expanded as Kubernetes does, given these variables."""

    def what(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\((.+?)\)", what, value)


def _shipped(pod: Json, container: Json, identity: str, line: str, *, is_last: bool) -> str:
    """An event as the cluster's add-on (Fluent Bit) writes it."""
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(),
            "stream": "stdout",
            "_p": "F" if is_last else "P",
            "log": line,
            "kubernetes": {
                "pod_name": pod["metadata"]["name"],
                "namespace_name": pod["metadata"]["namespace"],
                "pod_id": pod["metadata"]["uid"],
                "host": NAME,
                "container_name": container["name"],
                "docker_id": identity,
                "container_image": container["image"],
            },
        },
        ensure_ascii=False,
    )


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
