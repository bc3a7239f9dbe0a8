"""Python started in a checkout, whose folder `cfmvit` has no libraries and comes first on the path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cfmvit.ops.shared import library

from .processes import ROOT


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("cfmvit", "bench", "triton_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` puts into site-packages."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "cfmvit").mkdir()
    for path in (ROOT / "cfmvit").iterdir():
        (folder / "cfmvit" / path.name).symlink_to(path)
    for name in ("bench", "triton_kernels"):
        (folder / "cfmvit" / name).symlink_to(ROOT / name)
    core = Path(library.core.__file__)
    if not (folder / "cfmvit" / core.name).exists():
        (folder / "cfmvit" / core.name).symlink_to(core)
    return folder


def python(checkout: Path, *arguments: str, also: Path | None = None) -> subprocess.CompletedProcess[str]:
    # -S: without what this environment's own installation of cfmvit hooks into every start of Python.
    packages = [str(Path(path)) for path in sys.path if path.endswith("-packages")]
    path = os.pathsep.join([*([str(also)] if also else []), *packages])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_the_installed_libraries_are_found(checkout: Path, installed: Path) -> None:
    program = (
        "import cfmvit, cfmvit.ops.masking.native as native; from cfmvit.ops.shared import library; "
        "print(cfmvit.__file__, native.__file__, library.core.__file__, sep='\\n')"
    )
    done = python(checkout, "-W", "error::RuntimeWarning", "-c", program, also=installed)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.split()
    assert first.startswith(str(checkout))
    assert all(path.startswith(str(installed)) for path in others)


@pytest.mark.parametrize(
    ("command", "printed"), [("cfmvit.cli info", "cfmvit 0."), ("bench --help", "usage: cfmvit bench")]
)
def test_modules_run_there(checkout: Path, installed: Path, command: str, printed: str) -> None:
    done = python(checkout, "-m", *command.split(), also=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(printed)
    assert "many times slower" not in done.stderr


def test_without_an_installation_it_says_so_once(checkout: Path) -> None:
    done = python(checkout, "-c", "import cfmvit.ops, cfmvit.ops.masking")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("build it with: pip install .; until then plain PyTorch computes every op") == 1
