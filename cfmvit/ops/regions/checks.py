"""Checks of the arguments of the region ops; messages name the op, the argument, the rule and the value seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from cfmvit.ops.regions import reference
from cfmvit.ops.shared.checks import FLOATING, compiled_rule, float_dtype
from cfmvit.ops.shared.transforms import unwrapped

# Whole numbers up to here are exact in each dtype that boxes may have.
_EXACT_NUMBERS = {dtype: int(2 / torch.finfo(dtype).eps) for dtype in FLOATING}


def boxes(op: str, boxes: Tensor | Sequence[Tensor], features: Tensor, batch: int) -> None:
    """Check the shapes, dtypes and device of boxes, (R, 5) or (R_i, 4) of each image, against features of `batch` images."""
    several = not isinstance(boxes, Tensor)
    if several and not isinstance(boxes, Sequence):
        raise TypeError(f"{op}: boxes must be a tensor or a sequence of tensors, got {type(boxes).__name__}")
    for some in boxes if several else [boxes]:
        if not isinstance(some, Tensor):
            raise TypeError(
                f"{op}: boxes must be a tensor or a sequence of tensors, "
                f"got {type(boxes).__name__} of {type(some).__name__}"
            )
        columns = 4 if several else 5
        if some.dim() != 2 or some.shape[1] != columns:
            shape = "(R_i, 4) for each image" if several else "(R, 5)"
            raise ValueError(f"{op}: boxes must have shape {shape}, got {tuple(some.shape)}")
        float_dtype(op, "boxes", some)
        if some.device != features.device:
            raise ValueError(
                f"{op}: boxes must be on the features' device {features.device}, got {some.device}"
            )
    if isinstance(boxes, Tensor):
        _image_number_dtype(op, boxes.dtype, batch)
    elif torch.compiler.is_compiling():  # the batch may be known only at run time
        compiled_rule(len(boxes) == batch, f"{op}: boxes must have one tensor for each image")
    elif len(boxes) != batch and (len(boxes) < batch or any(some.shape[0] for some in boxes[batch:])):
        raise ValueError(f"{op}: boxes must have one tensor for each of {batch} images, got {len(boxes)}")


def _image_number_dtype(op: str, dtype: torch.dtype, batch: int) -> None:
    """Check that a dtype holds the number of every image: a rounded one would be another image's."""
    exact = _EXACT_NUMBERS[dtype]
    # While tracing, a comparison becomes a condition on the batch: not for a limit of 16 million.
    if (exact < 2**24 or not torch.compiler.is_compiling()) and batch - 1 > exact:
        raise ValueError(
            f"{op}: boxes must have a dtype that holds the image numbers 0 to {batch - 1} exactly, got {dtype}"
        )


def image_numbers(op: str, image: Tensor, batch: int) -> None:
    """Check the image numbers of boxes."""
    image = unwrapped(image)
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
    if not isinstance(given, tuple) or len(given) != 2 or not all(n >= 1 for n in given):
        raise ValueError(f"{op}: grid_size must be two positive integers, got {given}")
    if num_prefix_tokens < 0:
        raise ValueError(f"{op}: num_prefix_tokens must not be negative, got {num_prefix_tokens}")
    height, width = given
    if tokens.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"{op}: tokens must have num_prefix_tokens + h * w = {num_prefix_tokens + height * width} tokens, "
            f"got {tokens.shape[1]}"
        )
    return whole(height), whole(width)


def whole(number: int) -> int:
    """Return a number as an int; one that is known only at run time stays so."""
    return number if isinstance(number, (int, torch.SymInt)) else int(number)


def sampling(
    op: str, output_size: int | Sequence[int], sampling_ratio: int, *, least: int = 0
) -> tuple[int, int]:
    """Check bins, `least` along each side, and samples, and return the bins (rows, columns)."""
    several = hasattr(output_size, "__len__")
    bins = tuple(cast("Sequence[int]", output_size)) if several else (cast(int, output_size),) * 2
    if len(bins) != 2 or not all(hasattr(n, "__index__") for n in bins) or min(bins) < least:
        rule = "one or two positive integers" if least else "one or two integers, none negative"
        raise ValueError(f"{op}: output_size must be {rule}, got {output_size}")
    most = reference.MAX_SAMPLES
    if max(bins) > most:
        raise ValueError(f"{op}: output_size must be at most {most}, got {output_size}")
    if sampling_ratio > 0 and sampling_ratio * max(1, *bins) > most:
        raise ValueError(
            f"{op}: sampling_ratio must give at most {most} samples along a side of a box, "
            f"got {sampling_ratio} in each of {bins[0]} x {bins[1]} bins"
        )
    return whole(bins[0]), whole(bins[1])


def scale(op: str, name: str, scale: float) -> float:
    """Check a number that must be finite, and return it."""
    if not -math.inf < scale < math.inf:
        raise ValueError(f"{op}: {name} must be finite, got {scale}")
    return float(scale)


def positive(op: str, name: str, value: float) -> float:
    """Check a number that must be positive and finite, and return it."""
    if not 0 < value < math.inf:
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")
    return float(value)


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
    for holds in (text_embeds.shape[0] >= 1, text_embeds.shape[1] == width):
        _rule(op, "text_embeds", text_embeds, holds, "(1 + n, C)", f"(1 + n, {width})", ", background first")
    labels = text_embeds.shape[0] - 1
    if vlm_embeds is not None:
        floating(op, "vlm_embeds", vlm_embeds, 2)
        _shape(op, "vlm_embeds", vlm_embeds, (rows, width), "(R, C)")
    if base is not None:
        if not isinstance(base, Tensor) or base.dtype != torch.bool:
            found = base.dtype if isinstance(base, Tensor) else type(base).__name__
            raise TypeError(f"{op}: base must be bool, got {found}")
        _shape(op, "base", base, (labels,), "(n,)")
    if objectness is not None:
        floating(op, "objectness", objectness, 1)
        _shape(op, "objectness", objectness, (rows,), "(R,)")
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


def _shape(op: str, name: str, tensor: Tensor, wanted: tuple[int, ...], letters: str) -> None:
    """Check that a tensor has a shape, `letters` in words."""
    _rule(op, name, tensor, tensor.dim() == len(wanted), letters, wanted)
    for size, other in zip(tensor.shape, wanted):
        _rule(op, name, tensor, size == other, letters, wanted)


def _rule(
    op: str, name: str, tensor: Tensor, holds: bool, letters: str, shape: object, more: str = ""
) -> None:
    """Raise unless a rule about a shape holds; where sizes are known only at run time, it is checked then."""
    if torch.compiler.is_compiling():
        compiled_rule(holds, f"{op}: {name} must have shape {letters}{more}")
    elif not holds:
        raise ValueError(f"{op}: {name} must have shape {shape}{more}, got {tuple(tensor.shape)}")


def temperature(name: str, value: float | Tensor) -> None:
    """Check a temperature, a number or a 0-d tensor."""
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"score_regions: {name} must be a number or 0-d, got shape {tuple(value.shape)}")
    else:
        positive("score_regions", name, value)
