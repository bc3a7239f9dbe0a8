"""The Triton kernels without a GPU: under the interpreter, and compiled ahead of time for each supported architecture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

# What a program may use of an SM's shared memory.
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


def test_under_the_interpreter() -> None:
    file = Path(__file__).with_name("interpreted_contrastive.py")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=env, cwd=file.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


@pytest.fixture
def compile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    def compile_for(kernel, capability: int, types: dict[str, str], constants: dict, warps: int, stages: int):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
        aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n == "width"]
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        options = {"num_warps": warps, "num_stages": stages}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    return compile_for


def stack_bytes(compiled, folder: Path) -> int:
    """Bytes of the stack of a thread: zero means that no register was spilled."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"STACK:(\d+)", usage))


KERNELS = {"lse_fwd_kernel": "forward", "lse_bwd_kernel": "backward", "sigmoid_kernel": "sigmoid"}


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize("capability", list(SHARED_BYTES))
def test_matrix_kernels_compile_for(capability: int, name: str, compile_for, tmp_path: Path) -> None:
    from cfmvit.triton_kernels import contrastive, contrastive_tiles

    config = contrastive.config_for(torch.bfloat16, 768, capability, KERNELS[name])
    integers = ("first_row", "end_row", "strip", "texts", "width", "label_offset")
    types = dict.fromkeys(("image", "text", "grad_logit"), "*bf16") | dict.fromkeys(integers, "i32")
    types["group_ids"] = "*i64"
    constants = dict(
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=config.block_d, GROUP_M=8, EVEN_D=True, PRECISION="ieee"
    )  # fmt: skip
    constants["WITH_MAX" if name == "lse_fwd_kernel" else "WITH_GRAD"] = (
        True  # the form that needs more registers
    )
    kernel = getattr(contrastive_tiles, name)
    compiled = compile_for(kernel, capability, types, constants, config.warps, config.stages)
    assert MATRIX_INSTRUCTION[capability] in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_BYTES[capability]
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("capability", list(SHARED_BYTES))
def test_vector_kernels_compile_for(capability: int, compile_for, tmp_path: Path) -> None:
    from cfmvit.triton_kernels import contrastive_tiles as tiles

    integers = ("rows", "others", "texts", "width", "label_offset", "to_other", "parts", "size")
    types = dict.fromkeys(("image", "text", "other", "grad"), "*bf16") | dict.fromkeys(integers, "i32")
    for kernel, constants in (
        (tiles.merge_kernel, dict(IS_MAX=False, TO_NATURAL=True, BLOCK_P=32, BLOCK=64)),
        (tiles.merge_kernel, dict(IS_MAX=True, TO_NATURAL=False, BLOCK_P=32, BLOCK=64)),
        (tiles.pair_kernel, dict(BLOCK=16, BLOCK_D=128)),
        (tiles.finish_kernel, dict(PAIR_BY_ROW=False, BLOCK=16, BLOCK_D=128)),
    ):
        compiled = compile_for(kernel, capability, types, constants, 4, 2)
        assert stack_bytes(compiled, tmp_path) == 0
