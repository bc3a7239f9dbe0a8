"""Contrastive losses written from their definitions, with the whole logits matrix: the ground truth of the family.

Letters: B images, T texts, D width. Features of any floating dtype are taken to float32 (float64 stays) first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.shared.precision import no_autocast


def similarities_of(image: Tensor, text: Tensor) -> Tensor:
    """Similarities (B, T) of image (B, D) and text (T, D) in at least float32."""
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    with no_autocast(image):
        return image.to(dtype) @ text.to(dtype).T


def contrastive_lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Log-sum-exps of the negatives of every image and of every text, as shifts and sums, and the similarity of each pair.

    image (B, D), text (T, D); the positive of image i is text i + label_offset (None: it has none here). Returns positive (B,)
    or, without pairs, (0,), image_shift (B,), image_sum (B,), text_shift (T,), text_sum (T,), and with image_groups (B,),
    text_groups (T,) the similarity of the largest logit of each, image_max (B,), text_max (T,), outside its own group, else two
    empty tensors. A log-sum-exp is logit_scale * shift + log(sum), of which the first term is a constant to autograd.
    """
    similarities = similarities_of(image, text)
    own = _own(image, text, label_offset)
    positive = similarities.new_empty(0) if label_offset is None else similarities.diagonal(label_offset)
    sums = []
    for axis in (1, 0):
        shift = _largest(similarities.detach(), own, logit_scale, axis)
        below = (logit_scale * (similarities - shift.unsqueeze(axis))).masked_fill(own, 0)
        logits = _with_gradient_of(logit_scale * similarities, below)
        sums += [shift, logits.masked_fill(own, float("-inf")).exp().sum(axis)]
    maxima = [positive.new_empty(0)] * 2
    if image_groups is not None and text_groups is not None:
        same = image_groups[:, None] == text_groups
        maxima = [_largest(similarities.detach(), same, logit_scale, axis) for axis in (1, 0)]
    return positive, *sums, *maxima


def _with_gradient_of(x: Tensor, value: Tensor) -> Tensor:
    """The value, which is x without a constant, and all derivatives of x."""
    return value.detach() + (x - x.detach())


def _largest(similarities: Tensor, left_out: Tensor, logit_scale: Tensor, axis: int) -> Tensor:
    """Similarity of the largest logit along an axis among those not left out; its logit is -inf if there is none."""
    sign = torch.where(logit_scale < 0, -1, 1).to(similarities.dtype)
    return sign * (sign * similarities).masked_fill(left_out, float("-inf")).amax(axis)


