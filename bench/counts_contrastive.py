"""The contrastive losses in `docs/kernel-counts.md`: what Triton compiles their kernels to for compute capability 9.0."""

from __future__ import annotations

from typing import NamedTuple

import triton

from cfmvit.bench.counts_rows import BYTES, CLOCK, FLOPS, ISSUE, LAUNCH, MULTIPROCESSORS
from cfmvit.bench.tables import duration, markdown
from cfmvit.bench.triton_compile import Compiled, Tile, matrix_kernel, tile_of
from cfmvit.triton_kernels import contrastive_config
from cfmvit.triton_kernels.contrastive_feature_gradients import PRODUCT_TILE, block_shape

PAIRS, WIDTH = 32768, 768  # of the benchmark's large size
BLOCK = 128  # rows and columns of a tile of logits
TENSOR_CYCLES = 2 * BLOCK * BLOCK * WIDTH / 4096  # of a multiprocessor's matrix units, for such a tile
HEAD = ("op", "kernel", "floor", "predicted", "of floor", "limit", "before the loop", "a step of 64", "epilogue", "of the products' time", "registers", "stack", "shared", "programs")  # fmt: skip


class Pass(NamedTuple):
    """An op's pass: its kernel's tiles, and two products by what they leave."""

    op: str
    form: str
    products: bool  # whether it makes gradients
    launches: int  # for each block of rows, or of the gradients by logits


PASSES = (
    Pass("info_nce forward", "forward", False, 2),
    Pass("info_nce backward", "backward", True, 5),
    Pass("siglip_loss both", "sigmoid", True, 3),
)


def tiles_seconds(tile: Tile) -> float:
    """Predict the time of all tiles of logits: of their instructions or of their products."""
    products = TENSOR_CYCLES * 4096 * CLOCK * MULTIPROCESSORS / FLOPS
    cycles = max(tile.cycles(WIDTH, ISSUE), products)
    return (PAIRS / BLOCK) ** 2 / MULTIPROCESSORS * cycles / CLOCK


def shape() -> tuple[int, int]:
    """Return rows and columns of the blocks of gradients by logits."""
    elements = contrastive_config.WORKSPACE_BYTES // 2
    return block_shape(PAIRS, PAIRS, WIDTH, elements, BLOCK, MULTIPROCESSORS)


def products_seconds() -> float:
    """Predict the time of the products by the gradients of the logits, block by block, in whole waves of tiles."""
    seconds = 0.0
    for size in shape():
        for first in range(0, PAIRS, size):
            rows = min(size, PAIRS - first)
            tiles = -(-rows // PRODUCT_TILE[0]) * -(-WIDTH // PRODUCT_TILE[1])
            idle = -(-tiles // MULTIPROCESSORS) * MULTIPROCESSORS / tiles
            seconds += 2 * rows * PAIRS * WIDTH / FLOPS * idle
    return seconds


def predict(of: Pass) -> float:
    """Return seconds: of the tiles, then of the products or of reading the tiles' sums, and of the launches."""
    if of.products:
        down, across = (-(-PAIRS // size) for size in shape())
        rest, launches = products_seconds(), of.launches * down * across + down
    else:
        rest = 2 * 8 * PAIRS**2 / BLOCK / BYTES  # a shift and a sum of each row and each column of a tile
        launches = of.launches * -(-PAIRS // contrastive_config.FORWARD_ROWS) + 2
    return tiles_seconds(tile_of(of.form)) + rest + launches * LAUNCH


def cells(of: Pass) -> tuple[str, ...]:
    """Return a line of the table."""
    tile, found = tile_of(of.form), matrix_kernel(of.form, 90, "bf16", WIDTH, "ieee")
    floor, seconds = (3 if of.products else 1) * 2 * PAIRS**2 * WIDTH / FLOPS, predict(of)
    issued = tile.cycles(WIDTH, ISSUE) > TENSOR_CYCLES * 4096 * CLOCK * MULTIPROCESSORS / FLOPS
    return (
        of.op,
        f"`{found.sass.name}`",
        duration(floor),
        duration(seconds),
        f"{seconds / floor:.2f}",
        "instructions" if issued else "products",
        str(tile.before),
        str(tile.loop),
        str(tile.epilogue),
        f"{tile.warps * tile.epilogue / ISSUE / TENSOR_CYCLES:.0%}",
        *_usage(found),
    )


def _usage(found: Compiled) -> tuple[str, ...]:
    usage = found.sass.usage
    return str(usage.registers), str(usage.stack), str(found.triton.metadata.shared), str(found.programs)


TEXT = f"""## Contrastive losses

By Triton {triton.__version__}, at {PAIRS:,} pairs of {WIDTH} features. A program makes a tile of {BLOCK} x {BLOCK} logits with four warps, and two programs share a multiprocessor:
while one multiplies, the other has its epilogue. So tiles take what is longer, their instructions or their products; beyond that come
the products by the gradients of the logits, in whole waves of tiles, the sums that tiles leave, and the launches. Instructions
are a warp's, of a tile that needs no masks; of the epilogue is said how long it takes beside the tile's products ({TENSOR_CYCLES:.0f} cycles).
"""


def section() -> str:
    """Return the lines of both losses in markdown, and of both passes of info_nce."""
    lines = [cells(of) for of in PASSES]
    floor = 4 * 2 * PAIRS**2 * WIDTH / FLOPS
    seconds = sum(predict(of) for of in PASSES[:2])
    both = ("info_nce both", "", duration(floor), duration(seconds), f"{seconds / floor:.2f}")
    lines.insert(2, both + ("",) * (len(HEAD) - len(both)))
    return f"{TEXT}\n{markdown(HEAD, lines)}\n"
