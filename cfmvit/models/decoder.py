"""The reconstruction decoder: two Transformer layers that predict features of masked tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfmvit.models.blocks import init_weights, make_block
from cfmvit.models.config import ModelConfig
from cfmvit.models.positions import resize_positions, sincos_2d
from cfmvit.ops import restore_tokens


class Decoder(nn.Module):
    """Decode visible tokens into one hidden vector per token; ``proj`` maps those to the reconstruction target.

    The positional embedding is its own and never dropped (section 3.1).
    """

    pos_embed: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.grid = config.grid
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("pos_embed", sincos_2d(width, self.grid, self.grid), persistent=False)
        self.blocks = nn.ModuleList(
            make_block(width, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        pixels = 3 * config.patch_size**2
        self.proj = nn.Linear(width, pixels if config.reconstruction == "pixel" else config.joint_width)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, restore: Tensor, height: int, columns: int) -> Tensor:
        """Decode.

        Args:
            visible: (B, K, C) encoded visible tokens.
            restore: (B, N) order that puts visible, then masked tokens in their places.
            height, columns: the token grid, N = height * columns.

        Returns:
            (B, N, decoder width) before ``proj``.
        """
        positions = resize_positions(self.pos_embed, self.grid, height, columns)
        x = self.embed(visible)
        x = restore_tokens(x, self.mask_token.to(x.dtype), restore, pos_embed=positions.to(x.dtype))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
