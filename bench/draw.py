"""Random inputs of benchmarks, drawn where they are used, always the same."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """A source of tensors of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Draw float32 in [0, 1), as noise and coordinates are."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def pixels(self, *shape: int) -> Tensor:
        """Draw uint8 images."""
        return torch.randint(256, shape, generator=self.generator, device=self.device, dtype=torch.uint8)

    def boxes(self, count: int, side: float, largest: float = 0.8) -> Tensor:
        """Draw ``count`` boxes (x1, y1, x2, y2) within a square image, in sizes as COCO's are.

        41 % are smaller than 32 x 32 pixels of a 640 pixel image, 34 % smaller than 96 x 96, the rest larger (Lin et al. 2014),
        up to ``largest`` of the side.
        """
        edges = torch.tensor([6 / 640, 32 / 640, 96 / 640, largest], device=self.device)
        place = torch.tensor([0, 0.41, 0.75, 1.0], device=self.device)
        share = self.uniform(count)
        bin_ = torch.bucketize(share, place[1:-1])
        inside = (share - place[bin_]) / (place[bin_ + 1] - place[bin_])
        size = side * edges[bin_] * (edges[bin_ + 1] / edges[bin_]) ** inside
        aspect = torch.exp(0.35 * self.normal(count, dtype=torch.float32)).clamp(0.5, 2)
        sides = (torch.stack([size * aspect, size / aspect], 1)).clamp(max=side)
        corner = self.uniform(count, 2) * (side - sides)
        return torch.cat([corner, corner + sides], 1)
