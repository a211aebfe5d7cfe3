from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.domain import document
from chalicelib.domain.environment import Environment
from chalicelib.domain.record import replace
from chalicelib.domain.spec import Spec, checked_tags, is_slug, parse_config, parse_content
from chalicelib.errors import Invalid
from tests.factories import SPEC


def faults(document: object) -> list[str]:
    """The sentences with which a document is refused."""
    with pytest.raises(Invalid) as refusal:
        parse_content(document)
    return refusal.value.sentences()


def deep(levels: int) -> Any:
    nested: Any = "x"
    for _ in range(levels):
        nested = [nested]
    return nested


def test_a_whole_specification() -> None:
    spec = parse_content(
        {
            **SPEC,
            "name": "trainer",
            "description": "of models",
            "tags": ["a", "b", "a"],
            "logging": {"level": "DEBUG", "formatter": None},
            "backend": "kaniko",
            "context": "src/app",
            "lang_env": "C.UTF-8",
            "nocache": "yes",
            "image_tags": ["latest", "v1", "latest"],
            "platforms": ["linux/arm64"],
            "commit": "2f758b8902d4cf5d4147b09706613ec108eda369",
            "branch": "feature/x",
            "environment": {
                "resources": {"cpu": {"requests": 1, "limits": 2.5}, "memory": {"limits": None}, "gpu": None},
                "node_selector": {"disk": "ssd"},
            },
        }
    )

    assert spec == Spec(
        document=spec.document,
        image="python:3.7-slim",
        context="src/app",
        build_steps=("pip install flask==1.1",),
        env_vars=(("APP_MODE", "prod"), ("RETRIES", "3")),
        lang_env="C.UTF-8",
        nocache=True,
        image_tags=("latest", "v1"),
        platform="linux/arm64",
        commit="2f758b8902d4cf5d4147b09706613ec108eda369",
        branch="feature/x",
        backend="kaniko",
        tags=("a", "b"),
        environment=Environment(spec.document["environment"], {"cpu": {"requests": 1, "limits": 2.5}, "memory": {}}),
    )


def test_both_layouts_mean_the_same_and_are_given_back() -> None:
    nested = {
        "version": 1,
        "kind": "build",
        "tags": ["a"],
        "build": {"image": "python:3.7-slim", "build_steps": ["true"], "lang_env": "C.UTF-8"},
    }

    spec = parse_config(nested)

    assert spec == parse_content(spec.document)
    assert spec.config == nested


def test_null_fields_are_absent_fields() -> None:
    nulls = dict.fromkeys(("dockerfile", "context", "env_vars", "tags", "nocache", "environment", "name"))

    assert parse_content({**SPEC, **nulls, "env_vars": None}).env_vars == ()


def test_build_arguments_are_kept_as_they_are() -> None:
    given = {"A": " '\"$x` \\", "B": "", "C": True, "D": 1.5}
    assert parse_content({**SPEC, "build_args": given}).build_args == (
        ("A", " '\"$x` \\"),
        ("B", ""),
        ("C", "true"),
        ("D", "1.5"),
    )


# Steps in YAML's block scalars, as they are parsed


@pytest.mark.parametrize(
    ("step", "command"),
    [
        ("make all\n", "make all"),  # `>` of two lines, `|` of one
        ("make all", "make all"),  # `>-`
        ("apt-get update && \\\n  apt-get install -y git\n", "apt-get update &&   apt-get install -y git"),
        ("a && \\  \n# why\n\n   # more\n  b \\\n  c\n", "a &&   b   c"),
        ("a && \\\r\n b\r\n", "a &&  b"),
        ("echo '#a' \\\n '#b'\n\n", "echo '#a'  '#b'"),
    ],
)
def test_block_scalars_are_steps(step: str, command: str) -> None:
    assert parse_content({**SPEC, "build_steps": [step]}).build_steps == (command,)


@pytest.mark.parametrize("step", ["a \\\n", "-\\\n-mount=type=bind a", "cat <\\\n<EOF", "a\n\nb", "a \\\n b\n c"])
def test_joined_lines_are_checked_as_the_line_they_make(step: str) -> None:
    assert faults({**SPEC, "build_steps": [step]})


# Revisions of git

