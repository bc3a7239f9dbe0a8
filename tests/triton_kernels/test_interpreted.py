"""The Triton kernels without a GPU, under Triton's interpreter: interpreted_contrastive.py, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..processes import run

pytest.importorskip("triton")

INTERPRETED = Path(__file__).with_name("interpreted_contrastive.py")


def interpreted(chosen: str) -> str:
    return run(
        sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", INTERPRETED, "-m", chosen,
        TRITON_INTERPRET="1", OMP_NUM_THREADS="1",
    )  # fmt: skip


@pytest.mark.first
def test_under_the_interpreter() -> None:
    assert " passed" in interpreted("not long")


@pytest.mark.long
def test_every_combination_under_the_interpreter() -> None:
    assert " passed" in interpreted("long")
