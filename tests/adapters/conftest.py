from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local import aws


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """AWS on loopback, for as long as the tests of this folder run."""
    server = aws.Moto()
    server.start()
    yield server.url
    server.close()


@pytest.fixture
def on_aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients made in this test reach that AWS."""
    for name, value in {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def dynamodb_table(on_aws: None) -> None:
    """A fresh table, under a name of its own."""
    import uuid

    from chalicelib.adapters import dynamodb

    dynamodb.use_table(f"slipway-{uuid.uuid4().hex}")
    dynamodb.Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
