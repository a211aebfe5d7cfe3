"""Which repositories a build's login reaches, and where a project's layers are cached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chalicelib.domain.project import image_reference
from chalicelib.domain.repositories import Rights, cache_repository, rights
from tests.factories import make_project


@pytest.mark.parametrize(
    ("image", "cache"),
    [
        ("registry.test:5000/slipway/ada/vision-0123:7", "registry.test:5000/slipway-cache/ada/vision-0123"),
        ("registry.test/team/images/ada/vision-0123:7", "registry.test/team/images-cache/ada/vision-0123"),
        ("registry.test/ada/vision-0123:7", "registry.test/cache/ada/vision-0123"),
    ],
)
def test_a_project_has_a_cache_beside_its_images(image: str, cache: str) -> None:
    assert cache_repository(image) == cache


def test_a_login_has_the_projects_two_repositories_and_no_other_projects() -> None:
    assert rights("registry.test/slipway/ada/vision-0123:7") == Rights(
        own=("slipway/ada/vision-0123", "slipway-cache/ada/vision-0123"),
        closed=("slipway/*", "slipway-cache/*"),
    )


names = st.from_regex(r"[A-Za-z0-9_.-]{1,128}", fullmatch=True)


@given(owner=names, name=names)
def test_projects_whose_names_differ_in_case_alone_share_nothing(owner: str, name: str) -> None:
    """The first digits of their uuids tell them apart."""
    first, second = (
        image_reference("registry.test/slipway", make_project(owner=spelled, name=name, uuid=uuid), 1)
        for spelled, uuid in ((owner.lower(), "0123456789"), (owner.upper(), "1123456789"))
    )
    assert not set(rights(first).own) & set(rights(second).own)
