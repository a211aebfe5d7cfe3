"""Engines, for real: the step that builds and pushes, and what is left when a build is killed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from chalicelib.adapters.registry import HttpRegistry
from chalicelib.adapters.steps import step, texts
from infra.local.machine import engines
from infra.local.machine.engine import Engine, EngineName, NoEngine
from infra.local.machine.engines import (
    find_engine,
    install_missing,
    logged_in,
    private_docker,
    with_helper,
)
from infra.local.machine.python_image import python_image
from infra.local.machine.registry import Registry

PATIENCE_SECONDS = 60


@pytest.fixture
def base(engine: Engine, state: Path) -> str:
    return python_image(engine, state, print)


def start_build(engine: Engine, image: str, folder: Path) -> subprocess.Popen[str]:
    """Runs the step that builds as CodeBuild does, in a process group of its own."""
    memory = folder.with_name(f"{folder.name}-memory")
    memory.mkdir(exist_ok=True)
    for name, text in {**texts(), "build-args": "", "labels": ""}.items():
        (memory / name).write_text(text)
    (memory / "login").write_text("{}")  # the check before the build; the engine's own configuration has the real one
    return subprocess.Popen(
        ["bash", "-c", step("build_and_push")],
        cwd=folder,
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME")},
            **engine.environment,
            "SLIPWAY_IMAGE": image,
            "SLIPWAY_MEMORY": str(memory),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(build: subprocess.Popen[str]) -> str:
    output, _ = build.communicate(timeout=PATIENCE_SECONDS)
    assert build.returncode == 0, output
    return output


class Gate:
    """Where a step of a build stops and waits."""

    def __init__(self, base: str, folder: Path) -> None:
        """Writes a Dockerfile whose step connects to us and goes on when it is told. It ignores TERM."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE_SECONDS)
        self._step = socket.socket()
        address = self._server.getsockname()
        code = (
            "import signal, socket; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"assert socket.create_connection({address}).recv(1) == bytes([1])"
        ).replace("'", '"')
        (folder / "Dockerfile").write_text(f"FROM {base}\nRUN python3 -c '{code}'\n")

    def wait_for_step(self) -> None:
        self._step.close()
        self._step, _ = self._server.accept()
        self._step.settimeout(PATIENCE_SECONDS)

    def let_pass(self) -> None:
        self._step.sendall(bytes([1]))

    def wait_until_step_is_gone(self) -> None:
        """The kernel closes the connection with the step's process."""
        with suppress(ConnectionResetError):
            assert self._step.recv(1) == b""

    def close(self) -> None:
        self._step.close()
        self._server.close()


