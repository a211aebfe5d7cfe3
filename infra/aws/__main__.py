"""`python -m infra.aws COMMAND`: what `make` runs for deployments: package, clear, bootstrap, smoke, cleanup-preview,
redrive and teardown."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from chalicelib import settings
from chalicelib.errors import SlipwayError
from infra.aws import bootstrap, removal, smoke
from infra.aws.package import MACHINES, PYTHON, NoPage, check_page, package
from infra.aws.redrive import NotMoved, redrive

say = partial(print, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.aws", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("package", help="write sam.yaml and deployment.zip")
    packing.add_argument("out", type=Path, help="the folder for both")
    packing.add_argument("--arch", choices=MACHINES, default="arm64", help="of the functions (%(default)s)")
    packing.add_argument("--python", default=PYTHON, help="of the functions (%(default)s)")
    packing.add_argument("--any-page", action="store_true", help="take chalicelib/ui as it is, also without the page")
    first = commands.add_parser("bootstrap", help="make the first superuser, print a token; copy BuildKit")
    first.add_argument("stack", help="the deployed stack's name, slipway-STAGE")
    first.add_argument("--user", default="root", help="the superuser's name (%(default)s)")
    trying = commands.add_parser("smoke", help="drive a deployment as a user would; TOKEN is a superuser's")
    trying.add_argument("stack")
    trying.add_argument("--image", default=smoke.IMAGE, help="base of the builds (%(default)s)")
    trying.add_argument("--long", action="store_true", help="also a build that outlives its login")
    trying.add_argument("--teardown", action="store_true", help="remove the deployment if every step holds")
    showing = commands.add_parser("cleanup-preview", help="what is forgotten next, and why; TOKEN is a superuser's")
    showing.add_argument("stack")
    clearing = commands.add_parser("clear", help="remove a stack whose first deployment failed, nothing else")
    clearing.add_argument("stack")
    moving = commands.add_parser("redrive", help="put refused requests back into their queue")
    moving.add_argument("stack")
    moving.add_argument("--yes", action="store_true", help="do not ask")
    removing = commands.add_parser("teardown", help="remove a deployment with its images, secrets, code, logs, records")
    removing.add_argument("stack")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    if arguments.command == "package":
        try:
            if not arguments.any_page:
                check_page()
        except NoPage as error:
            raise SystemExit(f"Nothing is packaged. {error}") from error
        compiled = package(arguments.out, arguments.arch, arguments.python)
        size = (arguments.out / "deployment.zip").stat().st_size
        say(f"{arguments.out}: sam.yaml, deployment.zip ({size / 1e6:.1f} MB), version {settings.version()}")
        if not compiled:
            say(f"Not compiled, so functions start slower: that takes a python{arguments.python} in the PATH.")
        return
    try:
        if arguments.command == "bootstrap":
            get_started(arguments.stack, arguments.user)
        elif arguments.command == "smoke":
            try_out(arguments.stack, arguments.image, is_long=arguments.long)
            if arguments.teardown:
                removal.teardown(arguments.stack, say)
        elif arguments.command == "cleanup-preview":
            show_cleanup(arguments.stack)
        elif arguments.command == "redrive":
            redrive(arguments.stack, say, lambda question: arguments.yes or ask(question).lower() == "y")
        elif arguments.command == "clear":
            removal.clear(arguments.stack, say)
        elif arguments.yes or ask(f"All of {arguments.stack} goes. Type its name: ") == arguments.stack:
            removal.teardown(arguments.stack, say)
        else:
            raise SystemExit("Nothing was removed.")
    except (BotoCoreError, ClientError, SlipwayError, bootstrap.CopyFailed, smoke.Broken, NotMoved) as error:
        raise SystemExit(f"{arguments.command} of {arguments.stack} ended: {error}") from error


def ask(question: str) -> str:
    """Raises SystemExit where nobody can answer."""
    try:
        return input(question)
    except EOFError as error:
        raise SystemExit("\nNobody can answer without a terminal; with YES=1, `make` does not ask.") from error


def superusers_view(stack: str, image: str = smoke.IMAGE, *, is_long: bool = False) -> smoke.Smoke:
    outputs = bootstrap.deployment(stack).outputs
    if not (token := os.environ.get("TOKEN")):
        raise SystemExit("Set TOKEN to a superuser's token: `make bootstrap` prints one.")
    return smoke.Smoke(outputs["Url"], token, image, outputs["RequestsQueueUrl"], stack, is_long)


def show_cleanup(stack: str) -> None:
    found = superusers_view(stack).ask("GET", "/cleanup").json()
    for rule in found["rules"]:
        say(f"{rule['what']}: {rule['goes']} ({rule['by']})")
    say("Next, at the earliest:" if found["next"] else "Nothing was archived or deleted.")
    for each in found["next"]:
        say(f"  {each['purge_at']} {each['name']}, because it was {each['because']}")


def try_out(stack: str, image: str, *, is_long: bool) -> None:
    on = superusers_view(stack, image, is_long=is_long)
    if broken := [name for name, _ in smoke.run(on, say)]:
        raise SystemExit(f"Broken: {', '.join(broken)}. Left to look at: project {on.project}, unless it was deleted.")


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
