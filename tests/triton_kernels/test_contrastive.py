"""The Triton kernels without a GPU: compiled ahead of time for each supported architecture."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch

from cfmvit.bench import sass

triton = pytest.importorskip("triton")

from cfmvit.triton_kernels import contrastive_config, contrastive_lse, contrastive_sigmoid  # noqa: E402
from cfmvit.triton_kernels import contrastive_vector_kernels as vectors  # noqa: E402

# What a program may use of an SM's shared memory.
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
SHARED_BYTES_OF_TWO = 233_472 // 2 - 1024  # on 9.0; a kilobyte of each is the system's
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


def compile_for(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int, max_registers: int | None = None
) -> Any:  # fmt: skip
    """What Triton makes of a kernel."""
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
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": max_registers}
    with patch.dict(os.environ, TRITON_DEFAULT_FP_FUSION="1"):
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


class Form(NamedTuple):
    """Of a matrix kernel: what it is compiled from and for, and what may come of it."""

    kernel: str
    pass_: str
    constants: dict[str, Any]
    stack: int  # bytes that a thread may spill on 9.0, for the sake of two programs to a multiprocessor
    epilogue: (
        int  # instructions of a warp from the last product on, at most, on 9.0 by way of a tile without masks
    )


# Counted with Triton 3.6 and 3.8, and some hundredths more; of a whole tile with its loop, a warp issues about 1,500 besides.
# Twelve registers at most go to the stack, once a tile, with groups; of the sigmoid six, of float16, by Triton 3.6 alone.
OLD = triton.__version__.startswith("3.6.")
FORMS_OF = {
    "forward": Form("lse_fwd_kernel", "forward", {"WITH_MAX": False}, 0, 2300),
    "forward-with-max": Form("lse_fwd_kernel", "forward", {"WITH_MAX": True}, 48 if OLD else 24, 4250),
    "backward": Form("lse_bwd_kernel", "backward", {}, 0, 3350),
    "sigmoid": Form("sigmoid_kernel", "sigmoid", {}, 24 if OLD else 0, 3950),
}
LOOP = 105  # instructions of a warp for BLOCK_D of the width, at most
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@lru_cache
def compiled_matrix_kernel(
    name: str, capability: int, dtype: str, width: int, precision: str
) -> tuple[Any, sass.Kernel, contrastive_config.Config]:
    """A kernel as `config_for` has it, with the instructions it comes to."""
    kernel, pass_, form, *_ = FORMS_OF[name]
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
        constants |= dict.fromkeys(("row_sums", "row_residuals", "col_sums", "col_residuals"))
    module = contrastive_sigmoid if pass_ == "sigmoid" else contrastive_lse
    compiled = compile_for(
        getattr(module, kernel),
        capability,
        types,
        constants,
        config.warps,
        config.stages,
        config.max_registers,
    )
    (found,) = sass.kernels(compiled.asm["cubin"]).values()
    return compiled, found, config


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


@pytest.mark.parametrize("name", list(FORMS_OF))
@pytest.mark.parametrize(("capability", "dtype", "width", "precision"), FORMS, ids=str)
def test_matrix_kernels_compile_for(
    capability: int, dtype: str, width: int, precision: str, name: str
) -> None:
    compiled, kernel, config = compiled_matrix_kernel(name, capability, dtype, width, precision)
    if precision == "tf32" or dtype != "fp32":
        assert MATRIX_INSTRUCTION[capability] in compiled.asm["ptx"]
    programs = 2 if capability == 90 and dtype != "fp32" else 1
    # 8 bytes are what Triton 3.6 takes on 12.0, whatever is computed.
    assert kernel.usage.stack <= (FORMS_OF[name].stack if programs == 2 else 8 * (capability == 120))
    # The kilobyte that the system takes counts as static shared memory there.
    dynamic = compiled.metadata.shared - max(kernel.usage.shared - 1024, 0)
    assert (
        sass.blocks_at_once(kernel.usage._replace(shared=0), 32 * config.warps, dynamic, capability)
        >= programs
    )
    assert compiled.metadata.shared <= (SHARED_BYTES[capability] if programs == 1 else SHARED_BYTES_OF_TWO)
    assert ("cp.async.bulk.tensor" in compiled.asm["ptx"]) == config.descriptors
    # Tensors of addresses: a 32-bit product of row and stride would overflow with enough rows.
    assert not re.search(r"arith.muli .* : tensor<\S+xi32>", compiled.asm["ttir"])


class Tile(NamedTuple):
    """Instructions of a warp for a tile of logits, and warps."""

    before: int
    loop: int
    epilogue: int
    warps: int

    def cycles(self, width: int, instructions_a_cycle: float) -> float:
        """That a multiprocessor takes to issue them, for features of such a width."""
        steps = -(-width // 64)
        return self.warps * (self.before + self.loop * steps + self.epilogue) / instructions_a_cycle


def tile_of(name: str) -> Tile:
    """On 9.0, of a tile within the logits and beside their pairs, as nearly all are."""
    _, kernel, config = compiled_matrix_kernel(name, 90, "bf16", 768, "ieee")
    loop = kernel.loop_with("tensor")
    before, after = kernel.shortest(through=loop.first).index(loop.first), kernel.shortest(loop.end - 1)
    return Tile(before, loop.end - loop.first, len(after) - 1, config.warps)


ISSUE = 2.6  # instructions a cycle and multiprocessor, of the four that there could be
TENSOR_CYCLES = 2 * 128 * 128 * 768 / 4096  # of the tensor cores, for a tile of logits
CLOCK, MULTIPROCESSORS, PRODUCT_RATE = (
    1.755e9,
    132,
    790e12,
)  # of an H200; operations a second of a large matrix product


@pytest.mark.parametrize("name", list(FORMS_OF))
def test_instructions_of_a_tile(name: str) -> None:
    """Without a GPU, what a tile costs is what a warp issues for it: no more than was counted."""
    tile, form = tile_of(name), FORMS_OF[name]
    assert tile.loop <= LOOP
    assert tile.epilogue <= form.epilogue
    _, kernel, _ = compiled_matrix_kernel(name, 90, "bf16", 768, "ieee")
    assert kernel.counts(range(*kernel.loop_with("tensor")))["local"] == 0
    way = kernel.shortest(kernel.loop_with("tensor").end - 1)
    assert (
        kernel.counts(way)["special"] <= 2 * 128 + 8
    )  # a thread's 128 logits: two exponentials each, or one and a quotient
    if form.pass_ != "forward":  # gradients are rounded two at a time
        assert kernel.opcodes("F2FP", way).total() == 64
        assert kernel.opcodes("F2F.", way).total() == 0


def test_predicted_time_on_an_h200() -> None:
    """info_nce of 32,768 pairs of width 768: 11 ms forward and backward, the tensor cores waiting for no epilogue."""
    from cfmvit.triton_kernels.contrastive_feature_gradients import block_shape

    pairs, width, seconds = 32768, 768, 0.0
    for name in ("forward", "backward"):
        tile = tile_of(name)
        assert tile.warps * tile.epilogue / ISSUE < TENSOR_CYCLES
        cycles = max(tile.cycles(width, ISSUE), TENSOR_CYCLES * 4096 * CLOCK * MULTIPROCESSORS / PRODUCT_RATE)
        seconds += (pairs / 128) ** 2 / MULTIPROCESSORS * cycles / CLOCK
    shape = block_shape(pairs, pairs, width, contrastive_config.WORKSPACE_BYTES // 2, 128, MULTIPROCESSORS)
    for size in shape:
        for first in range(0, pairs, size):
            tiles = -(-min(size, pairs - first) // 128) * 3
            idle = -(-tiles // MULTIPROCESSORS) * MULTIPROCESSORS / tiles
            seconds += 2 * min(size, pairs - first) * pairs * width / PRODUCT_RATE * idle
    assert seconds < 9.5e-3


@pytest.mark.parametrize("capability", list(SHARED_BYTES))
def test_vector_kernels_compile_for(capability: int) -> None:
    integers = (
        "rows", "cols", "row_partials", "col_partials", "images", "texts", "first_row", "width", "label_offset", "count",
        "row_partials", "col_partials", "block_rows",
    )  # fmt: skip
    types = dict.fromkeys(("grad_image", "grad_text"), "*bf16") | dict.fromkeys(integers, "i32")
    types |= dict.fromkeys(("image_weight", "text_weight"), "fp32")
    none = ("store_scale", "grad", "base", "row_sums", "col_sums")
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
        (found,) = sass.kernels(compiled.asm["cubin"]).values()
        assert found.usage.stack == 0
