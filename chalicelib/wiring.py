"""Makes the real adapters, each once, at its first use, so that a request loads only what it needs."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar, cast

from chalicelib import adapters, ports, telemetry
from chalicelib import settings as environment
from chalicelib.domain.build import CODEBUILD
from chalicelib.domain.materials import attempt_secret
from chalicelib.errors import Unavailable
from chalicelib.settings import Settings

Made = TypeVar("Made")
Of = TypeVar("Of", bound="AwsServices")


def lazily(make: Callable[[Of], Made]) -> Made:
    """A cached property; mypy sees an attribute with the type of its value."""
    return cast("Made", cached_property(make))


class AwsServices(ports.Services):
    """The services on AWS, or on the endpoints that AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_<SERVICE> name."""

    settings: Settings = lazily(lambda of: environment.read())

    @lazily
    def _records(self) -> "adapters.dynamodb.Records":
        """The adapters of all ports whose data is in the table; they share one DynamoDB client."""
        return adapters.dynamodb.Records(self.settings.table, self.settings.account_memory_seconds, telemetry.annotate)

    projects: ports.Projects = lazily(lambda of: of._records.projects)
    builds: ports.Builds = lazily(lambda of: of._records.builds)
    slots: ports.Slots = lazily(lambda of: of._records.slots)
    archive: ports.Archive = lazily(lambda of: of._records.archive)
    bookmarks: ports.Bookmarks = lazily(lambda of: of._records.bookmarks)
    code_references: ports.CodeReferences = lazily(lambda of: of._records.code_references)
    accounts: ports.Accounts = lazily(lambda of: of._records.accounts)
    queue: ports.BuildQueue = lazily(lambda of: adapters.sqs.SqsBuildQueue(of.settings.dispatch_queue_url))
    log_queue: ports.BuildQueue = lazily(lambda of: adapters.sqs.SqsBuildQueue(of.settings.log_queue_url))
    event_bus: ports.EventBus = lazily(lambda of: adapters.eventbridge.EventBridge(of.settings.event_bus))
    replies: ports.Replies = lazily(lambda of: adapters.sqs.SqsReplies(of.settings.dispatch_queue_url))
    hook_queue: ports.HookQueue = lazily(lambda of: adapters.sqs.SqsHookQueue(of.settings.hook_queue_url))
    webhooks: ports.Webhooks = lazily(lambda of: adapters.webhooks.HttpWebhooks(of.settings.private_hook_hosts))
    dead_letters: ports.DeadLetters = lazily(lambda of: adapters.sqs.SqsDeadLetters(of.settings.dead_letter_queue_url))
    log_archive: ports.LogArchive = lazily(lambda of: adapters.s3.S3LogArchive(of.settings.bucket))
    sources: ports.Sources = lazily(lambda of: adapters.s3.S3Sources(of.settings.bucket))
    registry_logins: ports.RegistryLogins = lazily(lambda of: adapters.registry.EcrLogins(of.settings.registry_role))
    secrets: ports.Secrets = lazily(lambda of: adapters.secrets.SsmSecrets(of.settings.secret_prefix))
    scripts: Mapping[str, str] = lazily(lambda of: adapters.steps.texts())
    broker: ports.Broker = lazily(lambda of: adapters.broker.LambdaBroker(of.settings.broker_function))
    logs: ports.Logs = lazily(lambda of: adapters.cloudwatch.CloudWatchLogs(of.settings.reported_log_group))
    _codebuild: ports.Executor = lazily(lambda of: adapters.codebuild.CodeBuildExecutor(of.settings, of._secret_of))

    @lazily
    def registry(self) -> ports.Registry:
        of, registry = self.settings, adapters.registry
        if of.plain_http:
            return registry.HttpRegistry(of.registry_login)
        lifecycle = registry.image_lifecycle(of.keep_images, of.keep_image_days, of.keep_image_tags.split())
        return registry.EcrRegistry(of.tag_patterns, lifecycle=lifecycle)

    @lazily
    def deployment_secrets(self) -> ports.DeploymentSecrets:
        return adapters.secrets.SecretsManager(self.settings.build_key_secret, self.settings.docker_hub_secret)

    def aside(self, read: Callable[[], Made]) -> Callable[[], Made]:
        from concurrent.futures import ThreadPoolExecutor  # loaded by who needs it

        thread = ThreadPoolExecutor(1)
        reading = thread.submit(read)
        thread.shutdown(wait=False)  # it ends with the read
        return reading.result

    def now(self) -> datetime:
        now = datetime.now(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def executor(self, name: str) -> ports.Executor:
        if name not in self.settings.executors:
            raise Unavailable(f"Nothing runs on {name} here.")
        return self._codebuild if name == CODEBUILD else self._eks

    @lazily
    def _eks(self) -> ports.Executor:
        eks = self.settings.eks
        assert eks is not None, "it is among `executors`"
        api = adapters.eks.KubernetesApi(eks.cluster, eks.endpoint, eks.certificate)
        return adapters.eks.EksExecutor(api, eks, self.settings, self._secret_of)

    def _secret_of(self, build_uuid: str, attempt: int) -> str:
        return attempt_secret(self.deployment_secrets.build_key(), build_uuid, attempt)


_services: ports.Services = AwsServices()


def services() -> ports.Services:
    """The services of this process."""
    return _services


def warm_up() -> None:
    """Makes DynamoDB's client during Lambda's init phase, not at the first event. Does nothing outside of Lambda."""
    if environment.in_lambda():
        _ = services().builds  # sets the table
        adapters.dynamodb.table.client()


def replace_services(replacement: ports.Services) -> ports.Services:
    """Replaces the services of this process, and returns the former ones."""
    global _services
    previous, _services = _services, replacement
    return previous
