"""Name what is in boxes by the frozen towers alone: no detector, no training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cfmvit.detection.backbone import frozen_attention
from cfmvit.detection.ensemble import frozen_embeddings
from cfmvit.detection.image_input import prepare, read_image
from cfmvit.detection.templates import expand_templates
from cfmvit.detection.vocabulary import TextBank, Words
from cfmvit.models import CFMViT
from cfmvit.ops import score_regions

_LARGEST = 1024


@torch.no_grad()
def classify_regions(
    model: CFMViT,
    image: Any,
    boxes: Any,
    labels: Words,
    *,
    image_size: int | None = None,
    templates: Iterable[str] = ("clip",),
    temperature: float | None = None,
    samples: int = 14,
) -> Tensor:
    """Score labels for boxes in an image: the frozen part of a detector's scores.

    The image is encoded as a detector's frozen tower does: in windows of the pretraining size, the last block globally. A box's
    embedding is the mean of its dense features (see ``CFMViT.encode_dense``).

    Args:
        model: a CFM-ViT, pretrained or imported.
        image: a PIL image, a path, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W).
        boxes: (n, 4) x0, y0, x1, y1 in pixels of the image: a tensor, an array or lists. What lies outside the image is cut off.
        labels: what the boxes may be, or a ``Vocabulary`` made of it; the model remembers the labels that it was given.
        image_size: the image's longer side is resized to so many pixels, a multiple of the patch size; by default four times
            the pretraining size, but at most about 1024.
        templates: prompts with one ``{}``; ``"clip"`` stands for CLIP's 80.
        temperature: of the softmax over the labels and "background"; the model's own by default.
        samples: points of a box along each side.

    Returns:
        (n, labels) float32: probabilities, whose sum is less than 1 by that of "background".

    Raises:
        TypeError, ValueError: bad boxes or labels, a box outside the image, an image of an unknown kind, or a model without a
            text tower.
        FileNotFoundError: no image at the path.
    """
    if not isinstance(model, CFMViT):
        raise TypeError(f"classify_regions: model must be a CFMViT, got {type(model).__name__}")
    patch, grid = model.visual.patch_size, model.visual.grid
    if image_size is None:
        image_size = min(4 * grid, max(grid, _LARGEST // patch)) * patch
    if image_size < patch or image_size % patch:
        raise ValueError(
            f"classify_regions: image_size must be a multiple of the patch size {patch}, got {image_size}"
        )
    if temperature is None:
        temperature = math.exp(-float(model.logit_scale))
    elif not temperature > 0:
        raise ValueError(f"classify_regions: temperature must be positive, got {temperature}")
    prepared = prepare(read_image(image), image_size)
    corners = _boxes(boxes, prepared.original_size)
    was_training = model.training
    model.eval()
    try:
        text = _bank(model, templates).vocabulary(labels)
        pixels = prepared.pixels[None].to(model.device)
        attention = frozen_attention(model.visual.depth, grid if image_size > grid * patch else 0)
        dense = attention.encode_dense(model, pixels)
    finally:
        model.train(was_training)
    (height, width), (tall, wide) = prepared.original_size, prepared.valid_size
    scaled = corners * torch.tensor([wide / width, tall / height] * 2)
    side = image_size // patch
    embeds = frozen_embeddings(dense, (side, side), [scaled.to(model.device)], patch, samples)
    return score_regions(embeds.float(), text.embeddings.to(model.device), temperature=temperature).cpu()


def _bank(model: Any, templates: Iterable[str]) -> TextBank:
    """Return the model's own bank of labels under these templates, so that calls encode each label once."""
    banks: dict[tuple[str, ...], TextBank] = model.__dict__.setdefault("_text_banks", {})
    prompts = expand_templates(templates)
    if prompts not in banks:
        banks[prompts] = TextBank(model, prompts)
    return banks[prompts]


def _boxes(boxes: Any, size: tuple[int, int]) -> Tensor:
    """Return boxes as float32 (n, 4), cut to an image of (H, W)."""
    try:
        corners = torch.as_tensor(boxes, dtype=torch.float32).cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"classify_regions: boxes must be numbers of the shape (n, 4): {error}") from error
    if not corners.numel():
        return corners.new_zeros(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"classify_regions: boxes must have the shape (n, 4), got {tuple(corners.shape)}")
    if not corners.isfinite().all():
        raise ValueError("classify_regions: boxes must be finite, got NaN or infinity")
    empty = (corners[:, 2:] <= corners[:, :2]).any(dim=1).nonzero()
    if len(empty):
        raise ValueError(
            "classify_regions: boxes must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, got "
            f"{corners[int(empty[0])].tolist()}"
        )
    height, width = size
    cut = corners.clamp(min=0).minimum(corners.new_tensor([width, height, width, height]))
    outside = (cut[:, 2:] <= cut[:, :2]).any(dim=1).nonzero()
    if len(outside):
        raise ValueError(
            f"classify_regions: boxes must lie in the image of {width} x {height} pixels, at least in part, got "
            f"{corners[int(outside[0])].tolist()}"
        )
    return cut
