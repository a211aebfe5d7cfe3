"""Metrics in CloudWatch's embedded format: lines of JSON on standard output, made into metrics in the logs.

Outside of Lambda nobody reads such lines, and none are written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from chalicelib import settings

NAMESPACE = "Slipway"


def count(function: str, counts: Mapping[str, int]) -> None:
    """Adds numbers to the metrics of these names, by function."""
    if settings.in_lambda():
        print(embedded(function, counts, int(time.time() * 1000)), flush=True)


def embedded(function: str, counts: Mapping[str, int], at_ms: int) -> str:
    """One line of the format, at milliseconds since 1970."""
    metrics = {
        "Namespace": NAMESPACE,
        "Dimensions": [["Function"]],
        "Metrics": [{"Name": name, "Unit": "Count"} for name in counts],
    }
    about = {"Timestamp": at_ms, "CloudWatchMetrics": [metrics]}
    return json.dumps({"_aws": about, "Function": function, **counts})
