"""The decoder's losses, on masked tokens only.

Letters: B samples, N tokens, M masked ones, D width of the target, H width of the decoder, P patch size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cfmvit.ops.masking import gather_tokens
from cfmvit.ops.reconstruction import checks, native, reference
from cfmvit.ops.shared import checks as check
from cfmvit.ops.shared import library
from cfmvit.ops.shared.implementation import use_native
from cfmvit.ops.shared.transforms import at_least_one

_NATIVE = native.register() if library.core is not None else {}

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
        reduction: "mean" (0 over no tokens or no weight), "sum" or "none".
        eps: least norm, above 0; a zero vector has loss 1 and gradient 0.

    Returns:
        0-d, or (B, M) for "none"; float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "masked_cosine_loss"
    is_native = use_native(op, pred, impl)
    checks.cosine(op, pred, target, index, values=not is_native)
    checks.options(op, reduction, eps)
    if weight is not None:
        check.floating(op, "weight", weight, 2, "(B, M)")
        check.shape(op, "weight", weight, tuple((pred if index is None else index).shape[:2]))
    if is_native:
        losses = _NATIVE[op](pred, _target_for(pred.dtype, target), index, eps)
    else:
        losses = reference.masked_cosine_loss(pred, target, index, eps)
    return _reduce(losses, weight, reduction)


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

    Reduced to one number, the gradients are made together with the loss: three matrix products in all, as without fusing, and
    one where no gradient is wanted. For "none", and in float16, the backward pass projects again.

    Args:
        hidden: (B, M, H) floating; or (B, N, H) with ``index``.
        weight: (D, H), as in ``torch.nn.functional.linear``.
        bias: (D,) or None.
        target: (B, M, D), or (B, N, D) with ``index``; a constant.
        index: as for ``masked_cosine_loss``.
        reduction: as for ``masked_cosine_loss``.
        eps: as for ``masked_cosine_loss``.

    Returns:
        0-d, or (B, M) for "none"; float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an argument breaks the rules above.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "linear_masked_cosine_loss"
    is_native = use_native(op, hidden, impl)
    check.floating(op, "hidden", hidden, 3, "(B, M, H)")
    checks.linear(op, hidden, weight, bias, target)
    checks.options(op, reduction, eps)
    if index is not None:
        check.index(op, "index", index, hidden.shape[0], hidden.shape[1], "(B, M)")
        hidden, target = gather_tokens(hidden, index, impl=impl), gather_tokens(target, index, impl=impl)
    if is_native:
        dtype = _matmul_dtype(hidden)
        bias = None if bias is None else bias.to(dtype)
        rows, targets = hidden.to(dtype).flatten(0, 1), _target_for(dtype, target).flatten(0, 1)
        weight = weight.to(dtype)
        # In float16 gradients must be made with the scale of the loss: without it they leave the range.
        if reduction != "none" and dtype != torch.float16:
            return _linear_sum(rows, weight, bias, targets, eps, reduction)
        losses = _NATIVE[op](rows, weight, bias, targets, eps).reshape(hidden.shape[:2])
    else:
        losses = reference.linear_masked_cosine_loss(hidden, weight, bias, target, eps)
    return _reduce(losses, None, reduction)


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
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "masked_pixel_loss"
    is_native = use_native(op, pred, impl)
    checks.pixels(op, pred, images, index, patch_size, values=not is_native)
    checks.options(op, reduction)
    if is_native:
        pixels = images.detach().to(native.acc_type(pred))
        losses = _NATIVE[op](pred, pixels, index, patch_size, normalize)
    else:
        losses = reference.masked_pixel_loss(pred, images, index, patch_size, normalize)
    return _reduce(losses, None, reduction)


def _linear_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, eps: float, reduction: Reduction
) -> Tensor:
    """Reduce to one number, whose gradients can be made with it: three matrix products, where losses of their own take four."""
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    needs = wanted[0], wanted[1] or wanted[2]
    total, *_ = _NATIVE["linear_masked_cosine_sum"](hidden, weight, bias, target, eps, *needs)
    return total if reduction == "sum" else total / at_least_one(hidden.shape[0])


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which autocast would multiply."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _target_for(dtype: torch.dtype, target: Tensor) -> Tensor:
    """Return the target as the kernel reads it beside a prediction in ``dtype``: of one dtype, or one of them float32."""
    wide = torch.promote_types(dtype, torch.float32)
    readable = target.dtype in (dtype, wide) or (dtype == torch.float32 and target.dtype != torch.float64)
    return target.detach() if readable else target.detach().to(wide)


def _reduce(losses: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    if weight is not None:
        weight = weight.to(losses.dtype)
        losses = losses * weight
    if reduction == "none":
        return losses
    if weight is None and reduction == "mean" and _is_short(losses):
        return losses.mean()
    total = _sum(losses)
    if reduction == "sum":
        return total
    if weight is None:
        return total / at_least_one(losses.numel())
    weights = _sum(weight)
    return total / torch.where(weights == 0, 1, weights)


def _sum(x: Tensor) -> Tensor:
    """Sum (B, M) row by row: torch splits a sum to one number among threads, so its order would depend on them."""
    return x.sum(1).sum()


def _is_short(x: Tensor) -> bool:
    """Whether torch sums x in one thread anyway. Not asked while tracing, where sizes may be symbols."""
    return not torch.compiler.is_compiling() and 0 < x.numel() < 32768
