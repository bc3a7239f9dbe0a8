"""Rounding residuals of the gradients by logits, summed over each row for the images and over each column for the texts.

Where features are alike, a row's many small entries cancel against its pair. What rounding took from them is given to the pair, so
that the sums of rows and columns stay as they were in float32.
"""

from __future__ import annotations

import torch

from . import contrastive_config as config
from .contrastive_feature_gradients import Block, GradientBlocks

QUARTERS = 4  # of a tile, whose rows are summed apart


class Residuals:
    """Partial sums that tiles leave, and those that finish_kernel adds up; None where there are none."""

    def __init__(self, blocks: GradientBlocks, needs_image: bool, needs_text: bool):
        image, (rows, cols) = blocks.image, blocks.shape
        # Without pairs there is nothing to give them to; float32 is not rounded.
        exist = config.rounds_gradients(image) and blocks.first_pair < blocks.text.shape[0]
        new = lambda needed, *shape: image.new_empty(shape, dtype=torch.float32) if exist and needed else None
        self.rows, self.cols = rows, cols
        tiles_n, tiles_m = config.cdiv(cols, blocks.config.block_n), config.cdiv(rows, blocks.config.block_m)
        self.partial = new(needs_image, QUARTERS * tiles_n, rows), new(needs_text, tiles_m, cols)
        self.height, self.width = blocks.config.block_m, blocks.config.block_n // QUARTERS
        # Of one block along a row or column, tiles' sums are all there is.
        self.of_rows, self.of_cols = self.partial
        if cols < blocks.text.shape[0]:
            self.of_rows = new(needs_image, config.cdiv(blocks.text.shape[0], cols), rows)
        if rows < image.shape[0]:
            self.of_cols = new(needs_text, config.cdiv(image.shape[0], rows), blocks.text.shape[0])

    def merge(self, block: Block) -> None:
        """Take the sums of a block out of the way of the next."""
        rows, cols = block.end_row - block.first_row, block.end_col - block.first_col
        by_row, by_col = self.partial
        if self.of_rows is not by_row:
            partial, at = by_row[: config.cdiv(cols, self.width), :rows], block.first_col // self.cols
            torch.sum(partial, 0, out=self.of_rows[at, :rows])
        if self.of_cols is not by_col:
            partial, at = by_col[: config.cdiv(rows, self.height), :cols], block.first_row // self.rows
            torch.sum(partial, 0, out=self.of_cols[at, block.first_col : block.end_col])
