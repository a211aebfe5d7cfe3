"""Rows of the table: what is read from a row is what was written to it, for every record and every key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chalicelib.adapters.dynamodb import keys, records
from chalicelib.domain.build import Build, BuildBody, BuildKey, Source, Status, StatusEntry
from chalicelib.domain.environment import Placement
from chalicelib.domain.project import Code, Project, ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.user import Token, User
from tests.factories import after, make_build
from tests.fakes import as_listed

texts = st.sampled_from(["", "a", '"', "\\", "}", "{,:[]", "two\nlines", "\x01", "ünï 🚢", "null"])
names = st.text("aZ0._-", min_size=1, max_size=3)
times = st.integers(0, 10**9).map(lambda milliseconds: after(milliseconds / 1000))
values: st.SearchStrategy[Any] = st.sampled_from([None, True, 1, -2.5, "}", 2**53, [1, {"a": "b"}], {"c": {}}])
objects = st.dictionaries(texts, values, max_size=2)
project_keys = st.builds(ProjectKey, names, names)
build_keys = st.builds(BuildKey, names, names, st.integers(1, 10**12 - 1))
entries = st.builds(
    StatusEntry, st.integers(1, 500), texts, st.sampled_from(Status), times, *[st.none() | texts] * 2, objects
)
string_maps = st.dictionaries(texts, texts, max_size=2)
placements = st.builds(Placement, string_maps, string_maps, string_maps, st.lists(string_maps, max_size=2).map(tuple))
builds = st.builds(
    Build,
    key=build_keys,
    created_at=times,
    updated_at=times,
    started_at=st.none() | times,
    submitting_at=st.none() | times,
    check_at=st.none() | times,
    archived_at=st.none() | times,
    deleted_at=st.none() | times,
    finished_at=st.none() | times,
    stop_requested_at=st.none() | times,
    history=st.lists(entries, min_size=1, max_size=4).map(tuple),
    tags=st.lists(texts, max_size=3).map(tuple),
    resources=st.none() | objects,
    code_reference=st.none() | objects,
    placement=st.none() | placements,
    source=st.none() | st.builds(Source, *[st.none() | texts] * 5),
    uuid=texts,
    user=texts,
    backend=texts,
    nonce=texts,
    image=texts,
    description=st.none() | texts,
    commit=st.none() | texts,
    handle=st.none() | texts,
    log=st.none() | texts,
    name=st.none() | names,
    version=st.integers(1, 10**6),
    attempt=st.integers(0, 9),
    stored_log_bytes=st.none() | st.integers(0, 10**12),
)
projects = st.builds(
    Project,
    owner=names,
    name=names,
    created_at=times,
    updated_at=times,
    description=st.none() | texts,
    tags=st.lists(texts, max_size=3).map(tuple),
    archived_at=st.none() | times,
    deleted_at=st.none() | times,
    code=st.none() | st.builds(Code, texts, st.integers(0, 10**12), times),
    version=st.integers(1, 10**6),
    last_build_id=st.integers(0, 10**12),
    live_builds=st.integers(0, 10**12),
)


@given(builds)
def test_a_build_is_decoded_as_it_was_encoded(build: Build) -> None:
    assert records.decode_build(records.encode_build(build)) == build


def test_a_build_of_an_older_version_has_its_log_in_storage() -> None:
    item = records.encode_build(make_build(stored_log_bytes=3))
    item.data, item.unlisted = (
        text.replace('"stored_log_bytes"', '"kept_log_bytes"') for text in (item.data, item.unlisted)
    )
    assert records.decode_build(item).stored_log_bytes == 3


@given(builds)
def test_a_listed_build_has_what_lists_show(build: Build) -> None:
    assert records.decode_listed_build(records.encode_build(build)) == as_listed(build)


@given(st.builds(BuildBody, st.none() | texts, st.none() | objects, st.none() | texts, st.none()))
def test_texts_are_decoded_as_they_were_encoded(body: BuildBody) -> None:
    assert records.decode_body(records.encode_body(BuildKey("ada", "vision", 1), body)) == body


@given(projects)
def test_a_project_is_decoded_as_it_was_encoded(project: Project) -> None:
    assert records.decode_project(records.encode_project(project)) == project


@given(st.builds(User, names, times, st.none() | texts, st.booleans(), st.none() | times))
def test_a_user_is_decoded_as_it_was_encoded(user: User) -> None:
    assert records.decode_account(records.encode_user(user), User) == user


@given(st.builds(Token, texts, names, times, times, texts, st.none() | times, st.none() | st.dates()))
def test_a_token_is_decoded_as_it_was_encoded(token: Token) -> None:
    assert records.decode_account(records.encode_token(token)[0], Token) == token


@given(build_keys | project_keys, names)
def test_each_key_is_parsed_to_what_it_was_made_of(key: BuildKey | ProjectKey, user: str) -> None:
    assert keys.parse_ref(keys.format_ref(key)) == key
    assert keys.parse_record_key(*keys.record_key(key)) == key
    assert keys.parse_reference_sk(keys.bookmark_key(user, key)[1]) == key
    assert keys.reverse_bookmark_key(key, user)[1].removeprefix(keys.reverse_bookmark_key(key, "")[1]) == user
    assert keys.parse_reference_sk(keys.code_reference_key("ab", key)[1]) == key


MADE: list[Callable[[BuildKey, str, datetime], Any]] = [
    lambda key, text, at: keys.record_key(key),
    lambda key, text, at: keys.record_key(key.project_key),
    lambda key, text, at: keys.body_key(key),
    lambda key, text, at: keys.name_key(key, text),
    lambda key, text, at: keys.user_key(text),
    lambda key, text, at: keys.token_key(text),
    lambda key, text, at: keys.idempotency_key(key.project_key, text),
    lambda key, text, at: keys.request_count_key(text, at),
    lambda key, text, at: keys.bookmark_key(text, key),
    lambda key, text, at: keys.bookmark_key(text, key.project_key),
    lambda key, text, at: keys.reverse_bookmark_key(key, text),
    lambda key, text, at: keys.reverse_bookmark_key(key.project_key, text),
    lambda key, text, at: keys.code_reference_key(text, key),
    lambda key, text, at: keys.code_reference_key(text, key.project_key),
]


@given(build_keys, names, times)
def test_rows_of_different_kinds_never_share_a_key(key: BuildKey, text: str, at: datetime) -> None:
    assert len({make(key, text, at) for make in MADE}) == len(MADE)


@given(build_keys, build_keys)
def test_keys_of_builds_are_in_the_order_of_their_ids(one: BuildKey, other: BuildKey) -> None:
    other = replace(other, owner=one.owner, project=one.project)
    assert (keys.record_key(one) < keys.record_key(other)) is (one.id < other.id)
    assert (keys.format_ref(one) < keys.format_ref(other)) is (one.id < other.id)
