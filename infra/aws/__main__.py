"""`python -m infra.aws package|bootstrap`: what `make package` and `make bootstrap` run."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib.errors import SlipwayError
from infra.aws import bootstrap
from infra.aws.package import MACHINES, package

say = partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.aws", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("package", help="write sam.yaml and deployment.zip")
    packing.add_argument("out", type=Path, help="the folder for both")
    packing.add_argument("--arch", choices=MACHINES, default="arm64", help="of the functions (%(default)s)")
    first = commands.add_parser("bootstrap", help="make the first superuser, print a token; copy BuildKit")
    first.add_argument("stack", help="the deployed stack's name, slipway-STAGE")
    first.add_argument("--user", default="root", help="the superuser's name (%(default)s)")
    arguments = parser.parse_args()
    if arguments.command == "package":
        package(arguments.out, arguments.arch)
        size = (arguments.out / "deployment.zip").stat().st_size
        say(f"{arguments.out}: sam.yaml, deployment.zip ({size / 1e6:.1f} MB)")
        return
    try:
        get_started(arguments.stack, arguments.user)
    except (BotoCoreError, ClientError, SlipwayError, bootstrap.CopyFailed) as error:
        raise SystemExit(f"The stack {arguments.stack} is not ready: {error}") from error


def get_started(stack: str, user: str) -> None:
    of = bootstrap.deployment(stack)
    token = bootstrap.first_superuser(of, user)
    say(f"URL={of.outputs['Url']}\nTOKEN={token}\nThe token is shown this once; it belongs to {user}.")
    images, repository = bootstrap.buildkit_images(of), of.outputs["ToolsRepository"]
    if images:
        say(f"CodeBuild copies BuildKit to {repository}, a minute or two …")
        bootstrap.copy_images(of, images, say)
    for image in images:
        say(f"{repository}@{image.partition('@')[2]} is a copy of {image}")


main()
