"""The decoder's losses, on masked tokens only.

Letters: B samples, N tokens, M masked ones, D width of the target, H width of the decoder, P patch size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cfmvit.ops import _checks as check
from cfmvit.ops import _library, _native_reconstruction
from cfmvit.ops.masking import _patches, gather_tokens
from cfmvit.ops.reference import reconstruction as reference

_OPS = torch.ops.cfmvit
if _library.core is not None:
    _native_reconstruction.register()

Reduction = Literal["mean", "sum", "none"]


def masked_cosine_loss(
    pred: Tensor,
    target: Tensor,
    index: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    eps: float = 1e-8,
    impl: str | None = None,
) -> Tensor:
    """Average 1 - cos(pred, target) over masked tokens (CFM-ViT section 3.1); the target is a constant.

    Args:
        pred: (B, M, D) floating; or (B, N, D) with ``index``.
        target: of pred's shape.
        index: (B, M) int32 or int64: the tokens that count; all by default.
        weight: (B, M) floating, a factor on each token's loss; "mean" divides by the sum of weights.
        reduction: "mean" (0 over no tokens), "sum" or "none".
        eps: least norm; a zero vector has loss 1 and gradient 0.

    Returns:
        0-d, or (B, M) for "none"; float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
    """
    op = "masked_cosine_loss"
    check.floating(op, "pred", pred, 3, "(B, M, D)")
    _target(op, target, tuple(pred.shape))
    if index is not None:
        check.index(op, "index", index, *pred.shape[:2], "(B, M)")
    if _library.use_native(op, pred, impl):
        dtype = torch.promote_types(pred.dtype, target.dtype)
        losses = _OPS.masked_cosine_loss(pred.to(dtype), target.detach().to(dtype), index, eps)
    else:
        losses = reference.masked_cosine_loss(_rows(pred, index), _rows(target, index), eps)
    return _reduce(op, losses, weight, reduction)


def linear_masked_cosine_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    index: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    eps: float = 1e-8,
    impl: str | None = None,
) -> Tensor:
    """Project the decoder's output and take ``masked_cosine_loss`` of it, without holding the projection.

    Args:
        hidden: (B, M, H) floating; or (B, N, H) with ``index``.
        weight: (D, H), bias: (D,) or None, as in ``torch.nn.functional.linear``.
        target: (B, M, D), or (B, N, D) with ``index``; a constant.
        index, reduction, eps: as for ``masked_cosine_loss``.

    Returns:
        0-d, or (B, M) for "none"; float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
    """
    op = "linear_masked_cosine_loss"
    check.floating(op, "hidden", hidden, 3, "(B, M, H)")
    check.floating(op, "weight", weight, 2, "(D, H)")
    if weight.shape[1] != hidden.shape[2]:
        raise ValueError(f"{op}: weight must have shape (D, {hidden.shape[2]}), got {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    _target(op, target, (*hidden.shape[:2], weight.shape[0]))
    if index is not None:
        check.index(op, "index", index, *hidden.shape[:2], "(B, M)")
        hidden, target = gather_tokens(hidden, index, impl=impl), gather_tokens(target, index, impl=impl)
    if _library.use_native(op, hidden, impl):
        dtype = _matmul_dtype(hidden)
        flat = hidden.to(dtype).flatten(0, 1), target.detach().flatten(0, 1)
        losses = _OPS.linear_masked_cosine_loss(
            flat[0], weight.to(dtype), None if bias is None else bias.to(dtype), flat[1], eps
        ).reshape(hidden.shape[:2])
    else:
        losses = reference.linear_masked_cosine_loss(hidden, weight, bias, target, eps)
    return _reduce(op, losses, None, reduction)


def masked_pixel_loss(
    pred: Tensor,
    images: Tensor,
    index: Tensor,
    patch_size: int,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    impl: str | None = None,
) -> Tensor:
    """Average the squared error of predicted pixels over masked patches: MAE's loss, which the feature loss is compared with.

    Args:
        pred: (B, N, P * P * C) or (B, M, P * P * C) floating, each patch in MAE's order: row, column, channel.
        images: (B, C, H, W) floating.
        index: (B, M) int32 or int64, the masked patches.
        patch_size: P.
        normalize: subtract each target patch's mean and divide by its standard deviation.
        reduction: "mean" (0 over no patches), "sum" over patches, or "none".

    Returns:
        0-d, or (B, M) for "none"; float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
    """
    op = "masked_pixel_loss"
    check.floating(op, "pred", pred, 3, "(B, N, P * P * C)")
    check.floating(op, "images", images, 4, "(B, C, H, W)")
    count = _patches(op, images, patch_size)
    check.index(op, "index", index, images.shape[0], count, "(B, M)")
    width = images.shape[1] * patch_size**2
    if pred.shape[0] != images.shape[0] or pred.shape[2] != width or pred.shape[1] not in (count, index.shape[1]):
        raise ValueError(
            f"{op}: pred must have shape {(images.shape[0], count, width)} or {(images.shape[0], index.shape[1], width)}, "
            f"got {tuple(pred.shape)}"
        )
    if _library.use_native(op, pred, impl):
        pixels = images.detach().to(_native_reconstruction.sum_type(pred))
        losses = _OPS.masked_pixel_loss(pred, pixels, index, patch_size, normalize)
    else:
        losses = reference.masked_pixel_loss(pred, images, index, patch_size, normalize)
    return _reduce(op, losses, None, reduction)


def _rows(tokens: Tensor, index: Tensor | None) -> Tensor:
    return tokens if index is None else tokens.gather(1, index.long().unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which autocast would multiply."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _target(op: str, target: Tensor, shape: tuple[int, ...]) -> None:
    check.floating(op, "target", target, 3, "(B, M, D)")
    if tuple(target.shape) != shape:
        raise ValueError(f"{op}: target must have shape {shape}, got {tuple(target.shape)}")


def _reduce(op: str, losses: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction must be mean, sum or none, got {reduction!r}")
    if weight is not None:
        if weight.shape != losses.shape:
            raise ValueError(f"{op}: weight must have shape {tuple(losses.shape)}, got {tuple(weight.shape)}")
        losses = losses * weight.to(losses.dtype)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum" or not losses.numel():
        return total
    return total / (losses.numel() if weight is None else weight.to(losses.dtype).sum())
