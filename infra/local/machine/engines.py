"""Finds a container engine that can build on this machine, and configures it.

All settings are environment variables and files that an engine reads by itself, so that the plain commands of the
build steps work: `docker buildx build --push …`, `buildah build …`, `buildah push …`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from chalicelib.usecases.materials import HELPER
from infra.local.machine.engine import NETWORK, Engine, EngineFailed, EngineName, NoEngine
from infra.local.machine.python_image import NoImage, python_image
from infra.local.machine.run_folder import note_engine, remove_with_mounts

STORAGE_DRIVERS = ("overlay", "vfs")  # of podman and buildah, the quicker one first
INSTALLER = Path(__file__).parents[1] / "install_engines.sh"
ADVICE = (
    "Install one of: docker with the buildx plugin, and start it (https://docs.docker.com/engine/install/); "
    "podman or buildah, with runc and docker-registry. On Debian and Ubuntu, as root:\n"
    "  apt-get install --no-install-recommends buildah runc docker-registry"
)
NOT_ISOLATED = """\
WARNING: build steps are not isolated here, because no container runtime works. They run in a chroot with the rights
of this user: they can see all processes of this machine and read their environment, with the keys of this stack.
Everyone who may build, and every package that a build installs, can take over this machine.
To isolate steps, run as root where `runc` works, or use docker."""
# of build steps: podman's defaults since version 5. Older defaults include NET_RAW; with it, a step in the network of
# this machine could read the traffic on loopback, passwords included
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
# variables with which users configure engines; builds see no other variables of this process
INHERITED = (
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


def find_engine(
    state: Path, say: Callable[[str], None], *, only: str | None = None, docker_host: str | None = None
) -> Engine:
    """The first of docker, podman and buildah that can run a build step here.

    `state` is a folder for their stores. `only`, or the variable SLIPWAY_ENGINE, names the only engine to try;
    `docker_host` is the address of docker's daemon, if it is not the usual one. The engine then has a base image in
    its store. Raises NoEngine.
    """
    only = only or os.environ.get("SLIPWAY_ENGINE")
    reasons = []
    for name in get_args(EngineName):
        if only not in (None, "", name):
            continue
        if not shutil.which(name):
            reasons.append(f"{name}: not installed")
            continue
        for engine in _candidates(name, state.absolute(), docker_host):
            try:
                _probe(engine, state, say)
            except EngineFailed as error:
                reasons.append(f"{_describe(engine)}: {error}")
            except NoImage as error:
                reasons.append(f"{name}: {error}")
                break
            else:
                say(f"Building with {_describe(engine)}.")
                if not engine.isolates_steps:
                    say(NOT_ISOLATED)
                return engine
    if not reasons:
        raise NoEngine(f'SLIPWAY_ENGINE is "{only}"; expected docker, podman or buildah.')
    raise NoEngine("\n- ".join(("No container engine works here.", *reasons)) + f"\n{ADVICE}")


def _candidates(name: EngineName, state: Path, docker_host: str | None) -> Iterator[Engine]:
    """The ways to use an engine, best first."""
    if name == "docker":
        yield _docker(docker_host)
        return
    # Debian's runc is not in every user's PATH. crun is the second choice: it does not work with hybrid cgroups
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    runtime = shutil.which("runc", path=path) or shutil.which("crun", path=path)
    for isolation in ("oci", "chroot") if runtime else ("chroot",):
        for driver in STORAGE_DRIVERS:
            yield _containers_engine(name, state / f"{name}-{driver}", driver, isolation, runtime or "runc")


def _docker(host: str | None) -> Engine:
    variables = _inherited() | {"SLIPWAY_ENGINE": "docker", "SLIPWAY_NETWORK": NETWORK}
    if host:
        variables |= {"DOCKER_HOST": host}
    with suppress(EngineFailed):
        # the daemon's own builder: others reach neither its images nor our registry
        context = Engine("docker", variables).run("context", "inspect", "--format", "{{.Name}}")
        variables |= {"BUILDX_BUILDER": context.strip()}
    return Engine("docker", variables)


def _containers_engine(
    name: Literal["podman", "buildah"], folder: Path, driver: str, isolation: str, runtime: str
) -> Engine:
    """podman or buildah with a store, settings and temporary files in `folder`."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    settings = {
        "CONTAINERS_STORAGE_CONF": (
            folder / "storage.conf",
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
            # else the store is mounted upon itself, and the mount keeps it from being removed later
            '[storage.options.overlay]\nskip_mount_home = "true"\n',
        ),
        "CONTAINERS_REGISTRIES_CONF": (
            folder / "registries.conf",
            # plain http for every port of this machine, as docker does by default
            'unqualified-search-registries = ["docker.io"]\n[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n',
        ),
        "CONTAINERS_CONF": (
            folder / "containers.conf",
            # no systemd for cgroups and logs
            f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f"[containers]\ndefault_capabilities = {json.dumps(CAPABILITIES)}\n",
        ),
    }
    for path, text in settings.values():
        path.write_text(text)
    return Engine(
        name,
        {
            **_inherited(),
            **{variable: str(path) for variable, (path, _) in settings.items()},
            "BUILDAH_ISOLATION": isolation,
            "BUILDAH_RUNTIME": runtime,
            "TMPDIR": str(temporary),
            "SLIPWAY_ENGINE": name,
            "SLIPWAY_NETWORK": NETWORK,
        },
    )


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def _probe(engine: Engine, state: Path, say: Callable[[str], None]) -> None:
    """Runs a build step. Later calls use its cached layer, until the engine or the settings we give it change.

    Raises EngineFailed, NoImage."""
    if engine.name == "docker":
        version = engine.run("version", "--format", "{{.Server.Version}}", timeout_seconds=20)
        engine.run("buildx", "version", timeout_seconds=20)
    else:
        version = engine.run("--version", timeout_seconds=20)
    setting = sha256(repr((version, sorted(engine.environment.items()))).encode()).hexdigest()
    image = python_image(engine, state, say)
    with tempfile.TemporaryDirectory() as empty:
        probe = f"FROM {image}\nRUN : {setting}\n"
        engine.build(probe, Path(empty), "localhost/slipway/probe:local")


