"""Positional embeddings of a 2-D token grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_2d(width: int, height: int, columns: int) -> Tensor:
    """Return the fixed sine-cosine embedding of a grid, (height * columns, width) float32, row by row.

    A quarter of the channels each for sin and cos of the column, then of the row, at frequencies 10000^(-4i/width)
    (Vaswani et al. 2017 along two axes, in MAE's channel order).
    """
    omega = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(columns).double(), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def resize_positions(
    pos_embed: Tensor, grid: int, height: int, columns: int, mode: str = "bilinear"
) -> Tensor:
    """Resize a (grid * grid, width) embedding to (height * columns, width), in the dtype given.

    Args:
        mode: bilinear, bicubic, or bicubic_antialias, which smooths where the new grid is coarser.
    """
    if (height, columns) == (grid, grid):
        return pos_embed
    image = pos_embed.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    kind, _, antialias = mode.partition("_")
    resized = F.interpolate(
        image, size=(height, columns), mode=kind, align_corners=False, antialias=bool(antialias)
    )
    return resized.permute(0, 2, 3, 1).reshape(height * columns, -1).to(pos_embed.dtype)
