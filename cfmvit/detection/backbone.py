"""The pretrained image tower on large images: window attention with a few global blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Attention:
    """Which blocks of a tower attend globally, the others within windows.

    Attributes:
        window: tokens along a side of a window; 0 for global attention everywhere.
        global_blocks: blocks, counted from 0.
    """

    window: int
    global_blocks: tuple[int, ...]

    def encode(self, visual: Any, images: Tensor) -> Tensor:
        """Encode images, (B, 3, H, W) uint8 or float in [0, 1], with ``model.visual`` into (B, h * w, C)."""
        return visual.forward_features(images, window=self.window, global_blocks=self.global_blocks)

    def encode_dense(self, model: Any, images: Tensor) -> Tensor:
        """Embed every patch of images in the joint space of ``model``, (B, h * w, E)."""
        return model.encode_dense(images, window=self.window, global_blocks=self.global_blocks)

    def encode_both(self, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of ``encode`` and those of ``encode_dense``, at about the cost of one."""
        if model.config.pooling != "class":
            tokens = self.encode(model.visual, images)
            return tokens, model.dense(tokens)
        tokens, values = model.visual.forward_both(
            images, window=self.window, global_blocks=self.global_blocks
        )
        return tokens, model.dense(values)


def finetuned_attention(depth: int, window: int, global_blocks: tuple[int, ...] | None) -> Attention:
    """Return the pattern of a finetuned tower.

    Args:
        global_blocks: None for the last block of each quarter: 2, 5, 8, 11 of 12 (ViTDet, section 3).
    """
    if global_blocks is None:
        global_blocks = tuple(sorted({max(0, round(depth * part / 4) - 1) for part in range(1, 5)}))
    outside = [block for block in global_blocks if not 0 <= block < depth]
    if outside:
        raise ValueError(f"config: detector.global_blocks must lie in 0..{depth - 1}, got {outside}")
    return Attention(window, global_blocks)


def frozen_attention(depth: int, window: int) -> Attention:
    """Return the pattern of the frozen tower: the last block only, so that tokens keep their own content."""
    return Attention(window, (depth - 1,))
