"""The kernels once more, held to the instruction sets of lesser processors than this one."""

from __future__ import annotations

import sys

import pytest

from ..processes import ROOT, run


@pytest.mark.parametrize("limit", ["default", "avx2"])
def test_ops_are_as_exact(limit: str) -> None:
    tests = [ROOT / "tests" / name for name in ("fuzz/test_ops.py", "ops/test_contrastive.py")]
    printed = run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, ATEN_CPU_CAPABILITY=limit
    )
    assert "passed" in printed


@pytest.mark.parametrize(
    ("limit", "named"), [("default", "the compiler's own"), ("avx2", "AVX2")], ids=["default", "avx2"]
)
def test_a_limit_holds(limit: str, named: str) -> None:
    command = "import torch, cfmvit._C; print(cfmvit._C.build_info()['instruction_set'])"
    assert run(sys.executable, "-c", command, ATEN_CPU_CAPABILITY=limit).strip() in (
        named,
        "the compiler's own",
    )
