"""The world with the real adapters: their HTTP calls are answered by models of the services, with faults."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any, ClassVar
from unittest import mock

from chalicelib.adapters.cloudwatch import CloudWatchLogs
from chalicelib.adapters.dynamodb import keys, records
from chalicelib.adapters.dynamodb.table import Item
from chalicelib.domain.build import CODEBUILD, EKS, BuildKey
from chalicelib.domain.project import ProjectKey
from chalicelib.domain.record import replace
from chalicelib.domain.slots import Running
from chalicelib.ports import Logs
from chalicelib.settings import EksSettings, Settings
from chalicelib.wiring import AwsServices, lazily
from infra.local import aws
from tests.fakes import Clock
from tests.simulation.aws import Aws
from tests.simulation.cluster import ClusterExecutor, SimulatedCluster
from tests.simulation.dynamodb import DynamoDB, Row
from tests.simulation.http_calls import Answer, HttpCalls, Request, answering
from tests.simulation.scheduler import current
from tests.simulation.world import World

ENVIRONMENT = {**aws.ENVIRONMENT, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
REGISTRY = f"000000000000.dkr.ecr.{aws.REGION}.amazonaws.com"
ROLE = "arn:aws:iam::000000000000:role/builds"
TRANSACTION_SECONDS = 0.01
_OF_POD = re.compile(r"-(run-\d+)\.log$")  # the name of a stream of a pod's log


class RealServices(AwsServices):
    """As deployed, but for settings and clock. To make the SDK's clients takes long: they stay in `made`, by
    the name of the default executor; only the cluster's asks anew where it is."""

    clock: Clock
    made: ClassVar[dict[str, RealServices]] = {}

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> RealServices:
        services = cls.made.setdefault(settings.backend, cls())
        services.clock = clock
        vars(services)["settings"] = settings
        # `logs` remembers for a minute, by the story's clock
        for name in ("_eks", "deployment_secrets", "logs"):
            vars(services).pop(name, None)
        return services

    @lazily
    def logs(self) -> Logs:
        logs = CloudWatchLogs(self.settings.reported_log_group, clock=lambda: self.clock.now.timestamp())
        vars(logs)["_reading"] = nullcontext()  # functions share this process here: the lock would stop all of them
        return logs

    def now(self) -> datetime:
        return self.clock.now


class AdaptersWorld(World):
    """What the fakes have stored is what the services have: adapters reach it over HTTP alone."""

    def wire(self) -> None:
        fakes = self.services
        self.settings = fakes.settings = replace(
            fakes.settings,
            registry=REGISTRY,
            registry_kind="ecr",
            registry_role=ROLE,
            account_memory_seconds=0,
            eks=EksSettings("lab") if self.on_eks else None,
        )
        fakes.eks = ClusterExecutor(self)
        fakes.executors = {CODEBUILD: fakes.codebuild, EKS: fakes.eks}
        self._dynamodb = DynamoDB(lambda: self.scheduler.seconds, _wait)
        self._aws, self._cluster = Aws(self), SimulatedCluster(self, fakes.eks)
        self._rows: dict[keys.Key, Row] = {}
        trace = self.trace if self.is_traced else None
        self.http = HttpCalls(self.scheduler, self.faults, self._dynamodb.table, self._answer, trace)
        self.http.after_change = self._look_at_table
        self.calls = self.http
        self.seen = RealServices.of(self.settings, fakes.clock)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with mock.patch.dict(os.environ, ENVIRONMENT), answering(self.http):
            os.environ.pop("AWS_PROFILE", None)
            yield

    def log_name(self, log: str) -> str:
        of_pod = _OF_POD.search(log)
        return f"logs:slipway-builds:{of_pod[1]}" if of_pod else log

    def _answer(self, request: Request, former: Mapping[str, Any] | None) -> Answer:
        if request.service == "dynamodb":
            return self._dynamodb.answer_request(request, former)
        if request.service == "kubernetes":
            return self._cluster.answer_request(request)
        return self._aws.answer(request)

    def _look_at_table(self) -> None:
        """The fakes' records become what the rows say."""
        rows = self._dynamodb.table.rows
        for key in [*rows, *(key for key in self._rows if key not in rows)]:
            if rows.get(key) is not self._rows.get(key):
                self._note(*key, rows.get(key))
        self._rows = rows.copy()
        self.look()

    def _note(self, pk: str, sk: str, row: Row | None) -> None:
        store, item = self.services.records, Item.from_raw_data(dict(row)) if row else None
        match pk[0], sk:
            case ("B", _) | ("P", "P"):
                key = keys.parse_record_key(pk, sk)
                if isinstance(key, BuildKey):
                    _put(store.builds, key, item and records.decode_build(item))
                else:
                    _put(store.projects, (key.owner, key.name), item and records.decode_project(item))
            case "D", "D":
                _put(store.bodies, keys.parse_ref(pk[2:]), item and records.decode_body(item))
            case "N", _:
                project, _, name = pk[2:].partition("#")
                _put(store.names, (*project.split("/"), name), item and int(item.suffixes or 0))
            case "S", _:
                keys_of_builds = frozenset(map(BuildKey.parse, (item and item.running) or ()))
                _put(store.slots, "all", item and Running(keys_of_builds, int(item.version or 0)))
            case "C", _ if sk != keys.DROP:
                at = item and datetime.fromisoformat(item.updated_at or "")
                _put(store.noted, (pk[2:], ProjectKey("", sk)), at)


def _put(stored: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        stored.pop(key, None)
    else:
        stored[key] = value


def _wait() -> None:
    function = current()
    if function is not None:
        function.pause(TRANSACTION_SECONDS)
