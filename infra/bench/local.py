"""How long requests to the stack of `make up` take, compared with a bare Chalice route: `make bench-local`.

As in that stack, the API and moto run in one process; here without an engine and without storage.
Requests to the routes alternate, and their medians are compared: other work on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import boto3
import urllib3
from chalice.app import Chalice, Response

from app import app
from chalicelib import settings, wiring
from chalicelib.adapters.dynamodb.table import client
from infra.bench import requests
from infra.local import aws
from infra.local.gateway import Gateway

RECORDS = (100, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    print(f"load {os.getloadavg()[0]:.0f}; medians of {rounds} rounds, in turns")
    print(f"{'records':>10}{'bare route':>14}{'GET of a build':>24}{'page of 20':>24}")
    for records in RECORDS:
        with serving(records) as (bare, api):
            http = urllib3.PoolManager(headers={"Authorization": f"token {requests.TOKEN}"})

            def ask(url: str, http: urllib3.PoolManager = http) -> None:
                answer = http.request("GET", url, retries=False)
                assert answer.status == 200, answer.data

            urls = (f"{bare}/bare", f"{api}/ada/few/builds/1", f"{api}/ada/few/builds")
            seconds = [_medians(ask, urls, 3), _medians(ask, urls, rounds)][1]
        bare_, *others = seconds
        shown = "".join(f"{each * 1000:>13.2f} ms, {each / bare_:>4.1f} x" for each in others)
        print(f"{records:>10,}{bare_ * 1000:>11.2f} ms{shown}", flush=True)


def _medians(ask: Callable[[str], None], urls: tuple[str, ...], rounds: int) -> list[float]:
    """The median time of each URL, in seconds."""
    taken: dict[str, list[float]] = {url: [] for url in urls}
    for _ in range(rounds):
        for url, times in taken.items():
            started_at = time.perf_counter()
            ask(url)
            times.append(time.perf_counter() - started_at)
    return [median(times) for times in taken.values()]


@contextmanager
def serving(records: int) -> Iterator[tuple[str, str]]:
    """Yields the URLs of a bare app and of the API; the project `few` has `records` builds."""
    moto = aws.Moto()
    moto.start()
    gateways = []
    try:
        os.environ.update(requests.environment(moto.url))
        del os.environ["AWS_LAMBDA_FUNCTION_NAME"]  # for logs and traces this is no function
        wiring.replace_services(requests.WarmServices())
        for queue in ("dispatch", "logs"):
            boto3.client("sqs").create_queue(QueueName=queue)
        requests.seed({"few": records})
        moto.take_calls_of(client())
        bare = Chalice("bare")
        bare.route("/bare")(lambda: Response("{}"))
        gateways = [Gateway(bare, 0, {}), Gateway(app, 0, {})]
        for gateway in gateways:
            gateway.start()
        yield gateways[0].url, gateways[1].url + settings.api_prefix()
    finally:
        for gateway in gateways:
            gateway.close()
        moto.close()


if __name__ == "__main__":
    main()
