"""Contrastive losses without their logits matrix.

Letters: B images, T texts, D width. What needs a kernel is `contrastive_lse`: log-sum-exps of the negatives of every row and
every column, from one tile per block of logits; `info_nce` is that and what makes the loss of it. Leaving the pair itself out of
the sums and taking softplus(lse_of_negatives - positive) keeps loss and gradient exact when the probability of the pair comes
close to one. Log-sum-exps come as shift and sum (native.py), so that logits of any size keep them exact as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops.contrastive import collectives, distributed, native, reference, text_exchange
from cfmvit.ops.contrastive.checks import check_exchange, check_options, check_pairs, check_tensors
from cfmvit.ops.contrastive.native import compute_dtype
from cfmvit.ops.contrastive.targets import lead_over_target
from cfmvit.ops.shared.checks import certain
from cfmvit.ops.shared.implementation import implementation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class InfoNCEStats(NamedTuple):
    """What `info_nce` knows of a batch besides its loss; nothing here carries gradients."""

    lse_image: Tensor  # (B,) log-sum-exp of all logits of each image
    lse_text: Tensor  # (B,) log-sum-exp of all logits of the text of each pair
    positive: Tensor  # (B,) logit of each pair
    accuracy_image: Tensor  # () share of images whose own text scores above every negative
    accuracy_text: Tensor  # () share of texts whose own image scores above every negative


@overload
def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor | None = ...,
    direction: str = ...,
    label_offset: int = ...,
    group_ids: Tensor | None = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    return_stats: Literal[False] = ...,
    process_group: ProcessGroup | None = ...,
    exchange: str | None = ...,
    impl: str | None = ...,
) -> Tensor: ...


@overload
def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    *,
    logit_bias: Tensor | None = ...,
    direction: str = ...,
    label_offset: int = ...,
    group_ids: Tensor | None = ...,
    label_smoothing: float = ...,
    reduction: str = ...,
    return_stats: Literal[True],
    process_group: ProcessGroup | None = ...,
    exchange: str | None = ...,
    impl: str | None = ...,
) -> tuple[Tensor, InfoNCEStats]: ...


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
    process_group: ProcessGroup | None = None,
    exchange: str | None = None,
    impl: str | None = None,
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
        process_group: torch.distributed.ProcessGroup, optional
            Each rank holds its own B pairs, the same number everywhere; candidates are the pairs of all ranks (group_ids
            are compared across ranks too). The loss is the one of the rank's own pairs; gradients are those of the sum of
            the ranks' losses, so that DistributedDataParallel's mean makes them exact.
        exchange: "gather" | "ring", optional
            How the ranks' texts meet: "gather" holds the texts of all ranks, "ring" those of two. By default a ring across
            nodes (more ranks than LOCAL_WORLD_SIZE) and where the gathered texts would take over 2 GiB.
        impl: "reference" | "native" | "triton", optional
            Forces an implementation: plain PyTorch, C++ (CPU tensors) or Triton (CUDA tensors).

    Returns:
        The loss in float32 (float64 for float64 features), and the stats if asked for.

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    check_tensors(image, text, logit_scale, logit_bias, group_ids)
    check_pairs(image, text, direction, label_offset, process_group)
    check_options(label_smoothing, reduction)
    check_exchange("info_nce", exchange, process_group)
    image, text = _autocast(image, text)
    logit_scale = logit_scale.to(compute_dtype(image))
    chosen = _implementation("info_nce", "info_nce", image, impl)
    weights = {"image_to_text": (1.0, 0.0), "text_to_image": (0.0, 1.0)}.get(direction, (0.5, 0.5))
    own = slice(label_offset, label_offset + image.shape[0])
    ranks = None
    if process_group is not None:
        options = return_stats, group_ids is not None
        ranks = _agree("info_nce", image, text, process_group, exchange, chosen, *options)
        image, text = _unrounded(image, text)
    if ranks is None and chosen != "reference" and reduction != "none" and not return_stats:
        loss, *_ = native.OPS["info_nce"](
            image, text, logit_scale, label_offset, *weights, reduction == "mean"
        )
    else:
        groups = _stats_groups(text, group_ids, ranks) if return_stats else None
        *found, image_max, text_max = _lse(image, text, logit_scale, own, groups, ranks, chosen)
        loss = _reduced(found, logit_scale, weights, reduction, chosen)
    if group_ids is not None or label_smoothing > 0:
        leads = lead_over_target(image, text, own, group_ids, label_smoothing, process_group)
        linear = logit_scale * sum(weight * x for weight, x in zip(weights, leads, strict=True))
        loss = loss + (
            linear if reduction == "none" else linear.mean() if reduction == "mean" else linear.sum()
        )
    if logit_bias is not None:
        loss = loss + 0 * logit_bias.to(loss.dtype)
    if not return_stats:
        return loss
    return loss, _stats(found, (image_max, text_max), logit_scale, logit_bias)


def _lse(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    own: slice,
    groups: Tensor | None,
    ranks: distributed.Ranks | None,
    impl: str,
) -> tuple[Tensor, ...]:
    """What contrastive_lse gives for the own pairs: (B,) each, the maxima only with groups (T,)."""
    if ranks is not None:
        return distributed.contrastive_lse(image, text, logit_scale, groups, ranks)
    op = reference.contrastive_lse if impl == "reference" else native.OPS["contrastive_lse"]
    of_images = None if groups is None else groups[own]
    found = op(image, text, logit_scale, own.start, of_images, groups)
    if certain(text.shape[0] == image.shape[0]):
        return tuple(found)
    positive, image_shift, image_sum, text_shift, text_sum, image_max, text_max = found
    return positive, image_shift, image_sum, text_shift[own], text_sum[own], image_max, text_max[own]


def _reduced(
    found: list[Tensor], logit_scale: Tensor, weights: tuple[float, float], reduction: str, impl: str
) -> Tensor:
    """Cross-entropies of the pairs, (B,), or their sum or mean."""
    arguments: tuple[Any, ...] = (*found, logit_scale, *weights)
    if reduction == "none":
        return reference.pair_losses(*arguments)
    arguments += (reduction == "mean",)
    if impl == "reference":
        return reference.pair_loss(*arguments)
    loss, *_ = native.OPS["pair_loss"](*arguments)
    return loss


def _stats(
    found: list[Tensor],
    maxima: tuple[Tensor, Tensor],
    logit_scale: Tensor,
    logit_bias: Tensor | None,
) -> InfoNCEStats:
    """maxima: similarity of each row's and column's largest logit among other groups; without groups, that of the negatives."""
    # Detached rather than without gradients: forward-mode derivatives end here, too.
    positive, image_shift, image_sum, text_shift, text_sum = (x.detach() for x in found)
    logit_scale = logit_scale.detach()
    logit = logit_scale * positive + (0 if logit_bias is None else logit_bias.detach())
    lses, accuracies = [], []
    shifts = (image_shift, text_shift)
    for shift, total, largest in zip(shifts, (image_sum, text_sum), maxima, strict=True):
        lead = torch.where(total == 0, float("-inf"), logit_scale * (shift - positive) + total.log())
        lses.append(logit + reference.softplus(lead))
        # Of the difference, so that equal similarities are equal, and no rounding makes a tie.
        ahead = logit_scale * (positive - largest.detach()) > 0
        accuracies.append(ahead.to(positive.dtype).mean())
    return InfoNCEStats(lses[0], lses[1], logit, accuracies[0], accuracies[1])


def siglip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    reduction: str = "mean",
    process_group: ProcessGroup | None = None,
    exchange: str | None = None,
    impl: str | None = None,
) -> Tensor:
    """Compute the sigmoid contrastive loss (SigLIP) of matching image and text features.

    With l[i, j] = logit_scale * <image[i], text[j]> + logit_bias, the loss of image i is
    softplus(-l[i, i]) + sum over j != i of softplus(l[i, j]). The gradients are made together with the loss: three matrix
    products in all, and one where no gradient is wanted.

    Args:
        image: (B, D) floating
            Image features.
        text: (B, D), dtype and device of `image`
            Text features.
        logit_scale: () floating
            Factor of the similarities, already exponentiated.
        logit_bias: () floating, optional
            Added to every logit; zero if left out.
        reduction: "mean" | "sum"
            Over the images (a mean divides by B, as SigLIP does, not by B^2).
        process_group: torch.distributed.ProcessGroup, optional
            As in `info_nce`.
        exchange: "gather" | "ring", optional
            As in `info_nce`. In a ring the logits are made twice, once for the loss and once for the gradients.
        impl: "reference" | "native" | "triton", optional
            As in `info_nce`.

    Returns:
        The loss in float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: an argument breaks the rules above; the message names it.
        RuntimeError: a second derivative of the native op is wanted; ``impl="reference"`` and ``torch.func`` have it.
    """
    op = "siglip_loss"
    check_tensors(image, text, logit_scale, logit_bias, None, op)
    if certain(image.shape[0] != text.shape[0]):
        raise ValueError(f"siglip_loss: text must have image's {image.shape[0]} rows, got {text.shape[0]}")
    if process_group is not None:
        collectives.check_group(op, process_group)
    check_exchange(op, exchange, process_group)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"siglip_loss: reduction must be 'mean' or 'sum', got {reduction!r}")
    image, text = _autocast(image, text)
    logit_scale = logit_scale.to(compute_dtype(image))
    logit_bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias.to(logit_scale.dtype)
    chosen = _implementation(op, "sigmoid_loss", image, impl)
    if process_group is not None:
        ranks = _agree(op, image, text, process_group, exchange, chosen)
        loss = distributed.sigmoid_loss(*_unrounded(image, text), logit_scale, logit_bias, ranks)
    elif chosen == "reference":
        loss = reference.sigmoid_loss(image, text, logit_scale, logit_bias, 0)
    else:
        needs_image, needs_text = (torch.is_grad_enabled() and x.requires_grad for x in (image, text))
        loss, *_ = native.OPS["sigmoid_loss"](
            image, text, logit_scale, logit_bias, 0, needs_image, needs_text
        )
    return loss / image.shape[0] if reduction == "mean" else loss


def _implementation(function: str, op: str, image: Tensor, impl: str | None) -> str:
    return implementation(op, image, impl, native.why_not_triton, name=function)


def _agree(
    op: str, image: Tensor, text: Tensor, group: ProcessGroup, exchange: str | None, impl: str, *options: bool
) -> distributed.Ranks:
    """Agree with the other ranks on what is to be exchanged."""
    exchange = text_exchange.choose(exchange, text, group)
    collectives.check_alike(
        op,
        group,
        image=tuple(image.shape),
        dtype=image.element_size() + 8 * (image.dtype == torch.bfloat16),
        requires_grad=tuple(int(torch.is_grad_enabled() and x.requires_grad) for x in (image, text)),
        exchange=list(text_exchange.EXCHANGES).index(exchange),
        options=tuple(map(int, options)),
    )
    return distributed.Ranks(group, exchange, impl)


def _unrounded(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The CPU computes in float32 anyway: gradients then stay unrounded until they are summed over ranks."""
    if image.is_cuda:
        return image, text
    return image.to(compute_dtype(image)), text.to(compute_dtype(text))


def _autocast(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Features as the kernels should see them under autocast: the CPU's lose nothing by keeping their dtype."""
    dtype = torch.promote_types(image.dtype, text.dtype)
    if image.is_cuda and torch.is_autocast_enabled("cuda") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cuda")
    return image.to(dtype), text.to(dtype)


def _stats_groups(text: Tensor, group_ids: Tensor | None, ranks: distributed.Ranks | None) -> Tensor:
    if group_ids is not None:
        return group_ids.to(torch.int64)
    first = 0 if ranks is None else dist.get_rank(ranks.group) * text.shape[0]
    return torch.arange(first, first + text.shape[0], device=text.device)
