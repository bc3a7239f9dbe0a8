"""Hints are right, and reach whoever uses the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cfmvit

from .processes import run

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
    options = ("--cache-dir", tmp_path / "cache", "--no-error-summary")
    run(sys.executable, "-m", "mypy", *options, "cfmvit", tmp_path / "use.py")


def test_the_hints_are_announced() -> None:
    assert (Path(cfmvit.__file__).parent / "py.typed").is_file()
