"""AWS CodeBuild on loopback: four operations of its API, and builds that really run.

It has what Slipway relies on in the real service: phases and their contexts, the concurrency limit with its queue,
build and queue timeouts, idempotency tokens for five minutes, StopBuild, log events, and the two kinds of events.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from infra.local import signatures
from infra.local.codebuild import buildspec
from infra.local.codebuild.log_stream import LogStream
from infra.local.machine.engine import MARK
from infra.local.machine.run_folder import folder_in_memory
from infra.local.storage import Storage, forgotten, stored

log = logging.getLogger(__name__)

REGION, ACCOUNT = "us-east-1", "000000000000"
TOKEN_SECONDS = 300
QUEUE_PER_SLOT = 5  # builds may wait, for each that may run (CodeBuild's quota)
PAGE = 100
MAX_BUILDSPEC_CHARACTERS = 25_600
BUILD_MINUTES, QUEUE_MINUTES = (5, 2160, 60), (5, 480, 480)  # least, most, default
WATCH_SECONDS = 0.05
STORED_SECONDS = 86_400.0  # after its end, a stored build is deleted
WHEN_STOPPED = "The machine was stopped while the build ran."


class Refused(Exception):
    """An error of the API, by its code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Ended(Exception):
    """The build must end now, with this status."""

    def __init__(self, status: str) -> None:
        self.status = status


@dataclass(eq=False)
class _Build:
    """One build: its request and its state. Only its own thread changes it."""

    id: str
    number: int
    request: Mapping[str, Any]
    spec: buildspec.Buildspec
    start_time: float
    phases: list[dict[str, Any]] = field(default_factory=list)
    status: str = "IN_PROGRESS"
    end_time: float | None = None
    memory: Path = Path()  # a folder that is removed with the build
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def arn(self) -> str:
        return f"arn:aws:codebuild:{REGION}:{ACCOUNT}:build/{self.id}"

    @property
    def project(self) -> str:
        return self.id.partition(":")[0]

    @property
    def log_names(self) -> tuple[str, str]:
        """The group and the stream of its log in CloudWatch."""
        project, _, stream = self.id.partition(":")
        return f"/aws/codebuild/{project}", stream


