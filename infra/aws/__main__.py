"""`python -m infra.aws package|bootstrap`: what `make package` and `make bootstrap` run."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from infra.aws.package import MACHINES, package

parser = argparse.ArgumentParser(prog="python -m infra.aws", description=__doc__)
commands = parser.add_subparsers(dest="command", required=True)
packing = commands.add_parser("package", help="write sam.yaml and deployment.zip")
packing.add_argument("out", type=Path)
packing.add_argument("--arch", choices=MACHINES, default="arm64")
first = commands.add_parser("bootstrap", help="make the first superuser, print a token; copy BuildKit")
first.add_argument("stack")
first.add_argument("--user", default="root")
arguments = parser.parse_args()

if arguments.command == "package":
    package(arguments.out, arguments.arch)
    size = (arguments.out / "deployment.zip").stat().st_size
    print(f"{arguments.out}: sam.yaml, deployment.zip ({size / 1e6:.1f} MB)")
else:
    from infra.aws import bootstrap  # needs credentials and a region

    of = bootstrap.deployment(arguments.stack)
    token = bootstrap.first_superuser(of, arguments.user)
    print(f"URL={of.outputs['Url']}\nTOKEN={token}", flush=True)
    print(f"The token is shown this once; it belongs to {arguments.user}.", flush=True)
    if images := bootstrap.buildkit_images(of):
        repository = of.outputs["CacheRepository"]
        print(f"CodeBuild copies BuildKit to {repository}, a minute or two …", flush=True)
        try:
            bootstrap.copy_images(of, images, partial(print, flush=True))
        except bootstrap.CopyFailed as error:
            raise SystemExit(f"{error} Until BuildKit is copied, builds fetch it from Docker Hub.") from error
        for image in images:
            print(f"{repository}@{image.partition('@')[2]} is {image}")
