"""The query syntax of lists: a table of it, and that no text makes it fail otherwise than in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.domain.build import Build, Status
from chalicelib.domain.query import parse_query, sorted_builds
from chalicelib.domain.record import replace
from chalicelib.errors import Invalid
from tests.factories import NOW, after, make_build

BUILD = make_build(
    Status.RUNNING,
    number=7,
    name="Trainer-1",
    description="the nightly one",
    tags=("nightly", "gpu"),
    commit="abc",
    started_at=after(1800),  # 2024-03-01 12:30:00
)
BLANK = make_build(number=8)


def holds(query: str, build: Build = BUILD) -> bool:
    predicate = parse_query(query)
    assert predicate is not None
    return predicate(build)


@pytest.mark.parametrize(
    "query",
    [
        "id:7",
        "id:1|7",
        "status:running",
        " status : running , id : 7 ",
        "status:~failed",
        "status:failed|running",
        "name:Trainer-1",
        "name:train%",
        "name:%-1",
        "name:%RAIN%",
        "name:~%x%",
        "description:the nightly one",
        "tags:gpu",
        "tags:x|gpu",
        "tags:~x",
        "user:ada",
        "user.username:ada",
        "user.id:ada",
        "project:vision",
        "project.name:vision",
        "backend:native",
        "commit:abc",
        "created_at:2024-03-01",
        "created_at:2024-03-01 12:00",
        "created_at:2024-3-1 12:00:00",
        "created_at:>2024-02-29",
        "created_at:>=2024-03-01",
        "created_at:=>2024-03-01",
        "created_at:<2024-03-02",
        "created_at:<=2024-03-01",
        "created_at:=<2024-03-01",
        "created_at:~>2024-03-01",
        "created_at:~2024-03-02",
        "created_at:2024-02-01..2024-03-01",
        "started_at:2024-03-01 12:30",
        "started_at:>2024-03-01 12:29",
        "created_at:<=2024-03-01T12:00:00.000000Z",
        "created_at:2024-03-01T12:00:00.000000Z",
        "created_at:2024-03-01T12:00:00.0Z..2024-03-01T12:00:00Z",
        "created_at:2024-03-01 12:00Z",
        "created_at:>=2024-03-01T14:00:00+02:00",
        "created_at:2024-03-01T14:00:00 02:00",
        "created_at:2024-03-01T08:30:00.000-0330",
        "created_at:>2024-03-01T13:59:59.999999999+02:00",
        "status:running,,status:~failed,",
    ],
)
def test_what_holds(query: str) -> None:
    assert holds(query)


@pytest.mark.parametrize(
    "query",
    [
        "id:8",
        "status:Running",
        "status:~running",
        "name:trainer-1",
        "name:%x%",
        "name:rain%",
        "tags:cpu",
        "tags:~gpu",
        "user:bob",
        "created_at:>2024-03-01",
        "created_at:<2024-03-01",
        "created_at:2024-03-02..2024-03-09",
        "started_at:2024-03-01 12:31",
        "finished_at:2024-03-01",
        "created_at:2024-03-01T12:00:00.000001Z",
        "created_at:<2024-03-01T14:00:00+02:00",
        "created_at:2024-03-01T12:00:00.5Z",
        "status:running,id:8",
    ],
)
def test_what_does_not_hold(query: str) -> None:
    assert not holds(query)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name:~x", True),
        ("name:~x|y", True),
        ("name:~%x%", True),
        ("commit:~abc", True),
        ("tags:~a", True),
        ("started_at:~2024-03-01", True),
        ("started_at:~2024-03-01..2024-03-02", True),
        ("started_at:>2024-03-01", False),
        ("started_at:~>2024-03-01", False),
    ],
)
def test_a_missing_value_matches_negations_but_no_comparison(query: str, expected: bool) -> None:
    assert holds(query, BLANK) is expected


@pytest.mark.parametrize(
    "query",
    [
        " ",
        ",,",
        "status",
        "status:",
        ":x",
        "status:~",
        "status:a|",
        "status:>a",
        "status:a..b",
        "secret:1",
        "user.password:x",
        "user.email:x",
        "id:abc",
        "id:-1",
        "id:" + "9" * 30,
        "id:>3",
        "created_at:yesterday",
        "created_at:2024-02-30",
        "created_at:0000-00-00",
        "created_at:9999-12-31",
        "created_at:2024-03-01T25:00:00Z",
        "created_at:2024-03-01T12:00:00+99:00",
        "created_at:2024-03-01+02:00",
        "created_at:<>1",
        "created_at:a|b",
        "created_at:2024-01-01..",
        "created_at:1..2..3",
        "name:%",
        "name:%a%b%",
        "x" * 1001,
        ",".join(["id:1"] * 21),
    ],
    ids=lambda query: query[:30],
)
def test_what_is_refused_in_words(query: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse_query(query)
    assert all(isinstance(sentence, str) for sentence in refusal.value.sentences())


def test_every_fault_is_named() -> None:
    with pytest.raises(Invalid) as refusal:
        parse_query("secret:1,id:abc,status:running")
    assert len(refusal.value.sentences()) == 2


def test_no_query_asks_nothing() -> None:
    assert parse_query("") is None


PIECES = st.lists(
    st.sampled_from(["id", "status", "name", "tags", "started_at", ":", "~", "|", "%", "..", "<", "=", ">", ","])
    | st.sampled_from(["2024-03-01", "0001-01-01", "T12:30:00", ".5", "Z", "+14:00", "7", "a", " "])
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@given(PIECES, st.sampled_from([BUILD, BLANK]))
def test_any_text_is_a_query_or_is_refused(text: str, build: Build) -> None:
    try:
        predicate = parse_query(text)
    except Invalid as refusal:
        assert refusal.sentences()
    else:
        assert predicate is None or predicate(build) in (True, False)


CONDITIONS = st.sampled_from(
    ["id:7", "id:8|9", "status:running", "name:%rain%", "name:a|b", "tags:gpu|x", "commit:abc", "user:ada"]
) | st.sampled_from(["created_at:2024-03-01", "started_at:2024-03-01 12:30", "started_at:2024-03-01..2024-04-01"])


@given(CONDITIONS, st.sampled_from([BUILD, BLANK]))
def test_a_negation_is_what_is_left(query: str, build: Build) -> None:
    assert holds(query.replace(":", ":~", 1), build) is not holds(query, build)


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("", [3, 2, 1]),
        ("unknown", [3, 2, 1]),
        ("updated_at", [1, 2, 3]),
        ("-created_at", [1, 2, 3]),
        ("started_at", [3, 1, 2]),
        ("-started_at", [1, 3, 2]),
        ("started_at,-updated_at,nonsense", [3, 1, 2]),
    ],
)
def test_orders(sort: str, expected: list[int]) -> None:
    def build(number: int, **changes: Any) -> Build:
        return replace(make_build(number=number), updated_at=after(number), **changes)

    builds = [
        build(1, created_at=after(9), started_at=after(9)),
        build(2, created_at=after(8)),
        build(3, created_at=NOW, started_at=NOW),
    ]
    assert [each.key.id for each in sorted_builds(builds, sort)] == expected
