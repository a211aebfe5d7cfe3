from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chalicelib.domain.build import SPECIAL_FILES_MARK
from chalicelib.domain.dockerfile import generate
from chalicelib.domain.spec import Spec, parse_config, parse_content
from chalicelib.errors import Invalid
from tests.factories import SPEC

POLYAXONS_OWN_EXAMPLE = (
    "\nFROM tensorflow/tensorflow:1.4.1-py3\n\nENV LC_ALL en_US.UTF-8\nENV LANG en_US.UTF-8\nENV LANGUAGE "
    "en_US.UTF-8\n# Use bash as default shell, rather than sh\nENV SHELL /bin/bash\n\nWORKDIR /code\n\nRUN "
    "pip3 install --no-cache-dir -U polyaxon-helper\nCOPY build /code\n"
)

LATER_LAYOUT = """
FROM python:3.7-slim

# Use bash as default shell, rather than sh
ENV SHELL /bin/bash

ENV APP_MODE prod
ENV RETRIES 3
WORKDIR /code

RUN pip install flask==1.1
COPY build /code
"""

OLDER_LAYOUT = """
FROM python:3.7-slim

ENV LC_ALL en_US.UTF-8
ENV LANG en_US.UTF-8
ENV LANGUAGE en_US.UTF-8
# Use bash as default shell, rather than sh
ENV SHELL /bin/bash

ENV APP_MODE prod
ENV RETRIES 3
WORKDIR /code

RUN pip install flask==1.1
COPY build /code
"""


def older(spec: dict[str, Any]) -> dict[str, Any]:
    """The same in the layout of Polyaxon 0.2."""
    header = {key: value for key, value in spec.items() if key in ("version", "kind")}
    return {**header, "build": {key: value for key, value in spec.items() if key not in header}}


def test_build_arguments_are_declared_for_the_steps() -> None:
    dockerfile = generate(parse_content({**SPEC, "build_args": {"VERSION": "1", "OTHER": "2"}}))
    assert dockerfile.startswith("\nFROM python:3.7-slim\n\nARG VERSION\nARG OTHER\n# Use bash")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("prod", "A prod"),
        ("sea green, a=b #c `d` {}", "A sea green, a=b #c `d` {}"),
        ("a\\", r'A="a\\"'),
        ("two  blanks", 'A="two  blanks"'),
        (" at its ends ", 'A=" at its ends "'),
        ("", 'A=""'),
        ('{"a": 1}', r'A="{\"a\": 1}"'),
        ("it's", 'A="it\'s"'),
        ("pa$$word", r'A="pa\$\$word"'),
        ("$HOME/x:${HOME}:${A:-b}", r'A="\$HOME/x:\${HOME}:\${A:-b}"'),
        ("$A:/x:${A}:$AB:$$A", r'A="$A:/x:${A}:\$AB:\$$A"'),
        ("$VERSION-$EARLIER-$LATER", r'A="$VERSION-$EARLIER-\$LATER"'),
    ],
)
def test_values_that_engines_would_change_are_quoted(value: str, written: str) -> None:
    variables = [["EARLIER", "1"], ["A", value], ["LATER", "2"]]
    dockerfile = generate(parse_content({**SPEC, "env_vars": variables, "build_args": {"VERSION": "1"}}))
    assert f"\nENV EARLIER 1\nENV {written}\nENV LATER 2\n" in dockerfile


def test_steps_get_the_secrets_that_they_name() -> None:
    secrets = [{"id": "pip", "from": "a"}, {"id": "pip.conf", "from": "b"}]
    steps = ["cat /run/secrets/pip", "cat /run/secrets/pip.conf", "cat </run/secrets/pip>x", "true"]
    dockerfile = generate(parse_content({**SPEC, "build_steps": steps, "secrets": secrets}))
    mount = "--mount=type=secret,id={},required=true,mode=0444"
    assert [line for line in dockerfile.splitlines() if line.startswith("RUN")] == [
        f"RUN {mount.format('pip')} {steps[0]}",
        f"RUN {mount.format('pip.conf')} {steps[1]}",
        f"RUN {mount.format('pip')} {steps[2]}",
        "RUN true",
    ]


