"""Contrastive losses written from their definitions, with the whole logits matrix: the ground truth of the family.

Letters: B images, T texts, D width. Features of any floating dtype are taken to float32 (float64 stays) first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_of(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled similarities (B, T) of image (B, D) and text (T, D) in at least float32."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        return logit_scale.to(dtype) * (image.to(dtype) @ text.to(dtype).T)


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    group_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp of the negatives of every image and of every text, and the logit of each pair.

    image (B, D), text (T, D); the positive of image i is text i + label_offset. Returns positive (B,), image_lse (B,),
    text_lse (T,), and with group_ids (T,) the largest logit of each image_max (B,), text_max (T,) outside its own group,
    else two empty tensors.
    """
    logits = logits_of(image, text, logit_scale)
    rows = torch.arange(len(image), device=image.device)
    own = F.one_hot(rows + label_offset, len(text)).bool()
    positive = logits[rows, rows + label_offset]
    negatives = logits.masked_fill(own, float("-inf"))
    image_max = text_max = positive.new_empty(0)
    if group_ids is not None:
        same = group_ids[rows + label_offset, None] == group_ids
        others = logits.detach().masked_fill(same, float("-inf"))
        image_max, text_max = others.amax(1), others.amax(0)
    return positive, negatives.logsumexp(1), negatives.logsumexp(0), image_max, text_max


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
) -> Tensor:
    """Compute `cfmvit.ops.info_nce` on one device by two dense cross-entropies."""
    logits = logits_of(image, text, logit_scale)
    if logit_bias is not None:
        logits = logits + logit_bias
    pair = torch.arange(len(image), device=image.device) + label_offset
    ids = torch.arange(len(text), device=image.device) if group_ids is None else group_ids
    positives = (ids[pair, None] == ids).to(logits.dtype)

    def cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
        target = positives / positives.sum(1, keepdim=True)
        target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
        return -(target * logits.log_softmax(1)).sum(1)

    losses = []
    if direction != "text_to_image":
        losses.append(cross_entropy(logits, positives))
    if direction != "image_to_text":
        losses.append(cross_entropy(logits.T, positives.T))
    loss = sum(losses) / len(losses)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def sigmoid_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, label_offset: int
) -> Tensor:
    """Sum over all images i and texts j of softplus(-l[i, j]) where j = i + label_offset, softplus(l[i, j]) elsewhere."""
    logits = logits_of(image, text, logit_scale) + logit_bias
    rows = torch.arange(len(image), device=image.device)
    own = F.one_hot(rows + label_offset, len(text)).bool()
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum()
