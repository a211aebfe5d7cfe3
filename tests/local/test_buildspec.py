"""The runner of buildspecs: real shells, no engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chalicelib.adapters import codebuild
from chalicelib.adapters.steps import texts
from infra.local.codebuild import buildspec
from infra.local.codebuild.buildspec import Ended, Phase

PATIENCE_SECONDS = 30.0
VARIABLES = {"PATH": "/usr/bin:/bin"}
Run = Callable[..., tuple[Ended | None, list[str]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs the commands of one phase to their end, and gives what they said."""

    def run(*commands: str) -> tuple[Ended | None, list[str]]:
        said: list[str] = []
        phase = Phase(commands, folder, {"PATH": "/usr/bin:/bin", "GIVEN": "a b"}, said.append)
        return phase.wait(PATIENCE_SECONDS), said

    return run


def test_our_own_buildspec_is_understood() -> None:
    assert buildspec.parse(codebuild.buildspec()).commands["build"]


@pytest.mark.parametrize(
    ("has_copy", "used"),
    [(True, "registry.test/tools@sha256:0123"), (False, "docker.io/moby/buildkit:v0.29.0@sha256:0123")],
)
def test_buildkit_is_taken_from_the_repository_of_tools_where_it_was_copied(
    folder: Path, has_copy: bool, used: str
) -> None:
    """Of the branch for AWS, which needs BuildKit's image to run whole: what it asks docker to do."""
    spec = buildspec.parse(codebuild.buildspec())
    tools = folder.parent / "bin"
    tools.mkdir()
    docker = tools / "docker"
    docker.write_text(
        f"""#!/bin/sh
        echo "$*" >>asked
        metadata=$(echo "$*" | sed -n "s/.*--metadata-file \\([^ ]*\\).*/\\1/p")
        test -z "$metadata" || echo '{{"containerimage.digest": "sha256:ab"}}' >"$metadata"
        test "$1" != pull || {str(has_copy).lower()}
        """
    )
    docker.chmod(0o755)
    memory = folder.parent / "memory"
    (memory / "secrets").mkdir(parents=True)
    (memory / "build-args").write_text("NAME YSAnYiI=\nEMPTY \n")
    (memory / "labels").write_text("org.opencontainers.image.revision YWI=\n")
    (memory / "epoch").write_text("1700000000\n")
    (memory / "secrets" / "pip").touch()
    for name, text in texts().items():
        (memory / name).write_text(text)
    (memory / "ask").write_text('echo "$*" >>told\n')
    variables = {
        **spec.variables,
        "PATH": f"{tools}:/usr/bin:/bin",
        "SLIPWAY_MEMORY": str(memory),
        "SLIPWAY_ENGINE": "docker-container",
        "SLIPWAY_IMAGE": "registry.test/ada/vision:1",
        "SLIPWAY_NOCACHE": "1",
        "SLIPWAY_CACHE_REPOSITORY": "registry.test/cache/ada/vision",
        "SLIPWAY_TOOLS_REPOSITORY": "registry.test/tools",
        "SLIPWAY_BUILDKIT_IMAGE": "docker.io/moby/buildkit:v0.29.0@sha256:0123",
    }
    phase = Phase(spec.commands["build"], folder, variables, lambda _: None)
    assert phase.wait(PATIENCE_SECONDS) == Ended(0)
    pulled, created, built, pushed = (folder / "asked").read_text().splitlines()
    assert pulled == "pull --quiet registry.test/tools@sha256:0123"
    assert created == (
        f"buildx create --use --driver docker-container --driver-opt image={used} "
        "--driver-opt env.BUILDKIT_STEP_LOG_MAX_SIZE=-1 --driver-opt env.BUILDKIT_STEP_LOG_MAX_SPEED=-1"
    )
    assert "--cache-from type=registry,ref=registry.test/cache/ada/vision:layers " in built
    assert built.startswith("buildx build ") and built.endswith("--output type=cacheonly .")
    assert pushed.startswith("buildx build ") and "--metadata-file" in pushed
    assert " --output type=image,name=registry.test/ada/vision:1,push=true,rewrite-timestamp=true " in pushed
    told = "--build-arg SOURCE_DATE_EPOCH=1700000000 --build-arg NAME=a 'b\" --build-arg EMPTY= "
    told += f"--secret id=pip,src={memory}/secrets/pip --label org.opencontainers.image.revision=ab "
    assert told in built and told in pushed
    # the second run takes all from the first: neither the former cache nor an order to build anew
    assert "--cache-from" in built and "--cache-from" not in pushed
    assert "--no-cache" in built and "--no-cache" not in pushed
    assert (folder / "told").read_text() == "_login\n_report digest=sha256:ab\n"


