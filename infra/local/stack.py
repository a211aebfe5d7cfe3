"""The whole service on one machine, in one process: started together, stopped together."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING

import boto3

from chalicelib.errors import Unauthenticated
from chalicelib.ports import Broker, RegistryLogins
from chalicelib.wiring import AwsServices, lazily
from infra import cli, openapi
from infra.local import aws
from infra.local.codebuild.api import CodeBuild
from infra.local.gateway import Gateway
from infra.local.machine.engine import Engine, EngineFailed
from infra.local.machine.engines import with_helper
from infra.local.machine.registry import Registry, answers
from infra.local.machine.signed_logins import SignedLogins
from infra.local.storage import Storage
from infra.local.stream import Stream
from infra.local.triggers import Triggers

if TYPE_CHECKING:
    from chalicelib.adapters.dynamodb import Records
    from infra.local.cluster.api import FakeKubernetes

log = logging.getLogger(__name__)

PROJECT = "slipway-builds"
CLUSTER = "fake"
EKS_TICK_SECONDS = 1.0  # between ticks; each polls for some seconds
CLEAN_UP_AGAIN_SECONDS = 2.0
TABLE = "slipway"
AUTOMATION_USER = "automation"
BUCKET = "slipway-sources"
PREFIX = "slipway"  # of the repositories of all projects
BUILD_KEY = "slipway-build-key"
IS_ARM = machine() in ("aarch64", "arm64")


@dataclass(frozen=True)
class Running:
    """A running stack: the URL of its API, root's token, and its parts. `aws_url` is the endpoint of all AWS services
    except CodeBuild."""

    url: str
    token: str
    codebuild: CodeBuild
    aws_url: str
    queues: aws.Queues
    kubernetes: FakeKubernetes | None  # with the backend eks


class Services(AwsServices):
    """As on AWS, except that the broker runs in this process, the registry has logins of its own, and moto takes calls
    of DynamoDB without a connection."""

    def __init__(self, moto: aws.Moto) -> None:
        self._moto = moto

    @lazily
    def _records(self) -> Records:
        from chalicelib.adapters.dynamodb.table import client

        records = super()._records
        self._moto.take_calls_of(client())
        return records

    @lazily
    def broker(self) -> Broker:
        from chalicelib.usecases.materials import OwnBroker

        return OwnBroker(self)

    @lazily
    def registry_logins(self) -> RegistryLogins:
        return SignedLogins(self.settings.registry_login, self.now)


@contextmanager
def stack(
    engine: Engine,
    registry: str,
    state: Path,
    *,
    registry_login: str = "",
    port: int = 0,
    root_token: str | None = None,
    concurrency: int = 2,
    seconds_per_minute: float = 60,
    reconcile_every_seconds: float = 60,
    clean_up_every_seconds: float = 300,
    settings: Mapping[str, str] | None = None,
    storage: Storage | None = None,
) -> Iterator[Running]:
    """Runs the whole service until the block is left; then running builds are stopped and all threads end.

    `registry` is host:port, `registry_login` user:password, `state` a folder for work in progress. A process runs one
    stack at a time, because settings are environment variables, as in Lambda. Raises OSError when `port` is taken.
    With the setting SLIPWAY_BACKEND=eks, builds run on a fake cluster. `storage` has the state that outlives the stack.
    """
    cli.publish()
    openapi.publish()
    with ExitStack() as closing:
        stream = Stream(aws.REGION)
        moto = aws.Moto(storage, stream)
        moto.start()
        closing.callback(moto.close)
        closing.enter_context(_environment(_fixed_settings(moto, registry, registry_login) | dict(settings or {})))
        clean_up = _CleanUp(engine)
        closing.callback(clean_up.close)
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="slipway-login-")))
        variables = with_helper(engine.environment, folder, registry)
        kubernetes = None
        if os.environ.get("SLIPWAY_BACKEND") == "eks":
            reconcile_every_seconds = EKS_TICK_SECONDS
            kubernetes = _kubernetes(variables, clean_up, state, concurrency, seconds_per_minute)
            closing.enter_context(_environment(_eks_settings(kubernetes)))
        queues = aws.create_resources(TABLE, BUCKET)
        if moto.stored is not None:
            moto.stored.restore()
        key = storage.remembered("build key", secrets.token_hex) if storage else secrets.token_hex()
        aws.create_secret(BUILD_KEY, key)
        closing.enter_context(_environment(_queue_settings(queues)))

        from app import app  # its routes depend on the environment
        from chalicelib import wiring

        images = Registry(registry, registry_login, None)
        gateway = Gateway(app, port, {f"The registry {registry}": lambda: answers(images)})
        closing.enter_context(_environment({"SLIPWAY_API_URL": f"{gateway.url}/api/v1"}))
        services = Services(moto)
        previous = wiring.replace_services(services)
        closing.callback(wiring.replace_services, previous)
        root = _token(services, "root", root_token, storage)
        _token(services, AUTOMATION_USER, None, storage)

        sources = {
            "dispatch": queues.dispatch,
            "keep_log": queues.logs,
            "on_request": queues.requests,
            "deliver": queues.hooks,
        }
        schedules = {"reconcile": reconcile_every_seconds, "clean_up": clean_up_every_seconds}
        triggers = Triggers(app, sources, schedules, stream)
        codebuild = CodeBuild(
            {PROJECT: variables},
            logs=boto3.client("logs"),
            deliver=triggers.deliver,
            state=state,
            concurrency=concurrency,
            seconds_per_minute=seconds_per_minute,
            clean_up=clean_up,
            storage=storage,
        )
        closing.enter_context(_environment({"AWS_ENDPOINT_URL_CODEBUILD": codebuild.start()}))
        closing.callback(triggers.close)
        if kubernetes is not None:
            closing.callback(kubernetes.close)
        closing.callback(codebuild.close)  # before the triggers, which record its last events
        closing.callback(gateway.close)
        triggers.start()
        gateway.start()
        codebuild.resume()
        yield Running(gateway.url, root, codebuild, moto.url, queues, kubernetes)


def _fixed_settings(moto: aws.Moto, registry: str, registry_login: str) -> dict[str, str]:
    """Settings that depend on no part of the stack but moto."""
    return aws.ENVIRONMENT | {
        "AWS_ENDPOINT_URL": moto.url,
        "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"])),
        "SLIPWAY_TABLE": TABLE,
        "SLIPWAY_CODEBUILD_PROJECT": PROJECT,
        "SLIPWAY_BUCKET": BUCKET,
        "SLIPWAY_REGISTRY": f"{registry}/{PREFIX}",
        "SLIPWAY_REGISTRY_KIND": "plain",
        "SLIPWAY_REGISTRY_LOGIN": registry_login,
        "SLIPWAY_BUILD_ARCHITECTURE": "arm64" if IS_ARM else "x86_64",
        "SLIPWAY_BUILD_KEY_SECRET": BUILD_KEY,
        "SLIPWAY_API_PREFIX": "/api/v1",
        "SLIPWAY_AUTOMATION_USER": AUTOMATION_USER,
        "SLIPWAY_EVENT_BUS": "default",
        "SLIPWAY_REQUESTS_PER_MINUTE": "0",  # one user has this machine
    }


def _queue_settings(queues: aws.Queues) -> dict[str, str]:
    return {
        "SLIPWAY_DISPATCH_QUEUE_URL": queues.dispatch,
        "SLIPWAY_LOG_QUEUE_URL": queues.logs,
        "SLIPWAY_HOOK_QUEUE_URL": queues.hooks,
        "SLIPWAY_DEAD_LETTER_QUEUE_URL": queues.dead_requests,
    }


def _token(services: Services, name: str, given: str | None, storage: Storage | None) -> str:
    """A token of a superuser: the given one, else that of the previous start while it is valid, else a new one."""
    from chalicelib.usecases import accounts

    setting = f"token of {name}"
    if storage is not None and (known := given or storage.get("setting", setting)):
        with suppress(Unauthenticated):
            if accounts.authenticate(services, known).name == name:
                return str(known)
    token = accounts.ensure_superuser(services, name, token=given)
    if storage is not None:
        storage.remember(setting, token)
    return token


class _CleanUp:
    """Removes what killed builds left; tries again while running builds prevent it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._closing = engine, threading.Event()

    def __call__(self) -> None:
        try:
            is_clean = self._engine.clean_up()
        except EngineFailed as error:
            log.warning("Files that a killed build left could not be removed, because: %s", error)
            return
        if not is_clean and not self._closing.is_set():
            later = threading.Timer(CLEAN_UP_AGAIN_SECONDS, self)
            later.daemon = True
            later.start()

    def close(self) -> None:
        self._closing.set()


