"""Checks of the arguments of the region ops; messages name the op, the argument, the rule and the value seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cfmvit.ops.regions import reference
from cfmvit.ops.shared.checks import FLOATING


def images(op: str, image: Tensor, batch: int) -> None:
    """Check the image numbers of boxes."""
    wrong = image[~((image >= 0) & (image < batch))]
    if wrong.numel():
        raise ValueError(
            f"{op}: boxes must have an image number in [0, {batch}) first, got {wrong[0].item()}"
        )


def floating(op: str, name: str, tensor: Tensor, dim: int) -> None:
    """Check a floating-point tensor of a number of dimensions."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    if tensor.dim() != dim:
        raise ValueError(f"{op}: {name} must have {dim} dimensions, got shape {tuple(tensor.shape)}")
    if dim == 4 and 0 in tensor.shape[2:]:
        raise ValueError(f"{op}: {name} must have a non-empty map, got shape {tuple(tensor.shape)}")


def levels(op: str, features: list[Tensor]) -> None:
    """Check the maps of a feature pyramid."""
    if not features:
        raise ValueError(f"{op}: features must have at least one level, got none")
    for level in features:
        floating(op, "features", level, 4)
        if level.shape[:2] != features[0].shape[:2]:
            raise ValueError(
                f"{op}: features must have equal batch and channels on every level, "
                f"got {tuple(features[0].shape)} and {tuple(level.shape)}"
            )
        if level.dtype != features[0].dtype or level.device != features[0].device:
            raise TypeError(
                f"{op}: features must have equal dtype and device on every level, "
                f"got {features[0].dtype} on {features[0].device} and {level.dtype} on {level.device}"
            )


def strides(op: str, features: list[Tensor], strides: Sequence[float]) -> None:
    """Check one stride a level."""
    if len(strides) != len(features):
        raise ValueError(
            f"{op}: strides must have one number for each of {len(features)} levels, got {len(strides)}"
        )
    if strides[0] <= 0 or any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(f"{op}: strides must be positive, each twice the one before, got {tuple(strides)}")


def grid(op: str, tokens: Tensor, grid_size: tuple[int, int], num_prefix_tokens: int) -> tuple[int, int]:
    """Check the grid that tokens lie on."""
    given = tuple(grid_size) if hasattr(grid_size, "__len__") else grid_size
    if not isinstance(given, tuple) or len(given) != 2 or min(given) < 1:
        raise ValueError(f"{op}: grid_size must be two positive integers, got {given}")
    if num_prefix_tokens < 0:
        raise ValueError(f"{op}: num_prefix_tokens must not be negative, got {num_prefix_tokens}")
    height, width = grid_size
    if tokens.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"{op}: tokens must have num_prefix_tokens + h * w = {num_prefix_tokens + height * width} tokens, "
            f"got {tokens.shape[1]}"
        )
    return int(height), int(width)


def sampling(op: str, output_size: int | Sequence[int], sampling_ratio: int) -> tuple[int, int]:
    """Check bins and samples, and return the bins (rows, columns)."""
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"{op}: output_size must be one or two positive integers, got {output_size}")
    most = reference.MAX_SAMPLES
    if sampling_ratio > most:
        raise ValueError(f"{op}: sampling_ratio must be at most {most}, got {sampling_ratio}")
    return int(bins[0]), int(bins[1])


def scale(op: str, name: str, scale: float) -> float:
    """Check a number that must be positive and finite, and return it."""
    if not 0 < scale < math.inf:
        raise ValueError(f"{op}: {name} must be positive and finite, got {scale}")
    return float(scale)


def scores(
    region_embeds: Tensor,
    text_embeds: Tensor,
    vlm_embeds: Tensor | None,
    base: Tensor | None,
    objectness: Tensor | None,
) -> None:
    """Check the arguments of score_regions."""
    op = "score_regions"
    floating(op, "region_embeds", region_embeds, 2)
    floating(op, "text_embeds", text_embeds, 2)
    rows, width = region_embeds.shape
    if text_embeds.shape[0] < 1 or text_embeds.shape[1] != width:
        raise ValueError(
            f"{op}: text_embeds must have shape (1 + n, {width}), background first, got {tuple(text_embeds.shape)}"
        )
    if vlm_embeds is not None:
        floating(op, "vlm_embeds", vlm_embeds, 2)
        if vlm_embeds.shape != region_embeds.shape:
            raise ValueError(
                f"{op}: vlm_embeds must have shape {(rows, width)}, got {tuple(vlm_embeds.shape)}"
            )
    labels = text_embeds.shape[0] - 1
    if base is not None:
        if not isinstance(base, Tensor) or base.dtype != torch.bool:
            found = base.dtype if isinstance(base, Tensor) else type(base).__name__
            raise TypeError(f"{op}: base must be bool, got {found}")
        if base.shape != (labels,):
            raise ValueError(f"{op}: base must have shape ({labels},), got {tuple(base.shape)}")
    if objectness is not None:
        floating(op, "objectness", objectness, 1)
        if objectness.shape != (rows,):
            raise ValueError(f"{op}: objectness must have shape ({rows},), got {tuple(objectness.shape)}")
    for name, tensor in (
        ("text_embeds", text_embeds),
        ("vlm_embeds", vlm_embeds),
        ("base", base),
        ("objectness", objectness),
    ):
        if tensor is not None and tensor.device != region_embeds.device:
            raise ValueError(
                f"{op}: {name} must be on region_embeds' device {region_embeds.device}, got {tensor.device}"
            )


def temperature(name: str, value: float | Tensor) -> None:
    """Check a temperature, a number or a 0-d tensor."""
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"score_regions: {name} must be a number or 0-d, got shape {tuple(value.shape)}")
    elif not 0 < value < math.inf:
        raise ValueError(f"score_regions: {name} must be positive and finite, got {value}")
