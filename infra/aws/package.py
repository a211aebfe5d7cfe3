"""The template and the code as they are deployed.

`chalice package` writes both. What it makes of the code is then prepared for short cold starts: compiled,
because nothing can be cached in Lambda's read-only folder, and without descriptions of services that are
never called. The same input gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from chalice.cli.factory import CLIFactory
from chalice.config import Config
from chalice.deploy import deployer
from chalice.deploy.packager import SubprocessPip

from chalicelib import page
from chalicelib.domain.answer import MAX_ANSWER_BYTES, encoded_bytes
from infra import cli, openapi

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.txt"
TEMPLATE = Path(__file__).with_name("template.yaml")
CHALICE_STAGE = "aws"
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}  # of Lambda's architectures, as wheels name them
PYTHON = "3.13"  # of the functions; Lambda takes no functions with 3.11 from 2027-07-31 on
THIS_PYTHON = "{}.{}".format(*sys.version_info)
# What adapters make clients of.
SERVICES = frozenset(
    {"codebuild", "dynamodb", "ecr", "eks", "events", "lambda", "logs", "s3", "secretsmanager", "sqs", "ssm", "sts"}
)
_DESCRIPTIONS = ("service-2.json", "endpoint-rule-set-1.json", "paginators-1.json")
_OF_INSTALLING = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
# Never loaded: PyYAML's C parser (texts are read by the safe one in Python), time zones but UTC, browsers.
_UNUSED = (
    "yaml/_yaml.",
    "dateutil/zoneinfo/dateutil-zoneinfo",
    "dateutil/rrule.",
    "urllib3/contrib/emscripten/",
    "boto3/data/",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can name


class NotAsLocked(Exception):
    """A package's hash differs from that in requirements.txt, or the package has no wheel. The message is pip's."""


class NoPage(Exception):
    """The page that functions serve has not been built yet, or one of its files is too large for a response."""


class LockedPip(SubprocessPip):
    """pip as Chalice calls it, but each file that it takes has a hash of requirements.txt, and is for the
    functions' Python.

    Chalice fetches wheels for another architecture by name and version alone, and goes on without what it
    cannot fetch. Nothing is built from sources: what building needs is in no lock.
    """

    python = PYTHON

    def main(self, args: list[str], *given: Any, **named: Any) -> tuple[int, bytes, bytes]:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as only:
            if args[0] == "download" and "-r" not in args:
                only.write(locked(args[-1]))
                only.flush()
                args = [*args[:-1], "-r", only.name]
            if args[0] == "download":
                args = [*args, "--python-version", self.python]
            result: tuple[int, bytes, bytes] = super().main(
                [args[0], "--require-hashes", "--only-binary=:all:", *args[1:]], *given, **named
            )
        if result[0]:
            raise NotAsLocked(result[2].decode())
        return result


def locked(requirement: str) -> str:
    """The entry of `name==version` in requirements.txt, with its hashes. Raises NotAsLocked."""
    name, _, version = requirement.partition("==")
    pattern = rf"(?m)^{re.escape(name.replace('_', '-'))}=={re.escape(version)}(?: ;.*)? \\\n(?: +--hash=.*\n?)+"
    if found := re.search(pattern, LOCK.read_text()):
        return found[0]
    raise NotAsLocked(f"{LOCK.name} has no {requirement}.")


def check_page() -> None:
    """Raises NoPage."""
    if not (page.FOLDER / page.INDEX).is_file():
        raise NoPage(f"{page.FOLDER / page.INDEX} is missing: `make ui` builds it, with Node 20 or newer.")
    for path in sorted(page.FOLDER.iterdir()):
        if encoded_bytes(path.read_text(encoding="utf-8")) > MAX_ANSWER_BYTES - 2000:  # for the headers
            raise NoPage(f"{path} does not fit into an answer of Lambda's, {MAX_ANSWER_BYTES} bytes as JSON.")


def package(out: Path, architecture: str, python: str = PYTHON, *, prepared: bool = True) -> bool:
    """Writes sam.yaml and deployment.zip for functions with that version of Python, and returns whether the
    code is compiled, for which that version has to be here. Raises NotAsLocked."""
    cli.publish()
    # No parameters of Chalice say so:
    LockedPip.python = python
    deployer.SubprocessPip = LockedPip  # type: ignore[attr-defined]
    Config.lambda_python_version = f"python{python}"  # type: ignore[assignment]
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # Chalice wants one; the template has none
    factory = CLIFactory(str(ROOT), environ=os.environ)
    config = factory.create_config_obj(CHALICE_STAGE, user_provided_params={"lambda_architecture": architecture})
    assert config.chalice_app, "loaded here, with the stage's prefix of routes, before anything else imports it"
    openapi.publish()
    packager = factory.create_app_packager(
        config, factory.create_package_options(), "cloudformation", "yaml", str(TEMPLATE)
    )
    packager.package_app(config, str(out), CHALICE_STAGE)
    compiler = interpreter(python) if prepared else None
    if prepared:
        prepare(out / "deployment.zip", compiler)
    return compiler is not None


def interpreter(python: str) -> str | None:
    """The interpreter of this version of Python: the current one, or one on the PATH that works; else None."""
    if python == THIS_PYTHON:
        return sys.executable
    program = shutil.which(f"python{python}")
    works = program and subprocess.run([program, "--version"], capture_output=True, check=False)
    return program if works and works.returncode == 0 else None


def prepare(archive: Path, compiler: str | None) -> None:
    """Replaces a deployment package by its lean form, compiled where there is a Python for that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as whole:
            for each in whole.namelist():
                if _is_needed(each):
                    whole.extract(each, folder)
        _prune_endpoints(folder / "botocore" / "data" / "endpoints.json")
        for description in folder.glob("botocore/data/*/*/service-2.json.gz"):
            _drop_documentation(description)
        if compiler:
            _compile(folder, compiler)
        _pack(folder, archive)


