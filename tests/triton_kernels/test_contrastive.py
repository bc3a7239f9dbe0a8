"""The Triton kernels without a GPU: compiled ahead of time for each supported architecture."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

# What a program may use of an SM's shared memory.
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
SHARED_BYTES_OF_TWO = 233_472 // 2 - 1024  # on 9.0; a kilobyte of each is the system's
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


@pytest.fixture
def compile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    def compile_for(
        kernel, capability: int, types: dict[str, str], constants: dict, warps: int, stages: int, maxnreg=None
    ):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in names}
        aligned = [
            i
            for i, n in enumerate(names)
            if signature[n].startswith("*") or (n == "width" and constants.get("EVEN_D", True))
        ]
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs=constants,
            attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        options = {"num_warps": warps, "num_stages": stages, "maxnreg": maxnreg}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    return compile_for


def registers_without_spills(compiled, folder: Path, allowed: int = 0) -> int:
    """Registers of a thread, of a kernel that spills none or few: spilled ones lie on the stack, whose bytes are `allowed`."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    assert max(int(n) for n in re.findall(r"STACK:(\d+)", usage)) <= allowed
    return max(int(n) for n in re.findall(r"REG:(\d+)", usage))


# Kernel, its pass, its constants, and the bytes a thread may spill for the sake of two programs to an SM: sixteen registers
# at most, read once a tile. Triton 3.6 spills none of them, and two registers of the backward.
KERNELS = {
    "forward": ("lse_fwd_kernel", "forward", {"WITH_MAX": False}, 0),
    "forward-with-max": ("lse_fwd_kernel", "forward", {"WITH_MAX": True}, 32),
    "backward": ("lse_bwd_kernel", "backward", {}, 8 if triton.__version__.startswith("3.6.") else 0),
    "sigmoid": ("sigmoid_kernel", "sigmoid", {}, 64),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Every capability for what training uses; the other forms where it matters most.
FORMS = [(capability, "bf16", 768, "ieee") for capability in SHARED_BYTES]
FORMS += [
    pytest.param(*form, marks=pytest.mark.long)
    for form in (
        (90, "fp16", 768, "ieee"),
        (90, "fp32", 768, "tf32"),
        (90, "fp32", 768, "ieee"),
        (90, "bf16", 100, "ieee"),
    )
]


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize(("capability", "dtype", "width", "precision"), FORMS, ids=str)
def test_matrix_kernels_compile_for(
    capability: int, dtype: str, width: int, precision: str, name: str, compile_for, tmp_path: Path
) -> None:
    from cfmvit.triton_kernels import contrastive_config, contrastive_lse, contrastive_sigmoid

    kernel, pass_, form, spilled = KERNELS[name]
    config = contrastive_config.config_for(DTYPES[dtype], width, capability, pass_)
    integers = (
        "first_row", "end_row", "first_col", "end_col", "rows", "texts", "width", "label_offset", "grad_stride",
        "block_rows", "block_cols",
    )  # fmt: skip
    types = dict.fromkeys(("image", "text", "grad_logit"), f"*{dtype}") | dict.fromkeys(integers, "i32")
    types |= dict.fromkeys(("image_groups", "text_groups"), "*i64")
    for matrix, rows, columns in (
        ("image_tiles", config.block_m, config.block_d),
        ("text_tiles", config.block_n, config.block_d),
        ("grad_logit", config.block_m, config.block_n // 4),
    ):
        types[matrix] = f"tensordesc<{dtype}[{rows},{columns}]>" if config.descriptors else f"*{dtype}"
    constants = form | dict(
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=config.block_d, GROUP_M=8,
        DESCRIPTORS=config.descriptors, EVEN_D=width % config.block_d == 0, PRECISION=precision,
    )  # fmt: skip
    if pass_ == "sigmoid":
        constants["PAIRS"] = contrastive_config.PAIRS
    if pass_ != "forward" and dtype != "fp16":
        constants["store_scale"] = None
    if pass_ == "backward" and dtype == "fp32":
        constants |= dict(row_residuals=None, col_residuals=None)
    kernel = getattr(contrastive_sigmoid if pass_ == "sigmoid" else contrastive_lse, kernel)
    compiled = compile_for(
        kernel, capability, types, constants, config.warps, config.stages, config.max_registers
    )
    if precision == "tf32" or dtype != "fp32":
        assert MATRIX_INSTRUCTION[capability] in compiled.asm["ptx"]
    programs = 2 if capability == 90 and dtype != "fp32" else 1
    assert compiled.metadata.shared <= (SHARED_BYTES[capability] if programs == 1 else SHARED_BYTES_OF_TWO)
    # 8 bytes are what Triton 3.6 takes on 12.0, whatever is computed.
    allowed = spilled if programs == 2 else 8 * (capability == 120)
    registers = registers_without_spills(compiled, tmp_path, allowed)
    assert registers * config.warps * 32 <= 65536 // programs
    assert ("cp.async.bulk.tensor" in compiled.asm["ptx"]) == config.descriptors
    # Tensors of addresses: a 32-bit product of row and stride would overflow with enough rows.
    assert not re.search(r"arith.muli .* : tensor<\S+xi32>", compiled.asm["ttir"])


@pytest.mark.parametrize("capability", list(SHARED_BYTES))
def test_vector_kernels_compile_for(capability: int, compile_for, tmp_path: Path) -> None:
    from cfmvit.triton_kernels import contrastive_vector_kernels as vectors

    integers = (
        "rows", "cols", "row_partials", "col_partials", "images", "texts", "first_row", "width", "label_offset", "count",
        "row_partials", "col_partials", "block_rows",
    )  # fmt: skip
    types = dict.fromkeys(("grad_image", "grad_text"), "*bf16") | dict.fromkeys(integers, "i32")
    types |= dict.fromkeys(("image_weight", "text_weight"), "fp32")
    none = ("store_scale", "grad", "base", "row_residuals", "col_residuals")
    for kernel, constants in (
        (vectors.merge_kernel, dict(COLS_LAST=True, BLOCK_P=32, BLOCK=64)),
        (vectors.merge_max_kernel, dict(COLS_LAST=False, BLOCK_P=32, BLOCK=64)),
        (vectors.merge_pair_loss_kernel, dict(BLOCK_P=32, BLOCK=512)),
        (vectors.finish_kernel, dict(BLOCK=16, BLOCK_D=128)),
        (vectors.finish_kernel, dict.fromkeys(none) | dict(BLOCK=16, BLOCK_D=128)),
        (vectors.store_scale_kernel, dict(BLOCK=1024)),
        (vectors.pair_loss_kernel, dict(BLOCK=2048)),
        (vectors.round_kernel, dict(BLOCK=4096)),
    ):
        warps = {512: 16, 1024: 8, 2048: 8}.get(constants["BLOCK"], 4)
        types |= dict.fromkeys(("image", "text"), "*fp32" if kernel is vectors.round_kernel else "*bf16")
        compiled = compile_for(kernel, capability, types, constants, warps, 2)
        assert not re.search(r"arith.muli .* : tensor<\S+xi32>", compiled.asm["ttir"])
        registers_without_spills(compiled, tmp_path)
