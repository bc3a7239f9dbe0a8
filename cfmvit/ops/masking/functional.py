"""Draw the mask, and move tokens between the image and the two branches.

Letters: B samples, N tokens of an image, K kept (visible), M = N - K masked, D width, P patch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from cfmvit.ops.masking import checks, native, reference
from cfmvit.ops.shared import checks as check
from cfmvit.ops.shared import library
from cfmvit.ops.shared.implementation import use_native
from cfmvit.ops.shared.index_checking import readable
from cfmvit.ops.shared.transforms import unwrapped

_NATIVE = native.register() if library.core is not None else {}


class Masking(NamedTuple):
    """A random split of each sample's tokens."""

    keep: Tensor  # (B, K) visible tokens
    masked: Tensor  # (B, M) the others
    restore: Tensor  # (B, N) position of each token in keep followed by masked


def random_masking(
    batch_size: int,
    num_tokens: int,
    mask_ratio: float,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    impl: str | None = None,
) -> Masking:
    """Draw a mask for each sample, as MAE does: tokens are ranked by noise, the first int(N * (1 - ratio)) are kept.

    Args:
        batch_size: B.
        num_tokens: N.
        mask_ratio: share of masked tokens, in [0, 1].
        noise: (B, N) floating, without NaN; the same noise gives MAE's indices. Drawn uniformly when not given.
        generator: source of that noise.
        device: where to draw it; ``noise``'s or the generator's own by default.

    Returns:
        ``Masking`` of int64 indices.

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
    """
    op = "random_masking"
    for name, value in (("batch_size", batch_size), ("num_tokens", num_tokens)):
        if check.certain(value < 0):
            raise ValueError(f"{op}: {name} must be at least 0, got {value}")
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"{op}: mask_ratio must lie in 0..1, got {mask_ratio}")
    if noise is None:
        if device is None and generator is not None:
            device = generator.device
        noise = torch.rand(batch_size, num_tokens, generator=generator, device=device)
    check.floating(op, "noise", noise, 2, "(B, N)")
    check.shape(op, "noise", noise, (batch_size, num_tokens))
    kept = torch.sym_int(num_tokens * (1 - mask_ratio))
    is_native = use_native(op, noise, impl)
    if readable(noise, values=not is_native):
        unordered = int(unwrapped(noise).isnan().sum())
        if unordered:
            raise ValueError(f"{op}: noise must not hold NaN, got {unordered}")
    if is_native:
        return Masking(*_NATIVE[op](noise.detach(), kept))
    return Masking(*reference.random_masking(noise, kept))


def gather_tokens(
    tokens: Tensor,
    index: Tensor,
    *,
    pos_embed: Tensor | None = None,
    keep_pos: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Take tokens by index and add their positional embedding: out[b, j] = tokens[b, i] + keep_pos[b] * pos[i], i = index[b, j].

    Args:
        tokens: (B, N, D) floating, any strides.
        index: (B, K) int32 or int64 in 0..N-1.
        pos_embed: (N, D) floating.
        keep_pos: (B,) bool, for positional-embedding dropout (CFM-ViT section 3.1): False drops the embedding of a
            whole sample. All are kept by default.

    Returns:
        (B, K, D), dtype of ``tokens``.

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "gather_tokens"
    check = partial(checks.gather, op, tokens, index, pos_embed, keep_pos)
    if use_native(op, tokens, impl):
        return _NATIVE[op].checked(check, tokens, index, _like(pos_embed, tokens), keep_pos)
    check()
    return reference.gather_tokens(tokens, index, pos_embed, keep_pos)


def split_tokens(
    tokens: Tensor,
    masking: Masking,
    *,
    pos_embed: Tensor | None = None,
    keep_pos: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Split tokens into visible, (B, K, D), and masked ones, (B, M, D): ``gather_tokens`` for both in one pass.

    Args and errors as ``gather_tokens``; ``masking`` must hold each token once.
    A second derivative is refused by name; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "split_tokens"
    check = partial(checks.split, op, tokens, masking.keep, masking.masked, pos_embed, keep_pos)
    if use_native(op, tokens, impl):
        return _NATIVE[op].checked(
            check, tokens, masking.keep, masking.masked, _like(pos_embed, tokens), keep_pos
        )
    check()
    return reference.split_tokens(tokens, masking.keep, masking.masked, pos_embed, keep_pos)


def restore_tokens(
    visible: Tensor,
    mask_token: Tensor,
    restore: Tensor,
    *,
    pos_embed: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Build the decoder's input: visible tokens at their positions, the mask token elsewhere, plus the positional embedding.

    Args:
        visible: (B, K, D) floating.
        mask_token: (D,) floating.
        restore: (B, N) int32 or int64, a permutation of 0..N-1 in each row: entries under K name a visible token.
        pos_embed: (N, D) floating, the decoder's; never dropped.

    Returns:
        (B, N, D), dtype of ``visible``.

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "restore_tokens"
    check = partial(checks.restore, op, visible, mask_token, restore, pos_embed)
    if use_native(op, visible, impl):
        return _NATIVE[op].checked(
            check, visible, _like(mask_token, visible), restore, _like(pos_embed, visible)
        )
    check()
    return reference.restore_tokens(visible, mask_token, restore, pos_embed)


def gather_patches(
    images: Tensor,
    index: Tensor | None,
    patch_size: int,
    *,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    dtype: torch.dtype | None = None,
    impl: str | None = None,
) -> Tensor:
    """Cut out the wanted patches of images, normalised, ready for the patch embedding's matrix product.

    Args:
        images: (B, C, H, W) floating, or uint8, which is divided by 255; H and W multiples of ``patch_size``.
        index: (B, K) int32 or int64 patches, row-major; None takes all.
        patch_size: P.
        mean: C numbers; (pixel - mean) / std.
        std: C numbers.
        dtype: of the result; that of float images, else float32, by default.

    Returns:
        (B, K, C * P * P), each patch in the order of a convolution's weight: channel, row, column.

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "gather_patches"
    is_native = use_native(op, images, impl)
    checks.images(op, images, index, patch_size, values=not is_native)
    stats = (_statistics(op, "mean", mean, images), _statistics(op, "std", std, images))
    dtype = dtype or (images.dtype if images.is_floating_point() else torch.float32)
    if is_native:
        return _NATIVE[op](images, index, patch_size, *stats, dtype)
    return reference.gather_patches(images, index, patch_size, *stats, dtype)


def _like(value: Tensor | None, features: Tensor) -> Tensor | None:
    """Return the value in the features' dtype; what is no floating tensor is left for the op to refuse."""
    if isinstance(value, Tensor) and value.dtype != features.dtype and value.dtype in check.FLOATING:
        return value.to(features.dtype)
    return value


def _statistics(op: str, name: str, value: Sequence[float] | Tensor | None, images: Tensor) -> Tensor | None:
    if value is None:
        return None
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    if not traced and isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value):
        values = _constant(tuple(value), images.device)
    else:
        values = torch.as_tensor(value, dtype=torch.float64, device=images.device)
    if values.ndim != 1 or check.certain(values.shape[0] != images.shape[1]):
        raise ValueError(
            f"{op}: {name} must have {images.shape[1]} entries, one a channel, got {tuple(values.shape)}"
        )
    return values


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on a device, copied there once: a copy waits for the device, and no CUDA graph can hold it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)
