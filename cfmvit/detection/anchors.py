"""Anchors of the proposal network, and the box code that is relative to them."""

from __future__ import annotations

import torch
from torch import Tensor


def make_anchors(
    shapes: list[tuple[int, int]], strides: list[float], scale: float, device: torch.device
) -> Tensor:
    """Return one square anchor a place, (A, 4) xyxy float32, level after level, row-major.

    Args:
        shapes: (h, w) of each level.
        strides: pixels between the places of each level.
        scale: side of an anchor in strides.
    """
    levels = []
    for (height, width), stride in zip(shapes, strides):
        y = (torch.arange(height, device=device) + 0.5) * stride
        x = (torch.arange(width, device=device) + 0.5) * stride
        center = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
        half = scale * stride / 2
        levels.append(torch.cat([center - half, center + half], dim=1))
    return torch.cat(levels)


def encode_lrtb(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances from anchor centres to the left, right, top and bottom of boxes, in anchor sides.

    A distance is negative where the centre lies outside the box. Shapes (..., 4) xyxy -> (..., 4).
    """
    center = (anchors[..., :2] + anchors[..., 2:]) / 2
    side = anchors[..., 2:] - anchors[..., :2]
    left_top = (center - boxes[..., :2]) / side
    right_bottom = (boxes[..., 2:] - center) / side
    return torch.stack(
        [left_top[..., 0], right_bottom[..., 0], left_top[..., 1], right_bottom[..., 1]], dim=-1
    )


def decode_lrtb(anchors: Tensor, distances: Tensor) -> Tensor:
    """Invert ``encode_lrtb``: (..., 4) distances -> (..., 4) xyxy boxes."""
    center = (anchors[..., :2] + anchors[..., 2:]) / 2
    side = anchors[..., 2:] - anchors[..., :2]
    return torch.cat([center - distances[..., 0::2] * side, center + distances[..., 1::2] * side], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """Return sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)), zero where the centre is outside: (..., 4) -> (...)."""
    pairs = distances.unflatten(-1, (2, 2))
    ratio = pairs.amin(-1) / pairs.amax(-1).clamp(min=1e-8)
    inside = (distances > 0).all(-1)
    return torch.where(inside, ratio.clamp(min=0).prod(-1).sqrt(), 0.0)


def lrtb_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of boxes around the same centre, both given as non-negative distances: (..., 4) -> (...)."""
    common = torch.minimum(first, second).unflatten(-1, (2, 2)).sum(-1).prod(-1)
    area = first.unflatten(-1, (2, 2)).sum(-1).prod(-1) + second.unflatten(-1, (2, 2)).sum(-1).prod(-1)
    return common / (area - common).clamp(min=1e-8)
