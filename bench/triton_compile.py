"""The Triton kernels compiled ahead of time for a GPU that need not be there, and what a tile of them comes to."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton

from cfmvit.bench import sass
from cfmvit.triton_kernels import contrastive_config, contrastive_lse, contrastive_sigmoid

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Form(NamedTuple):
    """Of a kernel of matrix products: what it is compiled from."""

    kernel: Any
    pass_: str  # as contrastive_config.config_for takes it
    constants: dict[str, Any]


FORMS = {
    "forward": Form(contrastive_lse.lse_fwd_kernel, "forward", {"WITH_MAX": False}),
    "forward-with-max": Form(contrastive_lse.lse_fwd_kernel, "forward", {"WITH_MAX": True}),
    "backward": Form(contrastive_lse.lse_bwd_kernel, "backward", {}),
    "sigmoid": Form(contrastive_sigmoid.sigmoid_kernel, "sigmoid", {"PAIRS": contrastive_config.PAIRS}),
}


def compile_for(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int, max_registers: int | None = None
) -> Any:  # fmt: skip
    """Return what Triton makes of a kernel, whose pointers are of float32 where `types` says no other."""
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


class Compiled(NamedTuple):
    """A kernel of matrix products."""

    triton: Any
    sass: sass.Kernel
    config: contrastive_config.Config

    @property
    def programs(self) -> int:
        """How many a multiprocessor of compute capability 9.0 holds at one time."""
        return self.programs_on(90)

    def programs_on(self, capability: int) -> int:
        """How many a multiprocessor holds at one time."""
        # The kilobyte that the system takes counts as static shared memory there.
        dynamic = self.triton.metadata.shared - max(self.sass.usage.shared - 1024, 0)
        usage = self.sass.usage._replace(shared=0)
        return sass.blocks_at_once(usage, 32 * self.config.warps, dynamic, capability)


@lru_cache
def matrix_kernel(name: str, capability: int, dtype: str, width: int, precision: str) -> Compiled:
    """Compile a kernel of `FORMS` as `config_for` has it."""
    kernel, pass_, form = FORMS[name]
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
    if pass_ != "forward" and dtype != "fp16":
        constants["store_scale"] = None
    if pass_ == "backward" and dtype == "fp32":
        constants |= dict.fromkeys(("row_sums", "row_residuals", "col_sums", "col_residuals"))
    compiled = compile_for(
        kernel, capability, types, constants, config.warps, config.stages, config.max_registers
    )
    (found,) = sass.kernels(compiled.asm["cubin"]).values()
    return Compiled(compiled, found, config)


class Tile(NamedTuple):
    """Instructions of a warp for a tile of logits, and warps."""

    before: int
    loop: int  # for BLOCK_D of the width
    epilogue: int  # from the last product on, of a tile without masks
    warps: int

    def cycles(self, width: int, instructions_a_cycle: float) -> float:
        """That a multiprocessor takes to issue them, for features of such a width."""
        steps = -(-width // 64)
        return self.warps * (self.before + self.loop * steps + self.epilogue) / instructions_a_cycle


def tile_of(name: str, width: int = 768) -> Tile:
    """On compute capability 9.0 of bfloat16, of a tile within the logits and beside their pairs, as nearly all are."""
    _, kernel, config = matrix_kernel(name, 90, "bf16", width, "ieee")
    loop = kernel.loop_with("tensor")
    before, after = kernel.shortest(through=loop.first).index(loop.first), kernel.shortest(loop.end - 1)
    return Tile(before, loop.end - loop.first, len(after) - 1, config.warps)
