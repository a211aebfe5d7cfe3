"""A second emulator of DynamoDB and SQS. Its transactions are right and so are the write units that it
answers, and 100,000 rows take it seconds; moto has none of the three. Its read units are wrong."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

_REQUIREMENT = "ministack==1.5.33"  # in an environment of its own: it needs an older botocore
_PATIENCE_SECONDS = 60


@contextmanager
def serve(state: Path) -> Iterator[str]:
    """Runs MiniStack while the block runs, and yields its URL. Installs MiniStack below `state`, where it stays."""
    python = _installed(state / _REQUIREMENT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = subprocess.Popen(
        [python, "-m", "hypercorn", "ministack.app:app", "--bind", address],
        env={**os.environ, "SERVICES": "dynamodb,sqs", "LOG_LEVEL": "WARNING"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"http://{address}/")
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def _installed(home: Path) -> Path:
    home = home.absolute()
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may need it at the same time
        if not (home / "ready").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            subprocess.run([*pip, _REQUIREMENT], check=True)
            (home / "ready").touch()
    return python


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            urllib3.request("GET", url, retries=False, timeout=1)
            return
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > deadline:
                raise TimeoutError("ministack did not start") from None
            time.sleep(0.1)
