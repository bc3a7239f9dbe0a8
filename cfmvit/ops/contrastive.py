"""Contrastive losses without their logits matrix.

Letters: B images, T texts, D width. A cross-entropy is a log-sum-exp minus the mean logit under the target. The second is
linear in the features and costs O(B D), so all that needs a kernel is `contrastive_lse`: log-sum-exps of the negatives of
every row and every column, from one tile per block of logits. Leaving the pair itself out of the sums and taking
softplus(lse_of_negatives - positive) keeps loss and gradient exact when the probability of the pair comes close to one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.reference.contrastive import contrastive_lse

DIRECTIONS = ("both", "image_to_text", "text_to_image")
REDUCTIONS = ("mean", "sum", "none")


class InfoNCEStats(NamedTuple):
    """What `info_nce` knows of a batch besides its loss; nothing here carries gradients."""

    lse_image: Tensor  # (B,) log-sum-exp of all logits of each image
    lse_text: Tensor  # (B,) log-sum-exp of all logits of the text of each pair
    positive: Tensor  # (B,) logit of each pair
    accuracy_image: Tensor  # () share of images whose own text scores above every negative
    accuracy_text: Tensor  # () share of texts whose own image scores above every negative


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor | None = None,
    direction: str = "both",
    label_offset: int = 0,
    group_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """Compute the softmax contrastive loss (InfoNCE, the loss of CLIP) of matching image and text features.

    With logits l[i, j] = logit_scale * <image[i], text[j]> and q the target distribution,
    loss[i] = mean over directions of (logsumexp_j l[i, j] - sum_j q[i, j] l[i, j]), where text_to_image runs over columns.

    Args:
        image: (B, D) floating
            Image features, usually of unit length (any length is computed rightly).
        text: (T, D), dtype and device of `image`
            Text features; T = B, except for direction "image_to_text", where the rest are negatives only.
        logit_scale: () floating
            Factor of the similarities, already exponentiated.
        logit_bias: () floating, optional
            Added to every logit: cancels in the softmax, so its gradient is zero (not None, as DDP wants it).
        direction: "both" | "image_to_text" | "text_to_image"
            Which cross-entropies are averaged.
        label_offset: int, default 0
            Image i matches text i + label_offset (open_clip's local_loss: rank * B).
        group_ids: (T,) integer, optional
            Texts with equal ids (and the images that match them) are positives of each other: q is uniform over them.
        label_smoothing: float in [0, 1), default 0
            q becomes (1 - label_smoothing) * q + label_smoothing / number of candidates.
        reduction: "mean" | "sum" | "none"
            "none" gives one loss per pair, (B,).
        return_stats: bool, default False
            Also return `InfoNCEStats`.

    Returns:
        The loss in float32 (float64 for float64 features), and the stats if asked for.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
    """
    _check(image, text, logit_scale, logit_bias, group_ids)
    _check_pairs(image, text, direction, label_offset)
    _check_options(label_smoothing, reduction)
    logit_scale = logit_scale.to(_loss_dtype(image))
    positive, image_lse, text_lse, image_max, text_max = contrastive_lse(
        image, text, logit_scale, label_offset, _stats_groups(text, group_ids) if return_stats else None
    )
    own = slice(label_offset, label_offset + image.shape[0])
    text_lse = text_lse[own]

    losses = []
    if direction != "text_to_image":
        losses.append(-F.logsigmoid(positive - image_lse))
    if direction != "image_to_text":
        losses.append(-F.logsigmoid(positive - text_lse))
    if group_ids is not None or label_smoothing:
        texts, images = _excess(image, text, own, group_ids, label_smoothing)
        excess = ([texts] if direction != "text_to_image" else []) + ([images] if direction != "image_to_text" else [])
        losses = [loss + logit_scale * e for loss, e in zip(losses, excess, strict=True)]
    loss = losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2
    if reduction != "none":
        loss = loss.mean() if reduction == "mean" else loss.sum()
    if logit_bias is not None:
        loss = loss + 0 * logit_bias.to(loss.dtype)
    if not return_stats:
        return loss
    with torch.no_grad():
        bias = 0 if logit_bias is None else logit_bias
        stats = InfoNCEStats(
            torch.logaddexp(image_lse, positive) + bias,
            torch.logaddexp(text_lse, positive) + bias,
            positive + bias,
            (positive > image_max).to(positive.dtype).mean(),
            (positive > text_max[own]).to(positive.dtype).mean(),
        )
    return loss, stats


def _stats_groups(text: Tensor, group_ids: Tensor | None) -> Tensor:
    if group_ids is None:
        return torch.arange(text.shape[0], device=text.device)
    return group_ids.to(torch.int64)


def _loss_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _excess(
    image: Tensor, text: Tensor, own: slice, group_ids: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Similarity of each pair over its mean under the target: (B,) for the images, (B,) for the texts.

    Exactly zero, with exactly zero gradients, for a pair without other positives and without smoothing.
    """
    dtype = _loss_dtype(image)
    image, text = image.to(dtype), text.to(dtype)
    own_text = text[own]
    target_text, target_image = own_text, image
    if group_ids is not None:
        target_text = _GroupMean.apply(text, group_ids)[own]
        target_image = _GroupMean.apply(image, group_ids[own])
    if smoothing:
        target_text = torch.lerp(target_text, text.mean(0), smoothing)
        target_image = torch.lerp(target_image, image.mean(0), smoothing)
    return (image * (own_text - target_text)).sum(1), (own_text * (image - target_image)).sum(1)


class _GroupMean(torch.autograd.Function):
    """Mean of the rows of each group, given to every row of it. The map is its own adjoint."""

    @staticmethod
    def forward(ctx, rows: Tensor, ids: Tensor) -> Tensor:
        """Map rows (N, D), ids (N,) to (N, D)."""
        ctx.save_for_backward(ids)
        order = ids.argsort(stable=True)
        first = F.pad(ids[order].diff() != 0, (1, 0))
        group = torch.empty_like(order).scatter_(0, order, first.cumsum(0))
        sums = torch.zeros_like(rows).index_add_(0, group, rows)
        counts = torch.zeros_like(rows[:, :1]).index_add_(0, group, torch.ones_like(rows[:, :1]))
        return sums.index_select(0, group) / counts.index_select(0, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        """Apply the map to the gradient."""
        (ids,) = ctx.saved_tensors
        return _GroupMean.apply(grad, ids), None


def _check(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None, group_ids: Tensor | None
) -> None:
    for name, features in (("image", image), ("text", text)):
        if not isinstance(features, Tensor):
            raise TypeError(f"info_nce: {name} must be a tensor, got {type(features).__name__}")
        if not features.is_floating_point():
            raise TypeError(f"info_nce: {name} must be floating point, got {features.dtype}")
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(f"info_nce: {name} must be a non-empty matrix, got shape {tuple(features.shape)}")
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"info_nce: text must have image's width {image.shape[1]}, got {text.shape[1]}")
    if image.dtype != text.dtype:
        raise TypeError(f"info_nce: text must have image's dtype {image.dtype}, got {text.dtype}")
    for name, scalar in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if name == "logit_bias" and scalar is None:
            continue
        if not isinstance(scalar, Tensor) or not scalar.is_floating_point():
            kind = scalar.dtype if isinstance(scalar, Tensor) else type(scalar).__name__
            raise TypeError(f"info_nce: {name} must be a floating-point tensor, got {kind}")
        if scalar.dim() != 0:
            raise ValueError(f"info_nce: {name} must be 0-d, got shape {tuple(scalar.shape)}")
    if group_ids is not None:
        if not isinstance(group_ids, Tensor) or group_ids.is_floating_point() or group_ids.is_complex():
            kind = group_ids.dtype if isinstance(group_ids, Tensor) else type(group_ids).__name__
            raise TypeError(f"info_nce: group_ids must be an integer tensor, got {kind}")
        if group_ids.shape != text.shape[:1]:
            raise ValueError(
                f"info_nce: group_ids must have shape ({text.shape[0]},), got shape {tuple(group_ids.shape)}"
            )
    for name, tensor in (
        ("text", text), ("logit_scale", logit_scale), ("logit_bias", logit_bias), ("group_ids", group_ids),
    ):  # fmt: skip
        if tensor is not None and tensor.device != image.device:
            raise ValueError(f"info_nce: {name} must be on image's device {image.device}, got {tensor.device}")


def _check_pairs(image: Tensor, text: Tensor, direction: str, label_offset: int) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"info_nce: direction must be one of {DIRECTIONS}, got {direction!r}")
    if not isinstance(label_offset, int) or label_offset < 0:
        raise ValueError(f"info_nce: label_offset must be an integer of at least 0, got {label_offset!r}")
    images, texts = image.shape[0], text.shape[0]
    if direction != "image_to_text" and (texts != images or label_offset):
        raise ValueError(
            f"info_nce: text must have image's {images} rows and label_offset be 0 unless direction is "
            f"'image_to_text', got {texts} rows and label_offset {label_offset}"
        )
    if texts < images + label_offset:
        raise ValueError(
            f"info_nce: text must have at least {images + label_offset} rows (image rows + label_offset), got {texts}"
        )


def _check_options(label_smoothing: float, reduction: str) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"info_nce: label_smoothing must be in [0, 1), got {label_smoothing!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"info_nce: reduction must be one of {REDUCTIONS}, got {reduction!r}")
