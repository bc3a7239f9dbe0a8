"""What was built, what it says of itself, and what importing it costs in modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cfmvit
from cfmvit.cli import main
from cfmvit.info import OPS, choices, report
from cfmvit.ops.shared import library
from cfmvit.ops.shared.implementation import implementation

HEAVY = ("timm", "torchvision", "triton", "xformers", "open_clip", "matplotlib", "PIL", "pycocotools", "lvis")


@pytest.mark.parametrize("module", ["cfmvit", "cfmvit.ops", "cfmvit.cli"])
def test_importing_loads_no_optional_package(module: str) -> None:
    program = (
        f"import sys, torch; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & set(HEAVY)


def test_build_info_is_of_this_package_and_this_torch() -> None:
    built = library.core.build_info()
    assert built["version"] == cfmvit.__version__
    assert built["cuda"].startswith(("built with nvcc", "not built: "))
    assert built["loads_under_torch"].startswith(">=2.11")


def test_every_op_runs_natively_on_the_cpu() -> None:
    assert {name: chosen for name, (chosen, _) in choices("cpu").items()} == dict.fromkeys(OPS, "native")


def test_info_gives_a_reason_for_every_op_that_is_not_native(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.strip() == report()
    assert f"torch        {torch.__version__}" in text
    for name, (chosen, reasons) in choices("cuda").items():
        assert name in text
        assert chosen != "reference" or reasons, f"{name}: no reason for the reference"


def test_a_cuda_library_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As under a torch for another major version of CUDA: all that needs no GPU goes on."""
    (tmp_path / "_cuda.so").write_text("not a library")
    built = {**library.core.build_info(), "cuda": "built with nvcc 13.0.88", "cuda_architectures": "90a-real"}
    for owner, name in ((library, "core"), (library, "cuda_missing")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(cfmvit, "__path__", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "cfmvit._C", SimpleNamespace(build_info=lambda: built))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    library._load()
    assert "_cuda.so: " in library.cuda_missing
    wanted = "; it was built with nvcc 13.0.88, torch uses CUDA 12.8: where they differ, install cfmvit again"
    assert library.cuda_missing.endswith(wanted)
    assert f"not loaded: {library.cuda_missing}" in report()


def test_a_device_without_kernels_is_named() -> None:
    with pytest.raises(
        RuntimeError, match="gather_tokens: impl 'native' is not available: no native kernel for mps"
    ):
        implementation("gather_tokens", SimpleNamespace(device=torch.device("mps")), "native")
