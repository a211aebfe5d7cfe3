"""Compares cold starts of the package that Chalice makes and of the package that is deployed: `make bench-cold`."""

from __future__ import annotations

import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from werkzeug import Response

from infra.aws.package import MACHINES, THIS_PYTHON, package
from infra.bench.runtime import FunctionFailed, Lambda
from infra.bench.serving import served

RUNS = 5
ENVIRONMENT = {  # enough to load the function and to answer a request without a token
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "SLIPWAY_API_PREFIX": "/v1",
    "SLIPWAY_TABLE": "slipway",
    "SLIPWAY_DISPATCH_QUEUE_URL": "http://127.0.0.1:9/1/dispatch",
    "SLIPWAY_LOG_QUEUE_URL": "http://127.0.0.1:9/1/logs",
    "SLIPWAY_HOOK_QUEUE_URL": "http://127.0.0.1:9/1/hooks",
    "SLIPWAY_DEAD_LETTER_QUEUE_URL": "http://127.0.0.1:9/1/dead",
    "SLIPWAY_CODEBUILD_PROJECT": "builds",
    "SLIPWAY_BUCKET": "bucket",
    "SLIPWAY_REGISTRY": "registry.test/slipway",
    "SLIPWAY_BUILD_KEY_SECRET": "build-key",
    "SLIPWAY_REGISTRY_KIND": "ecr",
}
NO_BUILD = {"Records": [{"messageId": "1", "receiptHandle": "1", "body": "a/b/1", "attributes": {}}]}


def main() -> None:
    """Prints medians. Init ends when a function asks for its first event: a message about a build that is not there."""
    architecture = next(name for name, machine in MACHINES.items() if machine == platform.machine())
    print(f"{'package':<12}{'zip':>9}{'init':>10}{'first event':>13}   (median of {RUNS})")
    rows = []
    with served(lambda request: Response("{}")) as no_rows:
        for label, prepared in (("as packaged", False), ("prepared", True)):
            with tempfile.TemporaryDirectory() as name, _quiet():
                folder = Path(name)
                package(folder, architecture, THIS_PYTHON, prepared=prepared)
                archive = folder / "deployment.zip"
                lambda_ = Lambda(archive, folder)
                runs = [_cold(lambda_, f"http://{no_rows}") for _ in range(RUNS)]
                init, first = (statistics.median(each) for each in zip(*runs, strict=True))
                megabytes = archive.stat().st_size / 1e6
            print(f"{label:<12}{megabytes:>6.1f} MB{init * 1000:>7.0f} ms{first * 1000:>10.0f} ms", flush=True)
            rows.append((megabytes, init))
    size, init = (after / before for before, after in zip(*rows, strict=True))
    print(f"{'ratio':<12}{size:>9.2f}{init:>10.2f}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the block prints, also logs of functions; writes it to standard error if the block raises."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    except BaseException:
        sys.stderr.write(printed.getvalue())
        raise


def _cold(lambda_: Lambda, url: str) -> tuple[float, float]:
    """Seconds of one initialization, and of the first event."""
    with lambda_.start("app.dispatch", {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}) as function:
        started_at = time.perf_counter()
        try:
            function.invoke(NO_BUILD)
        except FunctionFailed as error:
            raise SystemExit(str(error)) from error
        return function.init_seconds, time.perf_counter() - started_at


if __name__ == "__main__":
    main()
