"""The contrastive losses in `docs/kernel-counts.md`: what Triton compiles their kernels to for compute capability 9.0."""

from __future__ import annotations

from typing import NamedTuple

import triton

from cfmvit.bench.counts_rows import BYTES, CACHED, CLOCK, FLOPS, ISSUE, LAUNCH, MULTIPROCESSORS
from cfmvit.bench.tables import duration, markdown
from cfmvit.bench.triton_compile import Compiled, Tile, matrix_kernel, tile_of
from cfmvit.triton_kernels import contrastive_config
from cfmvit.triton_kernels.contrastive_feature_gradients import PRODUCT_TILE, block_shape

PAIRS, WIDTH = 32768, 768  # of the benchmark's large size
BLOCK = 128  # rows and columns of a tile of logits
TENSOR_CYCLES = 2 * BLOCK * BLOCK * WIDTH / 4096  # of a multiprocessor's matrix units, for such a tile
FROM_CACHE = 2 * BLOCK * WIDTH * 2  # bytes that a tile reads from the L2
HEAD = ("op", "kernel", "floor", "predicted", "of floor", "limit", "without the L2", "before the loop", "a step of 64", "epilogue", "of the products' time", "registers", "stack", "shared", "programs")  # fmt: skip


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


def tiles_seconds(tile: Tile) -> dict[str, float]:
    """Predict what all tiles of logits take by each of their limits."""
    tiles = (PAIRS / BLOCK) ** 2
    return {
        "instructions": tiles * tile.cycles(WIDTH, ISSUE) / MULTIPROCESSORS / CLOCK,
        "products": 2 * PAIRS**2 * WIDTH / FLOPS,
        "L2": tiles * FROM_CACHE / CACHED,
    }


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


def predict(of: Pass, *, cache: bool = True) -> tuple[float, str]:
    """Return seconds, of the tiles, then of the products or of reading the tiles' sums, and of the launches; and what limits the tiles.

    Args:
        of: the pass.
        cache: whether the L2 limits the tiles, too.
    """
    if of.products:
        down, across = (-(-PAIRS // size) for size in shape())
        rest, launches = products_seconds(), of.launches * down * across + down
    else:
        rest = 2 * 8 * PAIRS**2 / BLOCK / BYTES  # a shift and a sum of each row and each column of a tile
        launches = of.launches * -(-PAIRS // contrastive_config.FORWARD_ROWS) + 2
    tiles = tiles_seconds(tile_of(of.form))
    limit = max(tiles if cache else ("instructions", "products"), key=lambda name: tiles[name])
    return tiles[limit] + rest + launches * LAUNCH, limit


def cells(of: Pass) -> tuple[str, ...]:
    """Return a line of the table."""
    tile, found = tile_of(of.form), matrix_kernel(of.form, 90, "bf16", WIDTH, "ieee")
    floor, (seconds, limit) = (3 if of.products else 1) * 2 * PAIRS**2 * WIDTH / FLOPS, predict(of)
    return (
        of.op,
        f"`{found.sass.name}`",
        duration(floor),
        duration(seconds),
        f"{seconds / floor:.2f}",
        limit,
        duration(predict(of, cache=False)[0]),
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

By Triton {triton.__version__}, at {PAIRS:,} pairs of {WIDTH} features. A program makes a tile of {BLOCK} x {BLOCK} logits with four warps, and two programs share
a multiprocessor: while one multiplies, the other has its epilogue. So tiles take the longest of their instructions, their products and
the {FROM_CACHE / 1e3:.0f} kB that each reads from the L2; beyond that come the products by the gradients of the logits, in whole waves of tiles, the
sums that tiles leave, and the launches. Instructions are a warp's, of a tile that needs no masks; of the epilogue is said
how long it takes beside the tile's products ({TENSOR_CYCLES:.0f} cycles). By instructions and products both passes of info_nce keep
to 11 ms. Whether the L2 allows that is for a GPU to say: its rate, {CACHED / 1e12:.1f} TB/s, is the least certain of these numbers.
"""
# Of code that is not kept; counted with Triton 3.8.0.
OTHERS = """The forward was also written, as far as a compiler needs, in shapes that read less from the L2 or leave fewer sums. Instructions are those
of a warp for a tile, which four warps make.

| forward | registers | stack | shared | programs | instructions | from the L2 |
| --- | --- | --- | --- | --- | --- | --- |
| as it is | 206 | 0 | 98328 | 2 | 3662 | 393 kB |
| a program walks down a block of columns, with their sums in registers | 255 | 56 | 98328 | 2 | 3547 | 393 kB |
| clusters of two by `num_ctas`, half a tile each | 255 | 80 | 73752 | 2 | 6620 | 590 kB |
| two groups of four warps in turn, and one that copies, in Gluon | 240 | 0 | 197240 | 1 | 2992 | 393 kB |
| the same in clusters of two that share the texts | 240 | 0 | 197240 | 1 | 2970 | 295 kB |
| tiles of 256 x 128, eight warps | 209 | 0 | 147480 | 1 | 3828 | 295 kB |
| tiles of 128 x 256, eight warps | 254 | 0 | 147480 | 1 | 4533 | 295 kB |

Walking spills to save half of the sums, which take 31 us to read; `num_ctas` spills, and both halves read the texts. Clusters in Gluon would be
better where the L2 is the limit, by a quarter of what is read. As Triton's interpreter runs no Gluon, nothing here could prove them right. Larger
tiles leave a multiprocessor one program, whose epilogue nothing hides; `contrastive_forms` measures them.
"""


def section() -> str:
    """Return the lines of both losses in markdown, and of both passes of info_nce."""
    lines = [cells(of) for of in PASSES]
    floor = 4 * 2 * PAIRS**2 * WIDTH / FLOPS
    seconds, without = (sum(predict(of, cache=cache)[0] for of in PASSES[:2]) for cache in (True, False))
    both = (
        "info_nce both",
        "",
        duration(floor),
        duration(seconds),
        f"{seconds / floor:.2f}",
        "",
        duration(without),
    )
    lines.insert(2, both + ("",) * (len(HEAD) - len(both)))
    return f"{TEXT}\n{markdown(HEAD, lines)}\n\n{OTHERS}"
