"""The walk over the logits in which contrastive_lse makes its sums on a GPU: strips of rows, whose partial sums exist at one time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import contrastive_lse as lse
from .contrastive_config import PAIRS, cdiv, config_of, first_pair, matrices, operands, options

FORWARD_STRIP = 8192  # rows


class Parts(NamedTuple):
    """What tiles know of the rows of a strip and of all columns, in units of log 2."""

    rows: Tensor  # (tiles across, rows): log-sum-exps of negatives
    cols: Tensor  # (tiles down, T)
    row_max: Tensor  # the same shapes: largest logits outside the group; without groups, no matter what
    col_max: Tensor


class Strips:
    """Launches of the tiles of logits; `positive` (B,) has the logits of the pairs of the strips launched."""

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        label_offset: int | None,
        image_groups: Tensor | None = None,
        text_groups: Tensor | None = None,
    ):
        image, text = self.towers = image.contiguous(), text.contiguous()
        self.images, self.texts, self.logit_scale = image.shape[0], text.shape[0], logit_scale
        self.config = config_of(image, "forward")
        self.matrices = matrices(*operands(image, text, self.config), self.config)
        self.with_max = text_groups is not None
        groups = (image_groups, text_groups) if self.with_max else (image, image)
        self.groups = [x.contiguous() for x in groups]
        self.has_pairs, self.first_pair = label_offset is not None, first_pair(label_offset, text)
        self.positive = self.vector(self.images if self.has_pairs else 0)
        starts = range(0, self.images, FORWARD_STRIP)
        self.ranges = [(first, min(first + FORWARD_STRIP, self.images)) for first in starts]

    def vector(self, *shape: int) -> Tensor:
        """Room for results."""
        return self.towers[0].new_empty(shape, dtype=torch.float32)

    def launch(self, first: int, end: int) -> Parts:
        """Launch the tiles and pairs of the rows [first, end)."""
        config, strip = self.config, end - first
        tiles_m, tiles_n = cdiv(strip, config.block_m), cdiv(self.texts, config.block_n)
        row_part, col_part = self.vector(tiles_n, strip), self.vector(tiles_m, self.texts)
        parts = Parts(
            row_part, col_part, *(torch.empty_like(x) if self.with_max else x for x in (row_part, col_part))
        )
        pair_programs = cdiv(strip, PAIRS) if self.has_pairs else 0
        lse.lse_fwd_kernel[(tiles_m * tiles_n + pair_programs,)](
            *self.matrices, *self.towers, self.logit_scale, *self.groups, self.positive, *parts,
            first, end, strip, self.texts, self.towers[0].shape[1], self.first_pair,
            WITH_MAX=self.with_max, **options(config, self.towers[0]),
        )  # fmt: skip
        return parts
