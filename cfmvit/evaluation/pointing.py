"""Pointing: does the maximum of a token-text similarity map fall into the box of what the text names?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cfmvit.evaluation.embeddings import frozen, unit_rows
from cfmvit.evaluation.zero_shot import sound_samples

if TYPE_CHECKING:
    from cfmvit.models import CFMViT

# Of one image (1, 3, H, W) and its number: the tokens (1, h * w, C) in the joint space.
Tokens = Callable[[Tensor, int], Tensor]


def pointing_accuracy(
    model: Any,
    dataset: Any,
    classes: Tensor,
    tokens: Tokens,
    *,
    limit: int | None = None,
) -> dict[str, float]:
    """Point at each category that an image shows: the token most similar to its text, right when it lies in one of its boxes.

    The pointing game (Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016) on the paper's Figure 1: it
    asks whether a similarity map localises, without a threshold. A maximum that several tokens share is right when all of
    them are; a map that is flat never is.

    Args:
        model: where the images are encoded, in evaluation mode.
        dataset: a detection data set: ``load(index, rng)`` with image, boxes, labels, valid_size; and ``categories``.
        classes: (K, C), one row for each of ``dataset.categories``.
        tokens: encodes an image, for example ``lambda images, _: value_tokens(model, images)``.
        limit: the first so many images; all by default.

    Returns:
        ``{"hit", "hit_base", "hit_novel", "chance"}``: fractions of the (image, category) pairs; ``chance`` is that of a token
        drawn at random.

    Raises:
        ValueError: ``classes`` has another number of rows than there are categories.
    """
    if len(classes) != len(dataset.categories):
        raise ValueError(
            f"pointing_accuracy: classes must have one row per category {len(dataset.categories)}, got {len(classes)}"
        )
    patch, hits, shares, novel = model.visual.patch_size, [], [], []
    texts = unit_rows(classes, "pointing_accuracy", "classes").cpu()
    count = len(dataset) if limit is None else min(limit, len(dataset))
    with frozen(model):
        for number, sample in enumerate(sound_samples(dataset, range(count))):
            image = torch.as_tensor(sample["image"])
            dense = tokens(image[None].to(model.device), number)[0]
            centres = _centres(image.shape[-2] // patch, image.shape[-1] // patch, patch)
            height, width = sample["valid_size"]
            real = (centres[:, 0] < width) & (centres[:, 1] < height)
            dense = unit_rows(dense, "pointing_accuracy", "tokens").cpu()[real]
            boxes, labels = torch.as_tensor(sample["boxes"]), torch.as_tensor(sample["labels"])
            for label in labels.unique().tolist():
                inside = _inside(centres[real], boxes[labels == label])
                similarity = dense @ texts[label]
                hits.append(bool(inside[similarity == similarity.max()].all()))
                shares.append(inside.double().mean().item())
                novel.append(dataset.categories[label].novel)
    found, is_novel = np.array(hits, float), np.array(novel, bool)
    groups = {"hit": found, "hit_base": found[~is_novel], "hit_novel": found[is_novel]}
    rates = {name: float(values.mean()) if len(values) else float("nan") for name, values in groups.items()}
    return {**rates, "chance": float(np.mean(shares)) if shares else float("nan")}


def value_tokens(model: CFMViT, images: Tensor) -> Tensor:
    """Embed every patch in the joint space by its own value: in the last block no token attends to others.

    Tokens that attend in a tower pooled by the mean take over what the whole image, or the window around them, shows: its
    background lights up with its object, up to the window's edge. Their values keep to their own place (MaskCLIP, Zhou et al.,
    ECCV 2022). Images are encoded whole, with interpolated positions and no windows, so that a map has no seam.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1], sides multiples of the patch size.

    Returns:
        (B, h * w, C), row-major.
    """
    return model.dense(model.visual.forward_values(images))


def imagined_tokens(model: CFMViT, images: Tensor, seed: int) -> Tensor:
    """Return what the decoder predicts of each token from others that are seen: the paper's Figure 1.

    Images are encoded whole, with interpolated positions.

    Args:
        images: (B, 3, H, W).
        seed: of the choice of tokens that are seen.

    Returns:
        (B, h * w, C) in the joint space, row-major.
    """
    return model.reconstruct(images, generator=torch.Generator(images.device).manual_seed(seed))


def _centres(height: int, columns: int, patch: int) -> Tensor:
    """Return the x, y of each token's centre in pixels, (h * w, 2)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(columns), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * patch


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Say which points lie in any of the boxes, (n,) bool."""
    above = (points[:, None] >= boxes[None, :, :2]).all(dim=-1)
    below = (points[:, None] < boxes[None, :, 2:]).all(dim=-1)
    return (above & below).any(dim=1)
