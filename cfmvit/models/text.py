"""The text tower: a Transformer, average-pooled over the valid tokens, or as the model that was imported pools."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfmvit.models.blocks import init_weights, make_block
from cfmvit.models.config import ModelConfig
from cfmvit.models.tokenizer import PAD


class TextTransformer(nn.Module):
    """Transformer over token ids, projected to the joint space; bidirectional unless ``text_causal``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_width
        self.pooling, self.causal, self.eot_id = (
            config.text_pooling,
            config.text_causal,
            config.text_eot_id,
        )
        self.token_embed = nn.Embedding(config.vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, width))
        self.blocks = nn.ModuleList(
            make_block(
                width,
                config.text_heads,
                mlp_width=config.text_mlp_width,
                activation=config.text_activation,
                eps=config.text_norm_eps,
            )
            for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.text_norm_eps)
        self.proj = nn.Linear(width, config.joint_width, bias=config.text_projection_bias)
        self.blocks.apply(init_weights)
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.proj.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode ids, (B, L) integer, into (B, C) in the joint space, not normalised; a mean leaves out ids of 0, padding."""
        if ids.ndim != 2 or ids.shape[1] > self.pos_embed.shape[0]:
            raise ValueError(
                f"encode_text: ids must have shape (B, L) with L at most {self.pos_embed.shape[0]}, got {tuple(ids.shape)}"
            )
        x = self.token_embed(ids) + self.pos_embed[: ids.shape[1]]
        mask = self._mask(ids)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        if self.pooling != "mean":
            return self.proj(self.norm(x[torch.arange(len(ids), device=ids.device), self._pooled(ids)]))
        weight = (ids != PAD).unsqueeze(-1).to(x.dtype)
        pooled = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.proj(pooled)

    def _mask(self, ids: Tensor) -> Tensor | None:
        """Return which tokens each one sees, boolean and broadcastable to (B, H, L, L); None for all."""
        length = ids.shape[1]
        mask = None
        if self.causal:
            mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None, None]
        if self.pooling == "mean":
            valid = (ids != PAD)[:, None, None, :]
            mask = valid if mask is None else valid & mask
        return mask

    def _pooled(self, ids: Tensor) -> Tensor:
        """Return the position of the token that stands for each text, (B,)."""
        if self.pooling == "argmax":
            return ids.argmax(dim=-1)
        if self.pooling == "eot":
            return (ids == self.eot_id).int().argmax(dim=-1)
        return ids.new_full((len(ids),), ids.shape[1] - 1 if self.pooling == "last" else 0)