NAMES = (
    *("main", "feature/#123-x", "user@host", "a+b", "_under", "wip=1", "ümlaut", "fix(core)", "a,b", "it's", "日本"),
    *("@scope/pkg", "v1.0", "a.b/c", "a;b", "a&b|c", "$(x)", "`x`", '"', "%s", "!x", "{a}", "x" * 244, "a.lockx", "@x"),
    *("a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "/a", "a/", "a//b", ".a", "a/.b", "a.", "a.lock"),
    *("a.lock/b", "a@{1}", "-dash", "a\x7fb", "a\tb"),
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_branches_may_have_the_names_that_git_allows(name: str) -> None:
    is_allowed = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True).returncode == 0
    if is_allowed:
        spec = parse_content({**SPEC, "branch": name, "commit": f"refs/heads/{name}"[:255]})
        assert spec.branch == name
    else:
        assert faults({**SPEC, "branch": name}) == [
            "`branch` must be the hash of a commit or a name that git allows, at most 255 characters."
        ]


# Polyaxonfiles of other kinds, in the shapes of three that are public

GROUP = """---
version: 1

kind: group

build:
    image: ubuntu:bionic
    build_steps:
        - ./polyaxon_setup.sh

environment:
    resources:
        cpu:
            requests: 1.0
            limits: 2
        gpu:
            # Need to add GPU nodes
            request: 0
            limits: 0

declarations:
    width: 96
hptuning:
    concurrency: 100
    random_search:
        n_experiments: 100
    matrix:
        dropout:
            values: [0.0, 0.1, 0.2]
        adam_eps:
            values: [1e-4, 1e-8, 1e-12]

run:
    cmd: env3.6/bin/python pretrain_textcat.py
"""
EXPERIMENT = """---
version: 1

kind: experiment

build:
  image: continuumio/miniconda:4.5.11
  build_steps:
    - conda env update -n base -f environment.yml

run:
  cmd: python hello_world.py
"""
NOTEBOOK = """version: 1
kind: notebook
tags: [explore]
environment:
  resources:
    gpu:
      requests: 1
  node_selector:
    polyaxon.com: gpu
build:
  image: tensorflow/tensorflow:1.12.0-gpu-py3
  commit: '0123456'
  env_vars:
    - [LC_ALL, en_US.UTF-8]
    - [PATH, '/opt/bin:$PATH']
  build_steps:
    - pip3 install --no-cache-dir -U polyaxon-client
    - >
      pip3 install
      jupyter
"""


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        (GROUP, {"image": "ubuntu:bionic", "build_steps": ["./polyaxon_setup.sh"]}),
        (
            EXPERIMENT,
            {
                "image": "continuumio/miniconda:4.5.11",
                "build_steps": ["conda env update -n base -f environment.yml"],
            },
        ),
        (
            NOTEBOOK,
            {
                "image": "tensorflow/tensorflow:1.12.0-gpu-py3",
                "commit": "0123456",
                "env_vars": [["LC_ALL", "en_US.UTF-8"], ["PATH", "/opt/bin:$PATH"]],
                "build_steps": ["pip3 install --no-cache-dir -U polyaxon-client", "pip3 install jupyter"],
            },
        ),
    ],
    ids=["group", "experiment", "notebook"],
)
def test_a_build_is_made_of_the_section_of_any_polyaxonfile(text: str, alone: dict[str, Any]) -> None:
    whole = document.read(text)
    spec = parse_content(whole)
    expected = parse_content({"version": 1, "kind": "build", **alone})
    assert replace(spec, document={}) == replace(expected, document={})
    assert (spec.document, spec.config) == (whole, whole)
    assert parse_config(whole) == spec


def test_an_older_specification_may_be_content_as_well() -> None:
    nested = {"version": 1, "kind": "build", "build": {"image": "a"}, "tags": ["b"]}
    assert parse_content(nested) == parse_config(nested)
    assert parse_content(nested).lang_env == "en_US.UTF-8"


@pytest.mark.parametrize("version", [1, 1.0])
def test_the_version_is_one(version: object) -> None:
    assert parse_content({**SPEC, "version": version}).image


@pytest.mark.parametrize(
    "image",
    ["python", "python:3.7", "ghcr.io/a/b", "localhost:5000/a/b:tag", "a/b@sha256:" + "0" * 64, "Upper:Case"],
)
def test_images_that_are_taken(image: str) -> None:
    assert parse_content({**SPEC, "image": image}).image == image


VERSION = "`version` must be 1."
IMAGE = "`image` must"
NO_TAG = "`image_tags` are at most 128 letters, digits, `_`, `.`, `-` each, and no numbers: builds have those."
ONE_PLATFORM = (
    "`platforms` must have one entry: an image of several platforms is not built here; post a build for each."
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": None}, VERSION),
        ({"version": "1"}, VERSION),
        ({"version": 2}, VERSION),
        ({"version": 1.1}, VERSION),
        ({"version": True}, VERSION),
        ({"kind": None}, "`kind` must be `build`, or another of Polyaxon's kinds"),
        ({"kind": ["build"]}, "`kind` must be `build`, or another of Polyaxon's kinds"),
        ({"kind": "job", "run": {}}, "This is a polyaxonfile of kind `job` without a `build` section. Slipway builds"),
        ({"kind": "job", "build": "x"}, "This is a polyaxonfile of kind `job` without a `build` section."),
        ({"kind": "job", "build": {"kind": "job"}}, "`kind` of a `build` section must be `build`"),
        ({"kind": "job", "build": {"image": "a b"}}, f"{IMAGE} not contain spaces."),
        ({"kind": "job", "build": {"steps": []}}, "`steps` is not a field of a build; remove it."),
        ({"kind": "job", "build": {"image": "a"}, "version": 2}, VERSION),
        ({"image": None}, "Exactly one of `image` and `dockerfile` is needed."),
        ({"dockerfile": "Dockerfile"}, "Exactly one of `image` and `dockerfile` is needed."),
        ({"image": ""}, f"{IMAGE} be a non-empty string."),
        ({"image": 3}, f"{IMAGE} be a non-empty string."),
        ({"image": "a b"}, f"{IMAGE} not contain spaces."),
        ({"image": "a\nUSER root"}, f"{IMAGE} be a single line without control characters."),
        ({"image": "--platform=x"}, f"{IMAGE} start with a letter or digit and be ASCII."),
        ({"image": ":tag"}, f"{IMAGE} start with a letter or digit and be ASCII."),
        ({"image": "pythön"}, f"{IMAGE} start with a letter or digit and be ASCII."),
        ({"image": "a:b:c"}, f"{IMAGE} look like `name`, `name:tag` or `host:port/name:tag`."),
        ({"image": "a:1/b:c:d"}, f"{IMAGE} look like `name`, `name:tag` or `host:port/name:tag`."),
        ({"image": "a:$TAG"}, f"{IMAGE} not contain `$` or `#`."),
        ({"image": "a" * 5000}, f"{IMAGE} have at most 4096 characters."),
        ({"ref": 3}, "`ref` cannot be resolved here; give `image` or `dockerfile`."),
        ({"context": "../x"}, "`context` must be a relative path inside the code, without `..`."),
        ({"context": "/etc"}, "`context` must be a relative path inside the code, without `..`."),
        ({"context": ""}, "`context` must be a relative path inside the code, without `..`."),
        ({"context": 7}, "`context` must be a relative path inside the code, without `..`."),
        ({"build_steps": "make"}, "`build_steps` must be a list of at most 200 commands."),
        ({"build_steps": ["x"] * 201}, "`build_steps` must be a list of at most 200 commands."),
        ({"build_steps": [1]}, "`build_steps[0]` must be a non-empty string."),
        ({"build_steps": ["a", " "]}, "`build_steps[1]` must be a non-empty string."),
        (
            {"build_steps": ["a\nUSER x"]},
            "`build_steps[0]` has several lines: make each a step, or end all but the last with",
        ),
        ({"build_steps": ["a\u2028b"]}, "`build_steps[0]` must be a single line without control characters."),
        (
            {"build_steps": ["a \\ "]},
            "`build_steps[0]` must not end with a backslash, which would join it with the next line.",
        ),
        (
            {"build_steps": [" --mount=type=bind a"]},
            "`build_steps[0]` must not start with `--`: flags of RUN are not allowed, only commands.",
        ),
        (
            {"build_steps": ["cat <<EOF"]},
            "`build_steps[0]` must not contain a here-document (`<<`), which would swallow",
        ),
        ({"env_vars": {"A": "b"}}, "`env_vars` must be a list of at most 200 [NAME, value] pairs."),
        ({"env_vars": [["A"]]}, "`env_vars[0]` must be a pair [NAME, value]."),
        ({"env_vars": ["AB"]}, "`env_vars[0]` must be a pair [NAME, value]."),
        (
            {"env_vars": [["A B", "c"]]},
            "`env_vars[0]`: the name must be letters, digits and underscores, not starting with a digit.",
        ),
        (
            {"env_vars": [[1, "c"]]},
            "`env_vars[0]`: the name must be letters, digits and underscores, not starting with a digit.",
        ),
        ({"env_vars": [["A", None]]}, "`env_vars[0]`: the value must be a string or a number."),
        ({"env_vars": [["A", ["b"]]]}, "`env_vars[0]`: the value must be a string or a number."),
        ({"env_vars": [["A", "b\nc"]]}, "`env_vars[0]` must be a line of at most 4096 characters without"),
        ({"build_args": [["A", "b"]]}, "`build_args` must be a mapping of at most 200 names to values."),
        ({"build_args": {"A B": "c"}}, "Names in `build_args` are at most 128 letters, digits, "),
        (
            {"build_args": {"BUILDKIT_SYNTAX": "c"}},
            "Names in `build_args` are at most 128 letters, digits, ",
        ),
        ({"build_args": {"A": None}}, "`build_args.A`: the value must be a string or a number."),
        ({"build_args": {"A": "b\nc"}}, "`build_args.A` must be a line of at most 4096 characters without"),
        (
            {"build_args": {"A": "b" * 4097}},
            "`build_args.A` must be a line of at most 4096 characters without",
        ),
        ({"secrets": {"id": "a"}}, "`secrets` must be a list of at most 20 entries like"),
        ({"secrets": [{"id": "a"}]}, "`secrets[0]` must have `id` and `from`."),
        ({"secrets": [{"id": "../a", "from": "b"}]}, "`secrets[0].id` must be at most 64 letters"),
        ({"secrets": [{"id": "a", "from": "b c"}]}, "`secrets[0].from` must name a secret of the project"),
        ({"secrets": [{"id": "a", "from": "git-token"}]}, "`secrets[0].from` must name a secret of the"),
        ({"secrets": [{"id": "a", "from": "b"}] * 2}, "`secrets` must not have an id twice."),
        ({"lang_env": "C UTF"}, "`lang_env` must be a locale such as `C.UTF-8`."),
        ({"nocache": "perhaps"}, "`nocache` must be true or false."),
        ({"nocache": []}, "`nocache` must be true or false."),
        ({"image_tags": "latest"}, "`image_tags` must be a list of at most 5 tags."),
        ({"image_tags": list("abcdef")}, "`image_tags` must be a list of at most 5 tags."),
        *(({"image_tags": ["latest", tag]}, NO_TAG) for tag in ("12", "", 3, "-x", "a b", "é", "x" * 129, "a\n", "*")),
        ({"platforms": "linux/amd64"}, ONE_PLATFORM),
        ({"platforms": []}, ONE_PLATFORM),
        ({"platforms": ["linux/amd64", "linux/arm64"]}, ONE_PLATFORM),
        ({"platforms": ["windows/amd64"]}, "`platforms` may be linux/amd64 or linux/arm64."),
        ({"platforms": [["linux/amd64"]]}, "`platforms` may be linux/amd64 or linux/arm64."),
        (
            {"commit": 123},
            "`commit` must be a text: write it in quotes.",
        ),
        ({"branch": ""}, "`branch` must be the hash of a commit or a name that git allows"),
        ({"backend": "docker"}, "`backend` must be one of `native`, `kaniko`, `other`, `codebuild`, `eks`."),
        (
            {"backend": ["native"]},
            "`backend` must be one of `native`, `kaniko`, `other`, `codebuild`, `eks`.",
        ),
        ({"tags": "a"}, "`tags` must be a list of strings of 1 to 64 characters."),
        ({"tags": [""]}, "`tags` must be a list of strings of 1 to 64 characters."),
        ({"tags": [[]]}, "`tags` must be a list of strings of 1 to 64 characters."),
        ({"tags": ["a\tb\nc"]}, "`tags` must not contain control characters."),
        ({"tags": [str(i) for i in range(51)]}, "`tags` must have at most 50 entries."),
        ({"name": "a b"}, "`name` must be letters, digits, hyphens and underscores, at most 128."),
        ({"description": 1}, "`description` must be a string."),
        ({"logging": {"level": "LOUD"}}, "`logging.level` must be one of"),
        ({"logging": {"level": ["INFO"]}}, "`logging.level` must be one of"),
        ({"logging": {"color": 1}}, "`logging` may have `level` and `formatter`."),
        ({"environment": []}, "`environment` must be a mapping."),
        ({"environment": {"gpus": 1}}, "`environment` has no `gpus`."),
        ({"environment": {"resources": {"fpga": {}}}}, "`environment.resources` may have"),
        (
            {"environment": {"resources": {"cpu": 1}}},
            "`environment.resources.cpu` may have `requests` and `limits`.",
        ),
        (
            {"environment": {"resources": {"cpu": {"requests": "500m"}}}},
            "`environment.resources.cpu.requests` must be a number (memory and disk in MiB).",
        ),
        (
            {"environment": {"resources": {"cpu": {"limits": float("inf")}}}},
            "The specification contains a number that is not finite.",
        ),
        ({"steps": []}, "`steps` is not a field of a build; remove it."),
        ({"params": {}, "run": {}}, "`params`, `run` is not a field of a build; remove it."),
        ({"build": {"image": "a"}}, "Where there is a `build` section, `image`, `build_steps`, `env_vars` belongs"),
        ({3: 4}, "`3` is not a field of a build; remove it."),
        ({"x" * 1000: 1}, f"`{'x' * 64}` is not a field of a build; remove it."),
        ({"description": deep(19)}, "The specification is nested too deeply."),
        ({"description": deep(3000)}, "The specification is nested too deeply."),
        ({"tags": ["a"] * 6000}, "The specification is too large."),
        ({"description": 2**63}, "The specification contains a number that is too large."),
        ({"version": -(10**400)}, "The specification contains a number that is too large."),
        ({"description": "\ud800"}, "The specification contains text that is not valid UTF-8."),
        ({"\ud800": 1}, "The specification contains text that is not valid UTF-8."),
        ({"description": b"x"}, "The specification contains a bytes; only JSON's types are allowed."),
        ({"description": {1, 2}}, "The specification contains a set; only JSON's types are allowed."),
    ],
    ids=lambda value: "+".join(ascii(key)[:20] for key in value) if isinstance(value, dict) else "",
)
def test_what_is_refused_is_refused_in_a_sentence(changes: dict[Any, Any], sentence: str) -> None:
    assert [fault for fault in faults({**SPEC, **changes}) if fault.startswith(sentence)]


