"""Whether the CUDA kernels are built, and for which architectures: decided by cmake/, here with a stand-in for nvcc."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

from ..processes import ROOT, cmake, run, tool

POLICIES = "cmake_minimum_required(VERSION 3.28)\n"
KNOWN = "compute_75 compute_80 compute_86 compute_89 compute_90 compute_100 compute_103 compute_120"
KNOWN_TO_12_6 = "compute_50 compute_75 compute_80 compute_86 compute_89 compute_90"


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    """An nvcc that names itself and what it knows, and fails at everything else."""
    script = tmp_path / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '  --version) echo "Cuda compilation tools, release ${FAKE_VERSION:-13.0}, V13.0.88";;\n'
        '  --list-gpu-arch) echo "$FAKE_KNOWN" | tr " " "\\n";;\n'
        '  *) echo "unsupported GNU version" >&2; exit 1;;\n'
        "esac\n"
    )
    script.chmod(0o755)
    return script


def chosen(nvcc: Path, script: Path, **environment: str) -> str:
    script.write_text(
        POLICIES + f'include("{ROOT}/cmake/CudaArchitectures.cmake")\n'
        f'choose_cuda_architectures("{nvcc}")\n'
        'message("${ARCHITECTURES}|${DROPPED}|${WHY_NOT}")\n'
    )
    clean = {"TORCH_CUDA_ARCH_LIST": "", "CUDAARCHS": "", "FAKE_KNOWN": KNOWN}
    return run(cmake(), "-P", script, **{**clean, **environment}).strip()


@pytest.mark.parametrize(
    ("given", "architectures"),
    [
        ({}, "80-real;90a-real;100-real;120"),
        ({"FAKE_KNOWN": KNOWN_TO_12_6}, "80-real;90a-real;90-virtual"),
        ({"CUDAARCHS": "80-real;90-virtual;100"}, "80-real;90-virtual;100"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0 9.0a;12.0+PTX", "CUDAARCHS": "75"}, "80-real;90a-real;120"),
        ({"TORCH_CUDA_ARCH_LIST": "Ampere;Hopper"}, "80-real;86;90"),
        ({"TORCH_CUDA_ARCH_LIST": "6.0;7.5;8.6+PTX"}, "86"),
        ({"CUDAARCHS": "all", "FAKE_KNOWN": KNOWN_TO_12_6}, "80-real;86-real;89-real;90"),
        ({"TORCH_CUDA_ARCH_LIST": "Common"}, "80-real;90-real;100-real;120"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "default",
)
def test_architectures(nvcc: Path, tmp_path: Path, given: dict[str, str], architectures: str) -> None:
    found, _, problem = chosen(nvcc, tmp_path / "script.cmake", **given).split("|")
    assert (found, problem) == (architectures, "")


def test_what_nvcc_does_not_know_is_dropped_by_name(nvcc: Path, tmp_path: Path) -> None:
    given = {"TORCH_CUDA_ARCH_LIST": "7.0;9.0;12.0+PTX", "FAKE_KNOWN": KNOWN_TO_12_6}
    assert chosen(nvcc, tmp_path / "script.cmake", **given) == "90-real|7.0;12.0+PTX|"


def test_native_asks_the_gpus(nvcc: Path, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 8.6\necho 8.6\necho 9.0\n")
    smi.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert (
        chosen(nvcc, tmp_path / "script.cmake", CUDAARCHS="native", PATH=path).split("|")[0]
        == "86-real;90-real"
    )
    smi.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert "CUDAARCHS must be" in chosen(nvcc, tmp_path / "script.cmake", CUDAARCHS="native", PATH=path)


def build(script: Path, *options: str, torch_cuda: str = "13.0", **environment: str) -> str:
    script.write_text(
        POLICIES
        + f'set(CMAKE_BINARY_DIR "{script.parent}")\n'
        + f'include("{ROOT}/cmake/Cuda.cmake")\n'
        + 'message("${CFMVIT_CUDA_BUILD}")\n'
    )
    clean = {
        "TORCH_CUDA_ARCH_LIST": "",
        "CUDAARCHS": "",
        "CUDA_HOME": "",
        "CUDA_PATH": "",
        "FAKE_KNOWN": KNOWN,
    }
    return run(
        cmake(),
        "-DCFMVIT_CUDA=AUTO",
        f"-DTORCH_CUDA_VERSION={torch_cuda}",
        "-DTORCH_VERSION=2.14.1",
        "-DCMAKE_GENERATOR=Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        *options,
        "-P",
        script,
        **{**clean, **environment},
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"torch_cuda": "none"}, "not built: torch 2.14.1 is a build without CUDA"),
        (
            {"torch_cuda": "12.6"},
            "not built: nvcc is of CUDA 13.0, torch uses CUDA 12.6: install the CUDA 12 toolkit, or set CUDACXX",
        ),
        ({"FAKE_VERSION": "nothing"}, "nvcc is no nvcc that runs: install the CUDA 13 toolkit"),
        ({"TORCH_CUDA_ARCH_LIST": "Pentium"}, "not built: TORCH_CUDA_ARCH_LIST must be a list of arch"),
        (
            {"TORCH_CUDA_ARCH_LIST": "7.0 7.5"},
            "not built: nvcc knows no architecture of TORCH_CUDA_ARCH_LIST",
        ),
        ({"FAKE_KNOWN": ""}, "not built: nvcc knows no architecture of the default"),
        ({}, "not built: nvcc 13.0 fails at a small program (see the build's output)"),
    ],
    ids=["cpu", "major", "broken", "unknown", "old", "none", "fails"],
)
def test_auto_goes_on_without_cuda_and_says_why(
    nvcc: Path, tmp_path: Path, given: dict[str, str], reason: str
) -> None:
    said = build(tmp_path / "script.cmake", CUDACXX=str(nvcc), **given)
    assert reason in said


def test_torch_with_cuda_and_no_nvcc(tmp_path: Path) -> None:
    said = build(tmp_path / "script.cmake", CUDACXX=str(tmp_path / "absent"))
    assert "absent is no nvcc that runs: install the CUDA 13 toolkit, or set CUDACXX to its nvcc" in said


def test_no_nvcc_anywhere(tmp_path: Path) -> None:
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("there is one where it is looked for")
    said = build(tmp_path / "script.cmake", PATH=str(tmp_path), CUDACXX="")
    wanted = (
        "not built: torch uses CUDA 13.0, but there is no nvcc: install the CUDA 13 toolkit, or set CUDACXX"
    )
    assert wanted in said


@pytest.mark.parametrize(
    ("torch_cuda", "environment", "said"),
    [
        (None, {}, "is a build without CUDA"),
        ("13.0", {"CFMVIT_CUDA": "OFF"}, "CFMVIT_CUDA=OFF"),
        ("13.0", {"FAKE_VERSION": "nothing"}, "is no nvcc that runs: install the CUDA 13 toolkit"),
        (
            "12.6",
            {},
            "nvcc is of CUDA 13.0, torch uses CUDA 12.6: install the CUDA 12 toolkit, or set CUDACXX",
        ),
        ("13.0", {}, "13.0"),
    ],
    ids=["cpu", "off", "broken", "major", "fits"],
)
def test_a_build_without_tools_says_the_same(
    nvcc: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch_cuda: str | None,
    environment: dict[str, str],
    said: str,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bare = importlib.import_module("build_bare")
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    for name, value in {"CUDACXX": str(nvcc), "CFMVIT_CUDA": "AUTO", **environment}.items():
        monkeypatch.setenv(name, value)
    found, text = bare.cuda()
    assert text.endswith(said) or said in text
    assert found == (str(nvcc) if said == "13.0" else None)
    if found is None and "CFMVIT_CUDA" not in environment:
        monkeypatch.setenv("CFMVIT_CUDA", "ON")
        with pytest.raises(SystemExit, match="CFMVIT_CUDA=ON, but the CUDA kernels are not built"):
            bare.cuda()


def test_both_look_for_nvcc_at_the_same_places(
    nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bare = importlib.import_module("build_bare")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    older = tmp_path / "home" / "bin" / "nvcc"
    older.parent.mkdir(parents=True)
    older.write_text("#!/bin/sh\necho release 12.1,\n")
    older.chmod(0o755)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    for where, said in (
        ({"CUDACXX": "", "CUDA_HOME": str(tmp_path / "home")}, "nvcc is of CUDA 12.1"),
        ({"CUDACXX": str(tmp_path / "absent")}, "absent is no nvcc that runs"),
    ):
        for name, value in {"CFMVIT_CUDA": "AUTO", "PATH": path, **where}.items():
            monkeypatch.setenv(name, value)
        assert said in build(tmp_path / "script.cmake", PATH=path, **where)
        assert said in bare.cuda()[1]


def test_an_nvcc_newer_than_torch_is_told_of(nvcc: Path, tmp_path: Path) -> None:
    said = build(tmp_path / "script.cmake", CUDACXX=str(nvcc), FAKE_VERSION="13.2")
    assert "nvcc 13.2 is newer than torch's CUDA 13.0" in said


def test_cuda_that_is_asked_for_is_an_error(nvcc: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="CFMVIT_CUDA=ON, but the CUDA kernels are not"):
        build(tmp_path / "script.cmake", "-DCFMVIT_CUDA=ON", torch_cuda="none")
