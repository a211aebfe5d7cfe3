"""Lambda on loopback: its real runtime client runs a function of a package, in a process that finds nothing
but the package, and this answers as Lambda's runtime API does."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from werkzeug import Request, Response

from infra.bench.serving import served

_CLIENT = ("awslambdaric", "runtime_client", "snapshot_restore_py", "simplejson")  # modules of the runtime
_PATIENCE_SECONDS = 60


class FunctionFailed(Exception):
    """The function could not be loaded, raised an exception, or did not answer in time."""


@dataclass(frozen=True)
class Invocation:
    """What the runtime API hands out: an event, and X-Ray's header where there is one."""

    request_id: str
    event: bytes
    trace: str


class Function:
    """A running function; `Lambda.start` makes it."""

    def __init__(self, log: IO[bytes]) -> None:
        self._log = log
        self._events: Queue[Invocation | None] = Queue()
        self._answers: Queue[tuple[bool, bytes]] = Queue()
        self._asked = threading.Event()
        self.init_seconds = 0.0  # from the start of its process until it asked for the first event

    def invoke(self, event: Any, trace: str = "") -> Any:
        """What the function returns; `trace` is X-Ray's header. Raises FunctionFailed."""
        self._events.put(Invocation(str(uuid.uuid4()), json.dumps(event).encode(), trace))
        try:
            succeeded, body = self._answers.get(timeout=_PATIENCE_SECONDS)
        except Empty:
            raise FunctionFailed("it did not answer") from None
        answer = json.loads(body or b"null")
        if not succeeded:
            raise FunctionFailed(json.dumps(answer, indent=1))
        return answer

    def log(self) -> list[str]:
        """The lines that it has written so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def until_ready(self, started_at: float) -> None:
        """Waits until the function is initialized, and sets `init_seconds`. Raises FunctionFailed."""
        if not self._asked.wait(_PATIENCE_SECONDS):
            raise FunctionFailed("it did not start")
        self.init_seconds = time.perf_counter() - started_at
        if not self._answers.empty():
            raise FunctionFailed(self._answers.get()[1].decode())

    def next_event(self) -> Invocation | None:
        """Waits for the next event; None after `end`."""
        self._asked.set()
        return self._events.get()

    def answered(self, succeeded: bool, body: bytes) -> None:
        self._answers.put((succeeded, body))
        self._asked.set()

    def end(self) -> None:
        self._events.put(None)


class Lambda:
    """One package, unpacked."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self._task, self._runtime = folder / "task", folder / "runtime"
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(self._task)
        self._runtime.mkdir()
        for name in _CLIENT:
            _copy_module(name, self._runtime)

    @contextmanager
    def start(self, handler: str, environment: Mapping[str, str]) -> Iterator[Function]:
        """The function `module.name`, ready for events; its log goes to standard error."""
        own = {
            "AWS_LAMBDA_FUNCTION_NAME": handler,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_FORMAT": "JSON",  # as the template has it
            "AWS_LAMBDA_LOG_LEVEL": "INFO",
            "LAMBDA_TASK_ROOT": str(self._task),
            "PYTHONPATH": f"{self._task}:{self._runtime}",
            "PYTHONDONTWRITEBYTECODE": "1",  # /var/task cannot be written
        }
        with tempfile.TemporaryFile() as log, ExitStack() as closing:
            function = Function(log)
            address = closing.enter_context(served(_api_of(function)))
            closing.callback(function.end)
            started_at = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-S", "-m", "awslambdaric", handler],
                cwd=self._task,
                env={**environment, **own, "AWS_LAMBDA_RUNTIME_API": address},
                stdout=log,
                stderr=log,
            )
            try:
                function.until_ready(started_at)
                yield function
            finally:
                process.kill()
                process.wait()
                sys.stderr.write("\n".join([*function.log(), ""]))


def _copy_module(name: str, folder: Path) -> None:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return  # the native client is not there everywhere; the runtime has one in Python
    origin = Path(found.origin)
    if found.submodule_search_locations:
        shutil.copytree(origin.parent, folder / name)
    else:
        shutil.copy(origin, folder)


def _api_of(function: Function) -> Callable[[Request], Response]:
    """/2018-06-01/runtime/…"""

    def answer(request: Request) -> Response:
        if request.method == "POST":
            function.answered(request.path.endswith("/response"), request.data)
            return Response(status=202)
        given = function.next_event()
        if given is None:
            return Response(status=500)
        answer = Response(given.event, content_type="application/json")
        answer.headers["Lambda-Runtime-Aws-Request-Id"] = given.request_id
        answer.headers["Lambda-Runtime-Invoked-Function-Arn"] = "arn:aws:lambda:us-east-1:1:function:f"
        answer.headers["Lambda-Runtime-Deadline-Ms"] = str(int(time.time() * 1000) + 60_000)
        if given.trace:
            answer.headers["Lambda-Runtime-Trace-Id"] = given.trace
        return answer

    return answer
