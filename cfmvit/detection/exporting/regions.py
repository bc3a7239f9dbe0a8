"""Features of as many boxes in every image, in operations that other runtimes have: no shape depends on a value.

Letters: B images, K boxes of each, C channels, N tokens.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit._require import require
from cfmvit.detection.region_heads import Aligner
from cfmvit.ops.regions import reference


def crop(align: Aligner, maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
    """Crop boxes (B, K, 4) xyxy from the maps (B, C, h_l, w_l) as ``align`` does, (B * K, C, size, size).

    The levels are put below one another into one map, so that a box is cropped once, whatever its level. Each has a frame that
    repeats its border: RoIAlign samples half a place beyond a map, and takes its border there.
    """
    rois = _numbered(boxes)
    finest = round(math.log2(align.strides[0]))
    levels = reference.pyramid_levels(rois, finest, len(maps), 224.0, 4.0)
    framed = [F.pad(level, (1, 1, 1, 1), mode="replicate") for level in maps]
    width = max(level.shape[3] for level in framed)
    stacked = torch.cat([F.pad(level, (0, width - level.shape[3])) for level in framed], dim=2)
    tops = list(accumulate((level.shape[2] for level in framed[:-1]), initial=0))
    scale = rois.new_tensor([1 / stride for stride in align.strides])[levels, None]
    corner = F.pad(rois.new_tensor(tops)[levels, None], (1, 0)) + 1
    moved = rois[:, 1:] * scale + corner.repeat(1, 2)
    roi_align = require("torchvision.ops", extra="detection").roi_align
    return roi_align(
        stacked, torch.cat([rois[:, :1], moved], dim=1), size, 1.0, align.sampling_ratio, aligned=True
    )


def pool(dense: Tensor, grid: tuple[int, int], boxes: Tensor, patch_size: int, samples: int) -> Tensor:
    """Average dense features (B, N, E) over boxes (B, K, 4) as ``frozen_embeddings`` does, (B * K, E)."""
    bins = (samples, samples)
    rows, columns = reference.box_weights(_numbered(boxes), grid, 1 / patch_size, bins, 1, True)
    weights = (rows.mean(1)[:, :, None] * columns.mean(1)[:, None]).flatten(1).to(dense.dtype)
    return (weights.unflatten(0, boxes.shape[:2]) @ dense).flatten(0, 1)


def _numbered(boxes: Tensor) -> Tensor:
    """Return boxes (B, K, 4) as (B * K, 5), the image's number first."""
    image = torch.arange(boxes.shape[0], device=boxes.device).to(boxes.dtype)
    return torch.cat([image[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=2).flatten(0, 1)