@pytest.fixture
def gate(base: str, tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(base, tmp_path)
    yield gate
    gate.close()


@pytest.mark.engine
def test_the_step_builds_and_pushes(engine: Engine, images: Registry, base: str, tmp_path: Path) -> None:
    image = f"{images.host}/ann/hello:1"
    (tmp_path / "Dockerfile").write_text(f"FROM {base}\nRUN echo ahoy > /greeting\n")

    output = finish(start_build(engine, image, tmp_path))

    assert "echo ahoy" in output
    found = HttpRegistry(images.login).find(image)
    assert found is not None and found.digest.startswith("sha256:")
    assert engine.run_in_image(image, ["cat", "/greeting"]) == "ahoy\n"


@pytest.mark.engine
def test_an_image_is_read_as_the_registry_has_it(engine: Engine, registry_host: str, base: str, tmp_path: Path) -> None:
    image = f"{registry_host}/ann/changing:1"
    for greeting in ("first", "second"):
        (tmp_path / "Dockerfile").write_text(f"FROM {base}\nRUN echo {greeting} > /greeting\n")
        finish(start_build(engine, image, tmp_path))
    engine.build(f"FROM {base}\nRUN echo local > /greeting\n", tmp_path, image)

    assert engine.run_in_image(image, ["cat", "/greeting"]) == "second\n"


@pytest.mark.engine
def test_a_stopped_build_leaves_nothing(engine: Engine, registry_host: str, gate: Gate, tmp_path: Path) -> None:
    build = start_build(engine, f"{registry_host}/ann/stopped:1", tmp_path)
    gate.wait_for_step()

    os.killpg(build.pid, signal.SIGTERM)
    build.communicate(timeout=PATIENCE_SECONDS)

    assert build.returncode != 0
    engine.clean_up()
    gate.wait_until_step_is_gone()
    assert left_by_builds(engine) == []


@pytest.mark.engine
def test_a_killed_build_is_cleaned_up(engine: Engine, registry_host: str, gate: Gate, tmp_path: Path) -> None:
    build = start_build(engine, f"{registry_host}/ann/killed:1", tmp_path)
    gate.wait_for_step()

    os.killpg(build.pid, signal.SIGKILL)
    build.communicate(timeout=PATIENCE_SECONDS)
    engine.clean_up()

    gate.wait_until_step_is_gone()
    assert left_by_builds(engine) == []


@pytest.mark.engine
def test_a_container_of_a_build_that_was_killed_while_it_made_it_is_removed(engine: Engine, base: str) -> None:
    """buildah lists it only with `--all`: buildah's own file about it was not yet written."""
    if engine.name != "buildah":
        pytest.skip("only buildah writes a file of its own about a container")
    engine.run("from", base)
    store = Path(json.loads(engine.run("info"))["store"]["GraphRoot"])
    (file,) = store.glob("*-containers/*/userdata/buildah.json")
    file.unlink()
    assert engine.run("containers", "--quiet") == ""
    assert len(left_by_builds(engine)) == 1

    engine.clean_up()

    assert left_by_builds(engine) == []


@pytest.mark.engine
def test_cleaning_up_leaves_running_builds_alone(
    engine: Engine, registry_host: str, gate: Gate, tmp_path: Path
) -> None:
    build = start_build(engine, f"{registry_host}/ann/running:1", tmp_path)
    gate.wait_for_step()

    engine.clean_up()

    gate.let_pass()
    finish(build)
    engine.clean_up()
    assert left_by_builds(engine) == []


def left_by_builds(engine: Engine) -> list[str]:
    """Working containers, temporary files and mounts in the engine's own store."""
    if engine.name == "docker":
        return engine.run("ps", "--all", "--quiet").split()
    temporary = Path(engine.environment["TMPDIR"])
    command = ("containers", "--all") if engine.name == "buildah" else ("ps", "--all", "--external")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        *engine.run(*command, "--quiet").split(),
        *map(str, temporary.iterdir()),
        *(mount for mount in mounts if mount.startswith(str(temporary.parent))),
    ]


@pytest.mark.engine
def test_a_step_cannot_read_what_passes_on_loopback(engine: Engine, base: str, tmp_path: Path) -> None:
    if engine.name == "docker":
        pytest.skip("docker gives its builds CAP_NET_RAW and has no way to take it; the README says so")
    code = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
    dockerfile = f"FROM {base}\nRUN python3 -c '{code}' 2>&1 | grep 'Operation not permitted' # {uuid4()}\n"
    engine.build(dockerfile, tmp_path, "localhost/slipway/raw:1")


@pytest.mark.engine
def test_a_second_start_takes_what_the_first_one_made(bare_engine: Engine, state: Path) -> None:
    said: list[str] = []
    docker_host = bare_engine.environment.get("DOCKER_HOST")
    again = find_engine(state, said.append, only=bare_engine.name, docker_host=docker_host)

    assert again == bare_engine
    assert len(said) == 1 and said[0].startswith(f"Building with {bare_engine.name}")


