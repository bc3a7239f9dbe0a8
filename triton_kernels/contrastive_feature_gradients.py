"""The loop over blocks of the logits in which both contrastive losses make their gradients by features on a GPU."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contrastive_config as config
from . import contrastive_vector_kernels as vectors
from .contrastive_config import (
    PAIRS,
    aligned_empty,
    cdiv,
    config_of,
    first_pair,
    matrices,
    matrix,
    operands,
    options,
)

if TYPE_CHECKING:
    from .contrastive_residuals import Residuals


class Block(NamedTuple):
    """Rows [first_row, end_row) and columns [first_col, end_col) of the logits."""

    first_row: int
    end_row: int
    first_col: int
    end_col: int
    first_program: int  # among those of all blocks
    programs: int  # one for each tile and, after those, in the sigmoid pass, for each PAIRS pairs of the rows


# Of a matrix product: rows and columns of what one multiprocessor makes at a time. What it costs to read and write a block's
# rows of a product once more, by the width: a part of what a wave of such tiles takes.
PRODUCT_TILE = (128, 256)
SUM_COST = 1.7e-4


@lru_cache
def block_shape(
    images: int, texts: int, width: int, elements: int, multiple: int, multiprocessors: int
) -> tuple[int, int]:
    """Rows and columns of the blocks of logits whose gradients have at most `elements` elements.

    Multiples of `multiple`, or all. Of all these, those that leave multiprocessors idle least: both products by a block's
    gradients take whole waves of tiles, and few blocks add to the same rows.
    """
    rows_costs, cols_costs = (_costs(total, width, multiple, multiprocessors) for total in (images, texts))
    all_cols = list(cols_costs)
    cheapest = list(accumulate(all_cols, lambda a, b: min(a, b, key=cols_costs.__getitem__)))
    shapes = []
    for rows in rows_costs:
        fitting = bisect_right(all_cols, elements // rows)
        if fitting:
            shapes.append((rows, cheapest[fitting - 1]))
    shapes = shapes or [(min(images, multiple), min(texts, multiple))]
    return min(shapes, key=lambda shape: texts * rows_costs[shape[0]] + images * cols_costs[shape[1]])


def _costs(total: int, width: int, multiple: int, multiprocessors: int) -> dict[int, float]:
    """What blocks of each size make the product take that has their rows, in waves by the other size; ascending sizes."""

    def waves(rows: int) -> int:
        return cdiv(cdiv(rows, PRODUCT_TILE[0]) * cdiv(width, PRODUCT_TILE[1]), multiprocessors)

    sizes = [*range(multiple, total, multiple), total]
    return {n: total // n * waves(n) + waves(total % n) + SUM_COST * width * cdiv(total, n) for n in sizes}


class GradientBlocks:
    """A loop over blocks of the logits: tiles of gradients by logits, then two matrix products per block."""

    def __init__(self, image: Tensor, text: Tensor, label_offset: int | None, pass_: str):
        self.image, self.text, self.first_pair = image, text, first_pair(label_offset, text)
        tiles = self.config = config_of(image, pass_)
        self.operands = operands(image, text, tiles)
        self.matrices = matrices(*self.operands, tiles)
        self.options = options(tiles, image)
        images, texts = image.shape[0], text.shape[0]
        multiple = max(tiles.block_m, tiles.block_n)
        elements = config.WORKSPACE_BYTES // image.element_size()
        multiprocessors = config.multiprocessors_of(image)
        self.shape = block_shape(images, texts, image.shape[1], elements, multiple, multiprocessors)
        self.pair_programs = pass_ == "sigmoid" and label_offset is not None
        self.blocks = list(self._blocks())
        self.programs = sum(block.programs for block in self.blocks)

    def _blocks(self) -> Iterator[Block]:
        first_program, (rows, cols) = 0, self.shape
        for first_row in range(0, self.image.shape[0], rows):
            end_row = min(first_row + rows, self.image.shape[0])
            for first_col in range(0, self.text.shape[0], cols):
                end_col = min(first_col + cols, self.text.shape[0])
                tiles_m = cdiv(end_row - first_row, self.config.block_m)
                programs = tiles_m * cdiv(end_col - first_col, self.config.block_n)
                if self.pair_programs and first_col == 0:
                    programs += cdiv(end_row - first_row, PAIRS)
                yield Block(first_row, end_row, first_col, end_col, first_program, programs)
                first_program += programs

    def partial_sums(self) -> Tensor:
        """Room for one partial sum of every program of the blocks."""
        return self.image.new_empty(self.programs, dtype=torch.float32)

    def run(
        self,
        launch: Callable[[Block, Tensor | TensorDescriptor | None, int], None],
        pair_grad: Tensor,
        logit_scale: Tensor,
        store_scale: Tensor | None,
        needs_image: bool,
        needs_text: bool,
        dtype: torch.dtype,
        totals: list[tuple[Tensor, Tensor]],
        grad: Tensor | None = None,
        base: Tensor | None = None,
        residuals: Residuals | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Give the gradients of image and text as `dtype`, of no elements where not needed.

        launch: makes the gradient by a block of logits, in a matrix with rows of so many elements.
        totals: partial sums that the blocks' programs leave, and where their sum () is to go.
        pair_grad: gradient by the similarity of each pair.
        grad: () that multiplies gradients and totals, or None.
        base: () that the first total begins with, or None.
        residuals: where `launch` leaves the sums of rows and columns, and what rounding took from them.
        """
        last_totals = [x for pair in totals + totals[:1] * (3 - len(totals)) for x in pair]
        of_rows, of_cols = (None, None) if residuals is None else (residuals.of_rows, residuals.of_cols)
        image, text = self.image, self.text
        (images, width), texts = image.shape, text.shape[0]
        image_operand, text_operand = self.operands
        new = lambda needed, *shape, dtype: image.new_empty(shape if needed else (0, 0), dtype=dtype)
        grad_image, grad_text = (
            new(n, *x.shape, dtype=dtype) for x, n in ((image, needs_image), (text, needs_text))
        )
        image_product = new(needs_image, self.shape[0], width, dtype=torch.float32)
        text_product = new(needs_text, texts, width, dtype=torch.float32)
        # One for all blocks: a new one for each would exist beside the last.
        needed = needs_image or needs_text
        workspace = aligned_empty(image, self.shape[0] if needed else 0, self.shape[1])
        for block in self.blocks:
            rows, cols = block.end_row - block.first_row, block.end_col - block.first_col
            grad_logit = workspace[:rows, :cols]
            tile = self.config.block_m, self.config.block_n // 4
            launch(block, matrix(grad_logit, self.config, *tile) if needed else None, workspace.stride(0))
            if residuals is not None:
                residuals.merge(block)
            if needs_image:
                of_block = text_operand[block.first_col : block.end_col]
                product(image_product[:rows], grad_logit, of_block, add=block.first_col > 0)
            if needs_text:
                of_block = image_operand[block.first_row : block.end_row]
                out = text_product[block.first_col : block.end_col]
                product(out, grad_logit.T, of_block, add=block.first_row > 0)
            last = block is self.blocks[-1]
            rows = rows if needs_image and block.end_col == texts else 0
            cols = texts if needs_text and last else 0
            programs = cdiv(rows, PAIRS) + cdiv(cols, PAIRS) + (len(totals) if last else 0)
            if programs:
                vectors.finish_kernel[(programs, cdiv(width, 128))](
                    image_product, text_product, of_rows, of_cols,
                    *(0 if x is None else x.shape[1] for x in (of_rows, of_cols)), self.shape[0], image, text, pair_grad, logit_scale, store_scale, grad,
                    grad_image, grad_text, *last_totals, base, block.first_row, rows, cols, images, texts, width,
                    self.first_pair, self.programs, BLOCK=PAIRS, BLOCK_D=128,
                )  # fmt: skip
        return grad_image, grad_text


def product(out: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """out = a @ b or out += a @ b, in float32."""
    if a.dtype == torch.float32 or not a.is_cuda:
        a, b = a.float(), b.float()
        out.addmm_(a, b) if add else torch.mm(a, b, out=out)
    elif add:
        torch.ops.aten.addmm.dtype_out(out, a, b, torch.float32, out=out)
    else:
        torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
