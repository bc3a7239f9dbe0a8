"""The text tower: a Transformer, average-pooled over the valid tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfmvit.models.blocks import init_weights, make_block
from cfmvit.models.config import ModelConfig
from cfmvit.models.tokenizer import PAD


class TextTransformer(nn.Module):
    """Bidirectional Transformer over token ids, projected to the joint space."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_width
        self.token_embed = nn.Embedding(config.vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, width))
        self.blocks = nn.ModuleList(make_block(width, config.text_heads) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, config.width, bias=False)
        self.blocks.apply(init_weights)
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.proj.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode ids, (B, L) integer with 0 as padding, into (B, C) in the joint space, not normalised."""
        if ids.ndim != 2 or ids.shape[1] > self.pos_embed.shape[0]:
            raise ValueError(
                f"encode_text: ids must have shape (B, L) with L at most {self.pos_embed.shape[0]}, got {tuple(ids.shape)}"
            )
        valid = ids != PAD
        x = self.token_embed(ids) + self.pos_embed[: ids.shape[1]]
        mask = valid[:, None, None, :]
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        weight = valid.unsqueeze(-1).to(x.dtype)
        pooled = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.proj(pooled)
