from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from functools import cache

import pytest
from botocore.loaders import JSONFileLoader
from hypothesis import settings

from chalicelib import wiring
from chalicelib.adapters.dynamodb import Records
from chalicelib.adapters.dynamodb.table import Item, client
from infra.bench import ministack
from infra.local import aws
from infra.local.machine.machine import STATE
from infra.local.storage import Storage
from tests.fakes import FakeServices

TABLE = f"slipway-{uuid.uuid4().hex}"

# The same examples every time, however slow the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("repeatable")


# Groups that take longest begin first, so that all workers are busy to the end.
LONGEST = ("other engines", "docker", "aws", "ui")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Names the tests that one worker runs, in their order, where several work side by side."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> tuple[int, bool]:
    group, is_long = _group(item), any(item.get_closest_marker(name) for name in ("engine", "slow"))
    return LONGEST.index(group) if group in LONGEST else len(LONGEST), not is_long


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups are seen by pairs of versions of pytest and pytest-xdist only; else a docker daemon would start
    twice in one folder, and each worker would package and make stacks for each test."""
    if session.config.getoption("dist", "no") == "loadgroup" and hasattr(session.config, "workerinput"):
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist does not see the tests' groups"


def _group(item: pytest.Item) -> str:
    """Those of one file; but all with docker, whose daemon has the state's folder for itself, and all with
    other engines, which share one store, where `local/` has a folder of its own; all that use the package, which
    is made once then; and all that use a browser."""
    folder, _, file = item.nodeid.partition("::")[0].removeprefix("tests/").partition("/")
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if item.get_closest_marker("engine"):
        own = "local " if folder == "local" else ""
        return f"{own}docker" if "docker" in parameters.values() else f"{own}other engines"
    return folder if folder in ("aws", "ui") else f"{folder}/{file}"


@pytest.fixture(scope="session", autouse=True)
def _models_of_aws_are_read_once() -> Iterator[None]:
    """Each stack and each empty table has clients of its own, whose sessions would all parse the same large files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def installed(services: FakeServices) -> Iterator[FakeServices]:
    """The fakes in the place of the real services, for what comes in through `app`."""
    previous = wiring.replace_services(services)
    yield services
    wiring.replace_services(previous)


@pytest.fixture(scope="session")
def local_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aws.Moto]:
    """AWS on loopback, as `make up` has it, for as long as tests run."""
    with closing(Storage(tmp_path_factory.mktemp("of-moto") / "kept")) as kept:
        server = aws.Moto(kept)
        server.start()
        yield server
        server.close()


@pytest.fixture(scope="session")
def moto(local_aws: aws.Moto) -> str:
    """Its URL."""
    return local_aws.url


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """The second one, of DynamoDB and SQS."""
    with ministack.serve(STATE) as url:
        yield url


@pytest.fixture
def on_aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients made in this test reach that AWS."""
    _reach(moto, monkeypatch)


def _reach(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**aws.ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def dynamodb_table(local_aws: aws.Moto, on_aws: None) -> Records:
    """The ports on a table without rows."""
    return _empty_table(local_aws)


@pytest.fixture
def table_in_emulator(emulator: str, monkeypatch: pytest.MonkeyPatch) -> Records:
    """The same, in the second emulator."""
    _reach(emulator, monkeypatch)
    return _empty_table()


def _empty_table(local: aws.Moto | None = None) -> Records:
    """One table serves all tests of a run, because to make one takes long."""
    records = Records(TABLE, remember_seconds=0)
    if local is not None:
        local.take_calls_of(client())
    if not Item.exists():
        Item.create_table(billing_mode="PAY_PER_REQUEST", wait=True)
    with Item.batch_write() as batch:
        for item in Item.scan(attributes_to_get=["pk", "sk"]):
            batch.delete(item)
    return records