@pytest.mark.engine
@pytest.mark.proof
def test_vfs_and_chroot_are_ways_out(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither overlay mounts nor a runtime work, buildah still builds."""
    if not shutil.which("buildah"):
        pytest.skip("buildah is not installed")
    broken = tmp_path / "bin"
    broken.mkdir()
    for command in ("runc", "crun"):
        (broken / command).write_text("#!/bin/sh\nexit 1\n")
        (broken / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    monkeypatch.setattr(engines, "STORAGE_DRIVERS", ("vfs",))

    said: list[str] = []
    found = find_engine(state, said.append, only="buildah")

    assert found.environment["BUILDAH_ISOLATION"] == "chroot"
    assert "WARNING: build steps are not isolated here" in said[-1]  # which `make up` prints


@pytest.mark.engine
def test_a_private_docker_leaves_nothing(tmp_path: Path) -> None:
    if not shutil.which("dockerd") or os.geteuid() != 0:
        pytest.skip("needs dockerd, and root")
    with private_docker(tmp_path, print) as host:
        socket_file = Path(host.removeprefix("unix://"))
        assert socket_file.is_socket()
        daemon = int((socket_file.parent / "pid").read_text())

    assert not socket_file.parent.exists()
    assert not Path(f"/proc/{daemon}").exists()
    mounts = Path("/proc/mounts").read_text()
    assert str(socket_file.parent) not in mounts
    assert str(tmp_path) not in mounts


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_a_login_stands_beside_those_that_are_there_in_a_file_of_this_user_alone(
    name: EngineName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"auth": base64.b64encode(b"me:mine").decode()}
    own = {"auths": {"registry.example": other}, "credsStore": "desktop", "currentContext": "remote"}
    (tmp_path / "contexts").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(own))
    for variable in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    engine = Engine(name, {"SLIPWAY_ENGINE": name, "DOCKER_CONFIG": str(tmp_path), "A": "b"})

    with logged_in(engine, "127.0.0.1:5", "AWS:secret") as logged:
        variables = dict(logged.environment)
        if name == "docker":
            folder = Path(variables["DOCKER_CONFIG"])
            file = folder / "config.json"
            assert (folder / "contexts").resolve() == (tmp_path / "contexts").resolve()
        else:
            file = Path(variables["REGISTRY_AUTH_FILE"])
        assert "secret" not in str(variables)
        assert variables["A"] == "b"
        assert (file.parent.stat().st_mode | file.stat().st_mode) & 0o077 == 0
        written = json.loads(file.read_text())
        assert written["auths"] == {
            "registry.example": other,
            "127.0.0.1:5": {"auth": base64.b64encode(b"AWS:secret").decode()},
        }
        assert written["currentContext"] == "remote"
        assert written["credHelpers"] == {"127.0.0.1:5": ""}  # else that store would be asked

    assert not file.exists()
    assert json.loads((tmp_path / "config.json").read_text()) == own


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_builds_have_no_login_of_the_stack_but_a_helper_that_is_asked_for_one(
    name: EngineName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with logged_in(Engine(name, {"SLIPWAY_ENGINE": name}), "127.0.0.1:5", "AWS:secret") as logged:
        variables = with_helper(logged.environment, tmp_path / "builds", "127.0.0.1:5")
        (file,) = [path for path in (tmp_path / "builds").iterdir() if path.suffix == ".json"]
        written = json.loads(file.read_text())
        assert str(file.parent) in " ".join(variables.values())
        assert written == {"auths": {}, "credHelpers": {"127.0.0.1:5": "slipway"}}


def test_a_login_file_that_an_ordinary_user_may_not_see_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/run/containers` may be root's alone; then even the question whether a file is there raises PermissionError."""
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parts[:3] == ("/", "run", "containers"):
            raise PermissionError(path)
        return is_file(path)

    for variable in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "is_file", refused)
    with logged_in(Engine("buildah", {}), "127.0.0.1:5", "AWS:secret") as logged:
        written = json.loads(Path(logged.environment["REGISTRY_AUTH_FILE"]).read_text())
    assert [*written["auths"]] == ["127.0.0.1:5"]


def test_without_engines_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLIPWAY_ENGINE", raising=False)

    with pytest.raises(NoEngine) as refusal:
        find_engine(tmp_path, print)

    for name in ("docker", "podman", "buildah"):
        assert f"- {name}: not installed" in str(refusal.value)
    assert "apt-get install --no-install-recommends buildah runc docker-registry" in str(refusal.value)


def test_an_unknown_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_ENGINE", "kaniko")

    with pytest.raises(NoEngine, match='"kaniko"; expected docker, podman or buildah'):
        find_engine(tmp_path, print)


def test_nothing_is_installed_where_there_is_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_commands(tmp_path, monkeypatch)

    with pytest.raises(NoEngine, match="needs root, and apt-get"):
        install_missing(print)


def test_what_is_there_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_commands(tmp_path, monkeypatch, "buildah", "runc", "docker-registry", "docker", "dockerd")

    subprocess.run(["sh", engines.INSTALLER], check=True)  # there is no apt-get that it could call


def only_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A PATH with a shell and commands that do nothing."""
    for command in ("sh", "id"):
        (folder / command).symlink_to(str(shutil.which(command)))
    for command in names:
        (folder / command).write_text("#!/bin/sh\n")
        (folder / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