def _describe(engine: Engine) -> str:
    if engine.name == "docker":
        return "docker"
    storage = Path(engine.environment["CONTAINERS_STORAGE_CONF"]).parent.name.partition("-")[2]
    return f"{engine.name} ({storage} storage, {engine.environment['BUILDAH_ISOLATION']} isolation)"


def install_missing(say: Callable[[str], None]) -> None:
    """Installs buildah and docker-registry, as root on Debian and Ubuntu. Raises NoEngine elsewhere."""
    say("Installing buildah and docker-registry (10 to 20 s) …")
    done = subprocess.run(["sh", INSTALLER, "buildah"], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise NoEngine(f"{done.stderr.strip()[-1000:]}\n{ADVICE}")


@contextmanager
def running_engine(state: Path, say: Callable[[str], None], only: str | None = None) -> Iterator[Engine]:
    """Yields the engine of `find_engine`; after the block, cleans up after the builds. If docker is asked for by name
    but no daemon runs, a daemon runs as long as the block. Raises NoEngine."""
    with ExitStack() as closing:
        try:
            engine = find_engine(state, say, only=only)
        except NoEngine:
            if "docker" not in (only, os.environ.get("SLIPWAY_ENGINE")) or not shutil.which("dockerd"):
                raise
            host = closing.enter_context(private_docker(state, say))
            engine = find_engine(state, say, only="docker", docker_host=host)
        note_engine(engine)
        closing.callback(engine.clean_up)
        yield engine


@contextmanager
def logged_in(engine: Engine, host: str, login: str) -> Iterator[Engine]:
    """Gives the engine a login (user:password) to the registry `host` while the block runs."""
    entry = {"auth": base64.b64encode(login.encode()).decode()}
    with tempfile.TemporaryDirectory(prefix="slipway-login-") as folder:
        yield replace(engine, environment=_configured(engine.environment, Path(folder), host, entry))


def with_helper(environment: Mapping[str, str], folder: Path, host: str) -> dict[str, str]:
    """The engine's variables for builds. Its configuration, a file in `folder`, has no login for `host`, but names the
    credential helper that asks for one."""
    return _configured(environment, folder, host, None)


def _configured(
    environment: Mapping[str, str], folder: Path, host: str, entry: Mapping[str, str] | None
) -> dict[str, str]:
    """The engine's variables with a configuration in `folder`, which has for `host` this entry of Docker's `auths`, or
    the credential helper of builds if it is None. The user's logins for other registries stay.

    Build steps cannot read it, if they are isolated.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = Path(environment.get("DOCKER_CONFIG") or Path.home() / ".docker")
    if environment.get("SLIPWAY_ENGINE") == "docker":
        file, original, variables = folder / "config.json", own / "config.json", {"DOCKER_CONFIG": str(folder)}
        for other in own.iterdir() if own.is_dir() else ():  # contexts, plug-ins
            if other.name != file.name:
                (folder / other.name).symlink_to(other)
    else:
        file = folder / "auth.json"
        variables = {"REGISTRY_AUTH_FILE": str(file)}
        places = (
            Path(os.environ.get("REGISTRY_AUTH_FILE") or "/none"),
            Path(os.environ.get("XDG_RUNTIME_DIR") or "/none", "containers/auth.json"),
            Path(f"/run/containers/{os.getuid()}/auth.json"),
            Path.home() / ".config/containers/auth.json",
            own / "config.json",
        )
        original = next((place for place in places if os.access(place, os.R_OK)), Path("/none"))
    config = json.loads(original.read_text()) if original.is_file() else {}
    config["auths"] = {name: each for name, each in config.get("auths", {}).items() if name != host}
    if entry is not None:
        config["auths"][host] = entry
    if entry is None or "credsStore" in config:  # which would serve our registry as well
        helper = HELPER if entry is None else ""
        config["credHelpers"] = {**config.get("credHelpers", {}), host: helper}
    file.touch(mode=0o600)
    file.write_text(json.dumps(config))
    return {**environment, **variables}


DOCKER_STARTS = 3  # dockerd gives up after 15 seconds, which is too short on a busy machine


@contextmanager
def private_docker(state: Path, say: Callable[[str], None]) -> Iterator[str]:
    """Runs a docker daemon (as root on Linux) until the block is left, and yields its address, a value for DOCKER_HOST.

    Its images and layers are in `state`. Raises NoEngine when it does not start.
    """
    if not shutil.which("dockerd"):
        raise NoEngine("There is no `dockerd`. On Debian and Ubuntu, as root: apt-get install docker.io")
    with ExitStack() as closing:
        # a short path, because that of a socket has at most 108 bytes; the daemon may leave a mount in it
        run = Path(tempfile.mkdtemp(prefix="slipway-docker-"))
        closing.callback(remove_with_mounts, run)
        host = f"unix://{run}/docker.sock"
        log = closing.enter_context((run / "log").open("w+"))
        say("Starting a docker daemon …")
        folders = ("--data-root", state.absolute() / "docker", "--exec-root", run, "--pidfile", run / "pid")
        command = ("dockerd", "--host", host, *folders, "--iptables=false", "--bridge=none")
        engine = Engine("docker", {"DOCKER_HOST": host})
        for _ in range(DOCKER_STARTS):
            # a session of its own, so that Ctrl-C does not end it: this process does
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            closing.callback(_stop, daemon)
            deadline = time.monotonic() + 60
            while daemon.poll() is None and time.monotonic() < deadline:
                if engine.succeeds("version", timeout_seconds=5):
                    yield host
                    return
                time.sleep(0.1)
        log.seek(0)
        raise NoEngine(f"dockerd did not start:\n{log.read()[-1000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
