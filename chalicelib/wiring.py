"""The real adapters, each made once, when first touched: nothing loads that a request does not use."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chalicelib import ports, telemetry
from chalicelib import settings as environment
from chalicelib.domain.build import CODEBUILD
from chalicelib.domain.materials import attempt_secret
from chalicelib.errors import Unavailable
from chalicelib.settings import Settings

if TYPE_CHECKING:
    from chalicelib.adapters.dynamodb import Records

Made = TypeVar("Made")


def lazily(make: Callable[[Any], Made]) -> Made:
    """An attribute that is made of its object when it is first touched; for mypy it has the type of what is made."""
    return cast("Made", cached_property(make))


class AwsServices(ports.Services):
    """On AWS, or on whatever AWS_ENDPOINT_URL and its kin name."""

    @lazily
    def settings(self) -> Settings:
        return environment.read()

    @lazily
    def _records(self) -> "Records":
        """All ports on the table, because they share it and its client."""
        from chalicelib.adapters.dynamodb import Records

        return Records(self.settings.table, self.settings.account_memory_seconds, telemetry.saw)

    projects: ports.Projects = lazily(lambda self: self._records.projects)
    builds: ports.Builds = lazily(lambda self: self._records.builds)
    archive: ports.Archive = lazily(lambda self: self._records.archive)
    bookmarks: ports.Bookmarks = lazily(lambda self: self._records.bookmarks)
    code_references: ports.CodeReferences = lazily(lambda self: self._records.code_references)
    accounts: ports.Accounts = lazily(lambda self: self._records.accounts)

    @lazily
    def queue(self) -> ports.BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.dispatch_queue_url)

    @lazily
    def log_queue(self) -> ports.BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.log_queue_url)

    @lazily
    def dead_letters(self) -> ports.DeadLetters:
        from chalicelib.adapters.sqs import SqsDeadLetters

        return SqsDeadLetters(self.settings.dead_letter_queue_url)

    @lazily
    def log_archive(self) -> ports.LogArchive:
        from chalicelib.adapters.s3 import S3LogArchive

        return S3LogArchive(self.settings.bucket)

    @lazily
    def sources(self) -> ports.Sources:
        from chalicelib.adapters.s3 import S3Sources

        return S3Sources(self.settings.bucket)

    @lazily
    def secrets(self) -> ports.Secrets:
        from chalicelib.adapters.secrets import SsmSecrets

        return SsmSecrets(self.settings.secret_prefix)

    @lazily
    def registry(self) -> ports.Registry:
        from chalicelib.adapters.registry import EcrRegistry, HttpRegistry, image_lifecycle

        of = self.settings
        if of.plain_http:
            return HttpRegistry(of.registry_login)
        lifecycle = image_lifecycle(of.keep_images, of.keep_image_days, of.keep_image_tags.split())
        return EcrRegistry(of.tag_patterns, lifecycle=lifecycle)

    @lazily
    def registry_logins(self) -> ports.RegistryLogins:
        from chalicelib.adapters.registry import EcrLogins, SignedLogins

        if self.settings.plain_http:
            return SignedLogins(self.settings.registry_login, self.now)
        return EcrLogins(self.settings.registry_role)

    @lazily
    def deployment_secrets(self) -> ports.DeploymentSecrets:
        from chalicelib.adapters.secrets import SecretsManager

        return SecretsManager(self.settings.build_key_secret, self.settings.docker_hub_secret)

    @lazily
    def scripts(self) -> Mapping[str, str]:
        from chalicelib.adapters import steps

        return steps.texts()

    @lazily
    def broker(self) -> ports.Broker:
        from chalicelib.adapters.broker import LambdaBroker

        return LambdaBroker(self.settings.broker_function)

    @lazily
    def logs(self) -> ports.Logs:
        from chalicelib.adapters.cloudwatch import CloudWatchLogs

        return CloudWatchLogs(self.settings.reported_log_group)

    def now(self) -> datetime:
        now = datetime.now(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def executor(self, name: str) -> ports.Executor:
        if name not in self.settings.executors:
            raise Unavailable(f"Nothing runs on {name} here.")
        return self._codebuild if name == CODEBUILD else self._eks

    @lazily
    def _codebuild(self) -> ports.Executor:
        from chalicelib.adapters.codebuild import CodeBuildExecutor

        return CodeBuildExecutor(self.settings, self._secret_of)

    @lazily
    def _eks(self) -> ports.Executor:
        from chalicelib.adapters.eks.api import KubernetesApi
        from chalicelib.adapters.eks.executor import EksExecutor

        eks = self.settings.eks
        assert eks is not None, "it is among `executors`"
        api = KubernetesApi(eks.cluster, eks.endpoint, eks.certificate)
        return EksExecutor(api, eks, self.settings, self._secret_of)

    def _secret_of(self, build_uuid: str, attempt: int) -> str:
        return attempt_secret(self.deployment_secrets.build_key(), build_uuid, attempt)


_services: ports.Services = AwsServices()


def services() -> ports.Services:
    """The services of this process."""
    return _services


def get_ready() -> None:
    """Makes what every function uses while Lambda initializes it, before its first event waits. Elsewhere: nothing."""
    if environment.in_lambda():
        from chalicelib.adapters.dynamodb.table import client

        _ = services().builds  # names the table
        client()


def install(replacement: ports.Services) -> ports.Services:
    """Puts others in their place, for tests; returns those that were there."""
    global _services
    previous, _services = _services, replacement
    return previous
