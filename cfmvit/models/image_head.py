"""From an image's tokens to the joint space: pooling and projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit.models.blocks import init_weights, make_mlp
from cfmvit.models.config import ModelConfig


class AttentionPool(nn.Module):
    """One learned query attends over all tokens, an MLP follows (SigLIP's MAP head)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Parameter(torch.empty(width))
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = make_mlp(width, config.mlp_width or 4 * width, config.activation)
        self.apply(init_weights)
        nn.init.normal_(self.query)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (B, N, C) into (B, C)."""
        batch, _, width = tokens.shape
        shape = (batch, -1, self.heads, width // self.heads)
        query = self.query.to(tokens.dtype).expand(batch, 1, width)
        parts = (query, *self.kv(tokens).chunk(2, dim=-1))
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in parts)
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self._finish(pooled.transpose(1, 2).reshape(batch, width))

    def each(self, tokens: Tensor) -> Tensor:
        """Pool every token alone, (B, N, C) into (B, N, C): attention over one token is its value."""
        width = tokens.shape[-1]
        return self._finish(F.linear(tokens, self.kv.weight[width:], self.kv.bias[width:]))

    def _finish(self, values: Tensor) -> Tensor:
        out = self.proj(values)
        return out + self.mlp(self.norm(out))


class ImageHead(nn.Module):
    """Pools and projects; it has no weights in a CFM-ViT of this project's own, whose joint space is the tower's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling, self.norm_after_pool = config.pooling, config.norm_after_pool
        self.attn_pool = AttentionPool(config) if config.pooling == "attention" else None
        self.proj = (
            None if config.embed_dim is None else nn.Linear(config.width, config.embed_dim, bias=False)
        )
        if self.proj is not None:
            nn.init.normal_(self.proj.weight, std=config.width**-0.5)

    def forward(self, hidden: Tensor, norm: nn.Module, prefix: int) -> tuple[Tensor, Tensor]:
        """Finish what the blocks have made.

        Args:
            hidden: (B, prefix + N, C) before the final LN, the class token first where there is one.
            norm: the tower's final LN.
            prefix: 1 with a class token, else 0.

        Returns:
            the patches' tokens after the final LN, (B, N, C), and the image's embedding (B, E), not normalised.
        """
        normed = norm(hidden)
        tokens = normed[:, prefix:] if prefix else normed
        if self.pooling == "class":
            pooled = normed[:, 0]
        elif self.attn_pool is not None:
            pooled = self.attn_pool(tokens)
        elif self.norm_after_pool:
            pooled = norm(hidden[:, prefix:].mean(dim=1))
        else:
            pooled = tokens.mean(dim=1)
        return tokens, self._project(pooled)

    def each(self, tokens: Tensor) -> Tensor:
        """Bring every token to the joint space by itself, (B, N, C) after the final LN into (B, N, E)."""
        return self._project(tokens if self.attn_pool is None else self.attn_pool.each(tokens))

    def _project(self, x: Tensor) -> Tensor:
        return x if self.proj is None else self.proj(x)