def wheel_tags(archive: Path) -> dict[str, list[str]]:
    """The platform tags of each distribution with a binary wheel; pure Python wheels are left out."""
    tags = {}
    with zipfile.ZipFile(archive) as whole:
        for name in whole.namelist():
            if name.endswith(".dist-info/WHEEL"):
                lines = whole.read(name).decode().splitlines()
                found = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
                if not all(tag.endswith("-any") for tag in found):
                    tags[name.partition("-")[0]] = found
    return tags


def _is_needed(name: str) -> bool:
    parts = name.split("/")
    if name.endswith("/") or "__pycache__" in parts or parts[-1] in _OF_INSTALLING or name.startswith(_UNUSED):
        return False
    if parts[:2] == ["botocore", "data"] and len(parts) > 3:
        return parts[2] in SERVICES and parts[-1].removesuffix(".gz") in _DESCRIPTIONS
    return not name.endswith((".pyi", ".c", ".h", ".pyx", ".md"))


def _prune_endpoints(path: Path) -> None:
    """Removes the endpoints of unused services: the first client of a process reads the whole file, a megabyte."""
    endpoints: dict[str, Any] = json.loads(path.read_text())
    for partition in endpoints["partitions"]:
        services = partition["services"]
        partition["services"] = {name: each for name, each in services.items() if name in SERVICES}
    path.write_text(json.dumps(endpoints, separators=(",", ":")))


def _drop_documentation(path: Path) -> None:
    """Removes the documentation from botocore's model of a service: half of a file that is read for the first client of
    the service. Only `help` shows the documentation."""
    description = json.loads(gzip.decompress(path.read_bytes()), object_hook=_without_documentation)
    text = json.dumps(description, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, mtime=0))


def _without_documentation(each: dict[str, Any]) -> dict[str, Any]:
    """Empties the documentation; botocore needs the key. A member named `documentation` is not a text, and stays."""
    return each | {"documentation": ""} if isinstance(each.get("documentation"), str) else each


def _compile(folder: Path, compiler: str) -> None:
    """Compiles the modules in a process with a fixed hash seed: the seed decides the order of sets in bytecode."""
    options = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", "/var/task"]
    subprocess.run(
        [compiler, "-m", "compileall", *options, str(folder)],
        env={"PYTHONHASHSEED": "0"},
        check=True,
    )


def _pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(str(path.relative_to(folder)), _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if path.suffix == ".so" else 0o644) << 16
                packed.writestr(entry, path.read_bytes())
