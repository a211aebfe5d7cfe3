"""Implementations of the ports, one module per product. They convert SDK errors to domain errors, with the cause."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chalicelib.adapters import broker, cloudwatch, codebuild, dynamodb, eks, eventbridge, registry, s3

    # isort: split
    from chalicelib.adapters import secrets, sqs, steps, webhooks

    __all__ = ["broker", "cloudwatch", "codebuild", "dynamodb", "eks", "eventbridge", "registry", "s3", "secrets"]
    __all__ += ["sqs", "steps", "webhooks"]
else:

    def __getattr__(name: str) -> Any:
        """Loads an adapter when it is first named: no SDK is loaded that a request does not use."""
        return import_module(f"{__name__}.{name}")
