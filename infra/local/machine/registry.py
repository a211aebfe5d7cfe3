"""An image registry on this machine, on loopback. It asks for a login that is new with every start."""

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

from infra.local.kept import Kept
from infra.local.machine import registry_proxy
from infra.local.machine.engine import MARK, Engine, EngineFailed, NoEngine
from infra.local.machine.python_image import python_image
from infra.local.machine.registry_proxy import Proxy, UnixConnection

PUBLIC = "docker.io/library/registry:2"
PATIENCE_SECONDS = 30
RESTART_SECONDS = 0.5  # until a registry that ended by itself is started again
HEALTH_SECONDS = 2
LINK_BYTES = len("sha256:") + 64
MANIFEST_BYTES = 1024**2  # larger files are layers, which the registry renames when they are whole
USER = "AWS"  # as ECR calls whoever logs in
ADVICE = "There is no registry to push to. On Debian and Ubuntu, as root: apt-get install docker-registry"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registry:
    """`host` is 127.0.0.1:port, `login` is user:password; `proxy` stands before it where it runs in this
    process."""

    host: str
    login: str
    proxy: Proxy | None


@contextmanager
def serve(state: Path, engine: Engine, say: Callable[[str], None], kept: Kept | None = None) -> Iterator[Registry]:
    """Runs a registry until the block is left. Images are kept in `state`, or in `kept` with port and login.

    Only the proxy before it can be reached. Where docker's daemon runs in a virtual machine, as on macOS, and
    where there is no `docker-registry`, both are containers of docker's. Raises NoEngine when neither can be
    had.
    """
    login, port, images = _new_login(), 0, state / "registry"
    if kept is not None:
        without_halves(kept.images)
        login, port, images = kept.remembered("registry login", _new_login), kept.port("registry"), kept.images
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


def without_halves(images: Path) -> None:
    """Mends what a registry that was killed had begun to write: links and manifests, which it writes in place and
    takes for whole when it finds them. A link that other images have too, to a layer that is there, is written
    again; all else is removed."""
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
    """The registry listens on a socket in a folder that only this user may enter."""
    with tempfile.TemporaryDirectory(prefix="slipway-registry-") as folder:
        settings, errors, socket = (str(Path(folder, name)) for name in ("registry.yml", "log", "socket"))
        Path(settings).write_text(
            "version: 0.1\n"
            "log: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: '{images.absolute()}'}}}}\n"
            f"http: {{net: unix, addr: '{socket}', secret: '{secrets.token_hex()}'}}\n"
        )

        def start() -> subprocess.Popen[bytes]:
            Path(socket).unlink(missing_ok=True)  # one that was killed leaves it, and the next cannot listen
            with Path(errors).open("w") as output:
                return subprocess.Popen(
                    ["docker-registry", "serve", settings],
                    # it takes such variables for settings, among them podman's REGISTRY_AUTH_FILE
                    env={name: it for name, it in os.environ.items() if not name.startswith("REGISTRY_")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # an interrupt from the keyboard ends us, and we end it
                )

        with _kept_running(start) as first:
            if not _answers(lambda: UnixConnection(socket), {}, lambda: first.poll() is None):
                raise NoEngine(f"docker-registry did not start:\n{Path(errors).read_text()[-1000:]}")
            proxy = Proxy(lambda: UnixConnection(socket), login, ("127.0.0.1", port))
            proxy.start()
            try:
                yield proxy
            finally:
                proxy.close()


@contextmanager
def _kept_running(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """The registry's process, started again whenever it ends by itself, until the block is left."""
    first = process = start()
    leaving, lock = threading.Event(), threading.Lock()

    def keep() -> None:
        nonlocal process
        while True:
            code = process.wait()
            if leaving.wait(RESTART_SECONDS):
                return
            log.warning("docker-registry ended with %d and is started again", code)
            with lock, suppress(OSError):  # no memory for a process: the next round tries again
                if not leaving.is_set():
                    process = start()

    keeper = threading.Thread(target=keep, daemon=True, name="registry")
    keeper.start()
    try:
        yield first
    finally:
        with lock:
            leaving.set()
            process.terminate()
        keeper.join()


def answers(registry: Registry) -> bool:
    """Whether a registry can be used at this moment."""
    return _answers_once(lambda: HTTPConnection(registry.host, timeout=HEALTH_SECONDS), _basic(registry.login))


@contextmanager
def _containers(
    engine: Engine, state: Path, login: str, say: Callable[[str], None], port: int, images: Path
) -> Iterator[str]:
    """The registry listens on the loopback of its own network, where the proxy's container joins it."""
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
    """Waits until the registry answers, no longer than its process runs."""
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
