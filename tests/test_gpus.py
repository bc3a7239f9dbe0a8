"""What `cfmvit info` says of GPUs that can't run what was built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cfmvit import gpus
from cfmvit.info import report
from cfmvit.ops.shared import library

DEFAULT = "80-real 90a-real 100-real 120"
BUILT = {"cuda": "built with nvcc 13.0.88", "cuda_architectures": DEFAULT}


@pytest.mark.parametrize(
    ("architecture", "capabilities", "others"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0)]),
        ("90a-real", [(9, 0)], [(8, 0), (10, 0), (12, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        ("120", [(12, 0), (12, 1), (13, 0)], [(9, 0), (10, 3)]),
        ("100f-real", [(10, 0), (10, 3)], [(12, 0)]),
    ],
)
def test_what_runs_where(
    architecture: str, capabilities: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    assert all(gpus.runs(architecture, capability) for capability in capabilities)
    assert not any(gpus.runs(architecture, capability) for capability in others)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch for CUDA 13.0 with one GPU of capability 9.0."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
    return monkeypatch


def test_nothing_is_said_where_all_is_well(gpu: pytest.MonkeyPatch) -> None:
    assert gpus.problems(BUILT) == []


def test_a_gpu_without_code(gpu: pytest.MonkeyPatch) -> None:
    (said,) = gpus.problems({**BUILT, "cuda_architectures": "80-real 100-real 120"})
    assert said == (
        "GPU 0 has compute capability 9.0, the CUDA kernels were built for 80-real 100-real 120: "
        "install again with TORCH_CUDA_ARCH_LIST=9.0"
    )
    gpu.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5))
    (said,) = gpus.problems(BUILT)
    assert said.endswith("the kernels need at least 8.0")


def test_an_nvcc_newer_than_torch(gpu: pytest.MonkeyPatch) -> None:
    (said,) = gpus.problems({**BUILT, "cuda": "built with nvcc 13.2.5"})
    assert said.startswith("nvcc 13.2 is newer than torch's CUDA 13.0: ")


def test_a_torch_for_cuda_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    why = (
        "torch uses CUDA 13.0, but there is no nvcc: install the CUDA 13 toolkit, or set CUDACXX to its nvcc"
    )
    built = library.core.build_info() | {"cuda": f"not built: {why}", "cuda_architectures": ""}
    monkeypatch.setattr(library, "core", SimpleNamespace(build_info=lambda: built))
    monkeypatch.setattr(library, "cuda_missing", built["cuda"])
    assert f"CUDA kernels not built: {why}\n" in report()


def test_a_driver_too_old(gpu: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    gpu.setattr(torch.cuda, "device_count", lambda: 0)
    gpu.setattr(torch.cuda, "init", refuse)
    assert gpus.problems(BUILT) == [
        "The NVIDIA driver on your system is too old (found version 11040). Please update"
    ]
    assert "GPU          The NVIDIA driver on your system is too old" in report()
