"""The simple feature pyramid: every level straight from the one map of a plain ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfmvit.detection.config import PyramidConfig


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W); free of copies on channels-last memory."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        # Autocast would make float32 of it, only for the next convolution to make bfloat16 again. Sums are in float32 anyway.
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimplePyramid(nn.Module):
    """Make P2..P5 from the last map of the backbone by deconvolution, identity and pooling.

    Attributes:
        strides: pixels between places, finest level first.
    """

    def __init__(self, width: int, patch_size: int, config: PyramidConfig) -> None:
        super().__init__()
        self.strides = [patch_size * 2.0 ** (level - 4) for level in config.levels]
        self.levels = nn.ModuleList(_level(width, level, config.channels) for level in config.levels)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Return one (B, channels, h_l, w_l) map a level.

        Args:
            tokens: (B, h * w, C), row-major.
            grid: (h, w).
        """
        # A token map read as (B, C, h, w) is channels-last memory, the fast layout of the convolutions below.
        image = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        return [level(image) for level in self.levels]


def _level(width: int, level: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(4 - level):
        layers += [nn.ConvTranspose2d(width, width // 2, 2, 2), ChannelNorm(width // 2, eps=1e-6), nn.GELU()]
        width //= 2
    if layers:
        # ViTDet has a norm and a GELU between two deconvolutions only, none before the projection.
        layers = layers[:-2]
    if level == 5:
        layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, 1, bias=False),
        ChannelNorm(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ChannelNorm(channels, eps=1e-6),
    )
