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
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp of the negatives of every image and of every text, and the logit of each pair.

    image (B, D), text (T, D); the positive of image i is text i + label_offset (None: it has none here). Returns positive (B,)
    or, without pairs, (0,), image_lse (B,), text_lse (T,), and with image_groups (B,), text_groups (T,) the largest logit of
    each image_max (B,), text_max (T,) outside its own group, else two empty tensors.
    """
    logits = logits_of(image, text, logit_scale)
    own = _own(image, text, label_offset)
    positive = logits.diagonal(label_offset) if label_offset is not None else logits.new_empty(0)
    negatives = logits.masked_fill(own, float("-inf"))
    image_max = text_max = positive.new_empty(0)
    if text_groups is not None:
        same = image_groups[:, None] == text_groups
        others = logits.detach().masked_fill(same, float("-inf"))
        image_max, text_max = others.amax(1), others.amax(0)
    return positive, negatives.logsumexp(1), negatives.logsumexp(0), image_max, text_max


def contrastive_lse_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_lse: Tensor,
    text_lse: Tensor,
    grad_positive: Tensor,
    grad_image_lse: Tensor,
    grad_text_lse: Tensor,
    needs_image: bool = True,
    needs_text: bool = True,
    full_precision: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, text and logit_scale. The log-sum-exps may be those of more texts or images than given here."""
    logits = logits_of(image, text, logit_scale)
    share = lambda lse: torch.where(lse == float("-inf"), 0, (logits - lse).exp())
    grad = grad_image_lse[:, None] * share(image_lse[:, None]) + grad_text_lse * share(text_lse)
    grad = grad.masked_fill(_own(image, text, label_offset), 0)
    if label_offset is not None:
        grad.diagonal(label_offset)[: len(image)] += grad_positive
    rows, columns = image.to(grad.dtype), text.to(grad.dtype)
    grads = [logit_scale * (grad @ columns), logit_scale * (grad.T @ rows)]
    for i, (x, needed) in enumerate(((image, needs_image), (text, needs_text))):
        grads[i] = grads[i].to(grad.dtype if full_precision else x.dtype) if needed else grads[i][:0, :0]
    return *grads, (grad * (rows @ columns.T)).sum().to(logit_scale.dtype)


def pair_loss(
    positive: Tensor, image_lse: Tensor, text_lse: Tensor, image_weight: float, text_weight: float, mean: bool
) -> Tensor:
    """Sum or mean over pairs of the weighted cross-entropies softplus(lse of negatives - positive); all (B,)."""
    losses = pair_losses(positive, image_lse, text_lse, image_weight, text_weight)
    return losses.mean() if mean else losses.sum()


def pair_loss_with_gradients(
    positive: Tensor, image_lse: Tensor, text_lse: Tensor, image_weight: float, text_weight: float, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`pair_loss` with its gradients by positive, image_lse and text_lse."""
    loss = pair_loss(positive, image_lse, text_lse, image_weight, text_weight, mean)
    grads = [
        (weight / len(positive) if mean else weight) * (lse - positive).sigmoid()
        if weight
        else positive.new_zeros(len(lse))
        for weight, lse in ((image_weight, image_lse), (text_weight, text_lse))
    ]
    return loss, -(grads[0] + grads[1]), *grads


def info_nce_with_gradients(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`pair_loss` of `contrastive_lse`, image_lse (B,), text_lse (T,), and the gradients by positive and both; T = B where texts weigh."""
    positive, image_lse, text_lse, *_ = contrastive_lse(image, text, logit_scale, label_offset)
    own = text_lse[label_offset : label_offset + len(image)]
    loss, by_positive, by_image, by_text = pair_loss_with_gradients(
        positive, image_lse, own, image_weight, text_weight, mean
    )
    if len(text) != len(image):
        by_text = torch.zeros_like(text_lse)
    return loss, image_lse, text_lse, by_positive, by_image, by_text


def pair_losses(
    positive: Tensor, image_lse: Tensor, text_lse: Tensor, image_weight: float, text_weight: float
) -> Tensor:
    """The terms of `pair_loss`, (B,). A direction without weight adds nothing, not even a NaN."""
    terms = ((image_weight, image_lse), (text_weight, text_lse))
    return -sum(weight * F.logsigmoid(positive - lse) for weight, lse in terms if weight)


def _own(image: Tensor, text: Tensor, label_offset: int | None) -> Tensor:
    """Which entries (B, T) belong to pairs."""
    if label_offset is None:
        return torch.zeros(len(image), len(text), dtype=torch.bool, device=image.device)
    return F.one_hot(torch.arange(len(image), device=image.device) + label_offset, len(text)).bool()


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
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, label_offset: int | None
) -> Tensor:
    """Sum over all images i and texts j of softplus(-l[i, j]) where j = i + label_offset, softplus(l[i, j]) elsewhere."""
    logits = logits_of(image, text, logit_scale) + logit_bias
    own = _own(image, text, label_offset)
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum()


def sigmoid_loss_with_gradients(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    label_offset: int | None,
    needs_image: bool,
    needs_text: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sigmoid_loss` with its gradients by image, text (of no elements where not needed), logit_scale and logit_bias."""
    loss = sigmoid_loss(image, text, logit_scale, logit_bias, label_offset)
    rows, columns, scale = (x.to(loss.dtype) for x in (image, text, logit_scale))
    similarity = rows @ columns.T
    logits = scale * similarity + logit_bias
    grad = torch.where(_own(image, text, label_offset), -(-logits).sigmoid(), logits.sigmoid())
    by_image, by_text = scale * (grad @ columns), scale * (grad.T @ rows)
    return (
        loss,
        by_image if needs_image else by_image[:0, :0],
        by_text if needs_text else by_text[:0, :0],
        (grad * similarity).sum(),
        grad.sum(),
    )
