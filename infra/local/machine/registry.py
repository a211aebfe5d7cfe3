"""An image registry on loopback. Its login is made anew at each start, unless it is stored."""

from __future__ import annotations

import base64
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from infra.local.machine import registry_proxy
from infra.local.machine.engine import MARK, Engine, EngineFailed, NoEngine
from infra.local.machine.python_image import python_image
from infra.local.machine.registry_proxy import Proxy, UnixConnection
from infra.local.storage import Storage

PUBLIC = "docker.io/library/registry:2"
PATIENCE_SECONDS = 30
RESTART_SECONDS = 0.5  # before a registry that ended by itself is started again
HEALTH_SECONDS = 2
LINK_BYTES = len("sha256:") + 64
MANIFEST_BYTES = 1024**2  # larger files are layers; those the registry writes elsewhere and renames
USER = "AWS"  # the user name that ECR expects
ADVICE = "There is no registry to push to. On Debian and Ubuntu, as root: apt-get install docker-registry"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registry:
    """`host` is 127.0.0.1:port, `login` user:password; `proxy` is the proxy, if it runs in this process."""

    host: str
    login: str
    proxy: Proxy | None


@contextmanager
def serve(
    state: Path, engine: Engine, say: Callable[[str], None], storage: Storage | None = None
) -> Iterator[Registry]:
    """Runs a registry until the block is left. Its images are in `state`; or in `storage`, with its port and login.

    Only the proxy before the registry can be reached. Both run in docker's containers if there is no `docker-registry`,
    or if docker's daemon runs in a virtual machine, as on macOS. Raises NoEngine when neither way works.
    """
    login, port, images = _new_login(), 0, state / "registry"
    if storage is not None:
        repair_incomplete(storage.images)
        login, port, images = storage.remembered("registry login", _new_login), storage.port("registry"), storage.images
    with ExitStack() as closing:
        if sys.platform == "linux" and shutil.which("docker-registry"):
            proxy: Proxy | None = closing.enter_context(_process(images, login, port))
            assert proxy is not None
            host = proxy.host
        elif engine.name == "docker":
            proxy, host = None, closing.enter_context(_containers(engine, state, login, say, port, images))
        else:
            raise NoEngine(ADVICE)
        say(f"A registry listens on {host}.")
        yield Registry(host, login, proxy)


def repair_incomplete(images: Path) -> None:
    """Repairs incomplete links and manifests, which a killed registry leaves: it writes them in place, and does not
    check them later. A link to a layer that is there, which other images may use, is written again; the others are
    removed."""
    blobs = images / "docker/registry/v2/blobs/sha256"
    for blob in blobs.glob("*/*/data"):
        is_small = blob.stat().st_size <= MANIFEST_BYTES
        if is_small and sha256(blob.read_bytes()).hexdigest() != blob.parent.name:
            blob.unlink()
    for link in images.rglob("link"):
        if link.stat().st_size != LINK_BYTES:
            digest = link.parent.name  # of what it links to; "current" where a tag leads
            if (blobs / digest[:2] / digest / "data").exists():
                link.write_text(f"sha256:{digest}")
            else:
                link.unlink()


def _new_login() -> str:
    return f"{USER}:{secrets.token_urlsafe(30)}"


