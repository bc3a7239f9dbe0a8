"""Image-text retrieval: recall at k in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cfmvit.evaluation.embeddings import check_index, frozen, ranks, share_within, unit_rows

if TYPE_CHECKING:
    from cfmvit.models import CFMViT


def retrieval_recall(
    images: Tensor, texts: Tensor, image_of_text: Tensor, *, ks: Sequence[int] = (1, 5, 10), chunk: int = 1024
) -> dict[str, float]:
    """Compute R@k: the share of queries with a right answer among the k best.

    An image is found when any of its captions is; a caption has one image. Ties count against the model.

    Args:
        images: (I, C) image embeddings, of any norm.
        texts: (T, C) caption embeddings.
        image_of_text: (T,) integer, the image that each caption describes; every image needs at least one.
        chunk: queries scored at a time, which bounds the memory to chunk x max(I, T).

    Returns:
        ``{"image_to_text_R@1": ..., "text_to_image_R@1": ..., ...}``, fractions.

    Raises:
        ValueError: shapes that do not fit, NaN, an index out of range, or an image without a caption.
    """
    images = unit_rows(images, "retrieval_recall", "images")
    texts = unit_rows(texts, "retrieval_recall", "texts")
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"retrieval_recall: texts must have the width of images {images.shape[1]}, got {texts.shape[1]}"
        )
    check_index(image_of_text, len(texts), len(images), "retrieval_recall", "image_of_text")
    image_of_text = image_of_text.to(images.device)
    bare = (torch.bincount(image_of_text, minlength=len(images)) == 0).nonzero()
    if len(bare):
        raise ValueError(
            f"retrieval_recall: image_of_text must name every image, got no caption of {int(bare[0])}"
        )
    directions = {
        "image_to_text": _any_caption_ranks(images, texts, image_of_text, chunk),
        "text_to_image": ranks(texts, images, image_of_text, chunk),
    }
    return {f"{name}_R@{k}": share_within(rank, k) for name, rank in directions.items() for k in ks}


def evaluate_retrieval(
    model: CFMViT,
    samples: Iterable[tuple[Tensor, Sequence[str]]],
    *,
    batch_size: int = 64,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Encode images and their captions with a model, and compute R@k.

    Args:
        samples: pairs of an image, (3, S, S) uint8, and its captions.

    Returns:
        see ``retrieval_recall``.
    """
    images: list[Tensor] = []
    batch: list[Tensor] = []
    captions: list[str] = []
    owner: list[int] = []
    with frozen(model):
        for index, (image, texts) in enumerate(samples):
            batch.append(image)
            captions += texts
            owner += [index] * len(texts)
            if len(batch) == batch_size:
                images.append(_encode(model, batch))
                batch = []
        if batch:
            images.append(_encode(model, batch))
        if not captions:
            raise ValueError("evaluate_retrieval: samples must have images with captions, got none")
        parts = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
        texts_embedded = torch.cat([model.encode_text(part) for part in parts])
    return retrieval_recall(torch.cat(images), texts_embedded, torch.tensor(owner), ks=ks)


def _encode(model: CFMViT, batch: list[Tensor]) -> Tensor:
    return model.encode_image(torch.stack(batch).to(model.device))


def _any_caption_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor, chunk: int) -> Tensor:
    """Rank of each image's best caption among the captions of other images."""
    found = []
    for start in range(0, len(images), chunk):
        scores = images[start : start + chunk] @ texts.T
        rows = torch.arange(start, start + len(scores), device=images.device)
        own = image_of_text[None, :] == rows[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        found.append(((scores >= best) & ~own).sum(dim=1))
    return torch.cat(found)
