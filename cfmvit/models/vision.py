"""The image tower: a plain vision transformer without a CLS token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit.models.blocks import choose_attention, init_weights, make_block
from cfmvit.models.config import ModelConfig
from cfmvit.models.positions import resize_positions, sincos_2d
from cfmvit.models.windows import Windows
from cfmvit.ops import gather_patches


class PatchEmbed(nn.Module):
    """Linear embedding of patches; the weight has the layout of the usual strided convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))
        nn.init.zeros_(self.proj.get_parameter("bias"))

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed patches of images, (B, 3, H, W), uint8 or float in [0, 1].

        Args:
            index: (B, K) patches to embed, row-major; all of them by default. No other patch is read.

        Returns:
            (B, K, C).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"embed: images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"embed: images must have sides that are positive multiples of the patch size {self.patch_size}, "
                f"got {height} x {width}"
            )
        if index is None:
            tokens = (height // self.patch_size) * (width // self.patch_size)
            index = torch.arange(tokens, device=images.device).expand(images.shape[0], tokens)
        patches = gather_patches(images, index, self.patch_size, dtype=self.proj.weight.dtype)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """ViT encoder over any image size.

    Attributes:
        pos_embed: (grid * grid, width) positional embedding at the pretraining grid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.width, self.depth, self.grid = (
            config.patch_size,
            config.width,
            config.depth,
            config.grid,
        )
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        positions = sincos_2d(config.width, self.grid, self.grid)
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.empty_like(positions))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.register_buffer("pos_embed", positions, persistent=False)
        attention = choose_attention(config.attention)
        self.blocks = nn.ModuleList(
            make_block(self.width, config.heads, attention) for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self.blocks.apply(init_weights)

    def positions(self, images: Tensor) -> Tensor:
        """Return the positional embedding of these images' grid, (N, C)."""
        height, width = images.shape[-2:]
        return resize_positions(
            self.pos_embed, self.grid, height // self.patch_size, width // self.patch_size
        )

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final LN over any set of embedded tokens, (B, K, C) -> (B, K, C)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_features(
        self, images: Tensor, *, window: int = 0, global_blocks: Sequence[int] = ()
    ) -> Tensor:
        """Encode whole images.

        Args:
            images: (B, 3, H, W), uint8 or float in [0, 1], sides multiples of the patch size.
            window: attend within windows of ``window`` x ``window`` tokens; 0 attends globally in every block.
            global_blocks: blocks (counted from 0) that attend globally in spite of ``window``.

        Returns:
            (B, h * w, C) tokens after the final LN, row-major.
        """
        if window < 0:
            raise ValueError(f"forward_features: window must be at least 0, got {window}")
        bad = [block for block in global_blocks if not 0 <= block < self.depth]
        if bad:
            raise ValueError(f"forward_features: global_blocks must lie in 0..{self.depth - 1}, got {bad}")
        tokens = self.patch_embed(images)
        tokens = tokens + self.positions(images).to(tokens.dtype)
        if not window:
            return self.encode(tokens)
        height, columns = (side // self.patch_size for side in images.shape[-2:])
        windows = Windows(tokens, height, columns, window)
        inside = False
        for number, block in enumerate(self.blocks):
            if (number not in global_blocks) != inside:
                tokens = windows.join(tokens) if inside else windows.split(tokens)
                inside = not inside
            tokens = block(tokens, attn_mask=windows.mask if inside else None)
        return self.norm(windows.join(tokens) if inside else tokens)
