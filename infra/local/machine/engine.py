"""docker, podman or buildah: the operations that the stack and its tests need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

EngineName = Literal["docker", "podman", "buildah"]
MARK = "SLIPWAY_RUN"  # a variable of all processes of a run, a label of its containers; the value is the run's folder
NETWORK = "host"  # of RUN steps; needs neither a bridge nor network plug-ins
READER = "slipway-reader-"  # name prefix of containers that run something in a finished image
# podman raises limits by default, which root may not do everywhere
PODMAN_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


class NoEngine(Exception):
    """No container engine works here; the message says why, and what to install."""


class EngineFailed(Exception):
    """A command of an engine failed or took too long; the message ends with what it printed last."""


@dataclass(frozen=True)
class Engine:
    """A container engine, and the variables that its commands need besides PATH, HOME and LANG."""

    name: EngineName
    environment: Mapping[str, str]

    @property
    def isolates_steps(self) -> bool:
        """Whether build steps cannot see the processes and files of this machine."""
        return self.environment.get("BUILDAH_ISOLATION") != "chroot"

    def build(self, dockerfile: str, context: Path, reference: str) -> None:
        """Builds into the engine's own store. Raises EngineFailed."""
        buildx = ("buildx", "build", "--provenance=false")
        command = buildx if self.name == "docker" else ("build", "--layers")
        with tempfile.NamedTemporaryFile("w", prefix="slipway-", suffix=".Dockerfile") as file:
            file.write(dockerfile)
            file.flush()
            self.run(*command, "--network", NETWORK, "--tag", reference, "--file", file.name, str(context))

    def import_tar(self, tar: Path, reference: str, *instructions: str) -> None:
        """Makes an image from a root filesystem, with further Dockerfile instructions. `tar` must be the only file in
        its folder. Raises EngineFailed."""
        self.build("\n".join(("FROM scratch", f"ADD {tar.name} /", *instructions, "")), tar.parent, reference)

    def has_image(self, reference: str) -> bool:
        """Whether the image is in the engine's own store."""
        inspect = ("inspect", "--type", "image") if self.name == "buildah" else ("image", "inspect")
        return self.succeeds(*inspect, reference)

    def pull(self, reference: str, timeout_seconds: float) -> bool:
        """Pulls an image; returns whether that succeeded."""
        return self.succeeds("pull", reference, timeout_seconds=timeout_seconds)

    def run_in_image(self, reference: str, command: list[str]) -> str:
        """Pulls the image, runs a command in it, and returns the standard output. Raises EngineFailed."""
        name = READER + uuid4().hex
        if self.name == "buildah":
            try:
                self.run("from", "--pull-always", "--name", name, reference)
                return self.run("run", "--network", NETWORK, name, "--", *command)
            finally:
                self.succeeds("rm", name)
        self.run("pull", reference)
        limits = PODMAN_LIMITS if self.name == "podman" else ()
        return self.run("run", "--rm", "--name", name, "--network", NETWORK, *limits, reference, *command)

    def clean_up(self) -> bool:
        """Removes what killed builds left: running steps, working containers, mounts and files.

        Does not touch builds that still run, also of another stack on this machine. While there are such builds,
        containers and files stay until a later call, and the result is False. Raises EngineFailed.
        """
        if self.name == "docker":
            return True  # its daemon ends the builds of a client that is gone
        temporary = Path(self.environment["TMPDIR"])
        left = [*self._containers()]
        files = [*temporary.iterdir()]
        for step, process in [*self._steps()]:
            if process and not self._is_child_of_ours(process):
                self._end_step(step)
        if self._is_working():
            return False
        for step, _ in self._steps():
            self._end_step(step)
        for container in left:
            self.succeeds("rm", *(["--force"] if self.name == "podman" else []), container)
        for file in files:
            shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)
        return True

    def remove_containers(self, run: Path) -> None:
        """Removes docker's containers of a run of the stack, given the run's folder. Raises EngineFailed."""
        if self.name == "docker":
            for container in self.run("ps", "--all", "--quiet", "--filter", f"label={MARK}={run}").split():
                self.run("rm", "--force", "--volumes", container)

    def run(self, *arguments: str, timeout_seconds: float = 300) -> str:
        """Runs a command of the engine, and returns its standard output. Raises EngineFailed."""
        return _run([self.name, *arguments], self.environment, timeout_seconds)

    def succeeds(self, *arguments: str, timeout_seconds: float = 60) -> bool:
        """Runs a command of the engine; returns whether it succeeded."""
        try:
            self.run(*arguments, timeout_seconds=timeout_seconds)
        except EngineFailed:
            return False
        return True

    def _containers(self) -> Iterator[str]:
        """Ids of all working containers of builds."""
        if self.name == "buildah":
            # without --all it omits those whose build was killed before buildah wrote its own file about them
            for container in json.loads(self.run("containers", "--all", "--json") or "null") or ():
                if not container["containername"].startswith(READER):
                    yield container["id"]
        else:
            for container in json.loads(self.run("ps", "--all", "--external", "--format", "json")):
                if not container["Names"][0].startswith(READER):
                    yield container["Id"]

    def _is_working(self) -> bool:
        """Whether another process, of a build or of the engine, runs with our settings."""
        processes = Path("/proc").glob("[0-9]*")
        return any(self._is_ours(each) for each in processes if each.name != str(os.getpid()))

    def _is_ours(self, process: Path) -> bool:
        ours = f"CONTAINERS_STORAGE_CONF={self.environment['CONTAINERS_STORAGE_CONF']}".encode()
        try:
            return ours in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or is another user's
            return False

    def _steps(self) -> Iterator[tuple[str, int]]:
        """Steps that the runtime knows, each with the id of its first process, or 0 when that has ended. A step may run
        although its folder is gone: so leaves it an engine that fails to print."""
        with suppress(EngineFailed):  # where steps run in a chroot there may be no runtime
            listed = self._runtime("list", "--format", "json")
            for step in json.loads(listed or "null") or ():
                if Path(step["bundle"]).parent == Path(self.environment["TMPDIR"]):
                    yield step["id"], step["pid"]

    def _is_child_of_ours(self, process: int) -> bool:
        """Whether the parent of a step's first process is an engine of ours; it is not if the engine was killed."""
        with suppress(OSError):  # it has ended
            parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
            return self._is_ours(Path("/proc") / parent)
        return True

    def _end_step(self, step: str) -> None:
        with suppress(EngineFailed):  # it has ended meanwhile
            self._runtime("delete", "--force", step)

    def _runtime(self, *arguments: str) -> str:
        return _run([self.environment["BUILDAH_RUNTIME"], *arguments], self.environment)


def _run(command: list[str], environment: Mapping[str, str], timeout_seconds: float = 60) -> str:
    """Standard output of a command. Raises EngineFailed."""
    what = " ".join(command[:3])
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"`{what}` took over {timeout_seconds:g} seconds") from error
    except OSError as error:
        raise EngineFailed(f"there is no `{command[0]}` to run ({error.strerror})") from error
    if done.returncode:
        raise EngineFailed(f"`{what}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout
