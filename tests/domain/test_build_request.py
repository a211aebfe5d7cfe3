"""What requests say, of any shape: it is refused before it costs much."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from chalicelib.domain.build_request import parse_request
from chalicelib.domain.document import MAX_NODES, MAX_YAML_BYTES
from chalicelib.errors import Invalid
from tests.factories import SPEC

MIB = 1024**2


def refusal(content: str) -> str:
    """Why the content of a build is refused, which must take little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(Invalid) as refused:
            parse_request({"content": content})
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    return " ".join(refused.value.sentences())


def nested(levels: int, line: str) -> str:
    """Levels that each name the one before ten times."""
    first = "x0: &x0 {a: 1, b: 2}\n"
    return first + "".join(
        f"x{level}: &x{level} " + line.format(", ".join([f"*x{level - 1}"] * 10)) + "\n"
        for level in range(1, levels + 1)
    )


@pytest.mark.parametrize("levels", [1, 6, 12])
def test_merge_keys_are_refused(levels: int) -> None:
    assert "merge key (`<<`)" in refusal(nested(levels, "{{<<: [{}]}}"))


def test_a_merge_key_by_its_tag_is_refused() -> None:
    assert "merge key (`<<`)" in refusal("a: &a {b: 1}\nc: {!!merge x: *a}")


def test_aliases_that_grow_without_end_are_refused() -> None:
    assert "too large" in refusal(nested(12, "[{}]"))


def test_an_alias_that_stays_small_is_taken() -> None:
    request = parse_request(
        {"content": "version: 1\nkind: build\nimage: &base python\nbuild_steps: [echo, *base, '<<<']"}
    )
    assert request.spec is not None
    assert request.spec.build_steps == ("echo", "python", "<<<")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [" + "1," * 30_000 + "]", "too large"),
        ("a: &a 1\nb: [" + "*a," * 20_000 + "]", "too large"),
        ("[" * 60_000, "nested too deeply"),
        ("- " * 30_000, "nested too deeply"),
        ("a: 1" + ":59" * 20_000 + ".5", "neither JSON nor YAML"),  # a number in base 60
        ("a: x\n" * (MAX_YAML_BYTES // 5 + 1), f"can have {MAX_YAML_BYTES} bytes"),
        ("# é" + "é" * (MAX_YAML_BYTES // 2), f"can have {MAX_YAML_BYTES} bytes"),
    ],
    ids=lambda text: repr(text)[:30],
)
def test_yaml_is_refused_before_it_costs_much(content: str, reason: str) -> None:
    assert reason in refusal(content)


@pytest.mark.parametrize("field", ["content", "config"])
def test_yaml_that_is_too_long_is_not_given_to_the_parser(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    parsed: list[int] = []
    monkeypatch.setattr(yaml, "load", lambda text, loader: parsed.append(len(text)))
    with pytest.raises(Invalid):
        parse_request({field: "# " + "x" * MAX_YAML_BYTES})
    assert parsed == []


def test_the_parser_stops_where_the_bound_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    composed: list[None] = []
    original = yaml.SafeLoader.compose_node

    def counted(self: yaml.SafeLoader, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        composed.append(None)
        return original(self, parent, index)

    monkeypatch.setattr(yaml.SafeLoader, "compose_node", counted)
    with pytest.raises(Invalid, match="too large"):
        parse_request({"content": "a: [" + "1," * 30_000 + "]"})
    assert len(composed) == MAX_NODES


def test_json_may_be_longer_than_yaml() -> None:
    steps = ["echo " + "x" * 4_000] * 20
    content = json.dumps({**SPEC, "build_steps": steps})
    assert len(content) > MAX_YAML_BYTES
    assert parse_request({"content": content}).content == content
