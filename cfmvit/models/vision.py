"""The image tower: a plain vision transformer, without a class token but where it was imported with one."""

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
        class_token: (width,), with its own position added; None in a CFM-ViT of this project's own.
        prefix: 1 with a class token, else 0.
    """

    class_token: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size, self.width, self.depth, self.grid = (
            config.patch_size,
            config.width,
            config.depth,
            config.grid,
        )
        self.prefix, self.pos_resize = int(config.class_token), config.pos_resize
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(torch.empty(self.grid**2, self.width))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            none = config.pos_embed == "none"
            positions = (
                torch.zeros(self.grid**2, self.width)
                if none
                else sincos_2d(config.width, self.grid, self.grid)
            )
            self.register_buffer("pos_embed", positions, persistent=False)
        attention = choose_attention(config.attention)
        self.blocks = nn.ModuleList(
            make_block(
                self.width,
                config.heads,
                attention,
                mlp_width=config.mlp_width,
                activation=config.activation,
                eps=config.norm_eps,
            )
            for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=config.norm_eps)
        self.blocks.apply(init_weights)
        self.norm_pre = nn.LayerNorm(self.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.class_token = None
        if self.prefix:
            self.class_token = nn.Parameter(torch.empty(self.width))
            nn.init.normal_(self.class_token, std=0.02)

    def positions(self, images: Tensor) -> Tensor:
        """Return the positional embedding of these images' grid, (N, C)."""
        height, width = images.shape[-2:]
        return resize_positions(
            self.pos_embed, self.grid, height // self.patch_size, width // self.patch_size, self.pos_resize
        )

    def run(self, tokens: Tensor) -> Tensor:
        """Run the blocks over any set of embedded patches, (B, K, C) -> (B, prefix + K, C), before the final LN."""
        return self.blocks[-1](self.run_to_last(tokens))

    def run_to_last(self, tokens: Tensor) -> Tensor:
        """Run all blocks but the last over any set of embedded patches, (B, K, C) -> (B, prefix + K, C)."""
        hidden = self._start(tokens)
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        return hidden

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final LN over any set of embedded patches, (B, K, C) -> (B, K, C)."""
        return self._patches(self.norm(self.run(tokens)))

    def hidden(self, images: Tensor) -> Tensor:
        """Encode whole images as ``forward_features`` does, with the class token and before the final LN."""
        return self.run(self._embed(images))

    def forward_features(
        self, images: Tensor, *, window: int = 0, global_blocks: Sequence[int] = ()
    ) -> Tensor:
        """Encode whole images.

        Args:
            images: (B, 3, H, W), uint8 or float in [0, 1], sides multiples of the patch size.
            window: attend within windows of ``window`` x ``window`` tokens; 0 attends globally in every block.
            global_blocks: blocks (counted from 0) that attend globally in spite of ``window``.

        Returns:
            (B, h * w, C) tokens of the patches after the final LN, row-major.
        """
        pattern = self._pattern(window, global_blocks)
        return self._patches(self.norm(self._through(*self._begin(images), pattern)))

    def forward_values(self, images: Tensor, *, window: int = 0, global_blocks: Sequence[int] = ()) -> Tensor:
        """Encode whole images as ``forward_features`` does, but let no token attend in the last block.

        There, each takes its own value: so it keeps its own content, in the space of the class token that attends to all of
        them (MaskCLIP; CLIPSelf's dense features).
        """
        pattern = self._pattern(window, global_blocks)
        return self.values(self._through(*self._begin(images), pattern[:-1]))

    def forward_both(
        self, images: Tensor, *, window: int = 0, global_blocks: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return what ``forward_features`` and ``forward_values`` do, at about the cost of one."""
        pattern = self._pattern(window, global_blocks)
        hidden, grid = self._begin(images)
        before = self._through(hidden, grid, pattern[:-1])
        after = self._through(before, grid, pattern[-1:], first=self.depth - 1)
        return self._patches(self.norm(after)), self.values(before)

    def values(self, before: Tensor) -> Tensor:
        """Finish what all blocks but the last made, (B, prefix + N, C), into (B, N, C) without attention."""
        return self.norm(self.blocks[-1](self._patches(before), values=True))

    def _pattern(self, window: int, global_blocks: Sequence[int]) -> list[int]:
        """Return each block's window, 0 where it attends globally."""
        if window < 0:
            raise ValueError(f"forward_features: window must be at least 0, got {window}")
        bad = [block for block in global_blocks if not 0 <= block < self.depth]
        if bad:
            raise ValueError(f"forward_features: global_blocks must lie in 0..{self.depth - 1}, got {bad}")
        return [0 if number in global_blocks else window for number in range(self.depth)]

    def _begin(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return what enters the first block, (B, prefix + N, C), and the grid of its patches."""
        height, width = images.shape[-2:]
        return self._start(self._embed(images)), (height // self.patch_size, width // self.patch_size)

    def _embed(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        return tokens + self.positions(images).to(tokens.dtype)

    def _start(self, tokens: Tensor) -> Tensor:
        if self.class_token is not None:
            first = self.class_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        return self.norm_pre(tokens)

    def _through(self, hidden: Tensor, grid: tuple[int, int], pattern: list[int], first: int = 0) -> Tensor:
        """Run blocks from ``first`` on, one for each window of ``pattern``."""
        windows: Windows | None = None
        for number, window in enumerate(pattern, first):
            if windows is not None and not window:
                hidden, windows = windows.join(hidden), None
            elif windows is None and window:
                windows = Windows(hidden, *grid, window, self.prefix)
                hidden = windows.split(hidden)
            hidden = self.blocks[number](hidden, attn_mask=None if windows is None else windows.mask)
        return hidden if windows is None else windows.join(hidden)

    def _patches(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.prefix :] if self.prefix else hidden
