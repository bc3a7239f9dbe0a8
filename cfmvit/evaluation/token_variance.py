"""Locality: how much tokens tell of their own place, rather than of the image they are in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.evaluation.embeddings import frozen
from cfmvit.evaluation.pointing import Tokens
from cfmvit.evaluation.zero_shot import sound_samples


def locality(
    model: Any, dataset: Any, tokens: Tokens, predicted: Tokens | None = None, *, limit: int | None = None
) -> dict[str, float]:
    """Divide the variance of unit tokens into that between images and that within them, as an analysis of variance does.

    Tokens of a tower pooled by the mean may all say what the image shows: then there is little within images for a map to show,
    and a decoder is right that predicts one and the same for every place.

    Args:
        model, dataset, limit: as ``pointing_accuracy`` takes them.
        tokens: encodes an image.
        predicted: what a decoder makes of it.

    Returns:
        ``{"within"}``, the share within images; with ``predicted`` also ``"agreement"``: the mean cosine between predictions and
        tokens, each less its mean over the image. NaN where tokens do not vary.
    """
    sums = torch.zeros(model.embed_dim, dtype=torch.float64)
    count, squares, within, cosines = 0, 0.0, 0.0, []
    with frozen(model):
        for number, sample in enumerate(sound_samples(dataset, range(len(dataset))[:limit])):
            image = torch.as_tensor(sample["image"])[None].to(model.device)
            rows = _unit(tokens(image, number))
            own = rows - rows.mean(0)
            sums += rows.sum(0)
            count += len(rows)
            squares += rows.square().sum().item()
            within += own.square().sum().item()
            if predicted is not None:
                made = _unit(predicted(image, number))
                cosines.append(F.cosine_similarity(made - made.mean(0), own, dim=-1).mean().item())
    whole = squares - sums.square().sum().item() / max(1, count)
    found = {"within": within / whole if whole > 0 else float("nan")}
    if predicted is not None:
        found["agreement"] = sum(cosines) / len(cosines) if cosines else float("nan")
    return found


def _unit(tokens: Tensor) -> Tensor:
    return F.normalize(tokens[0].double().cpu(), dim=-1)
