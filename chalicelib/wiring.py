"""The real adapters, each made once, when first touched: nothing loads that a request does not use."""

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from chalicelib import ports, telemetry
from chalicelib import settings as environment
from chalicelib.domain.build import CODEBUILD
from chalicelib.domain.materials import attempt_secret
from chalicelib.errors import Unavailable
from chalicelib.settings import Settings

if TYPE_CHECKING:
    from chalicelib.adapters.dynamodb import Records


class AwsServices:
    """`Services` on AWS, or on whatever AWS_ENDPOINT_URL and its kin name."""

    @cached_property
    def settings(self) -> Settings:
        return environment.read()

    @cached_property
    def _records(self) -> "Records":
        """All ports on the table, because they share it and its client."""
        from chalicelib.adapters.dynamodb import Records

        return Records(self.settings.table, self.settings.account_memory_seconds, telemetry.saw)

    @property
    def projects(self) -> ports.Projects:
        return self._records.projects

    @property
    def builds(self) -> ports.Builds:
        return self._records.builds

    @property
    def archive(self) -> ports.Archive:
        return self._records.archive

    @property
    def bookmarks(self) -> ports.Bookmarks:
        return self._records.bookmarks

    @property
    def code_references(self) -> ports.CodeReferences:
        return self._records.code_references

    @property
    def accounts(self) -> ports.Accounts:
        return self._records.accounts

    @cached_property
    def queue(self) -> ports.BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.dispatch_queue_url)

    @cached_property
    def log_queue(self) -> ports.BuildQueue:
        from chalicelib.adapters.sqs import SqsBuildQueue

        return SqsBuildQueue(self.settings.log_queue_url)

    @cached_property
    def dead_letters(self) -> ports.DeadLetters:
        from chalicelib.adapters.sqs import SqsDeadLetters

        return SqsDeadLetters(self.settings.dead_letter_queue_url)

    @cached_property
    def log_archive(self) -> ports.LogArchive:
        from chalicelib.adapters.s3 import S3LogArchive

        return S3LogArchive(self.settings.bucket)

    @cached_property
    def sources(self) -> ports.Sources:
        from chalicelib.adapters.s3 import S3Sources

        return S3Sources(self.settings.bucket)

    @cached_property
    def secrets(self) -> ports.Secrets:
        from chalicelib.adapters.ssm import SsmSecrets

        return SsmSecrets(self.settings.secret_prefix)

    @cached_property
    def registry(self) -> ports.Registry:
        from chalicelib.adapters.registry import EcrCredentials, FixedLogin, HttpRegistry, image_lifecycle

        of = self.settings
        if of.plain_http:
            return HttpRegistry("http", FixedLogin(of.registry_login))
        lifecycle = image_lifecycle(of.keep_images, of.keep_image_days, of.keep_image_tags.split())
        return HttpRegistry("https", EcrCredentials(of.tag_patterns, lifecycle=lifecycle))

    @cached_property
    def registry_logins(self) -> ports.RegistryLogins:
        from chalicelib.adapters.registry import EcrLogins, SignedLogins

        if self.settings.plain_http:
            return SignedLogins(self.settings.registry_login, self.now)
        return EcrLogins(self.settings.registry_role)

    @cached_property
    def deployment_secrets(self) -> ports.DeploymentSecrets:
        from chalicelib.adapters.secrets_manager import SecretsManager

        return SecretsManager(self.settings.build_key_secret, self.settings.docker_hub_secret)

    @cached_property
    def scripts(self) -> ports.Scripts:
        from chalicelib.adapters.steps import StepFiles

        return StepFiles()

    @cached_property
    def broker(self) -> ports.Broker:
        from chalicelib.adapters.broker import LambdaBroker

        return LambdaBroker(self.settings.broker_function)

    @cached_property
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

    @cached_property
    def _codebuild(self) -> ports.Executor:
        from chalicelib.adapters.codebuild import CodeBuildExecutor

        return CodeBuildExecutor(self.settings, self._secret_of)

    @cached_property
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
