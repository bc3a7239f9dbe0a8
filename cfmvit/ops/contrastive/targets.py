"""Targets of info_nce other than one text to an image: groups of positives, and label smoothing.

A cross-entropy is a log-sum-exp minus the mean logit under the target. The second is linear in the features, so that these
targets cost O(B D) on top of the loss of the pairs: each pair's logit less the mean logit under its target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from cfmvit.ops.contrastive import collectives
from cfmvit.ops.contrastive.native import compute_dtype
from cfmvit.ops.shared.transforms import plain_only

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def lead_over_target(
    image: Tensor,
    text: Tensor,
    own: slice,
    group_ids: Tensor | None,
    smoothing: float,
    process_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Similarity of each own pair less its mean under the target: (B,) for the images, (B,) for the texts.

    Exactly zero, with exactly zero gradients, for a pair without other positives and without smoothing.
    """
    dtype = compute_dtype(image)
    images, texts = image.to(dtype), text.to(dtype)
    pairs = slice(0, images.shape[0])
    mean_image, mean_text = (collectives.mean(x.mean(0), process_group) for x in (images, texts))
    if process_group is not None and group_ids is not None:
        images, texts, group_ids = (
            collectives.gather_rows(x, process_group) for x in (images, texts, group_ids)
        )
        first = dist.get_rank(process_group) * image.shape[0]
        pairs = own = slice(first, first + image.shape[0])
    image, text = images[pairs], texts[own]
    target_text, target_image = text, image
    if group_ids is not None:
        target_text = _group_mean(texts, group_ids)[own]
        image_ids = group_ids[own] if process_group is None else group_ids
        target_image = _group_mean(images, image_ids)[pairs]
    if smoothing:
        target_text = torch.lerp(target_text, mean_text, smoothing)
        target_image = torch.lerp(target_image, mean_image, smoothing)
    return (image * (text - target_text)).sum(1), (text * (image - target_image)).sum(1)


def _group_mean(rows: Tensor, ids: Tensor) -> Tensor:
    """Mean of the rows (N, D) of each group, given to every row of it; ids (N,)."""
    if plain_only():  # the logits are a matrix there too, and ONNX adds no rows of one index
        same = (ids[:, None] == ids).to(rows.dtype)
        return same @ rows / same.sum(1, keepdim=True)
    order = ids.argsort(stable=True)
    ordered = ids[order]
    starts = torch.nn.functional.pad((ordered[1:] != ordered[:-1]).to(torch.int64), (1, 0))  # another group
    group = torch.zeros_like(order).scatter(0, order, starts.cumsum(0))
    sums = torch.zeros_like(rows).index_add(0, group, rows)
    counts = torch.zeros_like(rows[:, :1]).index_add(0, group, torch.ones_like(rows[:, :1]))
    return sums.index_select(0, group) / counts.index_select(0, group)
