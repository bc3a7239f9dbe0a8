"""Window attention for large images: tokens are regrouped so that each window is a short sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows:
    """Split a (B, h*w, C) token grid into ``size`` x ``size`` windows and join them again.

    A grid that is no multiple of the window is padded; ``mask`` keeps the padding out of the attention. A class token before
    the grid goes into every window, as if each were an image, and comes out as the mean of its copies.

    Attributes:
        count: windows of an image.
        mask: (B * windows, 1, 1, prefix + size * size) boolean, True at real tokens; None when nothing is padded.
    """

    def __init__(self, tokens: Tensor, height: int, columns: int, size: int, prefix: int = 0) -> None:
        self.height, self.columns, self.size, self.prefix = height, columns, size, prefix
        self.rows_padded, self.columns_padded = -height % size, -columns % size
        self.count = -(-height // size) * -(-columns // size)
        self.mask: Tensor | None = None
        if self.rows_padded or self.columns_padded:
            real = tokens.new_ones(tokens.shape[0], prefix + height * columns, 1)
            self.mask = self.split(real)[:, None, None, :, 0] > 0

    def split(self, tokens: Tensor) -> Tensor:
        """Return (B * windows, prefix + size * size, C)."""
        if not self.prefix:
            return self._split(tokens)
        windows = self._split(tokens[:, self.prefix :])
        first = tokens[:, None, : self.prefix].expand(-1, self.count, -1, -1).flatten(0, 1)
        return torch.cat([first, windows], dim=1)

    def join(self, windows: Tensor) -> Tensor:
        """Return (B, prefix + h*w, C), the inverse of ``split``."""
        if not self.prefix:
            return self._join(windows)
        tokens = self._join(windows[:, self.prefix :])
        copies = windows[:, : self.prefix].unflatten(0, (-1, self.count))
        return torch.cat([copies.mean(dim=1), tokens], dim=1)

    def _split(self, tokens: Tensor) -> Tensor:
        batch, _, width = tokens.shape
        grid = tokens.reshape(batch, self.height, self.columns, width)
        if self.rows_padded or self.columns_padded:
            grid = F.pad(grid, (0, 0, 0, self.columns_padded, 0, self.rows_padded))
        rows, columns = grid.shape[1] // self.size, grid.shape[2] // self.size
        grid = grid.reshape(batch, rows, self.size, columns, self.size, width).transpose(2, 3)
        return grid.reshape(batch * rows * columns, self.size * self.size, width)

    def _join(self, windows: Tensor) -> Tensor:
        rows = (self.height + self.rows_padded) // self.size
        columns = (self.columns + self.columns_padded) // self.size
        width = windows.shape[-1]
        batch = windows.shape[0] // (rows * columns)
        grid = windows.reshape(batch, rows, columns, self.size, self.size, width).transpose(2, 3)
        grid = grid.reshape(batch, rows * self.size, columns * self.size, width)
        return grid[:, : self.height, : self.columns].reshape(batch, self.height * self.columns, width)
