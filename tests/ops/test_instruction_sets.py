"""The kernels once more, held to the instruction sets of lesser processors than this one."""

from __future__ import annotations

import sys

import pytest

from cfmvit.ops.shared import library

from ..processes import ROOT, run

INSTRUCTION_SETS = {"default": "the compiler's own", "avx2": "AVX2"}
# What does not look at numbers, or not at the kernels'.
LEFT_OUT = ("reference", "memory", "open_clip", "threads")


@pytest.mark.parametrize("limit", ["default", "avx2"])
def test_ops_are_as_exact(limit: str) -> None:
    if library.core is not None and library.core.build_info()["instruction_set"] == INSTRUCTION_SETS[limit]:
        pytest.skip("the other tests run with these instructions here")
    tests = [
        ROOT / "tests" / name
        for name in ("fuzz/test_ops.py", "ops/test_contrastive.py", "ops/test_contrastive_exactness.py")
    ]
    chosen = ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    printed = run(
        sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *chosen, *tests,
        ATEN_CPU_CAPABILITY=limit,
    )  # fmt: skip
    assert "passed" in printed


@pytest.mark.parametrize(("limit", "named"), INSTRUCTION_SETS.items(), ids=list(INSTRUCTION_SETS))
def test_a_limit_holds(limit: str, named: str) -> None:
    command = "import torch, cfmvit._C; print(cfmvit._C.build_info()['instruction_set'])"
    assert run(sys.executable, "-c", command, ATEN_CPU_CAPABILITY=limit).strip() in (
        named,
        "the compiler's own",
    )
