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
    torch._check(logit_scale.dim() == 0, lambda: f"{op}: logit_scale must be 0-d, got {logit_scale.dim()}-d")
    if label_offset is None:
        return
    torch._check(
        label_offset >= 0 and text.shape[0] - image.shape[0] >= label_offset,
        lambda: (
            f"{op}: text must have at least image rows + label_offset rows, got {text.shape[0]} rows for "
            f"{image.shape[0]} + {label_offset}"
        ),
    )


def check_groups(op: str, image: Tensor, text: Tensor, *groups: Tensor | None) -> None:
    """Check the group ids of images and texts."""
    torch._check(
        (groups[0] is None) == (groups[1] is None),
        lambda: f"{op}: image_groups and text_groups must both be given or neither",
    )
    if groups[0] is None:
        return
    for name, ids, rows in zip(("image", "text"), groups, (image.shape[0], text.shape[0]), strict=True):
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
    image_lse: Tensor,
    text_lse: Tensor,
    grad_positive: Tensor,
    grad_image_lse: Tensor,
    grad_text_lse: Tensor,
) -> None:
    """Check what a backward op is given beside the features."""
    images, texts = image.shape[0], text.shape[0]
    _check_length(op, "image_lse", image_lse, images)
    _check_length(op, "text_lse", text_lse, texts)
    _check_length(op, "grad_positive", grad_positive, 0 if label_offset is None else images)
    _check_length(op, "grad_image_lse", grad_image_lse, images)
    _check_length(op, "grad_text_lse", grad_text_lse, texts)


def check_pairs(positive: Tensor, image_lse: Tensor, text_lse: Tensor) -> None:
    """Check what `pair_loss` is given."""
    torch._check(
        all(x.shape == positive.shape and x.dtype == positive.dtype for x in (image_lse, text_lse)),
        lambda: (
            f"pair_loss: image_lse and text_lse must have positive's shape and dtype, {tuple(positive.shape)} "
            f"{positive.dtype}, got {tuple(image_lse.shape)} {image_lse.dtype} and {tuple(text_lse.shape)} {text_lse.dtype}"
        ),
    )


def _check_length(op: str, name: str, x: Tensor, length: int) -> None:
    torch._check(
        x.dim() == 1 and x.shape[0] == length,
        lambda: f"{op}: {name} must have shape ({length},), got {tuple(x.shape)}",
    )
