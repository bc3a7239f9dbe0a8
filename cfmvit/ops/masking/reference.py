"""Masking in plain PyTorch. Arguments are checked by ``cfmvit.ops.masking``; shapes are given there."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmvit.ops.shared.transforms import stable_argsort


def random_masking(noise: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank noise, (B, N), and split the order: MAE's two stable argsorts."""
    order = stable_argsort(noise)
    return order[:, :kept].contiguous(), order[:, kept:].contiguous(), stable_argsort(order)


def gather_tokens(tokens: Tensor, index: Tensor, pos_embed: Tensor | None, keep_pos: Tensor | None) -> Tensor:
    """Gather, then add the positional embedding where keep_pos is true."""
    index = index.long()
    out = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    if pos_embed is None:
        return out
    added = pos_embed.to(tokens.dtype)[index]
    if keep_pos is not None:
        added = torch.where(keep_pos[:, None, None], added, 0)
    return out + added


def split_tokens(
    tokens: Tensor, keep: Tensor, masked: Tensor, pos_embed: Tensor | None, keep_pos: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gather visible and masked tokens."""
    visible, hidden = (gather_tokens(tokens, index, pos_embed, keep_pos) for index in (keep, masked))
    return visible, hidden


def restore_tokens(visible: Tensor, mask_token: Tensor, restore: Tensor, pos_embed: Tensor | None) -> Tensor:
    """Append mask tokens, put all at their positions, add the positional embedding."""
    batch, kept, width = visible.shape
    masks = mask_token.to(visible.dtype).reshape(1, 1, width).expand(batch, restore.shape[1] - kept, width)
    out = torch.cat([visible, masks], dim=1).gather(1, restore.long().unsqueeze(-1).expand(-1, -1, width))
    return out if pos_embed is None else out + pos_embed.to(visible.dtype)


def gather_patches(
    images: Tensor,
    index: Tensor | None,
    patch_size: int,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Normalise, unfold, gather."""
    pixels = images.to(
        torch.promote_types(dtype, torch.float32) if not images.is_floating_point() else images.dtype
    )
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if mean is not None:
        pixels = pixels - mean.to(pixels)[:, None, None]
    if std is not None:
        pixels = pixels / std.to(pixels)[:, None, None]
    patches = _grid(pixels, patch_size).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    if index is not None:
        patches = patches.gather(1, index.long().unsqueeze(-1).expand(-1, -1, patches.shape[2]))
    return patches.to(dtype)


def patches_channel_last(images: Tensor, patch_size: int) -> Tensor:
    """Return (B, N, P * P * C) patches in MAE's order: row, column, channel."""
    return _grid(images, patch_size).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _grid(images: Tensor, patch_size: int) -> Tensor:
    """View (B, C, H, W) as (B, C, rows of patches, P, columns of patches, P)."""
    batch, channels, height, width = images.shape
    return images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