class CodeBuild:
    """The service. `projects` maps names to the environment variables of their builds.

    `deliver` is called with every event, in order, from one thread. `seconds_per_minute` shortens timeouts.
    `clean_up` is called after processes of a build were killed. With `storage`, builds are stored, and
    `resume` ends or continues them in the next process.
    """

    def __init__(
        self,
        projects: Mapping[str, Mapping[str, str]],
        *,
        logs: Any,
        deliver: Callable[[dict[str, Any]], None],
        state: Path,
        concurrency: int = 2,
        seconds_per_minute: float = 60,
        clock: Callable[[], float] = time.time,
        clean_up: Callable[[], None] = lambda: None,
        storage: Storage | None = None,
    ) -> None:
        self._storage, self._is_leaving = storage, False
        self._projects, self._logs, self._deliver = projects, logs, deliver
        self._state, self._concurrency = state, concurrency
        self._seconds_per_minute, self._clock, self._clean_up = seconds_per_minute, clock, clean_up
        self._changed = threading.Condition()  # guards everything below
        self._builds: dict[str, _Build] = {}
        self._waiting: list[_Build] = []
        self._running: set[_Build] = set()
        self._tokens: dict[str, tuple[float, Mapping[str, Any], _Build]] = {}
        self._refusals: list[str] = []
        self._threads: list[threading.Thread] = []
        self._events: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._deliverer = threading.Thread(target=self._deliver_events, daemon=True, name="codebuild-events")
        self._server: ThreadingHTTPServer | None = None

    def start(self, port: int = 0) -> str:
        """Serves on loopback and returns the endpoint's URL."""
        self._server = _server(self._answer, port)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="codebuild").start()
        self._deliverer.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def resume(self) -> None:
        """Continues with the stored builds: those that ran when the process ended fail, those that waited wait again.
        Calls `deliver`."""
        if self._storage is None:
            return
        for _, record in self._storage.all("build"):
            record["request"][_SPEC] = sys.intern(record["request"][_SPEC])
            build = _Build(**record, spec=buildspec.parse(record["request"][_SPEC]))
            if build.end_time is not None and self._clock() - build.end_time > STORED_SECONDS:
                self._storage.write([forgotten("build", build.id)])
                continue
            has_begun = any(each["phaseType"] == "PROVISIONING" for each in build.phases)
            with self._changed:
                self._builds[build.id] = build
                if token := build.request.get("idempotencyToken"):
                    self._tokens[token] = (build.start_time, build.request, build)
                if build.end_time is None and not has_begun:
                    build.phases = []
                    self._admit(build)
            if build.end_time is None and has_begun:
                self._fail_interrupted(build)

    def _fail_interrupted(self, build: _Build) -> None:
        now = self._clock()
        with self._changed:
            build.phases[-1].setdefault("phaseStatus", "STOPPED")
            end = {"phaseType": "FINALIZING", "startTime": now, "endTime": now, "durationInSeconds": 0}
            words = {"statusCode": "INTERNAL_ERROR", "message": WHEN_STOPPED}
            build.phases.append(end | {"phaseStatus": "FAILED", "contexts": [words]})
        self._end(build, "FAILED")

    def close(self) -> None:
        """Stops running builds and delivers the last events. With storage, builds that have not ended stay as they are:
        `resume` continues with them at the next start."""
        with self._changed:
            self._is_leaving = self._storage is not None
        for build in list(self._builds.values()):
            build.stopping.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._events.put(None)
        self._deliverer.join()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def refuse_next(self, code: str, times: int = 1) -> None:
        """For tests: the next calls are answered with this error."""
        with self._changed:
            self._refusals += [code] * times

    # The API

    def _answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            if self._refusals:
                raise Refused(self._refusals.pop(0), "Asked for by a test.")
        operations = {
            "StartBuild": self._start_build,
            "BatchGetBuilds": self._batch_get_builds,
            "StopBuild": self._stop_build,
            "ListBuildsForProject": self._list_builds_for_project,
        }
        if operation not in operations:
            raise Refused("UnknownOperationException", f"{operation} is not offered here.")
        return operations[operation](request)

    def _start_build(self, request: dict[str, Any]) -> dict[str, Any]:
        project = request.get("projectName", "")
        if project not in self._projects:
            raise Refused("ResourceNotFoundException", f"Project {project} does not exist.")
        if request.get("sourceTypeOverride", "NO_SOURCE") != "NO_SOURCE":
            raise Refused("InvalidInputException", "Builds here fetch their source themselves.")
        _minutes(request, "timeoutInMinutesOverride", BUILD_MINUTES)
        _minutes(request, "queuedTimeoutInMinutesOverride", QUEUE_MINUTES)
        text = request.get("buildspecOverride", "")
        if len(text) > MAX_BUILDSPEC_CHARACTERS:
            raise Refused("InvalidInputException", f"A buildspec has at most {MAX_BUILDSPEC_CHARACTERS} characters.")
        try:
            spec = buildspec.parse(text)
        except ValueError as error:
            raise Refused("InvalidInputException", str(error)) from error
        request["buildspecOverride"] = sys.intern(text)  # all builds have the same text: one copy is enough
        with self._changed:
            token, now = request.get("idempotencyToken"), self._clock()
            self._tokens = {name: used for name, used in self._tokens.items() if now - used[0] < TOKEN_SECONDS}
            if token in self._tokens:
                _, used_for, build = self._tokens[token]
                if used_for != request:
                    raise Refused("InvalidInputException", "The idempotency token was used with other parameters.")
                return {"build": self._describe(build)}
            if len(self._waiting) >= QUEUE_PER_SLOT * self._concurrency:
                raise Refused("AccountLimitExceededException", "Too many builds wait already.")
            build = _Build(f"{project}:{uuid.uuid4()}", len(self._builds) + 1, request, spec, now)
            self._builds[build.id] = build
            if token:
                self._tokens[token] = (now, request, build)
            self._save(build)
            self._admit(build)
        return {"build": self._describe(build)}

    def _admit(self, build: _Build) -> None:
        self._waiting.append(build)
        thread = threading.Thread(target=self._run, args=(build,), daemon=True, name=build.id)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _save(self, build: _Build) -> None:
        """Stores a build. If that fails, its next change stores it."""
        if self._storage is not None:
            try:
                self._storage.write([stored("build", build.id, {name: getattr(build, name) for name in _STORED})])
            except sqlite3.Error as error:
                log.warning("Build %s could not be stored yet: %s", build.id, error)

    def _batch_get_builds(self, request: dict[str, Any]) -> dict[str, Any]:
        ids = request.get("ids") or []
        if not 1 <= len(ids) <= PAGE:
            raise Refused("InvalidInputException", f"Give 1 to {PAGE} ids.")
        with self._changed:
            known = [self._describe(self._builds[each]) for each in ids if each in self._builds]
        return {"builds": known, "buildsNotFound": [each for each in ids if each not in self._builds]}

    def _stop_build(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            build = self._builds.get(request.get("id", ""))
            if build is None:
                raise Refused("ResourceNotFoundException", "There is no such build.")
            build.stopping.set()
            self._changed.notify_all()
            return {"build": self._describe(build)}

    def _list_builds_for_project(self, request: dict[str, Any]) -> dict[str, Any]:
        project = request.get("projectName", "")
        if project not in self._projects:
            raise Refused("ResourceNotFoundException", f"Project {project} does not exist.")
        with self._changed:
            ids = [build.id for build in self._builds.values() if build.project == project]
        if request.get("sortOrder", "DESCENDING") == "DESCENDING":
            ids.reverse()
        at = int(request.get("nextToken") or 0)
        more = {"nextToken": str(at + PAGE)} if len(ids) > at + PAGE else {}
        return {"ids": ids[at : at + PAGE]} | more

    # A build, in its own thread

    def _run(self, build: _Build) -> None:
        work = self._state / build.log_names[1]
        status = "FAULT"
        try:
            with (
                closing(LogStream(self._logs, *build.log_names)) as lines,
                folder_in_memory() as build.memory,
            ):
                status = self._go_through(build, lines, work / "src")
        except Exception:
            log.exception("Build %s could not be run", build.id)
        shutil.rmtree(work, ignore_errors=True)
        self._end(build, status)

    def _end(self, build: _Build, status: str) -> None:
        with self._changed:
            build.end_time, build.status = self._clock(), status
            build.phases.append({"phaseType": "COMPLETED", "startTime": build.end_time})
            self._running.discard(build)
            # A build that failed before it waited is still in the queue, and would block all others.
            self._waiting = [each for each in self._waiting if each is not build]
            self._changed.notify_all()
        self._announce("CodeBuild Build State Change", build, {"build-status": status})

    def _go_through(self, build: _Build, lines: LogStream, folder: Path) -> str:
        """Runs all phases; returns the build's status."""
        self._announce("CodeBuild Build State Change", build, {"build-status": "IN_PROGRESS"})
        try:
            self._phase(build, lines, "SUBMITTED", lambda: None)
            self._phase(build, lines, "QUEUED", lambda: self._wait_for_slot(build))
            deadline = time.monotonic() + self._seconds(build, "timeoutInMinutesOverride", BUILD_MINUTES)
            folder.mkdir(parents=True)
            self._phase(build, lines, "PROVISIONING", lambda: None)
            self._phase(build, lines, "DOWNLOAD_SOURCE", lambda: None)
            failed: Refused | None = None
            for name in ("INSTALL", "PRE_BUILD", "BUILD", "POST_BUILD"):
                try:
                    commands = partial(self._commands, build, lines, folder, name, deadline)
                    self._phase(build, lines, name, commands)
                except Refused as error:
                    failed = failed or error
                    if name != "BUILD":  # POST_BUILD runs after a failed BUILD, too
                        break
            if failed is None:
                self._phase(build, lines, "UPLOAD_ARTIFACTS", lambda: None)
            self._phase(build, lines, "FINALIZING", lambda: None)
        except _Ended as end:
            return end.status
        except Refused:
            return "FAILED"
        return "FAILED" if failed else "SUCCEEDED"

    def _phase(self, build: _Build, lines: LogStream, name: str, work: Callable[[], None]) -> None:
        """Runs one phase; it is recorded, logged and announced whatever `work` raises."""
        phase: dict[str, Any] = {"phaseType": name, "startTime": self._clock()}
        with self._changed:
            build.phases.append(phase)
        status, contexts = "SUCCEEDED", [{"statusCode": "", "message": ""}]
        if name in _LOGGED:
            _container(lines, f"Entering phase {name}")
        try:
            work()
        except _Ended as end:
            status = end.status
            raise
        except Refused as error:
            status, contexts = "FAILED", [{"statusCode": error.code, "message": str(error)}]
            raise
        except OSError as error:
            log.exception("Phase %s of build %s failed", name, build.id)
            words = buildspec.in_words(error)
            status, contexts = "FAILED", [{"statusCode": "CLIENT_ERROR", "message": words}]
            raise Refused("CLIENT_ERROR", words) from error
        except Exception:
            words = "an internal error; see the terminal in which the stack runs"
            status, contexts = "FAULT", [{"statusCode": "INTERNAL_ERROR", "message": words}]
            raise
        finally:
            ended = self._clock()
            with self._changed:
                phase |= {"phaseStatus": status, "endTime": ended, "contexts": contexts}
                phase["durationInSeconds"] = int(ended - phase["startTime"])
            if name in _LOGGED:
                _container(lines, f"Phase complete: {name} State: {status}")
                code, message = contexts[0]["statusCode"], contexts[0]["message"]
                _container(lines, f"Phase context status code: {code} Message: {message}")
            self._announce("CodeBuild Build Phase Change", build, _phase_detail(phase))

    def _wait_for_slot(self, build: _Build) -> None:
        """Waits until the build is the first in the queue and a slot is free."""
        deadline = time.monotonic() + self._seconds(build, "queuedTimeoutInMinutesOverride", QUEUE_MINUTES)
        with self._changed:
            try:
                while self._waiting[0] is not build or len(self._running) >= self._concurrency:
                    if build.stopping.is_set():
                        raise _Ended("STOPPED")
                    if (left := deadline - time.monotonic()) <= 0:
                        raise _Ended("TIMED_OUT")
                    self._changed.wait(left)
                if build.stopping.is_set():
                    raise _Ended("STOPPED")
                self._running.add(build)
            finally:
                self._waiting.remove(build)
                self._changed.notify_all()

    def _commands(self, build: _Build, lines: LogStream, folder: Path, name: str, deadline: float) -> None:
        commands = build.spec.commands.get(name.lower(), ())
        if not commands:
            return
        phase = buildspec.Phase(commands, folder, self._variables(build), lines.say, self._clean_up, echoes=True)
        while (ended := phase.wait(WATCH_SECONDS)) is None:
            if build.stopping.is_set() or time.monotonic() > deadline:
                phase.end()
                raise _Ended("STOPPED" if build.stopping.is_set() else "TIMED_OUT")
        if ended.exit_code:
            lines.say("")
            _container(lines, f"Command did not exit successfully {ended.command} exit status {ended.exit_code}")
            why = f"Error while executing command: {ended.command}. Reason: exit status {ended.exit_code}"
            raise Refused("COMMAND_EXECUTION_ERROR", why)

    def _variables(self, build: _Build) -> dict[str, str]:
        """The variables of a build: those of its request and project, and few of this process."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", MARK) if name in os.environ}
        own = {
            "CODEBUILD_BUILD_ID": build.id,
            "CODEBUILD_BUILD_ARN": build.arn,
            "SLIPWAY_MEMORY": str(build.memory),
        }
        given = {each["name"]: each["value"] for each in build.request.get("environmentVariablesOverride", [])}
        return {**inherited, **own, **build.spec.variables, **self._projects[build.project], **given}

    def _seconds(self, build: _Build, name: str, bounds: tuple[int, int, int]) -> float:
        return _minutes(build.request, name, bounds) * self._seconds_per_minute

    # Descriptions of a build

    def _describe(self, build: _Build) -> dict[str, Any]:
        """The build as BatchGetBuilds answers it; times are seconds since 1970."""
        group, stream = build.log_names
        described = {
            "id": build.id,
            "arn": build.arn,
            "buildNumber": build.number,
            "projectName": build.project,
            "startTime": build.start_time,
            "currentPhase": build.phases[-1]["phaseType"] if build.phases else "SUBMITTED",
            "buildStatus": build.status,
            "buildComplete": build.end_time is not None,
            "phases": [dict(phase) for phase in build.phases],
            "source": {
                "type": "NO_SOURCE",
                "buildspec": build.request.get("buildspecOverride", ""),
            },
            "environment": {
                "type": "LINUX_CONTAINER",
                "image": "local",
                "computeType": "BUILD_GENERAL1_SMALL",
                "privilegedMode": True,
                "environmentVariables": build.request.get("environmentVariablesOverride", []),
            },
            "logs": {"groupName": group, "streamName": stream, "cloudWatchLogs": {"status": "ENABLED"}},
            "timeoutInMinutes": _minutes(build.request, "timeoutInMinutesOverride", BUILD_MINUTES),
            "queuedTimeoutInMinutes": _minutes(build.request, "queuedTimeoutInMinutesOverride", QUEUE_MINUTES),
            "initiator": "slipway",
        }
        return described | ({"endTime": build.end_time} if build.end_time else {})

    def _announce(self, kind: str, build: _Build, detail: dict[str, Any]) -> None:
        """Stores the build, then sends an EventBridge event about it."""
        with self._changed:
            if self._is_leaving:
                return
            self._save(build)
            described = self._describe(build)
        more = {
            "build-complete": described["buildComplete"],
            "initiator": described["initiator"],
            "build-start-time": _event_time(build.start_time),
            "source": described["source"],
            "environment": {
                "type": described["environment"]["type"],
                "image": described["environment"]["image"],
                "compute-type": described["environment"]["computeType"],
                "privileged-mode": True,
                "environment-variables": described["environment"]["environmentVariables"],
            },
            "logs": {"group-name": build.log_names[0], "stream-name": build.log_names[1]},
            "phases": [_phase_event(phase) for phase in described["phases"]],
            "timeout-in-minutes": described["timeoutInMinutes"],
        }
        self._events.put(
            {
                "version": "0",
                "id": str(uuid.uuid4()),
                "detail-type": kind,
                "source": "aws.codebuild",
                "account": ACCOUNT,
                "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "region": REGION,
                "resources": [build.arn],
                "detail": {
                    **detail,
                    "build-id": build.arn,
                    "project-name": build.project,
                    "current-phase": described["currentPhase"],
                    "additional-information": more,
                    "version": "1",
                },
            }
        )

    def _deliver_events(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._deliver(event)
            except Exception:
                log.exception("An event of a build could not be delivered")


_SPEC = "buildspecOverride"
_STORED = ("id", "number", "request", "start_time", "phases", "status", "end_time")
_LOGGED = ("INSTALL", "PRE_BUILD", "BUILD", "POST_BUILD")


def _container(lines: LogStream, words: str) -> None:
    """Writes a message of CodeBuild itself into a build's log, one event per line."""
    for line in f"[Container] {datetime.now(UTC):%Y/%m/%d %H:%M:%S.%f} {words}".split("\n"):
        lines.say(line)


def _minutes(request: Mapping[str, Any], name: str, bounds: tuple[int, int, int]) -> int:
    least, most, default = bounds
    minutes = request.get(name, default)
    if not isinstance(minutes, int) or not least <= minutes <= most:
        raise Refused("InvalidInputException", f"{name} must be {least} to {most}.")
    return minutes


def _phase_detail(phase: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "completed-phase": phase["phaseType"],
        "completed-phase-status": phase["phaseStatus"],
        "completed-phase-duration-seconds": phase["durationInSeconds"],
        "completed-phase-start": _event_time(phase["startTime"]),
        "completed-phase-end": _event_time(phase["endTime"]),
        "completed-phase-context": _contexts(phase),
    }


def _phase_event(phase: Mapping[str, Any]) -> dict[str, Any]:
    started = {"phase-type": phase["phaseType"], "start-time": _event_time(phase["startTime"])}
    if "endTime" not in phase:
        return started
    return started | {
        "end-time": _event_time(phase["endTime"]),
        "duration-in-seconds": phase["durationInSeconds"],
        "phase-status": phase["phaseStatus"],
        "phase-context": _contexts(phase),
    }


def _contexts(phase: Mapping[str, Any]) -> list[str]:
    return [f"{context['statusCode']}: {context['message']}" for context in phase["contexts"]]


def _event_time(seconds: float) -> str:
    """Times inside of CodeBuild's events look like `Sep 1, 2017 4:12:29 PM`."""
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at:%b} {at.day}, {at.year} {at.hour % 12 or 12}:{at:%M:%S %p}"


def _server(answer: Callable[[str, dict[str, Any]], dict[str, Any]], port: int) -> ThreadingHTTPServer:
    # not werkzeug's server, which closes the connection after each answer: AWS clients reuse connections
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            operation = headers.get("x-amz-target", "").rpartition(".")[2]
            try:
                raw = signatures.verified("POST", self.path, headers, self.rfile).read()
                status, body = 200, answer(operation, json.loads(raw or b"{}"))
            except signatures.Refused as error:
                self.close_connection = True  # the rest of the body must not be read as another request
                status, body = 403, {"__type": error.code, "message": str(error)}
            except Refused as error:
                status, body = 400, {"__type": error.code, "message": str(error)}
            except Exception:
                log.exception("The call %s could not be answered", operation)
                status, body = 500, {"__type": "InternalFailure", "message": "see the log"}
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(text)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    return Server(("127.0.0.1", port), Handler)