# Byte for byte


def test_polyaxons_own_example() -> None:
    spec = parse_config(
        {
            "build": {
                "build_steps": ["pip3 install --no-cache-dir -U polyaxon-helper"],
                "image": "tensorflow/tensorflow:1.4.1-py3",
            },
            "version": 1,
            "kind": "build",
        }
    )

    assert generate(spec) == POLYAXONS_OWN_EXAMPLE


def test_the_later_layout_sets_no_locale() -> None:
    assert generate(parse_content(SPEC)) == LATER_LAYOUT


def test_the_older_layout_always_sets_one() -> None:
    assert generate(parse_config(older(SPEC))) == OLDER_LAYOUT


def test_a_locale_that_is_asked_for() -> None:
    expected = OLDER_LAYOUT.replace("en_US.UTF-8", "C.UTF-8")

    assert generate(parse_content({**SPEC, "lang_env": "C.UTF-8"})) == expected
    assert generate(parse_config(older({**SPEC, "lang_env": "C.UTF-8"}))) == expected


# Special files


@pytest.mark.parametrize(
    ("files", "copied"),
    [
        ([], []),
        (["train.py", "README.md"], []),
        (["requirements.txt"], ["requirements.txt"]),
        (["requirements.txt", "polyaxon_requirements.txt"], ["polyaxon_requirements.txt"]),
        (
            ["setup.sh", "conda_env.yml", "requirements.txt"],
            ["requirements.txt", "conda_env.yml", "setup.sh"],
        ),
        (["conda_env.yml", "conda_env.yaml"], ["conda_env.yaml"]),
        (["conda_env.yaml", "polyaxon_conda_env.yml"], ["polyaxon_conda_env.yml"]),
        (["polyaxon_conda_env.yml", "polyaxon_conda_env.yaml"], ["polyaxon_conda_env.yaml"]),
        (["polyaxon_setup.sh", "setup.sh"], ["polyaxon_setup.sh"]),
    ],
    ids=lambda names: "+".join(names) or "none",
)
def test_of_each_group_of_special_files_the_first_is_copied(files: list[str], copied: list[str]) -> None:
    lines = generate(parse_content(SPEC), files).split("\n")

    copies = [f"COPY build/{name} /code" for name in copied]
    after_workdir = lines.index("WORKDIR /code") + 2
    assert lines[after_workdir:] == [*copies, "RUN pip install flask==1.1", "COPY build /code", ""]


def test_a_mark_stands_for_special_files_that_are_not_known_yet() -> None:
    lines = generate(parse_content(SPEC), files=None).split("\n")

    assert lines[-4:] == [SPECIAL_FILES_MARK, "RUN pip install flask==1.1", "COPY build /code", ""]


