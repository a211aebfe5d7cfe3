"""An image registry on this machine, without login, listening on loopback only."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from uuid import uuid4

from infra.local.engines import Engine, EngineFailed, NoEngine

PUBLIC = "docker.io/library/registry:2"
PATIENCE_SECONDS = 30
NAME = "X-Slipway-Registry"  # a header by which ours is known from another that took the port
ATTEMPTS = 5
ADVICE = "There is no registry to push to. On Debian and Ubuntu, as root: apt-get install docker-registry"


@contextmanager
def serve(state: Path, engine: Engine, say: Callable[[str], None]) -> Iterator[str]:
    """Runs a registry until the block is left and gives its host, 127.0.0.1:port. Images are kept in `state`.

    Where docker's daemon runs in a virtual machine, as on macOS, and where there is no `docker-registry`,
    it is a container of docker's. Raises NoEngine when neither can be had.
    """
    with ExitStack() as closing:
        if sys.platform == "linux" and shutil.which("docker-registry"):
            host = closing.enter_context(_process(state))
        elif engine.name == "docker":
            host = closing.enter_context(_container(engine, say))
        else:
            raise NoEngine(ADVICE)
        say(f"A registry listens on {host}.")
        yield host


@contextmanager
def _process(state: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="slipway-registry-") as folder:
        settings, log = Path(folder, "registry.yml"), Path(folder, "log")
        for _ in range(ATTEMPTS):
            host, name = f"127.0.0.1:{_free_port()}", uuid4().hex
            settings.write_text(
                "version: 0.1\n"
                "log: {level: error, accesslog: {disabled: true}}\n"
                f"storage: {{filesystem: {{rootdirectory: '{state.absolute()}/registry'}}}}\n"
                f"http: {{addr: '{host}', secret: only-on-this-machine, headers: {{{NAME}: ['{name}']}}}}\n"
            )
            with log.open("w") as output:
                process = subprocess.Popen(
                    ["docker-registry", "serve", settings],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # an interrupt from the keyboard ends us, and we end it
                )
            try:
                if _answers(host, name, process):
                    yield host
                    return
            finally:
                process.terminate()
                process.wait()
        raise NoEngine(f"docker-registry did not start:\n{log.read_text()[-1000:]}")


@contextmanager
def _container(engine: Engine, say: Callable[[str], None]) -> Iterator[str]:
    say(f"Starting {PUBLIC} …")
    try:
        container = engine.run("run", "--detach", "--rm", "--publish", "127.0.0.1::5000", PUBLIC).strip()
    except EngineFailed as error:
        raise NoEngine(f"{ADVICE}\n({error})") from error
    try:
        host = engine.run("port", container, "5000/tcp").strip()
        if not _answers(host):
            raise NoEngine(f"{PUBLIC} runs in docker but does not answer on {host}.")
        yield host
    finally:
        engine.run("rm", "--force", "--volumes", container)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(host: str, name: str | None = None, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Waits until the registry, of that name if it has one, answers; no longer than its process runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        connection = HTTPConnection(host, timeout=2)
        try:
            connection.request("GET", "/v2/")
            answer = connection.getresponse()
            if answer.status == 200 and answer.headers[NAME] == name:
                return True
        except (OSError, HTTPException):
            pass  # not yet
        finally:
            connection.close()
        time.sleep(0.05)
    return False
