"""The rules of the contrastive losses' arguments, with their messages."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmvit.ops.contrastive.collectives import check_group
from cfmvit.ops.contrastive.text_exchange import EXCHANGES
from cfmvit.ops.shared.checks import certain, float_dtype

DIRECTIONS = ("both", "image_to_text", "text_to_image")
REDUCTIONS = ("mean", "sum", "none")


def check_tensors(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    group_ids: Tensor | None,
    op: str = "info_nce",
) -> None:
    """Check the features and the scale that a public loss is given."""
    for name, features in (("image", image), ("text", text)):
        if not isinstance(features, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(features).__name__}")
        float_dtype(op, name, features)
        if features.dim() != 2 or any(certain(n == 0) for n in features.shape):
            raise ValueError(f"{op}: {name} must be a non-empty matrix, got shape {tuple(features.shape)}")
    if certain(image.shape[1] != text.shape[1]):
        raise ValueError(f"{op}: text must have image's width {image.shape[1]}, got {text.shape[1]}")
    if image.dtype != text.dtype and not _autocast_converts(image):
        raise TypeError(f"{op}: text must have image's dtype {image.dtype}, got {text.dtype}")
    for name, scalar in (("logit_scale", logit_scale), ("logit_bias", logit_bias)):
        if name == "logit_bias" and scalar is None:
            continue
        if not isinstance(scalar, Tensor) or not scalar.is_floating_point():
            kind = scalar.dtype if isinstance(scalar, Tensor) else type(scalar).__name__
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {kind}")
        if scalar.dim() != 0:
            raise ValueError(f"{op}: {name} must be 0-d, got shape {tuple(scalar.shape)}")
    if group_ids is not None:
        if not isinstance(group_ids, Tensor) or group_ids.is_floating_point() or group_ids.is_complex():
            kind = group_ids.dtype if isinstance(group_ids, Tensor) else type(group_ids).__name__
            raise TypeError(f"{op}: group_ids must be an integer tensor, got {kind}")
        if group_ids.dim() != 1 or certain(group_ids.shape[0] != text.shape[0]):
            raise ValueError(
                f"{op}: group_ids must have shape ({text.shape[0]},), got shape {tuple(group_ids.shape)}"
            )
    for name, tensor in (
        ("text", text), ("logit_scale", logit_scale), ("logit_bias", logit_bias), ("group_ids", group_ids),
    ):  # fmt: skip
        if tensor is not None and tensor.device != image.device:
            raise ValueError(f"{op}: {name} must be on image's device {image.device}, got {tensor.device}")


def check_pairs(
    image: Tensor,
    text: Tensor,
    direction: str,
    label_offset: int,
    process_group: object,
) -> None:
    """Check which text belongs to each image, and the groups of both."""
    if direction not in DIRECTIONS:
        raise ValueError(f"info_nce: direction must be one of {DIRECTIONS}, got {direction!r}")
    if not isinstance(label_offset, int) or label_offset < 0:
        raise ValueError(f"info_nce: label_offset must be an integer of at least 0, got {label_offset!r}")
    images, texts = image.shape[0], text.shape[0]
    if process_group is not None:
        check_group("info_nce", process_group)
        if label_offset or certain(texts != images):
            raise ValueError(
                f"info_nce: text must have image's {images} rows and label_offset be 0 with a process_group, got "
                f"{texts} rows and label_offset {label_offset}"
            )
    if direction != "image_to_text" and (label_offset or certain(texts != images)):
        raise ValueError(
            f"info_nce: text must have image's {images} rows and label_offset be 0 unless direction is "
            f"'image_to_text', got {texts} rows and label_offset {label_offset}"
        )
    if certain(texts < images + label_offset):
        raise ValueError(
            f"info_nce: text must have at least {images + label_offset} rows (image rows + label_offset), got {texts}"
        )


def check_options(label_smoothing: float, reduction: str) -> None:
    """Check info_nce's options that are no tensors."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"info_nce: label_smoothing must be in [0, 1), got {label_smoothing!r}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"info_nce: reduction must be one of {REDUCTIONS}, got {reduction!r}")


def check_exchange(op: str, exchange: str | None, process_group: object) -> None:
    """Check how texts are to travel between ranks."""
    if exchange is not None and (exchange not in EXCHANGES or process_group is None):
        rule = f"one of {tuple(EXCHANGES)}, and come with a process_group"
        raise ValueError(f"{op}: exchange must be {rule}, got {exchange!r} and {process_group!r}")


def _autocast_converts(image: Tensor) -> bool:
    device = image.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
