"""Steps of builds, read from the logs that engines wrote here: `recordings/<engine>-<run>.txt`.

Each line has the seconds since the start before it. `cold` ran without cached layers, `warm` with them, `fails` has
one more step. One step prints what looks like a line of buildah; two sleep for 1 and 0.5 seconds. BuildKit's are
those of buildx; buildctl prints by the same code.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from chalicelib.domain import build_steps
from chalicelib.domain.build_steps import MAX_STEPS, MAX_TEXT, BuildStep, Steps
from tests.factories import NOW, after

RECORDINGS = Path(__file__).parent / "recordings"
IMAGE = "registry.test/slipway/ada/vision-01234567:1"
ENGINES = ["buildx", "buildah", "podman"]
INSTRUCTION = re.compile(r"(\[\d/\d\] )?\[(?:[\w-]+ )?\d/\d\] ([A-Z]+)")


def recorded(*names: str) -> list[BuildStep]:
    """What one log of these recordings says."""
    steps, begin = Steps(IMAGE), 0.0
    for name in names:
        for row in (RECORDINGS / f"{name}.txt").read_text().splitlines():
            seconds, _, line = row.partition(" ")
            steps.add(after(begin + float(seconds)), line)
        begin += 100
    return steps.found


def said(*lines: str) -> list[BuildStep]:
    """What these lines say, a second after one another."""
    steps = Steps(IMAGE)
    for second, line in enumerate(lines):
        steps.add(after(second), line)
    return steps.found


def instructions(steps: list[BuildStep]) -> list[tuple[str, BuildStep]]:
    """The steps of the Dockerfile: BuildKit has others beside."""
    return [(found[2], step) for step in steps if (found := INSTRUCTION.match(step.name))]


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_have_names_and_times(engine: str) -> None:
    steps = instructions(recorded(f"{engine}-cold"))

    # BuildKit needs the first image once, and buildah the second as well
    assert sorted(kind for kind, _ in steps) == sorted(
        ["COPY", "COPY", "FROM", "RUN", "RUN", "WORKDIR"] + ["FROM"] * (engine != "buildx")
    )
    (slow, least), (quick, _) = ((step, step.duration_seconds or 0) for kind, step in steps if kind == "RUN")
    assert slow.name.endswith("RUN echo tool > /tool && sleep 1") and least >= 1
    assert (quick.duration_seconds or 0) >= 0.5
    assert not slow.is_cached and slow.error is None
    assert NOW <= slow.started_at <= quick.started_at - timedelta(seconds=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_cached_steps_say_so_and_have_no_duration(engine: str) -> None:
    steps = [step for kind, step in instructions(recorded(f"{engine}-warm")) if kind != "FROM"]

    assert [(step.is_cached, step.duration_seconds, step.error) for step in steps] == [(True, None, None)] * 5


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("buildx", "ERROR: executor failed running [/bin/sh -c echo before; exit 7]: exit code: 7"),
        ("buildah", 'Error: building at STEP "RUN echo before; exit 7": while running runtime: exit status 7'),
        ("podman", 'Error: building at STEP "RUN echo before; exit 7": while running runtime: exit status 7'),
    ],
)
def test_the_step_that_fails_has_the_engines_words(engine: str, words: str) -> None:
    *others, failed = recorded(f"{engine}-fails")

    assert failed.name.endswith("6/6] RUN echo before; exit 7")
    assert (failed.error, failed.is_cached) == (words, False)
    assert failed.duration_seconds is not None
    assert {step.error for step in others} == {None}


def test_of_a_second_run_that_pushes_only_what_it_adds_counts() -> None:
    """As on CodeBuild and EKS."""
    assert recorded("buildx-cold", "buildx-warm") == recorded("buildx-cold")

    first = ["#0 building with x", "", "#1 [1/1] RUN a", "#1 DONE 2.0s", ""]
    second = ["#0 building with x", "", "#1 [1/1] RUN a", "#1 CACHED", "", "#2 exporting to image", "#2 DONE 1.0s"]
    assert [(step.name, step.duration_seconds) for step in said(*first, *second)] == [
        ("[1/1] RUN a", 2.0),
        ("exporting to image", 1.0),
    ]


def test_steps_side_by_side_have_the_times_that_buildkit_measured() -> None:
    first, second = said(
        *("#5 [a 1/1] RUN a", "#5 0.1 a", "#5 ...", "", "#6 [b 1/1] RUN b", "#6 0.2 b", "#6 DONE 4.0s", ""),
        *("#5 [a 1/1] RUN a", "#5 9.1 a", "#5 DONE 9.5s"),
    )

    assert (first.name, first.started_at, first.duration_seconds) == ("[a 1/1] RUN a", NOW, 9.5)
    assert (second.name, second.started_at, second.duration_seconds) == ("[b 1/1] RUN b", after(2), 4.0)


def test_a_step_that_has_not_ended_has_no_duration() -> None:
    for lines in (["#7 [2/2] RUN sleep 9", "#7 0.1 x"], ["STEP 1/2: FROM x", "STEP 2/2: RUN sleep 9", "x"]):
        last = said(*lines)[-1]
        assert (last.name, last.duration_seconds, last.is_cached) == ("[2/2] RUN sleep 9", None, False)


def test_buildahs_push_is_a_step() -> None:
    begin = ["STEP 1/1: FROM x", "COMMIT", f"Pushing {IMAGE}", "Copying blob 1"]
    end = f"Pushing finished: {IMAGE.rpartition(':')[0]}@sha256:ab"

    built, pushed = said(*begin, end)
    assert (built.duration_seconds, pushed.name, pushed.duration_seconds) == (2, f"Pushing {IMAGE}", 2)


@pytest.mark.parametrize(
    "line",
    ["STEP 9/9: RUN x", "STEP 3/4: RUN x", "--> Package x", "Pushing x", "#5 x"],
)
def test_what_a_step_prints_is_not_taken_for_buildahs(line: str) -> None:
    steps = said("STEP 1/3: FROM x", "STEP 2/3: RUN true", line, "STEP 3/3: RUN true", "--> 0123456789ab")

    assert [(step.name, step.duration_seconds) for step in steps] == [
        ("[1/3] FROM x", 1),
        ("[2/3] RUN true", 2),
        ("[3/3] RUN true", 1),
    ]


@pytest.mark.parametrize(
    "line", ["STEP 1/1: RUN x", "--> 0123456789ab", "Error: building at STEP x", f"Pushing {IMAGE}"]
)
def test_buildkits_log_has_no_lines_of_buildah(line: str) -> None:
    (step,) = said("#7 [1/1] RUN true", line, "#7 DONE 2.0s")

    assert (step.name, step.duration_seconds) == ("[1/1] RUN true", 2.0)


def test_steps_are_bounded_in_number_and_length() -> None:
    many = said(*(f"#{number} [1/1] RUN {number} {'x' * 5_000}" for number in range(1, 2 * MAX_STEPS)))

    assert len(many) == MAX_STEPS
    assert {len(step.name) for step in many} == {MAX_TEXT}


def test_no_pattern_can_be_tried_at_many_lengths() -> None:
    for pattern in (value.pattern for value in vars(build_steps).values() if isinstance(value, re.Pattern)):
        assert len(re.findall(r"[*+]", pattern)) <= 1, pattern


def test_a_step_that_does_not_end_its_last_line_hides_neither_the_next_nor_the_error() -> None:
    """As buildah prints them."""
    fetched, second, failed = said(
        "STEP 1/3: FROM x",
        "STEP 2/3: RUN printf abc",
        "abcSTEP 3/3: RUN printf 'STEP 7/9: '; exit 3",
        'STEP 7/9: Error: building at STEP "RUN printf": while running runtime: exit status 3',
    )
    assert (fetched.duration_seconds, second.duration_seconds) == (1, 1)
    assert failed.name == "[3/3] RUN printf 'STEP 7/9: '; exit 3"
    assert failed.error == 'Error: building at STEP "RUN printf": while running runtime: exit status 3'