# Nothing but what the fields allow


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, as BuildKit reads them: lines end at LF, CRLF or the end;
    comments and empty lines are dropped, also within a continued line; a backslash at the end joins; a
    here-document swallows the lines up to its terminator."""
    found = []
    lines = iter(re.split(r"\r?\n", dockerfile))
    for line in lines:
        if says_nothing(line):
            continue
        while re.search(r"\\[ \t]*$", line):
            following = next((more for more in lines if not says_nothing(more)), "")
            line = re.sub(r"\\[ \t]*$", "", line) + following
        keyword, _, arguments = line.strip().partition(" ")
        if keyword.upper() in ("RUN", "COPY", "ADD"):
            for terminator in heredoc_terminators(arguments):
                while (following := next(lines, None)) is not None and following.strip() != terminator:
                    pass
        found.append((keyword, arguments.strip()))
    return found


def says_nothing(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def heredoc_terminators(arguments: str) -> list[str]:
    words = set(arguments.split())
    with suppress(ValueError):
        words.update(shlex.split(arguments))
    matches = [re.fullmatch(r"\d*<<-?([^<]+)", word) for word in sorted(words)]
    return [match[1].strip("\"'") for match in matches if match]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\nRUN b \\ \n# no\n\n c\nRUN d", [("FROM", "a"), ("RUN", "b  c"), ("RUN", "d")]),
        ("RUN <<EOF\nUSER root\nEOF\nUSER x", [("RUN", "<<EOF"), ("USER", "x")]),
        ("RUN a\r\nUSER x", [("RUN", "a"), ("USER", "x")]),
    ],
    ids=["continued", "here-document", "CRLF"],
)
def test_how_the_tests_read_a_dockerfile(text: str, expected: list[tuple[str, str]]) -> None:
    assert instructions(text) == expected


# Pieces of what somebody would write who wants one more instruction than a field allows.
HOSTILE = st.lists(
    st.sampled_from([*"\\\n\r\t\x0b\x0c\x85\u2028\u00a0 #`$[]\"'<-=a1", "<<", "EOF", "--mount=type=secret"])
    | st.sampled_from(["USER root", "RUN id", "# escape=`"]),
    max_size=6,
).map("".join)
SPECS = st.fixed_dictionaries(
    {"version": st.just(1), "kind": st.just("build"), "image": st.just("a:1") | HOSTILE},
    optional={
        "build_steps": st.lists(HOSTILE, max_size=3),
        "env_vars": st.lists(st.tuples(st.just("A") | HOSTILE, HOSTILE | st.floats() | st.integers())).map(
            lambda pairs: [list(pair) for pair in pairs[:3]]
        ),
        "lang_env": st.just("C.UTF-8") | HOSTILE,
    },
)


def accepted(document: dict[str, Any]) -> Spec:
    try:
        return parse_content(document)
    except Invalid:
        assume(False)
        raise


def expect_only_its_fields(spec: Spec) -> None:
    expected = [("FROM", spec.image)]
    expected += [("ENV", f"{name} {spec.lang_env}") for name in ("LC_ALL", "LANG", "LANGUAGE") if spec.lang_env]
    expected += [("ENV", "SHELL /bin/bash")]
    expected += [("ENV", f"{name} {value}") for name, value in spec.env_vars]
    expected += [("WORKDIR", "/code")]
    expected += [("RUN", step.strip()) for step in spec.build_steps]
    expected += [("COPY", "build /code")]
    found = [(word, as_it_arrives(rest) if word == "ENV" else rest) for word, rest in instructions(generate(spec))]
    assert found == expected


def as_it_arrives(arguments: str) -> str:
    """Name and value of an ENV, as engines read them: between double quotes a backslash keeps what follows."""
    if quoted := re.fullmatch(r'(\w+)="((?:[^"\\]|\\["\\$])*)"', arguments):
        return quoted[1] + " " + re.sub(r"\\(.)", r"\1", quoted[2])
    assert re.fullmatch(r"\w+(?: [^\s\"'\\$]+)+", arguments)
    return arguments


@given(SPECS)
def test_no_accepted_field_adds_an_instruction(document: dict[str, Any]) -> None:
    expect_only_its_fields(accepted(document))


@given(HOSTILE)
def test_no_accepted_step_adds_an_instruction(step: str) -> None:
    spec = accepted({**SPEC, "build_steps": [step, "next"]})

    expect_only_its_fields(spec)
    assert not spec.build_steps[0].lstrip().startswith("--")


@given(HOSTILE)
def test_no_accepted_variable_adds_an_instruction(value: str) -> None:
    expect_only_its_fields(accepted({**SPEC, "env_vars": [["A", value], ["B", "c"]]}))


def test_a_specification_in_json_is_the_same() -> None:
    assert generate(parse_content(json.loads(json.dumps(SPEC)))) == LATER_LAYOUT