def contrastive_lse_backward(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int | None,
    image_shift: Tensor,
    text_shift: Tensor,
    grad_positive: Tensor,
    grad_image_sum: Tensor,
    grad_text_sum: Tensor,
    needs_image: bool = True,
    needs_text: bool = True,
    full_precision: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of image, text and logit_scale. The shifts may be those of more texts or images than given here."""
    similarities, own = similarities_of(image, text), _own(image, text, label_offset)
    grad, grad_scale = torch.zeros_like(similarities), similarities.new_zeros(())
    for shift, grad_sum in ((image_shift[:, None], grad_image_sum[:, None]), (text_shift, grad_text_sum)):
        lead = (similarities - shift).masked_fill(own, 0)
        of_sums = (grad_sum * (logit_scale * lead).clamp(max=0).exp()).masked_fill(own, 0)
        grad = grad + logit_scale * of_sums
        grad_scale = grad_scale + (of_sums * similarities).sum()
    if label_offset is not None:
        grad.diagonal(label_offset)[: image.shape[0]] += grad_positive
    grads = [grad @ text.to(grad.dtype), grad.T @ image.to(grad.dtype)]
    for i, (x, needed) in enumerate(((image, needs_image), (text, needs_text))):
        grads[i] = grads[i].to(grad.dtype if full_precision else x.dtype) if needed else grads[i][:0, :0]
    return grads[0], grads[1], grad_scale.to(logit_scale.dtype)


def pair_loss(
    positive: Tensor,
    image_shift: Tensor,
    image_sum: Tensor,
    text_shift: Tensor,
    text_sum: Tensor,
    logit_scale: Tensor,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> Tensor:
    """Sum or mean over pairs of the weighted cross-entropies softplus(log-sum-exp of negatives - logit); all (B,)."""
    losses = pair_losses(
        positive, image_shift, image_sum, text_shift, text_sum, logit_scale, image_weight, text_weight
    )
    return losses.mean() if mean else losses.sum()


def pair_loss_with_gradients(
    positive: Tensor,
    image_shift: Tensor,
    image_sum: Tensor,
    text_shift: Tensor,
    text_sum: Tensor,
    logit_scale: Tensor,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`pair_loss` with its gradients by positive, image_sum, text_sum and logit_scale."""
    found = positive, image_shift, image_sum, text_shift, text_sum, logit_scale
    loss = pair_loss(*found, image_weight, text_weight, mean)
    slopes, by_sums = [], []
    for weight, shift, total in ((image_weight, image_shift, image_sum), (text_weight, text_shift, text_sum)):
        alone, undefined = _without_loss(positive, total, logit_scale)
        counts = ~alone & (weight != 0)
        safe = torch.where(counts, total, 1)
        slope = (safe.log() - logit_scale * (positive - shift) + undefined).sigmoid()
        slopes.append(torch.where(counts, (weight / positive.shape[0] if mean else weight) * slope, 0))
        by_sums.append(slopes[-1] / safe)
    slope = slopes[0] + slopes[1]
    return loss, -logit_scale * slope, by_sums[0], by_sums[1], -(slope * positive).sum()


def info_nce_with_gradients(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    label_offset: int,
    image_weight: float,
    text_weight: float,
    mean: bool,
) -> tuple[Tensor, ...]:
    """`pair_loss` of `contrastive_lse`, both shifts, and the gradients of `pair_loss`; T = B where texts weigh."""
    positive, image_shift, image_sum, text_shift, text_sum, *_ = contrastive_lse(
        image, text, logit_scale, label_offset
    )
    own = slice(label_offset, label_offset + image.shape[0])
    of_pairs = positive, image_shift, image_sum, text_shift[own], text_sum[own], logit_scale
    loss, by_positive, by_image, by_text, by_scale = pair_loss_with_gradients(
        *of_pairs, image_weight, text_weight, mean
    )
    if text.shape[0] != image.shape[0]:
        by_text = torch.zeros_like(text_sum)
    return loss, image_shift, text_shift, by_positive, by_image, by_text, by_scale


def pair_losses(
    positive: Tensor,
    image_shift: Tensor,
    image_sum: Tensor,
    text_shift: Tensor,
    text_sum: Tensor,
    logit_scale: Tensor,
    image_weight: float,
    text_weight: float,
) -> Tensor:
    """The terms of `pair_loss`, (B,). A direction without weight adds nothing, not even a NaN."""
    losses = torch.zeros_like(positive)
    for weight, shift, total in ((image_weight, image_shift, image_sum), (text_weight, text_shift, text_sum)):
        if weight:
            alone, undefined = _without_loss(positive, total, logit_scale)
            ahead = torch.where(alone, 0, logit_scale * (positive - shift))
            ahead = _with_gradient_of(logit_scale * positive, ahead) - undefined
            loss = softplus(torch.where(alone, 1, total).log() - ahead)
            losses = losses + weight * torch.where(alone, 0, loss)
    return losses


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact in float64 too. Unlike -logsigmoid(-x), it has a form in ONNX, and a gradient whatever the size of x."""
    return F.softplus(x, threshold=40)


def _without_loss(positive: Tensor, total: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs (B,) have a probability of one, having no negatives; and NaN (B,) where infinity less infinity is, else 0."""
    undefined = (logit_scale * positive == math.inf) | ((total == 0) & ~positive.isfinite())
    return (total == 0) & ~undefined, torch.where(undefined, math.nan, 0.0).to(positive.dtype)


def _own(image: Tensor, text: Tensor, label_offset: int | None) -> Tensor:
    """Which entries (B, T) belong to pairs."""
    rows, columns = (torch.arange(x.shape[0], device=image.device) for x in (image, text))
    if label_offset is None:
        return torch.zeros_like(rows[:, None] == columns)
    return rows[:, None] + label_offset == columns


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
    logits = logit_scale * similarities_of(image, text)
    if logit_bias is not None:
        logits = logits + logit_bias
    pair = torch.arange(image.shape[0], device=image.device) + label_offset
    ids = torch.arange(text.shape[0], device=image.device) if group_ids is None else group_ids
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
    loss = torch.stack(losses).mean(0)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def sigmoid_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, label_offset: int | None
) -> Tensor:
    """Sum over all images i and texts j of softplus(-l[i, j]) where j = i + label_offset, softplus(l[i, j]) elsewhere."""
    logits = logit_scale * similarities_of(image, text) + logit_bias
    own = _own(image, text, label_offset)
    return softplus(torch.where(own, -logits, logits)).sum()


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
