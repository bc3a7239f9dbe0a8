"""The sources compile against the headers of the oldest torch that the package declares."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..processes import ROOT

OLDEST = re.search(r'dependencies = \["torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torch's headers, the same on every platform: taken from the smallest wheel (macOS, 80 MB), then kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cfmvit"
    folder = cache / f"torch-{OLDEST}-headers"
    if not folder.is_dir():
        downloads = tmp_path_factory.mktemp("wheel")
        options = "--quiet --no-deps --only-binary=:all: --platform macosx_11_0_arm64 --python-version 3.11 --retries 1"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                *options.split(),
                "-d",
                downloads,
                f"torch=={OLDEST}.0",
            ],
            capture_output=True,
            text=True,
        )
        wheel = next(downloads.glob("torch-*.whl"), None)
        if wheel is None:
            pytest.skip(f"no headers of torch {OLDEST}: {done.stderr.strip().splitlines()[-1]}")
        unpacked = downloads / "unpacked"
        parts = ("torch/include/torch/csrc/", "torch/include/torch/headeronly/", "torch/include/c10/")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [name for name in archive.namelist() if name.startswith(parts)])
        wheel.unlink()
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f"{folder.name}.{os.getpid()}"
        shutil.copytree(unpacked, partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    return folder / "torch/include"


def errors(sources: list[Path], headers: Path, *compiler: str) -> dict[str, str]:
    """What a compiler says of the files that it refuses."""
    target = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "cmake/TorchStable.cmake").read_text())[0]
    options = ["-std=c++20", f"-D{target}", f"-I{ROOT / 'csrc'}", "-isystem", str(headers), "-w"]

    def compiled(source: Path) -> tuple[str, str]:
        done = subprocess.run([*compiler, *options, str(source)], capture_output=True, text=True)
        return source.name, done.stderr[:4000] if done.returncode else ""

    with ThreadPoolExecutor(2) as pool:
        return {name: text for name, text in pool.map(compiled, sources) if text}


def test_it_is_the_target_of_the_build() -> None:
    major, minor = map(int, OLDEST.split("."))
    assert (
        f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x}"
        in (ROOT / "cmake/TorchStable.cmake").read_text()
    )


def test_cpu_sources_compile(headers: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = [ROOT / "csrc/schema.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    assert not errors(sources, headers, compiler, "-fsyntax-only")


@pytest.mark.long
def test_cuda_sources_compile(headers: Path, tmp_path: Path) -> None:
    """To PTX of one architecture, not optimised: torch's headers are done with by then. They are read twice, not for each file:
    reconstruction_linear.cu alone must not see what reconstruction.cu instantiates for both.
    """
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc")
    linear = ROOT / "csrc/cuda/reconstruction_linear.cu"
    others = sorted({*linear.parent.glob("*.cu")} - {linear})
    together = tmp_path / "together.cu"
    together.write_text("".join(f'#include "{path}"\n' for path in others))
    quick = ("-ptx", "-arch=compute_90", "-Xcicc=-O0", "-DUSE_CUDA", f"--output-directory={tmp_path}")
    assert not errors([together, linear], headers, compiler, *quick)
