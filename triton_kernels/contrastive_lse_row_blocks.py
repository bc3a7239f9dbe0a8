"""The loop over row blocks of the logits in which contrastive_lse makes its sums on a GPU; their partial sums exist at one time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import contrastive_config as config
from . import contrastive_lse as lse


class PartialSums(NamedTuple):
    """What tiles know of the rows of a row block and of all columns; similarities have the sign of contrastive_lse.py."""

    row_shift: Tensor  # (tiles across, rows)
    row_sum: Tensor
    col_shift: Tensor  # (tiles down, T)
    col_sum: Tensor
    row_max: Tensor  # (tiles across, rows): largest outside the group; without groups, no matter what
    col_max: Tensor  # (tiles down, T)


class RowBlocks:
    """Launches of the tiles of logits; `positive` (B,) has the similarities of the pairs of the blocks launched."""

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        label_offset: int | None,
        image_groups: Tensor | None = None,
        text_groups: Tensor | None = None,
    ):
        self.image, text = image.contiguous(), text.contiguous()
        self.images, self.texts, self.logit_scale = image.shape[0], text.shape[0], logit_scale
        self.tiles = config.config_of(image, "forward")
        self.matrices = config.matrices(*config.operands(self.image, text, self.tiles), self.tiles)
        self.with_max = text_groups is not None
        groups = (image_groups, text_groups) if self.with_max else (self.image, self.image)
        self.groups = [x.contiguous() for x in groups]
        self.first_pair = config.first_pair(label_offset, text)
        self.positive = self.vector(0 if label_offset is None else self.images)
        step = config.FORWARD_ROWS
        self.ranges = [(first, min(first + step, self.images)) for first in range(0, self.images, step)]

    def vector(self, *shape: int) -> Tensor:
        """Room for results."""
        return self.image.new_empty(shape, dtype=torch.float32)

    def launch(self, first: int, end: int) -> PartialSums:
        """Launch the tiles of the rows [first, end)."""
        rows = end - first
        tiles_m = config.cdiv(rows, self.tiles.block_m)
        tiles_n = config.cdiv(self.texts, self.tiles.block_n)
        row_shift, row_sum = self.vector(2, tiles_n, rows)
        col_shift, col_sum = self.vector(2, tiles_m, self.texts)
        maxima = [torch.empty_like(x) if self.with_max else x for x in (row_shift, col_shift)]
        partial = PartialSums(row_shift, row_sum, col_shift, col_sum, *maxima)
        lse.lse_fwd_kernel[(tiles_m * tiles_n,)](
            *self.matrices, self.logit_scale, *self.groups, self.positive, *partial,
            first, end, rows, self.texts, self.image.shape[1], self.first_pair,
            WITH_MAX=self.with_max, **config.options(self.tiles, self.image),
        )  # fmt: skip
        return partial
