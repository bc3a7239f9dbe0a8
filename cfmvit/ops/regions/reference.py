"""Region ops written from their definitions: the ground truth of the family.

Letters: B images, C channels, H x W pixels of a map, R boxes, P x Q bins of a box, L pyramid levels, n labels.
A RoIAlign sample is bilinear, so its weight is a product of one factor for its row and one for its column, and so are the
rule for samples outside the map and the number of samples in a bin. Hence, with a weight matrix per box and axis,
out[r, c, p, q] = sum_y wy[r, p, y] * sum_x wx[r, q, x] * F[c, y, x], exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cfmvit.ops.shared.precision import no_autocast
from cfmvit.ops.shared.transforms import has_values

MAX_SAMPLES = (
    65536  # along a side of a box; of adaptive sampling along a side of a bin, beyond which a box gives zeros
)
CHUNK = 2**24  # elements of the largest temporary


def axis_weights(
    start: Tensor, end: Tensor, bins: int, length: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return what each of `length` pixels of an axis adds to each bin of each box: (R, bins, length) float64.

    start, end (R,) in pixels. The dtype of both is that of all arithmetic on coordinates, which decides how a sample that
    falls on a border is treated; the order of operations is torchvision's.
    """
    size = end - start
    finite = start.isfinite() & end.isfinite() & size.isfinite()
    size = torch.where(finite, size, 0)
    start = torch.where(finite, start, 0)
    if not aligned:
        size = size.clamp(min=1.0)
    bin_size = size / bins
    grid = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
    grid = torch.where(finite & (grid <= MAX_SAMPLES), grid, 0)

    # Adaptive samples are more than half a pixel apart, unless there is one in a bin.
    most = sampling_ratio if sampling_ratio > 0 else 2 * (length + 1) + 4
    if has_values(grid):
        most = min(most, max(0, int(grid.max()))) if len(grid) else 0
    bin_index = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None]
    sample = torch.arange(most, dtype=start.dtype, device=start.device)
    start, bin_size, grid = start[:, None, None], bin_size[:, None, None], grid[:, None, None]
    if sampling_ratio <= 0:
        # Those before the map's first pixel add nothing, however many there are.
        before = (-1 - start - bin_index * bin_size) / (bin_size / grid.clamp(min=1)) - 0.5
        sample = sample + (torch.where(before.isfinite(), before, 0).floor() - 1).clamp(0, MAX_SAMPLES)
    position = start + bin_index * bin_size + (sample + 0.5) * bin_size / grid  # (R, bins, most)
    counts = (position >= -1) & (position <= length) & (sample < grid)
    position = torch.where(counts, position, 0).clamp(min=0)
    low = position.long().clamp(max=length - 1)
    fraction = torch.where(low == length - 1, 0, position - low).double()
    share = counts / grid.double()
    weights = torch.zeros(start.shape[0], bins, length, dtype=torch.float64, device=start.device)
    weights = weights.scatter_add(2, low, torch.where(counts, (1 - fraction) * share, 0))
    return weights.scatter_add(2, (low + 1).clamp(max=length - 1), torch.where(counts, fraction * share, 0))


