"""The code as it is deployed."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from chalicelib import page
from chalicelib.domain.answer import MAX_ANSWER_BYTES
from infra.aws import package
from infra.aws.package import (
    MACHINES,
    PYTHON,
    ROOT,
    SERVICES,
    THIS_PYTHON,
    LockedPip,
    NoPage,
    NotAsLocked,
    check_page,
    interpreter,
    locked,
    wheel_tags,
)
from tests.aws.conftest import ELSEWHERE, HERE, Packaged, pack

pytestmark = pytest.mark.slow
MAX_BYTES = 5_000_000


def test_it_is_small_compiled_and_without_services_that_are_never_called(packaged: Packaged) -> None:
    assert packaged.archive.stat().st_size <= MAX_BYTES
    with zipfile.ZipFile(packaged.archive) as archive:
        names = set(archive.namelist())
        compiled = archive.read(next(name for name in names if name.startswith("__pycache__/app.")))
    assert int.from_bytes(compiled[4:8], "little") == 0b01  # by hash, and never checked
    described = {name.split("/")[2] for name in names if name.startswith("botocore/data/") and name.count("/") > 3}
    assert described == SERVICES
    with zipfile.ZipFile(packaged.archive) as archive:
        for name in names:
            if name.endswith("service-2.json.gz"):
                assert not re.search(rb'"documentation": ?"[^"]', gzip.decompress(archive.read(name)))
    steps = {str(path.relative_to(ROOT)) for path in (ROOT / "chalicelib/adapters/steps").glob("*.sh")}
    assert len(steps) >= 5 and steps <= names
    handed_out = {f"chalicelib/ui/{path.name}" for path in page.FOLDER.iterdir()}
    assert "chalicelib/ui/slipway" in handed_out and handed_out <= names
    assert "chalicelib/VERSION" in names
    assert not [name for name in names if name.startswith(("tests/", "infra/", "boto3/data/"))]
    assert not [name for name in names if name.lower().endswith(".md")]


@pytest.mark.proof
def test_the_same_code_is_the_same_bytes(packaged: Packaged, tmp_path: Path) -> None:
    """Packaged once more, from nothing but what pip gave: Chalice keeps packages by their requirements."""
    shutil.rmtree(ROOT / ".chalice" / "deployments", ignore_errors=True)
    pack(tmp_path, HERE)
    again = (tmp_path / "deployment.zip").read_bytes()
    assert hashlib.sha256(again).digest() == hashlib.sha256(packaged.archive.read_bytes()).digest()


def test_nothing_is_packaged_without_the_page_or_with_a_file_that_no_answer_can_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path / "ui")
    with pytest.raises(NoPage, match=r"index\.html is missing: `make ui` builds it"):
        check_page()
    page.FOLDER.mkdir()
    (page.FOLDER / "index.html").write_text("<!doctype html>")
    check_page()
    (page.FOLDER / "main.0123ABCD.js").write_text("ü" * (MAX_ANSWER_BYTES // 6))
    with pytest.raises(NoPage, match=r"main\.0123ABCD\.js does not fit into an answer"):
        check_page()


@pytest.mark.proof
def test_binary_wheels_fit_the_architecture_and_the_functions_python(packaged: Packaged, tmp_path: Path) -> None:
    """Also those of a Python that does not run here."""
    other = Packaged(tmp_path)
    pack(tmp_path, ELSEWHERE, PYTHON)
    for architecture, python, there in ((HERE, THIS_PYTHON, packaged), (ELSEWHERE, PYTHON, other)):
        tags = wheel_tags(there.archive)
        assert "msgspec" in tags
        for distribution, found in tags.items():
            assert all(tag.endswith(MACHINES[architecture]) for tag in found), distribution
            assert all(tag.startswith(f"cp{python.replace('.', '')}-") for tag in found), distribution
        functions = [
            each["Properties"]
            for each in yaml.safe_load(there.template.read_text())["Resources"].values()
            if each["Type"] == "AWS::Serverless::Function"
        ]
        assert {each["Runtime"] for each in functions} == {f"python{python}"}
        assert {each["Architectures"][0] for each in functions} == {architecture}
        with zipfile.ZipFile(there.archive) as archive:
            compiled = [name for name in archive.namelist() if name.endswith(".pyc")]
        assert all(f".cpython-{python.replace('.', '')}." in name for name in compiled)
        assert bool(compiled) == bool(interpreter(python))


def test_functions_run_what_lambda_keeps_for_long_unless_somebody_says_otherwise() -> None:
    """By the end of 2028, Lambda makes no functions with 3.12 any more."""
    assert tuple(map(int, PYTHON.split("."))) >= (3, 13)
    makefile = (ROOT / "Makefile").read_text()
    assert f"\nRUNTIME ?= {PYTHON}\n" in makefile
    assert "\nARCH ?= arm64\n" in makefile


def test_a_wheel_whose_hash_is_not_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Chalice fetches those for another architecture: by name and version alone."""
    options = ["--only-binary=:all:", "--no-deps", "--platform", "manylinux2014_aarch64", "--abi", "cp313"]
    command = ["download", *options, "--implementation", "cp", "--dest", str(tmp_path), "msgspec==0.22.0"]
    LockedPip().main(command)
    (wheel,) = tmp_path.iterdir()
    wheel_hash = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert wheel_hash in locked("msgspec==0.22.0")

    forged = tmp_path / "lock.txt"
    forged.write_text(package.LOCK.read_text().replace(wheel_hash, "0" * 64))
    wheel.unlink()
    monkeypatch.setattr(package, "LOCK", forged)
    with pytest.raises(NotAsLocked, match="DO NOT MATCH THE HASHES"):
        LockedPip().main(command)
    with pytest.raises(NotAsLocked, match=r"has no msgspec==0\.1"):
        LockedPip().main([*command[:-1], "msgspec==0.1"])
