"""Checks of the masking ops' tensors, made by the public functions and by the ops' fake kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmvit.ops.shared import checks as check


def tokens(op: str, value: Tensor, pos_embed: Tensor | None, keep_pos: Tensor | None) -> None:
    """Raise unless tokens are (B, N, D), pos_embed (N, D) and keep_pos (B,) bool."""
    check.floating(op, "tokens", value, 3, "(B, N, D)")
    positions(op, pos_embed, value.shape[1], value.shape[2])
    keep_pos_mask(op, keep_pos, value.shape[0])


def gather(
    op: str,
    value: Tensor,
    index: Tensor,
    pos_embed: Tensor | None,
    keep_pos: Tensor | None,
    *,
    values: bool = True,
) -> None:
    """Raise unless tokens and positions are as above and the index names tokens; ``values`` as for ``check.index``."""
    tokens(op, value, pos_embed, keep_pos)
    check.index(op, "index", index, value.shape[0], value.shape[1], values=values)
    check.same_device(op, tokens=value, index=index, pos_embed=pos_embed, keep_pos=keep_pos)


def positions(op: str, value: Tensor | None, count: int, width: int) -> None:
    """Raise unless a positional embedding is (count, width)."""
    if value is None:
        return
    check.floating(op, "pos_embed", value, 2, "(N, D)")
    check.shape(op, "pos_embed", value, (count, width))


def keep_pos_mask(op: str, value: Tensor | None, batch: int) -> None:
    """Raise unless keep_pos is bool, (batch,)."""
    if value is None:
        return
    check.tensor(op, "keep_pos", value, 1, "(B,)")
    check.shape(op, "keep_pos", value, (batch,))
    if value.dtype != torch.bool:
        raise TypeError(f"{op}: keep_pos must be bool, got {value.dtype}")


def split(
    op: str,
    value: Tensor,
    keep: Tensor,
    masked: Tensor,
    pos_embed: Tensor | None,
    keep_pos: Tensor | None,
    *,
    values: bool = True,
) -> None:
    """Raise unless tokens and positions are as above, and keep and masked together name as many tokens as there are."""
    tokens(op, value, pos_embed, keep_pos)
    batch, count = value.shape[:2]
    check.index(op, "masking.keep", keep, batch, count, values=values)
    check.index(op, "masking.masked", masked, batch, count, "(B, M)", values=values)
    check.same_device(op, tokens=value, keep=keep, masked=masked, pos_embed=pos_embed, keep_pos=keep_pos)
    if check.certain(keep.shape[1] + masked.shape[1] != count):
        raise ValueError(
            f"{op}: masking must hold each of {count} tokens once, got {keep.shape[1]} visible and {masked.shape[1]} masked"
        )


def restore(
    op: str,
    visible: Tensor,
    mask_token: Tensor,
    order: Tensor,
    pos_embed: Tensor | None,
    *,
    values: bool = True,
) -> None:
    """Raise unless visible is (B, K, D), mask_token (D,), order a permutation (B, N) and pos_embed (N, D)."""
    check.floating(op, "visible", visible, 3, "(B, K, D)")
    batch, kept, width = visible.shape
    check.floating(op, "mask_token", mask_token, 1, "(D,)")
    check.shape(op, "mask_token", mask_token, (width,))
    check.tensor(op, "restore", order, 2, "(B, N)")
    count = order.shape[1]
    check.index(op, "restore", order, batch, count, "(B, N)", distinct=True, values=values)
    if check.certain(kept > count):
        raise ValueError(f"{op}: visible must have at most {count} tokens, as restore has, got {kept}")
    positions(op, pos_embed, count, width)
    check.same_device(op, visible=visible, mask_token=mask_token, restore=order, pos_embed=pos_embed)


def patches(op: str, images: Tensor, patch_size: int) -> int:
    """Return the number of patches of an image, or raise unless patch_size divides its sides."""
    height, width = images.shape[-2:]
    if patch_size < 1 or check.certain(height % patch_size != 0) or check.certain(width % patch_size != 0):
        raise ValueError(
            f"{op}: patch_size must divide the images' sides {height} x {width}, got {patch_size}"
        )
    return (height // patch_size) * (width // patch_size)


def images(op: str, value: Tensor, index: Tensor | None, patch_size: int, *, values: bool = True) -> None:
    """Raise unless images are (B, C, H, W) uint8 or floating, and the index names patches of them."""
    check.tensor(op, "images", value, 4, "(B, C, H, W)")
    if value.dtype != torch.uint8 and value.dtype not in check.FLOATING:
        raise TypeError(f"{op}: images must be uint8 or floating point, got {value.dtype}")
    count = patches(op, value, patch_size)
    if index is not None:
        check.index(op, "index", index, value.shape[0], count, values=values)
        check.same_device(op, images=value, index=index)