@pytest.mark.parametrize("document", [None, [], "text", 1, True])
def test_what_is_no_mapping_is_refused(document: object) -> None:
    assert faults(document)[0].startswith("A build specification must be a mapping")


@pytest.mark.parametrize(
    ("nested", "sentence"),
    [
        ({"version": 1, "kind": "build"}, "`config` needs a `build` section with the fields of the build."),
        ({"build": "image"}, "`config` needs a `build` section with the fields of the build."),
        (SPEC, "`config` needs a `build` section with the fields of the build."),
        (
            {**SPEC, "build": {}},
            "Where there is a `build` section, `image`, `build_steps`, `env_vars` belongs into it.",
        ),
        ({"version": 1, "kind": "build", "build": {"steps": 1, "image": "a"}}, "`steps` is not a field"),
    ],
)
def test_the_older_layout_is_refused_in_its_own_words(nested: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse_config(nested)
    assert refusal.value.sentences()[0].startswith(sentence)


def test_every_fault_is_told_at_once() -> None:
    told = faults({**SPEC, "image": "a b", "nocache": "perhaps", "env_vars": [["1", ""]]})

    assert len(told) == 3


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    """JSON's `1e400` and YAML's `.inf` become one; given back as JSON they would break the answer."""
    assert faults({**SPEC, "env_vars": [["A", number]]})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*Spec.__struct_fields__, "version", "kind", "name", "description", "logging", "environment", "ref"]
)


@given(st.dictionaries(FIELDS, ANYTHING, max_size=4))
def test_any_document_is_a_spec_or_refused(changes: dict[str, Any]) -> None:
    try:
        spec = parse_content({**SPEC, **changes})
    except Invalid as refusal:
        assert refusal.sentences()
        assert all(sentence.endswith(".") for sentence in refusal.sentences())
    else:
        assert (spec.image is None) != (spec.dockerfile is None)


def test_an_alias_that_expands_without_end_is_refused() -> None:
    bomb: Any = ["x"]
    for _ in range(12):
        bomb = [bomb] * 10

    assert faults({**SPEC, "tags": bomb}) == ["The specification is too large."]


# Names and tags


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 128])
def test_slugs(name: str) -> None:
    assert is_slug(name)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "ä", "a\n", "x" * 129, None, 1, ["a"]])
def test_what_is_no_slug(name: object) -> None:
    assert not is_slug(name)


def test_tags_keep_their_order_and_lose_repetitions() -> None:
    assert checked_tags(["b", "a", "b"]) == ("b", "a")
