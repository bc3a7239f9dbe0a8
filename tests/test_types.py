"""Hints are right, and reach whoever uses the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cfmvit

from .processes import ROOT, run

USE = """
import torch
import cfmvit

detector: cfmvit.Detector = cfmvit.Detector.from_pretrained()
image, text = torch.randn(2, 8, 16)
cfmvit.ops.info_nce(image, text, torch.tensor(1.0)).backward()
_, stats = cfmvit.ops.info_nce(image, text, torch.tensor(1.0), return_stats=True)
stats.positive.sum()
cfmvit.Detectr  # type: ignore[attr-defined]
"""


def test_hints(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USE)
    package = tmp_path / "cfmvit"  # as it is installed
    package.mkdir()
    for path in [*(ROOT / "cfmvit").iterdir(), ROOT / "bench", ROOT / "triton_kernels"]:
        (package / path.name).unlink(missing_ok=True)
        (package / path.name).symlink_to(path)
    options = ("--cache-dir", tmp_path / "cache", "--no-error-summary")
    run(sys.executable, "-m", "mypy", *options, package, tmp_path / "use.py", MYPYPATH=str(tmp_path))


def test_the_hints_are_announced() -> None:
    assert (Path(cfmvit.__file__).parent / "py.typed").is_file()
