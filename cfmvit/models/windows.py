"""Window attention for large images: tokens are regrouped so that each window is a short sequence."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Windows:
    """Split a (B, h*w, C) token grid into ``size`` x ``size`` windows and join them again.

    A grid that is no multiple of the window is padded; ``mask`` keeps the padding out of the attention.

    Attributes:
        mask: (B * windows, 1, 1, size * size) boolean, True at real tokens; None when nothing is padded.
    """

    def __init__(self, tokens: Tensor, height: int, columns: int, size: int) -> None:
        self.height, self.columns, self.size = height, columns, size
        self.rows_padded, self.columns_padded = -height % size, -columns % size
        self.mask: Tensor | None = None
        if self.rows_padded or self.columns_padded:
            real = tokens.new_ones(tokens.shape[0], height * columns, 1)
            self.mask = self.split(real)[:, None, None, :, 0] > 0

    def split(self, tokens: Tensor) -> Tensor:
        """Return (B * windows, size * size, C)."""
        batch, _, width = tokens.shape
        grid = tokens.reshape(batch, self.height, self.columns, width)
        if self.rows_padded or self.columns_padded:
            grid = F.pad(grid, (0, 0, 0, self.columns_padded, 0, self.rows_padded))
        rows, columns = grid.shape[1] // self.size, grid.shape[2] // self.size
        grid = grid.reshape(batch, rows, self.size, columns, self.size, width).transpose(2, 3)
        return grid.reshape(batch * rows * columns, self.size * self.size, width)

    def join(self, windows: Tensor) -> Tensor:
        """Return (B, h*w, C), the inverse of ``split``."""
        rows = (self.height + self.rows_padded) // self.size
        columns = (self.columns + self.columns_padded) // self.size
        width = windows.shape[-1]
        batch = windows.shape[0] // (rows * columns)
        grid = windows.reshape(batch, rows, columns, self.size, self.size, width).transpose(2, 3)
        grid = grid.reshape(batch, rows * self.size, columns * self.size, width)
        return grid[:, : self.height, : self.columns].reshape(batch, self.height * self.columns, width)
