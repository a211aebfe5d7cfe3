"""The real adapters, each made once, when first touched: nothing loads that a request does not use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property

from chalicelib import settings as environment
from chalicelib.domain.build import CODEBUILD
from chalicelib.errors import Unavailable
from chalicelib.ports import (
    Accounts,
    BuildQueue,
    BuildStore,
    DeadLetters,
    Executor,
    KeptLogs,
    Logs,
    Registry,
    Services,
    Sources,
)
from chalicelib.settings import Settings


class AwsServices:
    """`Services` on AWS, or on whatever AWS_ENDPOINT_URL and its kin name."""

    @cached_property
    def settings(self) -> Settings:
        return environment.read()

    @cached_property
    def store(self) -> BuildStore:
        return self._records[0]

    @cached_property
    def accounts(self) -> Accounts:
        return self._records[1]

    @cached_property
    def _records(self) -> tuple[BuildStore, Accounts]:
        """Both at once, because they share table and client."""
        from chalicelib.adapters import dynamodb

        dynamodb.use_table(self.settings.table)
        return dynamodb.DynamoBuildStore(), dynamodb.DynamoAccounts(self.settings.account_memory_seconds)

    @cached_property
    def queue(self) -> BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.dispatch_queue_url)

    @cached_property
    def log_queue(self) -> BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.log_queue_url)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        from chalicelib.adapters.sqs import SqsDeadLetters

        return SqsDeadLetters(self.settings.dead_letter_queue_url)

    @cached_property
    def kept_logs(self) -> KeptLogs:
        from chalicelib.adapters.s3 import S3KeptLogs

        return S3KeptLogs(self.settings.bucket)

    @cached_property
    def sources(self) -> Sources:
        from chalicelib.adapters.s3 import S3Sources

        return S3Sources(self.settings.bucket)

    @cached_property
    def executors(self) -> Mapping[str, Executor]:
        return _Executors(self)

    @cached_property
    def registry(self) -> Registry:
        from chalicelib.adapters.registry import EcrCredentials, FixedLogin, HttpRegistry

        if self.settings.plain_http:
            return HttpRegistry("http", FixedLogin(self.settings.registry_login))
        return HttpRegistry("https", EcrCredentials())

    @cached_property
    def logs(self) -> Logs:
        from chalicelib.adapters.cloudwatch import CloudWatchLogs

        return CloudWatchLogs(self.settings.reported_log_group)

    def now(self) -> datetime:
        now = datetime.now(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)


class _Executors(dict[str, Executor]):
    """Each made when first asked for."""

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services

    def __missing__(self, name: str) -> Executor:
        settings = self._services.settings
        if name not in settings.executors:
            raise Unavailable(f"Nothing runs on {name} here.")
        self[name] = executor = self._codebuild(settings) if name == CODEBUILD else self._eks(settings)
        return executor

    def _codebuild(self, settings: Settings) -> Executor:
        from chalicelib.adapters.codebuild import CodeBuildExecutor

        return CodeBuildExecutor(
            settings.codebuild_project,
            settings.bucket,
            settings.buildkit_image,
            settings.queue_timeout_minutes,
            settings.build_timeout_minutes,
        )

    def _eks(self, settings: Settings) -> Executor:
        from chalicelib.adapters.eks.api import KubernetesApi
        from chalicelib.adapters.eks.executor import EksExecutor
        from chalicelib.adapters.registry import EcrLogin

        eks = settings.eks
        assert eks is not None, "it is among `executors`"
        login = EcrLogin(eks.registry_role, eks.cache_repository)
        return EksExecutor(
            KubernetesApi(eks.cluster, eks.endpoint, eks.certificate),
            eks,
            self._services.sources,
            None if settings.plain_http else login.docker_config,
            plain_http=settings.plain_http,
            queue_minutes=settings.queue_timeout_minutes,
            build_minutes=settings.build_timeout_minutes,
            now=self._services.now,
        )


_services: Services = AwsServices()


def services() -> Services:
    """The services of this process."""
    return _services


def get_ready() -> None:
    """Makes what every function uses while Lambda initializes it, as AWS advises, and not when its first
    event waits. Elsewhere than in Lambda: nothing."""
    if environment.in_lambda():
        from chalicelib.adapters import dynamodb

        _ = services().store  # names the table
        dynamodb.client()


def install(replacement: Services) -> Services:
    """Puts others in their place, for tests; returns those that were there."""
    global _services
    previous, _services = _services, replacement
    return previous