def _kubernetes(
    variables: Mapping[str, str],
    clean_up: Callable[[], None],
    state: Path,
    slots: int,
    seconds_per_minute: float,
) -> FakeKubernetes:
    from infra.local.cluster.api import FakeKubernetes
    from infra.local.cluster.node import Node

    fake = FakeKubernetes(CLUSTER, "slipway-builds")
    fake.node = Node(
        fake,
        variables,
        logs=boto3.client("logs"),
        state=state / "node",
        slots=slots,
        seconds_per_minute=seconds_per_minute,
        clean_up=clean_up,
    )
    return fake


def _eks_settings(kubernetes: FakeKubernetes) -> dict[str, str]:
    """Settings of the fake cluster. Builds here are short, so they are polled more often than on AWS."""
    endpoint, certificate = kubernetes.start()
    return {
        "SLIPWAY_EKS_CLUSTER": CLUSTER,
        "SLIPWAY_EKS_ARCHITECTURE": "arm64" if IS_ARM else "amd64",
        "SLIPWAY_EKS_ENDPOINT": endpoint,
        "SLIPWAY_EKS_CERTIFICATE": certificate,
        "SLIPWAY_WATCH_EVERY_SECONDS": "1",
        "SLIPWAY_WATCH_SECONDS": "5",
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables until the block is left."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
