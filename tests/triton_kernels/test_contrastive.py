"""The Triton kernels without a GPU: compiled ahead of time for each supported architecture."""

from __future__ import annotations

import re

import pytest

from cfmvit.bench import sass

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.first

from cfmvit.bench import counts_contrastive  # noqa: E402
from cfmvit.bench.counts_rows import ISSUE  # noqa: E402
from cfmvit.bench.triton_compile import FORMS, compile_for, matrix_kernel, tile_of  # noqa: E402
from cfmvit.triton_kernels import contrastive_vector_kernels as vectors  # noqa: E402

# What a program may use of an SM's shared memory.
SHARED_BYTES = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
SHARED_BYTES_OF_TWO = 233_472 // 2 - 1024  # on 9.0; a kilobyte of each is the system's
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma", 100: "tcgen05", 120: "mma.sync"}


# Counted with Triton 3.6, 3.8 and 3.9, and some hundredths more; of a whole tile with its loop, a warp issues about 1,500 besides.
# Twelve registers at most go to the stack, once a tile, with groups; of the sigmoid six, of float16, by Triton 3.6 alone.
OLD = triton.__version__.startswith("3.6.")
STACK = {"forward-with-max": 48 if OLD else 32, "sigmoid": 24 if OLD else 0}
EPILOGUE = {"forward": 2300, "forward-with-max": 4250, "backward": 3350, "sigmoid": 3950}
LOOP = 105  # instructions of a warp for BLOCK_D of the width, at most


# Every capability for what training uses; the other forms where it matters most.
TARGETS = [(capability, "bf16", 768, "ieee") for capability in SHARED_BYTES]
TARGETS += [
    pytest.param(*form, marks=pytest.mark.long)
    for form in (
        (90, "fp16", 768, "ieee"),
        (90, "fp32", 768, "tf32"),
        (90, "fp32", 768, "ieee"),
        (90, "bf16", 100, "ieee"),
    )
]


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize(("capability", "dtype", "width", "precision"), TARGETS, ids=str)
def test_matrix_kernels_compile_for(
    capability: int, dtype: str, width: int, precision: str, name: str
) -> None:
    found = matrix_kernel(name, capability, dtype, width, precision)
    compiled, kernel, config = found
    if precision == "tf32" or dtype != "fp32":
        assert MATRIX_INSTRUCTION[capability] in compiled.asm["ptx"]
    programs = 2 if capability == 90 and dtype != "fp32" else 1
    # 8 bytes are what Triton 3.6 takes on 12.0, whatever is computed.
    assert kernel.usage.stack <= (STACK.get(name, 0) if programs == 2 else 8 * (capability == 120))
    assert found.programs_on(capability) >= programs
    assert compiled.metadata.shared <= (SHARED_BYTES[capability] if programs == 1 else SHARED_BYTES_OF_TWO)
    assert ("cp.async.bulk.tensor" in compiled.asm["ptx"]) == config.descriptors
    # Tensors of addresses: a 32-bit product of row and stride would overflow with enough rows.
    assert not re.search(r"arith.muli .* : tensor<\S+xi32>", compiled.asm["ttir"])


@pytest.mark.parametrize("name", list(FORMS))
def test_instructions_of_a_tile(name: str) -> None:
    """Without a GPU, what a tile costs is what a warp issues for it: no more than was counted."""
    tile = tile_of(name)
    assert tile.loop <= LOOP
    assert tile.epilogue <= EPILOGUE[name]
    _, kernel, _ = matrix_kernel(name, 90, "bf16", 768, "ieee")
    assert kernel.counts(range(*kernel.loop_with("tensor")))["local"] == 0
    way = kernel.shortest(kernel.loop_with("tensor").end - 1)
    assert (
        kernel.counts(way)["special"] <= 2 * 128 + 8
    )  # a thread's 128 logits: two exponentials each, or one and a quotient
    if FORMS[name].pass_ != "forward":  # gradients are rounded two at a time
        assert kernel.opcodes("F2FP", way).total() == 64
        assert kernel.opcodes("F2F.", way).total() == 0


def test_predicted_time_on_an_h200() -> None:
    """info_nce of 32,768 pairs of width 768: 11 ms forward and backward, the tensor cores waiting for no epilogue."""
    for name in ("forward", "backward"):
        tile = tile_of(name)
        assert tile.warps * tile.epilogue / ISSUE < counts_contrastive.TENSOR_CYCLES
    passes = counts_contrastive.PASSES[:2]
    assert sum(counts_contrastive.predict(of, cache=False)[0] for of in passes) < 9.5e-3


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
