"""`python -m infra.aws package|bootstrap`: what `make package` and `make bootstrap` run."""

from __future__ import annotations

import argparse
from pathlib import Path

from infra.aws.package import MACHINES, package

parser = argparse.ArgumentParser(prog="python -m infra.aws", description=__doc__)
commands = parser.add_subparsers(dest="command", required=True)
packing = commands.add_parser("package", help="write sam.yaml and deployment.zip")
packing.add_argument("out", type=Path)
packing.add_argument("--arch", choices=MACHINES, default="arm64")
first = commands.add_parser("bootstrap", help="make the first superuser, print a token once")
first.add_argument("stack")
first.add_argument("--user", default="root")
arguments = parser.parse_args()

if arguments.command == "package":
    package(arguments.out, arguments.arch)
    size = (arguments.out / "deployment.zip").stat().st_size
    print(f"{arguments.out}: sam.yaml, deployment.zip ({size / 1e6:.1f} MB)")
else:
    from infra.aws.bootstrap import bootstrap  # needs credentials and a region

    url, token = bootstrap(arguments.stack, arguments.user)
    print(f"URL={url}\nTOKEN={token}\nThe token is shown this once; it belongs to {arguments.user}.")
