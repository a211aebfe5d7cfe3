"""The arrow of dependencies: app -> usecases -> domain, adapters behind ports; wiring knows both sides."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [ROOT / "app.py", *sorted((ROOT / "chalicelib").rglob("*.py"))]

# Who may import which of our own modules; the longest matching name decides.
ALLOWED = {
    "chalicelib.errors": (),
    "chalicelib.settings": (),
    "chalicelib.domain": ("chalicelib.domain", "chalicelib.errors"),
    "chalicelib.ports": ("chalicelib.domain", "chalicelib.settings"),
    "chalicelib.usecases": (
        "chalicelib.usecases",
        "chalicelib.domain",
        "chalicelib.ports",
        "chalicelib.errors",
    ),
    "chalicelib.adapters": (
        "chalicelib.adapters",  # but not each other: see below
        "chalicelib.domain",
        "chalicelib.ports",
        "chalicelib.errors",
        "chalicelib.settings",
    ),
    "chalicelib.telemetry": ("chalicelib.settings", "chalicelib.domain"),
    "chalicelib.schemas": ("chalicelib.domain", "chalicelib.usecases"),  # their limits
    "chalicelib.serializers": (
        "chalicelib.schemas",
        "chalicelib.domain",
        "chalicelib.errors",
        "chalicelib.ports",
        "chalicelib.usecases",
    ),
    "chalicelib.web": (
        "chalicelib.domain",
        "chalicelib.errors",
        "chalicelib.ports",
        "chalicelib.schemas",
        "chalicelib.serializers",
        "chalicelib.telemetry",
        "chalicelib.usecases",
        "chalicelib.wiring",
    ),
    "chalicelib.wiring": (
        "chalicelib.adapters",
        "chalicelib.domain",
        "chalicelib.errors",
        "chalicelib.ports",
        "chalicelib.settings",
        "chalicelib.telemetry",
    ),
    "chalicelib.page": (),
    "chalicelib": (),
    "app": (
        "chalicelib.adapters.broker",  # how to read its questions
        "chalicelib.adapters.codebuild",  # how to read its events
        "chalicelib.adapters.dynamodb.records",  # likewise
        "chalicelib.adapters.sqs",  # likewise
        "chalicelib.domain",
        "chalicelib.page",
        "chalicelib.schemas",
        "chalicelib.serializers",
        "chalicelib.settings",
        "chalicelib.telemetry",
        "chalicelib.usecases",
        "chalicelib.web",
        "chalicelib.wiring",
    ),
}
# What is not ours and not in the standard library: who may import it, besides msgspec, of which all records are.
OUTSIDE = {
    "app": {"chalice"},
    "chalicelib.adapters": {"boto3", "botocore", "pynamodb", "standardwebhooks", "urllib3"},
    "chalicelib.telemetry": {"aws_xray_sdk"},
    "chalicelib.page": {"chalice"},
    "chalicelib.web": {"chalice", "multipart"},
    "chalicelib.domain.document": {"yaml"},
}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def rule(rules: Mapping[str, Collection[str]], module: str) -> Collection[str] | None:
    names = [name for name in rules if module == name or module.startswith(name + ".")]
    return rules[max(names, key=len)] if names else None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module in ("chalicelib", "chalicelib.adapters"):  # from chalicelib import x
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_follow_the_arrow(path: Path) -> None:
    module = module_of(path)
    allowed, outside = rule(ALLOWED, module), {"msgspec", *(rule(OUTSIDE, module) or ())}
    assert allowed is not None
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "chalicelib":
            assert any(name == each or name.startswith(each + ".") for each in allowed), name
        else:
            assert top in sys.stdlib_module_names | outside, name


@pytest.mark.parametrize("path", [*(ROOT / "chalicelib" / "adapters").rglob("*.py")], ids=module_of)
def test_adapters_do_not_know_each_other(path: Path) -> None:
    """An adapter is a module, or a package whose modules know one another; `aws` and `steps` are shared."""
    own = ".".join(module_of(path).split(".")[:3])
    for name in imports(path):
        if name.startswith("chalicelib.adapters."):
            shared = name.startswith(("chalicelib.adapters.aws", "chalicelib.adapters.steps"))
            assert shared or name == own or name.startswith(f"{own}."), name


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_only_settings_reads_the_environment(path: Path) -> None:
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"environ", "getenv"} or module_of(path) == "chalicelib.settings"


def test_importing_the_app_loads_nothing_heavy() -> None:
    """What is slow to import loads where it is used: Lambda imports `app` on every cold start."""
    heavy = "{'boto3', 'pynamodb', 'aws_xray_sdk', 'yaml', 'multipart', 'standardwebhooks', 'moto', 'infra', 'tests'}"
    code = f"import sys, app; print(*sorted({heavy} & {{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_product_can_be_read_in_an_afternoon() -> None:
    """`.github/CONTRIBUTING.md` states this limit."""
    assert sum(path.read_text().count("\n") for path in MODULES) < 11_000
