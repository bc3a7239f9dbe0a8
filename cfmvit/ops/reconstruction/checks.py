"""Checks of the reconstruction losses' tensors, made by the public functions and by the ops' fake kernels."""

from __future__ import annotations

from torch import Tensor

from cfmvit.ops.masking.checks import patches
from cfmvit.ops.shared import checks as check


def cosine(op: str, pred: Tensor, target: Tensor, index: Tensor | None, *, values: bool = True) -> None:
    """Raise unless pred and target are (B, N, D) and the index names rows of them, each at most once.

    ``values``: as for ``check.index``.
    """
    check.floating(op, "pred", pred, 3, "(B, M, D)")
    check.floating(op, "target", target, 3, "(B, M, D)")
    check.shape(op, "target", target, tuple(pred.shape))
    if index is not None:
        check.index(op, "index", index, pred.shape[0], pred.shape[1], "(B, M)", distinct=True, values=values)
    check.same_device(op, pred=pred, target=target, index=index)


def linear(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    """Raise unless hidden is (..., H), weight (D, H), bias (D,) and target (..., D)."""
    check.floating(op, "weight", weight, 2, "(D, H)")
    if check.certain(weight.shape[1] != hidden.shape[-1]):
        raise ValueError(f"{op}: weight must have shape (D, {hidden.shape[-1]}), got {tuple(weight.shape)}")
    if bias is not None:
        check.floating(op, "bias", bias, 1, "(D,)")
        check.shape(op, "bias", bias, (weight.shape[0],))
    check.floating(op, "target", target, hidden.ndim, "(B, M, D)")
    check.shape(op, "target", target, (*hidden.shape[:-1], weight.shape[0]))
    check.same_device(op, hidden=hidden, weight=weight, bias=bias, target=target)


def pixels(
    op: str, pred: Tensor, images: Tensor, index: Tensor, patch_size: int, *, values: bool = True
) -> None:
    """Raise unless pred has a row for each patch of the images, or for each that the index names."""
    check.floating(op, "pred", pred, 3, "(B, N, P * P * C)")
    check.floating(op, "images", images, 4, "(B, C, H, W)")
    count = patches(op, images, patch_size)
    check.index(op, "index", index, images.shape[0], count, "(B, M)", distinct=True, values=values)
    batch, channels = images.shape[:2]
    width, masked = channels * patch_size**2, index.shape[1]
    wrong = (pred.shape[0] != batch, pred.shape[2] != width)
    if any(map(check.certain, wrong)) or all(check.certain(pred.shape[1] != n) for n in (count, masked)):
        raise ValueError(
            f"{op}: pred must have shape {(batch, count, width)} or {(batch, masked, width)}, got {tuple(pred.shape)}"
        )
    check.same_device(op, pred=pred, images=images, index=index)


def options(op: str, reduction: str, eps: float = 1.0) -> None:
    """Raise unless the reduction is known and eps above 0."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction must be mean, sum or none, got {reduction!r}")
    if not eps > 0:
        raise ValueError(f"{op}: eps must be above 0, got {eps}")
