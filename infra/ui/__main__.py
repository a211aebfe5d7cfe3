"""`python -m infra.ui` builds the browser's page into chalicelib/ui, with Node and the packages of package-lock.json.

`python -m infra.ui audit` looks for known vulnerabilities of these packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chalicelib import page

HERE = Path(__file__).parent
MADE = HERE / "made"
PACKAGES = HERE / "node_modules"
LOCK = HERE / "package-lock.json"
OLDEST_NODE = 20


class NotBuilt(Exception):
    """The page could not be built; the message says why."""


def main() -> None:
    if sys.argv[1:] == ["audit"]:
        raise SystemExit(subprocess.run([node_and_npm()[1], "audit", "--package-lock-only"], cwd=HERE).returncode)
    try:
        print("Building the page …", file=sys.stderr, flush=True)
        node, npm = node_and_npm()
        _install(npm)
        MADE.mkdir(exist_ok=True)
        (MADE / "openapi.json").write_text(json.dumps(_document()))
        _run([node, _program("openapi-typescript/bin/cli.js"), "made/openapi.json", "--output", "made/schema.d.ts"])
        _run([node, _program("typescript/bin/tsc"), "--noEmit"])
        _publish(node)
    except NotBuilt as error:
        raise SystemExit(f"The page is not built. {error}") from error


def node_and_npm() -> tuple[str, str]:
    """Node and npm: those that pip installed, else this machine's. Installs them if needed. Raises NotBuilt."""
    here = Path(sys.executable).parent
    if not _is_recent(shutil.which("node")) and not (here / "node").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        done = subprocess.run([*pip, "--only-binary=:all:", "-r", HERE / "requirements.txt"], check=False)
        if done.returncode:
            raise NotBuilt(f"Node {OLDEST_NODE} or newer is not here, and pip cannot fetch it.")
    if (here / "node").exists():
        return str(here / "node"), str(here / "npm")
    return "node", "npm"


def _is_recent(node: str | None) -> bool:
    if node is None or shutil.which("npm") is None:
        return False
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.removeprefix("v").partition(".")[0]
    return major.isdigit() and int(major) >= OLDEST_NODE


def _install(npm: str) -> None:
    """Installs the packages of the lock, unless they are there. Does not run the packages' install scripts."""
    mark = PACKAGES / ".slipway-lock"
    if mark.exists() and mark.read_bytes() == LOCK.read_bytes():
        return
    _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"])
    shutil.copyfile(LOCK, mark)


def _document() -> object:
    """The OpenAPI document, as the service answers it."""
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # the app wants one when it is imported
    from app import ROUTES
    from chalicelib import settings
    from infra import openapi

    return openapi.document(ROUTES, "../v1", settings.version())


def _publish(node: str) -> None:
    """Replaces the page. It is built in another folder first, so that a failure leaves the old page."""
    with tempfile.TemporaryDirectory(dir=page.FOLDER.parent, prefix=".ui-") as new:
        bundle(node, Path(new))
        page.FOLDER.mkdir(exist_ok=True)
        for old in page.FOLDER.glob("*.*"):  # not what is made elsewhere: names without a dot, and schemas
            if old.suffix != ".json":
                old.unlink()
        for made in Path(new).iterdir():
            made.rename(page.FOLDER / made.name)


def bundle(node: str, folder: Path) -> None:
    """Writes the files of the page. Raises NotBuilt."""
    _run([node, "build.mjs", str(folder.absolute())])


def _program(path: str) -> str:
    return str(Path("node_modules") / path)


def _run(command: Sequence[str]) -> None:
    """Runs a command. Raises NotBuilt with its output when it fails."""
    done = subprocess.run(command, cwd=HERE, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise NotBuilt(f"`{' '.join(command)}` failed:\n{done.stdout}")


if __name__ == "__main__":
    main()
