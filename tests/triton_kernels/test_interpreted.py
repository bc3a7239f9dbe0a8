"""The Triton kernels without a GPU, under Triton's interpreter: interpreted_*.py, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

from ..processes import run

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason=f"the interpreter of Triton {triton.__version__} needs NumPy before 2.4",  # Triton's issue 9171
)

INTERPRETED = [Path(__file__).with_name(f"interpreted_{name}.py") for name in ("parity", "rounding")]


def interpreted(chosen: str) -> str:
    return run(
        sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *INTERPRETED, "-m", chosen,
        TRITON_INTERPRET="1", OMP_NUM_THREADS="1",
    )  # fmt: skip


@pytest.mark.first
def test_under_the_interpreter() -> None:
    assert " passed" in interpreted("not long")


@pytest.mark.long
def test_every_combination_under_the_interpreter() -> None:
    assert " passed" in interpreted("long")
