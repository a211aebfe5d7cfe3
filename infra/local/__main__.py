"""`python -m infra.local demo|up`: the one-machine stack from the command line."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from contextlib import closing as closed
from functools import partial
from pathlib import Path

from chalicelib.domain.build import CODEBUILD, EKS
from infra.local import aws, demo
from infra.local.machine.engine import NoEngine
from infra.local.machine.machine import STATE, Machine, installed_machine
from infra.local.machine.run_folder import run_folder
from infra.local.stack import Running, stack
from infra.local.storage import FOLDER, InUse, Storage

BACKENDS = (CODEBUILD, EKS)
KEEP = "where records, logs and images are stored; 1: in .slipway/kept, 0: nowhere, else a folder; or KEEP"
INTERRUPTS = [signal.SIGINT, signal.SIGTERM]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
    INTERRUPTS.append(signal.SIGHUP)  # the terminal was closed


def main() -> int:
    """Exit status: 0 done, 1 failed, 2 something must be installed first, 130 interrupted demo."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo_ = commands.add_parser("demo", help="build one image from nothing, show everything, stop everything")
    up = commands.add_parser("up", help="serve the API until interrupted")
    up.add_argument("--port", type=_port, default=os.environ.get("PORT") or "8000", help="or PORT; 0: any free port")
    token = os.environ.get("SLIPWAY_ROOT_TOKEN") or None
    up.add_argument("--token", type=_token, default=token, help="of the user root; or SLIPWAY_ROOT_TOKEN")
    for command, default in ((demo_, "0"), (up, "1")):
        command.add_argument("--keep", type=_folder, default=os.environ.get("KEEP") or default, help=KEEP)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    if (backend := os.environ.get("SLIPWAY_BACKEND")) not in (None, "", *BACKENDS):
        parser.error(f"builds cannot run on `{backend}` here; SLIPWAY_BACKEND may be {' or '.join(BACKENDS)}")
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    try:
        with ExitStack() as closing:
            work = closing.enter_context(run_folder(say)) / "work"
            STATE.mkdir(exist_ok=True)
            STATE.chmod(0o700)
            storage = closing.enter_context(closed(Storage(arguments.keep))) if arguments.keep else None
            tools = closing.enter_context(installed_machine(STATE, say, storage))
            login = tools.registry_login
            serve = partial(stack, tools.engine, tools.registry, work, registry_login=login, storage=storage)
            if arguments.command == "demo":
                running = closing.enter_context(serve())
                demo.run(running.url, running.token, tools, say, keeps=storage is not None)
            else:
                running = closing.enter_context(serve(port=arguments.port, root_token=arguments.token))
                print(json.dumps(_ready(running, tools)), flush=True)
                while True:  # in short waits: a signal that comes just before a wait does not end it
                    time.sleep(1)
    except (Exception, KeyboardInterrupt) as error:
        if _is_interruption(error):
            say("Stopped.")
            return 0 if arguments.command == "up" else 130
        if isinstance(error, NoEngine):
            say(str(error))
            return 2
        if isinstance(error, InUse):
            say(str(error))
            return 1
        if isinstance(error, demo.DemoFailed):
            demo.explain(error)
            return 1
        if not isinstance(error, OSError) or error.errno not in (errno.EADDRINUSE, errno.ENOSPC):
            raise
        is_full = error.errno == errno.ENOSPC
        taken = f"Port {arguments.port} is taken; choose another: make up PORT=8001"
        say("The disk is full: no space left on device." if is_full else taken)
        return 1
    return 0


def _is_interruption(error: BaseException | None) -> bool:
    """Whether the error is an interruption, or was raised while the stack stopped because of one; that one is shown."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error is not None
    if found := _is_interruption(error.__context__):
        say(f"While the stack stopped: {error}")
    return found


def say(line: str) -> None:
    """Prints progress to standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def _ready(running: Running, tools: Machine) -> dict[str, object]:
    return {
        "ready": True,
        "url": running.url,
        "page": f"{running.url}/api/ui",
        "user": "root",
        "token": running.token,
        "base_image": tools.base_image,
        "registry": tools.registry,
        "registry_login": tools.registry_login,
        "aws_endpoint": running.aws_url,
        "aws_access_key_id": aws.ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": aws.ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        "requests_queue": running.queues.requests,
    }


def _folder(text: str) -> Path | None:
    """The folder that `--keep` names; None for none."""
    return {"0": None, "1": FOLDER}.get(text, Path(text).absolute())


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError("a port (or PORT) is a number up to 65535")
    return int(text)


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text or len(text) < 8:
        raise argparse.ArgumentTypeError("root's token must be 8 or more characters without spaces")
    return text


def _interrupt(*_: object) -> None:
    """Interrupts the work once. Further signals are ignored, so that stopping is not interrupted."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
