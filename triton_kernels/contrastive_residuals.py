"""Sums of each row and each column of the gradients by logits as they are rounded, and of the rounding residuals beside them.

A row's entries, all of one sign, cancel against its pair where features are alike, and a row's few large ones alone make its
gradient where pairs are probable. Whatever rounding took, the row is multiplied by: its sum stays as it was in float32, in the
direction of its own entries. Of entries of both signs, whose sum says little, the pair is given the residuals.
"""

from __future__ import annotations

import torch

from . import contrastive_config as config
from .contrastive_feature_gradients import Block, GradientBlocks


class Residuals:
    """Partial sums (2, partials, n) that tiles leave, of rounded entries and of residuals, and those that finish_kernel adds up;
    None where there are none."""

    def __init__(self, blocks: GradientBlocks, needs_image: bool, needs_text: bool):
        image, (rows, cols) = blocks.image, blocks.shape
        exist = config.rounds_gradients(image)  # float32 is not rounded
        new = lambda needed, *shape: (
            image.new_empty(2, *shape, dtype=torch.float32) if exist and needed else None
        )
        self.rows, self.cols = rows, cols
        self.height, self.width = blocks.config.block_m, blocks.config.block_n
        by_row = new(needs_image, config.cdiv(cols, self.width), rows)
        by_col = new(needs_text, config.cdiv(rows, self.height), cols)
        self.partial = by_row, by_col
        # Of one block along a row or column, tiles' sums are all there is. Rows are finished with their last column, and columns
        # with their last row: those of other columns must not take their place before.
        self.of_rows, self.of_cols = self.partial
        if cols < blocks.text.shape[0]:
            self.of_rows = new(needs_image, config.cdiv(blocks.text.shape[0], cols), rows)
        if rows < image.shape[0] or cols < blocks.text.shape[0]:
            self.of_cols = new(needs_text, config.cdiv(image.shape[0], rows), blocks.text.shape[0])

    @property
    def arguments(self) -> tuple[torch.Tensor | None, ...]:
        """What a tile kernel is given: sums and residuals of rows, then of columns."""
        return tuple(x for pair in self.partial for x in ((None, None) if pair is None else pair))

    def merge(self, block: Block) -> None:
        """Take the sums of a block out of the way of the next."""
        rows, cols = block.end_row - block.first_row, block.end_col - block.first_col
        by_row, by_col = self.partial
        if self.of_rows is not by_row:
            partial, at = by_row[:, : config.cdiv(cols, self.width), :rows], block.first_col // self.cols
            torch.sum(partial, 1, out=self.of_rows[:, at, :rows])
        if self.of_cols is not by_col:
            partial, at = by_col[:, : config.cdiv(rows, self.height), :cols], block.first_row // self.rows
            torch.sum(partial, 1, out=self.of_cols[:, at, block.first_col : block.end_col])