@contextmanager
def _process(images: Path, login: str, port: int) -> Iterator[Proxy]:
    """Runs docker-registry, which listens on a socket in a folder that only this user may enter."""
    with tempfile.TemporaryDirectory(prefix="slipway-registry-") as folder:
        settings, errors, socket = (str(Path(folder, name)) for name in ("registry.yml", "log", "socket"))
        Path(settings).write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: '{images.absolute()}'}}}}\n"
            f"http: {{net: unix, addr: '{socket}', secret: '{secrets.token_hex()}'}}\n"
        )

        def start() -> subprocess.Popen[bytes]:
            Path(socket).unlink(missing_ok=True)  # a killed registry leaves it, and another could not listen
            with Path(errors).open("w") as output:
                return subprocess.Popen(
                    ["docker-registry", "serve", settings],
                    # docker-registry reads them as settings, also podman's REGISTRY_AUTH_FILE
                    env={name: it for name, it in os.environ.items() if not name.startswith("REGISTRY_")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # so that Ctrl-C does not end it: this process does
                )

        with _restarting(start) as first:
            if not _answers(lambda: UnixConnection(socket), {}, lambda: first.poll() is None):
                raise NoEngine(f"docker-registry did not start:\n{Path(errors).read_text()[-1000:]}")
            proxy = Proxy(lambda: UnixConnection(socket), login, ("127.0.0.1", port))
            proxy.start()
            try:
                yield proxy
            finally:
                proxy.close()


@contextmanager
def _restarting(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is started again whenever it ends by itself, until the block is left. Yields the first one."""
    first = process = start()
    leaving, lock = threading.Event(), threading.Lock()

    def restart() -> None:
        nonlocal process
        while True:
            code = process.wait()
            if leaving.wait(RESTART_SECONDS):
                return
            log.warning("docker-registry ended with exit code %d; starting it again", code)
            with lock, suppress(OSError):  # there may be no memory for a process: the next round tries again
                if not leaving.is_set():
                    process = start()

    restarter = threading.Thread(target=restart, daemon=True, name="registry")
    restarter.start()
    try:
        yield first
    finally:
        with lock:
            leaving.set()
            process.terminate()
        restarter.join()


def answers(registry: Registry) -> bool:
    """Whether the registry answers now."""
    return _answers_once(lambda: HTTPConnection(registry.host, timeout=HEALTH_SECONDS), _basic(registry.login))


@contextmanager
def _containers(
    engine: Engine, state: Path, login: str, say: Callable[[str], None], port: int, images: Path
) -> Iterator[str]:
    """Runs the registry and the proxy in containers. The registry listens on its own loopback, which the proxy's
    container shares."""
    say(f"Starting {PUBLIC} …")
    engine = replace(
        engine,
        environment={
            **engine.environment,
            "REGISTRY_HTTP_ADDR": "127.0.0.1:5000",
            "LISTEN": "0.0.0.0:5001",
            "REGISTRY": "127.0.0.1:5000",
            "LOGIN": login,
        },
    )
    run = ("run", "--detach", "--rm", "--label", f"{MARK}={os.environ.get(MARK, '')}")
    with ExitStack() as closing:

        def start(*arguments: str) -> str:
            container = engine.run(*run, *arguments).strip()
            closing.callback(engine.run, "rm", "--force", "--volumes", container)
            return container

        try:
            images.mkdir(parents=True, exist_ok=True)
            published = ("--publish", f"127.0.0.1:{port or ''}:5001", "--env", "REGISTRY_HTTP_ADDR")
            registry = start(*published, "--volume", f"{images.absolute()}:/var/lib/registry", PUBLIC)
            variables = ("--env", "LISTEN", "--env", "REGISTRY", "--env", "LOGIN")
            program = Path(registry_proxy.__file__).read_text()
            image = python_image(engine, state, say)
            start("--network", f"container:{registry}", *variables, image, "python3", "-c", program)
            host = engine.run("port", registry, "5001/tcp").strip()
        except EngineFailed as error:
            raise NoEngine(f"{ADVICE}\n({error})") from error
        if not _answers(lambda: HTTPConnection(host, timeout=HEALTH_SECONDS), _basic(login)):
            raise NoEngine(f"{PUBLIC} runs in docker but does not answer on {host}.")
        yield host


def _answers(
    connect: Callable[[], HTTPConnection], headers: dict[str, str], runs: Callable[[], bool] = lambda: True
) -> bool:
    """Waits until the registry answers, while its process runs; False if it does not answer in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and runs():
        if _answers_once(connect, headers):
            return True
        time.sleep(0.05)
    return False


def _answers_once(connect: Callable[[], HTTPConnection], headers: dict[str, str]) -> bool:
    connection = connect()
    try:
        connection.request("GET", "/v2/", headers=headers)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
