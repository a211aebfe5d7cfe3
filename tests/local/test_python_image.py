"""Our own image with Python: made of packages, the same bytes each time, and pip works in it."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from infra.local.machine import python_image
from infra.local.machine.engine import Engine
from infra.local.machine.python_image import NoImage, make_tar

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("apt-get"):
        pytest.skip("packages come from apt-get: Debian and Ubuntu")
    tar = tmp_path_factory.mktemp("image") / "root.tar"
    make_tar(tar)
    return tar


@pytest.mark.proof
def test_the_same_inputs_give_the_same_bytes(tar: Path, tmp_path: Path) -> None:
    make_tar(tmp_path / "again.tar")

    assert (tmp_path / "again.tar").read_bytes() == tar.read_bytes()


def test_it_trusts_what_this_machine_trusts_and_keeps_no_other_setting_of_it(tar: Path) -> None:
    with tarfile.open(tar) as root:
        certificates = root.extractfile("etc/ssl/certs/ca-certificates.crt")
        assert certificates is not None
        content = certificates.read()
        names = root.getnames()
    assert content.startswith(b"-----BEGIN CERTIFICATE") or b"\n-----BEGIN CERTIFICATE" in content
    if python_image.CERTIFICATES.exists():
        assert content == python_image.CERTIFICATES.read_bytes()
    assert not [name for name in names if name.endswith(("pip.conf", "EXTERNALLY-MANAGED", "sources.list"))]


def test_pip_installs_in_a_step(engine: Engine, state: Path, registry_host: str, tmp_path: Path) -> None:
    base = python_image.python_image(engine, state, print)
    image = f"{registry_host}/ann/pip:1"
    step = "RUN pip3 install --no-cache-dir cowsay==6.1"

    engine.build(f"FROM {base}\n{step}\n", tmp_path, image)
    engine.run("push", image)

    assert "ahoy" in engine.run_in_image(image, ["python3", "-c", "import cowsay; cowsay.cow('ahoy')"])


def test_without_a_registry_and_without_apt_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_PUBLIC_IMAGES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NoImage, match="apt-get"):
        python_image.python_image(Engine("buildah", {}), tmp_path, print)
