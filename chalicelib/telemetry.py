"""Log, metrics and traces for operators; all three only in Lambda.

Code uses the standard logging. In Lambda a record becomes a line of JSON with the request's id and the fields of
`extra`. The numbers in `extra["measures"]` also become metrics, by CloudWatch's embedded metric format: names that end
in `Seconds` are times, all others counts.

A trace shows each `work` as a subsegment, with every call to AWS below it. The annotation `build` has the uuid of a
build that the work has read or written, so one filter finds all traces of a build.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING

from chalicelib import settings
from chalicelib.domain.build import Build, BuildKey

if TYPE_CHECKING:
    from aws_xray_sdk.core.async_recorder import AsyncAWSXRayRecorder

NAMESPACE = "Slipway"
_NOISY = ("botocore", "pynamodb", "aws_xray_sdk")  # they log their start at INFO
_about: ContextVar[Mapping[str, str]] = ContextVar("about")
_seen: ContextVar[set[str]] = ContextVar("seen")


def start() -> None:
    """Configures the log of this process as described above. Does nothing outside of Lambda."""
    if not settings.in_lambda():
        return
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:  # the runtime's
        handler.addFilter(partial(add_fields, settings.stack()))


@contextmanager
def span(name: str) -> Iterator[None]:
    """Traces the block as a subsegment; `about` adds fields to its log lines."""
    recorder = _recorder()
    tokens = _about.set({}), _seen.set(set())
    try:
        with recorder.in_subsegment(name) if recorder else nullcontext():
            yield
    finally:
        _about.reset(tokens[0])
        _seen.reset(tokens[1])


def set_build(key: BuildKey) -> None:
    """Adds the build to the following log lines of the current work."""
    _about.set({"owner": key.owner, "project": key.project, "build": str(key)})


def annotate(build: Build) -> Build:
    """Annotates the trace of the current work with a build, and returns the build. A subsegment can have one annotation
    `build`, so further builds get their own subsegments."""
    recorder = _recorder()
    if recorder is None or build.uuid in (seen := _seen.get(set())):
        return build
    if not seen and (current := recorder.current_subsegment()):
        current.put_annotation("build", build.uuid)
    else:
        with recorder.in_subsegment("build") as own:
            if own is not None:
                own.put_annotation("build", build.uuid)
    seen.add(build.uuid)
    return build


def add_fields(stack: str, record: logging.LogRecord) -> bool:
    """A logging filter that adds fields to a record, also those from which CloudWatch makes metrics."""
    fields = record.__dict__
    for name, value in _about.get({}).items():
        fields.setdefault(name, value)
    measures = {name: number for name, number in fields.pop("measures", {}).items() if number}
    if measures:  # a metric costs for each month in which it is sent
        units = [{"Name": name, "Unit": "Seconds" if name.endswith("Seconds") else "Count"} for name in measures]
        metrics = {"Namespace": NAMESPACE, "Dimensions": [["Stack"]], "Metrics": units}
        embedded = {"Timestamp": int(record.created * 1000), "CloudWatchMetrics": [metrics]}
        fields.update({"_aws": embedded, "Stack": stack, **measures})
    return True


def _recorder() -> "AsyncAWSXRayRecorder | None":
    """X-Ray's recorder, if this invocation is traced. Loaded only then, because that is slow."""
    if not settings.is_traced():
        return None
    from aws_xray_sdk.core import patch, xray_recorder

    patch(("botocore",))  # patches only once; includes the calls of PynamoDB
    return xray_recorder