def test_a_failed_login_ends_a_build_at_once_and_in_words(folder: Path) -> None:
    """Else the engine builds for an hour without a login, and the push fails."""
    commands = buildspec.parse(codebuild.buildspec()).commands["build"]
    memory = folder.parent / "memory"
    memory.mkdir()
    for name, text in texts().items():
        (memory / name).write_text(text)
    (memory / "ask").write_text("exit 1\n")
    (memory / "build-args").touch()
    (memory / "labels").touch()
    variables = {"PATH": "/usr/bin:/bin", "SLIPWAY_MEMORY": str(memory), "SLIPWAY_ENGINE": "none"}
    lines: list[str] = []
    phase = Phase(commands, folder, {**variables, "SLIPWAY_IMAGE": "x"}, lines.append)
    assert phase.wait(PATIENCE_SECONDS) == Ended(1, commands[0])
    assert lines == ["ERROR: the login to the registry failed"]


@pytest.mark.parametrize(
    "text",
    ["", "just words", "[]", "version: 0.1\nphases: {}", "version: 0.2", "version: 0.2\nphases: [a]", ": :"],
)
def test_what_is_no_buildspec_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        buildspec.parse(text)


def test_commands_share_a_shell_a_folder_and_what_they_were_given(run: Run, folder: Path) -> None:
    ended, said = run("HERE=$PWD; mkdir sub; cd sub", 'echo "$GIVEN"; echo "$HERE"; pwd')
    assert (ended, said) == (Ended(0), ["a b", str(folder), f"{folder}/sub"])


def test_the_first_failing_command_ends_the_phase_and_is_named(run: Run) -> None:
    ended, said = run("echo one", "# says why\necho two; (exit 7)", "echo never")
    assert (ended, said) == (Ended(7, "# says why\necho two; (exit 7)"), ["one", "two"])


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("set -e\nfalse\ntrue", 1), ("no-such-program", 127)])
def test_a_command_may_end_the_shell_itself(run: Run, command: str, code: int) -> None:
    ended, said = run(command, "echo never")
    assert ended == Ended(code, command)
    assert "never" not in said


def test_both_outputs_are_read_in_order_and_odd_bytes_are_shown(run: Run) -> None:
    _, said = run("echo one; echo two >&2; printf 'caf\\351\\n'; printf 'no end'")
    assert said == ["one", "two", "caf\ufffd", "no end"]


def test_codebuild_prints_each_command_and_an_empty_line(folder: Path) -> None:
    said: list[str] = []
    phase = Phase(["echo one\necho two", "exit 3"], folder, {"PATH": "/usr/bin"}, said.append, echoes=True)
    assert phase.wait(PATIENCE_SECONDS) == Ended(3, "exit 3")
    time = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6}"
    assert re.fullmatch(rf"\[Container\] {time} Running command echo one", said[0])
    assert said[1:5] == ["echo two", "one", "two", ""]
    assert re.fullmatch(rf"\[Container\] {time} Running command exit 3", said[5])


def test_nothing_waits_for_input(run: Run) -> None:
    assert run("cat; echo done") == (Ended(0), ["done"])


def test_what_was_left_in_the_background_ends_with_the_phase(run: Run) -> None:
    """It would hold the output open, and the phase would last as long."""
    assert run("(sleep 20; echo late) & echo started") == (Ended(0), ["started"])


def test_ending_a_phase_ends_all_its_children(folder: Path) -> None:
    said: list[str] = []
    alive = folder / "alive"
    command = f"trap 'rm {alive}' EXIT; touch {alive}; echo ready; sleep 60 | cat"
    killed: list[str] = []
    phase = Phase([f"bash -c {command!r} & wait"], folder, VARIABLES, said.append, lambda: killed.append("cleaned"))
    while "ready" not in said:
        assert phase.wait(0.02) is None

    phase.end()
    assert phase.wait(PATIENCE_SECONDS) is not None
    assert not alive.exists()
    assert killed == []


@pytest.mark.parametrize("command", ["bash -c 'kill -9 $$'", "kill -9 $$"])
def test_what_was_killed_is_cleaned_up_after(folder: Path, command: str) -> None:
    """By the kernel without memory, as well: an engine leaves its step then."""
    killed: list[str] = []
    phase = Phase([command], folder, VARIABLES, lambda _: None, lambda: killed.append("cleaned"))

    ended = phase.wait(PATIENCE_SECONDS)

    assert ended is not None and ended.exit_code in (137, -9)
    assert killed == ["cleaned"]
