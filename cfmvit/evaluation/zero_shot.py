"""Zero-shot classification of images, and of regions pooled from frozen tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cfmvit.data.images import CorruptSample, log_corrupt
from cfmvit.evaluation.embeddings import check_index, frozen, ranks, share_within, unit_rows
from cfmvit.ops import pool_regions

if TYPE_CHECKING:
    from cfmvit.models import CFMViT


def class_embeddings(model: CFMViT, names: Sequence[str], templates: Iterable[str] = ("{}",)) -> Tensor:
    """Embed category names, (K, C) unit rows, each the mean over the templates."""
    from cfmvit.detection.vocabulary import TextBank

    return TextBank(model, templates).vocabulary(names).embeddings[1:]


def topk_accuracy(
    embeddings: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 5),
    novel: Collection[int] = (),
) -> dict[str, float]:
    """Share of embeddings whose class is among the k nearest, over all and over base and novel classes apart.

    Ties count against the model.

    Args:
        embeddings: (N, C), of any norm.
        classes: (K, C) class embeddings.
        labels: (N,) integer in [0, K).
        novel: class indices; empty leaves the split out.

    Returns:
        ``{"top1", "top5", "top1_base", "top1_novel", ..., "chance"}``: fractions; ``chance`` is that of top 1.

    Raises:
        ValueError: shapes that do not fit, NaN, or a label out of range.
    """
    embeddings = unit_rows(embeddings, "topk_accuracy", "embeddings")
    classes = unit_rows(classes, "topk_accuracy", "classes").to(embeddings.device)
    if embeddings.shape[1] != classes.shape[1]:
        raise ValueError(
            f"topk_accuracy: classes must have the width of embeddings {embeddings.shape[1]}, got {classes.shape[1]}"
        )
    check_index(labels, len(embeddings), len(classes), "topk_accuracy", "labels")
    labels = labels.to(embeddings.device)
    rank = ranks(embeddings, classes, labels)
    groups = {"": torch.ones_like(rank, dtype=torch.bool)}
    if len(novel):
        groups["_novel"] = torch.isin(labels, torch.tensor(sorted(novel), device=labels.device))
        groups["_base"] = ~groups["_novel"]
    accuracy = {f"top{k}{name}": share_within(rank[rows], k) for name, rows in groups.items() for k in ks}
    return {**accuracy, "chance": 1 / max(1, len(classes))}


def classify_images(
    model: CFMViT,
    samples: Iterable[tuple[Tensor, int]],
    classes: Tensor,
    *,
    novel: Collection[int] = (),
    batch_size: int = 64,
) -> dict[str, float]:
    """Classify whole images by the nearest class embedding.

    Args:
        samples: pairs of an image, (3, H, W) uint8, and its class.
        classes: (K, C), see ``class_embeddings``.

    Returns:
        see ``topk_accuracy``.
    """
    embeddings, labels = [torch.zeros(0, classes.shape[1])], []
    with frozen(model):
        for batch in _same_shape_batches(
            ({"image": image, "label": label} for image, label in samples), batch_size
        ):
            embeddings.append(model.encode_image(_stack(batch, model)).cpu())
            labels += [sample["label"] for sample in batch]
    return topk_accuracy(
        torch.cat(embeddings), classes.cpu(), torch.tensor(labels, dtype=torch.int64), novel=novel
    )


def classify_regions(
    model: CFMViT,
    dataset: Any,
    classes: Tensor,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    output_size: int = 7,
) -> dict[str, float]:
    """Classify ground-truth boxes: pool the frozen tokens over each box, take the nearest class embedding.

    This is what an open-vocabulary detector gets from pretraining alone, before any box was seen.

    Args:
        dataset: a detection data set: ``load(index, rng)`` with image, boxes, labels; and ``categories``.
        classes: (K, C), one row for each of ``dataset.categories``.
        limit: the first so many images; all by default.
        output_size: bins of the pooling in each direction.

    Returns:
        see ``topk_accuracy``; the split is the data set's own.
    """
    if len(classes) != len(dataset.categories):
        raise ValueError(
            f"classify_regions: classes must have one row per category {len(dataset.categories)}, got {len(classes)}"
        )
    count = len(dataset) if limit is None else min(limit, len(dataset))
    embeddings, labels = embed_regions(
        model, dataset, range(count), batch_size=batch_size, output_size=output_size
    )
    novel = [index for index, category in enumerate(dataset.categories) if category.novel]
    return topk_accuracy(embeddings, classes.cpu(), labels, novel=novel)


def embed_regions(
    model: CFMViT, dataset: Any, indices: Iterable[int], *, batch_size: int = 16, output_size: int = 7
) -> tuple[Tensor, Tensor]:
    """Embed the ground-truth boxes of some images of a detection data set; those that are corrupt are logged and left out.

    Args:
        dataset, output_size: as ``classify_regions`` takes them.

    Returns:
        (R, C) float32 on the CPU, not normalised, and the boxes' labels (R,).
    """
    embeddings = [torch.zeros(0, model.embed_dim)]
    labels = [torch.zeros(0, dtype=torch.int64)]
    with frozen(model):
        for batch in _same_shape_batches(sound_samples(dataset, indices), batch_size):
            boxes = [torch.as_tensor(sample["boxes"]) for sample in batch]
            found = region_embeddings(model, _stack(batch, model), boxes, output_size=output_size)
            embeddings.append(found.float().cpu())
            labels += [torch.as_tensor(sample["labels"]) for sample in batch]
    return torch.cat(embeddings), torch.cat(labels)


def region_embeddings(
    model: CFMViT, images: Tensor, boxes: Sequence[Tensor], *, output_size: int = 7
) -> Tensor:
    """Pool the model's dense features over boxes, the mean over RoIAlign's bins.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1]; encoded as ``dense_tokens`` does.
        boxes: B tensors (n, 4), xyxy in pixels of ``images``.

    Returns:
        (R, C), rows in the order of the boxes, not normalised.
    """
    patch = model.visual.patch_size
    return pool_regions(
        dense_tokens(model, images),
        [box.to(images.device, torch.float32) for box in boxes],
        grid_size=(images.shape[-2] // patch, images.shape[-1] // patch),
        spatial_scale=1 / patch,
        output_size=output_size,
    )


def sound_samples(dataset: Any, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a data set whose images can be decoded; the others are logged."""
    for index in indices:
        try:
            yield dataset.load(index, np.random.default_rng(index))
        except CorruptSample as error:
            log_corrupt(error)


def dense_tokens(model: CFMViT, images: Tensor) -> Tensor:
    """Embed every patch in the joint space as the detector's frozen tower does, without a seam between parts of an image.

    An image is encoded whole, with interpolated positions; where it is larger than those of pretraining, in windows of the
    pretraining grid in every block but the last, which attends globally.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1], sides multiples of the patch size.

    Returns:
        (B, h * w, C), row-major.
    """
    patch, grid = model.visual.patch_size, model.visual.grid
    larger = max(images.shape[-2:]) > grid * patch
    return model.encode_dense(
        images, window=grid if larger else 0, global_blocks=(model.visual.depth - 1,) if larger else ()
    )


def _same_shape_batches(samples: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Group samples whose images can be stacked; at most ``size`` wait for each shape."""
    waiting: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        batch = waiting.setdefault(tuple(sample["image"].shape), [])
        batch.append(sample)
        if len(batch) == size:
            yield waiting.pop(tuple(sample["image"].shape))
    yield from waiting.values()


def _stack(batch: list[dict[str, Any]], model: CFMViT) -> Tensor:
    return torch.stack([torch.as_tensor(sample["image"]) for sample in batch]).to(model.device)
