"""Reconstruction losses in plain PyTorch. Arguments are checked by ``cfmvit.ops.reconstruction``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.ops.masking.reference import patches_channel_last


def masked_cosine_loss(pred: Tensor, target: Tensor, index: Tensor | None, eps: float) -> Tensor:
    """Return 1 - cosine of each pair of rows, or of those of an index (B, M), (..., D) -> (...); target is a constant.

    Both norms are bounded below by ``eps``, so a zero vector has cosine 0, hence loss 1, and no gradient.
    """
    if index is not None:
        rows = index.long().unsqueeze(-1).expand(-1, -1, pred.shape[2])
        pred, target = pred.gather(1, rows), target.gather(1, rows)
    dtype = torch.promote_types(pred.dtype, torch.float32)
    pred, target = pred.to(dtype), target.detach().to(dtype)
    squares = pred.square().sum(-1)
    zero = squares == 0
    # The gradient of a square root at zero is infinite, and infinity times zero is NaN: such rows take another path.
    norm = torch.where(zero, 1.0, squares).sqrt().clamp(min=eps)
    dot = torch.where(zero.unsqueeze(-1), 0.0, pred).mul(target).sum(-1)
    return 1 - dot / (norm * target.norm(dim=-1).clamp(min=eps))


def linear_masked_cosine_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, eps: float
) -> Tensor:
    """Project, then ``masked_cosine_loss``."""
    return masked_cosine_loss(F.linear(hidden, weight, bias), target, None, eps)


def linear_masked_cosine_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    eps: float,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum those losses of hidden (R, H), with the gradients of hidden, weight and bias, of no elements where not needed."""
    total = linear_masked_cosine_loss(hidden, weight, bias, target, eps).sum()
    pred, target = F.linear(hidden, weight, bias).to(total.dtype), target.detach().to(total.dtype)
    norm, target_norm = (x.norm(dim=-1, keepdim=True).clamp(min=eps) for x in (pred, target))
    cosine = (pred * target).sum(-1, keepdim=True) / (norm * target_norm)
    radial = torch.where(norm > eps, cosine * pred / norm.square(), 0)
    grad = torch.where((pred == 0).all(-1, keepdim=True), 0, radial - target / (norm * target_norm))
    by_hidden = (grad @ weight.to(grad.dtype)).to(hidden.dtype)
    by_weight, by_bias = grad.T @ hidden.to(grad.dtype), grad.sum(0)
    return (
        total,
        by_hidden if needs_hidden else by_hidden[:0],
        by_weight if needs_weight else by_weight[:0],
        by_bias if needs_weight else by_bias[:0],
    )


def masked_pixel_loss(
    pred: Tensor, images: Tensor, index: Tensor, patch_size: int, normalize: bool
) -> Tensor:
    """Return MAE's loss of each masked token, (B, M): the mean square over its pixels (He et al. 2022)."""
    dtype = torch.promote_types(pred.dtype, torch.float32)
    rows = index.long().unsqueeze(-1)
    target = patches_channel_last(images.detach().to(dtype), patch_size)
    if pred.shape[1] == target.shape[1]:
        pred = pred.gather(1, rows.expand(-1, -1, pred.shape[2]))
    target = target.gather(1, rows.expand(-1, -1, target.shape[2]))
    if normalize and target.numel():
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (pred.to(dtype) - target).square().mean(-1)
