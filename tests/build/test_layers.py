"""The path of native code says what it may know: nothing under csrc/plain or csrc/kernels includes torch."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PORTABLE = CSRC / "kernels/portable.cuh"
# half.h holds both conversions: the host's, and under nvcc one instruction.
MAY_INCLUDE = {PORTABLE: {"cuda_runtime.h"}, CSRC / "plain/half.h": {"cuda_bf16.h", "cuda_fp16.h"}}
STANDARD = re.compile(r"[a-z_]+")  # <cmath>


def test_plain_code_and_kernels_include_neither_torch_nor_cuda() -> None:
    files = sorted({*CSRC.glob("plain/*"), *CSRC.glob("kernels/*")})
    assert PORTABLE in files
    for file in files:
        included = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', file.read_text(), re.MULTILINE)
        for quote, name in included:
            ours = name.startswith("plain/") or (
                file.parent.name == "kernels" and name.startswith("kernels/")
            )
            emulated = file == PORTABLE and name == "emulation.h"
            allowed = name in MAY_INCLUDE.get(file, ())
            assert ours or emulated or allowed or (quote == "<" and STANDARD.fullmatch(name)), (
                f"{file.relative_to(CSRC)} includes {name}"
            )