def box_weights(
    rois: Tensor,
    size: Sequence[int],
    scale: float,
    bins: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Return wy (R, P, H) and wx (R, Q, W) in float64 of rois (R, 5) on a map of `size` (H, W)."""
    factor = torch.tensor(scale, dtype=rois.dtype, device=rois.device)
    x1, y1, x2, y2 = (rois[:, 1:] * factor - (0.5 if aligned else 0.0)).unbind(1)
    wy = axis_weights(y1, y2, bins[0], size[0], sampling_ratio, aligned)
    wx = axis_weights(x1, x2, bins[1], size[1], sampling_ratio, aligned)
    return wy, wx


def is_box(rois: Tensor) -> Tensor:
    """Return which of rois (R, 5) are finite with a positive width and height, (R,) bool."""
    x1, y1, x2, y2 = rois[:, 1:].unbind(1)
    return rois.isfinite().all(1) & (x2 > x1) & (y2 > y1)


def compute_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype in which sums are formed."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Map input (B, C, H, W) and rois (R, 5), batch index first, to (R, C, P, Q)."""
    levels = torch.zeros(rois.shape[0], dtype=torch.int64, device=rois.device)
    return multilevel_roi_align(
        [input], rois, levels, [spatial_scale], pooled_height, pooled_width, sampling_ratio, aligned
    )


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Map features, L tensors (B, C, H_l, W_l), rois (R, 5) and their levels (R,) to (R, C, P, Q)."""
    dtype, bins = compute_dtype(features[0]), (pooled_height, pooled_width)
    channels = features[0].shape[1]
    rois = rois.detach()
    # Connected to every level, so that each has a gradient even where no box fell on it.
    out = features[0].new_zeros(rois.shape[0], channels, *bins, dtype=dtype)
    out = out + sum(level.flatten()[:0].sum() for level in features)
    for level, (feature, scale) in enumerate(zip(features, scales)):
        step = max(1, CHUNK // max(1, pooled_height * channels * feature.shape[3]))
        for image in range(feature.shape[0]):
            for some, among in _boxes((levels == level) & (rois[:, 0].long() == image), step):
                wy, wx = box_weights(rois[some], feature.shape[2:], scale, bins, sampling_ratio, aligned)
                rows = torch.einsum("rpy,cyx->rpcx", wy.to(dtype), feature[image].to(dtype))
                found = torch.einsum("rqx,rpcx->rcpq", wx.to(dtype), rows)
                out = _put(out, found, some, among)
    return out.to(features[0].dtype)


def _boxes(wanted: Tensor, step: int) -> Iterator[tuple[Tensor | slice, Tensor | None]]:
    """Yield the numbers of the wanted boxes (R,), `step` at a time; or all boxes with which of them are wanted, where shapes must
    not depend on values.
    """
    if has_values(wanted):
        for some in wanted.nonzero()[:, 0].split(step):
            yield some, None
    else:
        yield slice(None), wanted


def _put(out: Tensor, found: Tensor, some: Any, among: Tensor | None) -> Tensor:
    """Put what was found of `_boxes` in their rows of out, zeros so far."""
    if among is None:
        return out.index_add_(0, some, found)
    return torch.where(among.reshape(-1, *[1] * (out.dim() - 1)), found, out)


def pool_regions(
    tokens: Tensor,
    rois: Tensor,
    grid_height: int,
    grid_width: int,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    num_prefix_tokens: int,
    normalize: bool,
) -> Tensor:
    """Map tokens (B, N, C) and rois (R, 5) to the mean over RoIAlign's bins, (R, C)."""
    dtype, bins, size = compute_dtype(tokens), (pooled_height, pooled_width), (grid_height, grid_width)
    maps = tokens[:, num_prefix_tokens:].to(dtype)
    if normalize:
        maps = F.normalize(maps, dim=-1)
    rois = rois.detach()
    # Connected without boxes too.
    pooled = maps.new_zeros(rois.shape[0], tokens.shape[2]) + maps.flatten()[:0].sum()
    rois = torch.cat([rois[:, :1], torch.where(is_box(rois)[:, None], rois[:, 1:], torch.nan)], 1)
    for image in range(tokens.shape[0]):
        for some, among in _boxes(rois[:, 0].long() == image, max(1, CHUNK // maps.shape[1])):
            wy, wx = box_weights(rois[some], size, spatial_scale, bins, sampling_ratio, aligned)
            weights = (wy.mean(1)[:, :, None] * wx.mean(1)[:, None]).flatten(1).to(dtype)
            pooled = _put(pooled, weights @ maps[image], some, among)
    return pooled.to(tokens.dtype)


def pyramid_levels(
    rois: Tensor, finest: int, count: int, canonical_scale: float, canonical_level: float
) -> Tensor:
    """Return the level of each of rois (R, 5) among `count`, the finest of stride 2 ** finest: (R,) int64, 0 for the finest."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    # 1e-6 as in torchvision, so that a box of exactly the canonical scale is not a rounding error below its level.
    level = torch.floor(canonical_level + torch.log2(area.sqrt() / canonical_scale) + 1e-6) - finest
    return level.nan_to_num(0.0).clamp(0, count - 1).long()


def similarities(embeds: Tensor, text_embeds: Tensor, temperature: float | Tensor) -> Tensor:
    """Map embeds (R, C) and text_embeds (1 + n, C), of any length, to their cosines by the temperature, (R, 1 + n)."""
    with no_autocast(embeds):
        return (F.normalize(embeds, dim=1) / temperature) @ F.normalize(text_embeds, dim=1).T


def score_regions(
    region_embeds: Tensor,
    text_embeds: Tensor,
    vlm_embeds: Tensor | None,
    exponent: Tensor,
    objectness: Tensor | None,
    temperature: float | Tensor,
    vlm_temperature: float | Tensor,
    objectness_power: float,
    renormalize: bool,
) -> Tensor:
    """Do `combine_scores` of the similarities of embeddings, in the dtype of exponent."""
    text_embeds = text_embeds.to(exponent.dtype)
    logits = similarities(region_embeds.to(exponent.dtype), text_embeds, temperature)
    vlm_logits = None
    if vlm_embeds is not None:
        vlm_logits = similarities(vlm_embeds.to(exponent.dtype), text_embeds, vlm_temperature)
    return combine_scores(logits, vlm_logits, exponent, objectness, objectness_power, renormalize)


def combine_scores(
    logits: Tensor,
    vlm_logits: Tensor | None,
    exponent: Tensor,
    objectness: Tensor | None,
    objectness_power: float,
    renormalize: bool,
) -> Tensor:
    """Map logits (R, 1 + n), background first, to the scores of the labels, (R, n).

    exponent (n,): w of each label; objectness (R,). In logarithms, so that a product of two tiny probabilities is exact.
    """
    log_p = logits.log_softmax(1)
    scores = log_p[:, 1:]
    if vlm_logits is not None:
        scores = (1 - exponent) * scores + exponent * vlm_logits.log_softmax(1)[:, 1:]
        if renormalize:
            scores = torch.cat([log_p[:, :1], scores], 1).log_softmax(1)[:, 1:]
    scores = scores.exp()
    if objectness is not None:
        scores = scores * objectness[:, None] ** objectness_power
    return scores
