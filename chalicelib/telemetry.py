"""What those who run Slipway see of it: log, metrics and traces; all three only in Lambda.

Code logs as ever. In Lambda a record is a line of JSON with the request's id, and whatever is given as
`extra` is a field of it. The numbers by name in a record's `measures` become metrics as well, by CloudWatch's
embedded metric format: those whose name ends in `Seconds` are times, all others counts.

A trace shows each `work` as a subsegment, and below it every call to AWS. The annotation `build` has the uuid
of a build that the work read or wrote: one filter finds all of a build, whatever woke the functions.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from chalicelib import settings
from chalicelib.domain.build import Build, BuildKey

if TYPE_CHECKING:
    from aws_xray_sdk.core.async_recorder import AsyncAWSXRayRecorder

NAMESPACE = "Slipway"
_NOISY = ("botocore", "pynamodb", "aws_xray_sdk")  # they report at INFO how they start
_about: ContextVar[Mapping[str, str]] = ContextVar("about")
_seen: ContextVar[set[str]] = ContextVar("seen")


def start() -> None:
    """Makes the lines of this process's log what is said above. Elsewhere than in Lambda: nothing."""
    if not settings.in_lambda():
        return
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:  # the runtime's
        handler.addFilter(partial(add_fields, settings.stack()))


@contextmanager
def work(name: str) -> Iterator[None]:
    """One piece of work: a subsegment of the trace, and what its lines in the log are about."""
    recorder = _recorder()
    tokens = _about.set({}), _seen.set(set())
    try:
        with recorder.in_subsegment(name) if recorder else nullcontext():
            yield
    finally:
        _about.reset(tokens[0])
        _seen.reset(tokens[1])


def about(key: BuildKey) -> None:
    """Says which build the current work is about, in its lines from now on."""
    _about.set({"owner": key.owner, "project": key.project, "build": str(key)})


def saw(build: Build) -> Build:
    """Annotates the trace of the current work with a build, and returns it. A subsegment takes one build:
    each further one gets a subsegment of its own."""
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
    """Gives a record of the log the fields that it shall have, and lets it pass."""
    fields = record.__dict__
    for name, value in _about.get({}).items():
        fields.setdefault(name, value)
    measures = {name: number for name, number in fields.pop("measures", {}).items() if number}
    if measures:  # a metric costs by the month in which it was sent
        fields.update(embedded(stack, measures, int(record.created * 1000)))
    return True


def embedded(stack: str, measures: Mapping[str, float], at_ms: int) -> dict[str, Any]:
    """The fields by which CloudWatch makes metrics of a line, at milliseconds since 1970."""
    metrics = {
        "Namespace": NAMESPACE,
        "Dimensions": [["Stack"]],
        "Metrics": [{"Name": name, "Unit": "Seconds" if name.endswith("Seconds") else "Count"} for name in measures],
    }
    return {"_aws": {"Timestamp": at_ms, "CloudWatchMetrics": [metrics]}, "Stack": stack, **measures}


def _recorder() -> "AsyncAWSXRayRecorder | None":
    """X-Ray's, where this invocation is traced; the first such one loads it, which costs others nothing."""
    if not settings.is_traced():
        return None
    from aws_xray_sdk.core import patch, xray_recorder

    patch(("botocore",))  # once; also what PynamoDB calls
    return xray_recorder
