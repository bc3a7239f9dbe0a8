"""The rules of csrc/torch/contrastive_checks.h for what the native library does not see: tensors without data, and those of a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def check_towers(op: str, image: Tensor, text: Tensor, logit_scale: Tensor, label_offset: int | None) -> None:
    """Check both feature matrices, the scale, and where the pairs lie."""
    torch._check(
        image.dim() == 2 and text.dim() == 2 and image.shape[1] == text.shape[1],
        lambda: (
            f"{op}: image and text must be matrices of equal width, got {image.dim()}-d and {text.dim()}-d "
            f"of width {image.shape[-1]} and {text.shape[-1]}"
        ),
    )
    torch._check(
        image.dtype == text.dtype and image.is_floating_point(),
        lambda: f"{op}: image and text must have one floating dtype, got {image.dtype} and {text.dtype}",
    )
    check_scalars(op, logit_scale=logit_scale)
    if label_offset is None:
        return
    torch._check(
        label_offset >= 0 and text.shape[0] - image.shape[0] >= label_offset,
        lambda: (
            f"{op}: text must have at least image rows + label_offset rows, got {text.shape[0]} rows for "
            f"{image.shape[0]} + {label_offset}"
        ),
    )


def check_scalars(op: str, **scalars: Tensor) -> None:
    """Check what has no dimensions."""
    for name, x in scalars.items():
        torch._check(x.dim() == 0, lambda: f"{op}: {name} must be 0-d, got {x.dim()}-d")  # noqa: B023


def check_groups(
    op: str, image: Tensor, text: Tensor, image_groups: Tensor | None, text_groups: Tensor | None
) -> None:
    """Check the group ids of images and texts."""
    torch._check(
        (image_groups is None) == (text_groups is None),
        lambda: f"{op}: image_groups and text_groups must both be given or neither",
    )
    if image_groups is None or text_groups is None:
        return
    for name, ids, rows in (("image", image_groups, image.shape[0]), ("text", text_groups, text.shape[0])):
        torch._check(
            ids.dim() == 1 and ids.shape[0] == rows,
            lambda: f"{op}: {name}_groups must have one id per row, got {ids.numel()} for {rows}",  # noqa: B023
        )


def check_weights(op: str, image: Tensor, text: Tensor, text_weight: float) -> None:
    """Check that a loss over columns has a text for each image."""
    torch._check(
        text_weight == 0 or text.shape[0] == image.shape[0],
        lambda: (
            f"{op}: text_weight must be 0 unless text has image's {image.shape[0]} rows, got {text_weight} and "
            f"{text.shape[0]} rows"
        ),
    )


def check_vectors(
    op: str,
    image: Tensor,
    text: Tensor,
    label_offset: int | None,
    image_shift: Tensor,
    text_shift: Tensor,
    grad_positive: Tensor,
    grad_image_sum: Tensor,
    grad_text_sum: Tensor,
) -> None:
    """Check what a backward op is given beside the features."""
    images, texts = image.shape[0], text.shape[0]
    _check_length(op, "image_shift", image_shift, images)
    _check_length(op, "text_shift", text_shift, texts)
    _check_length(op, "grad_positive", grad_positive, 0 if label_offset is None else images)
    _check_length(op, "grad_image_sum", grad_image_sum, images)
    _check_length(op, "grad_text_sum", grad_text_sum, texts)


def check_pairs(
    positive: Tensor,
    image_shift: Tensor,
    image_sum: Tensor,
    text_shift: Tensor,
    text_sum: Tensor,
    logit_scale: Tensor,
) -> None:
    """Check what `pair_loss` is given."""
    op = "pair_loss"
    torch._check(
        positive.dim() == 1, lambda: f"{op}: positive must have shape (B,), got {tuple(positive.shape)}"
    )
    vectors = dict(image_shift=image_shift, image_sum=image_sum, text_shift=text_shift, text_sum=text_sum)
    for name, x in vectors.items():
        _check_length(op, name, x, positive.shape[0])
        torch._check(
            x.dtype == positive.dtype,
            lambda: f"{op}: {name} must have dtype {positive.dtype}, got {x.dtype}",  # noqa: B023
        )
    check_scalars(op, logit_scale=logit_scale)


def _check_length(op: str, name: str, x: Tensor, length: int) -> None:
    torch._check(
        x.dim() == 1 and x.shape[0] == length,
        lambda: f"{op}: {name} must have shape ({length},), got {tuple(x.shape)}",
    )
