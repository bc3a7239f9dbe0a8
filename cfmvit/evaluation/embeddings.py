"""What retrieval and classification share: checks of embeddings, and the rank of the right answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back to the former mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def unit_rows(embeddings: Tensor, caller: str, name: str) -> Tensor:
    """Return embeddings (N, C) as float32 unit rows; raise ValueError on another shape or on NaN and infinity."""
    if embeddings.ndim != 2:
        raise ValueError(f"{caller}: {name} must have shape (N, C), got {tuple(embeddings.shape)}")
    embeddings = embeddings.float()
    if not torch.isfinite(embeddings).all():
        row = int((~torch.isfinite(embeddings)).any(dim=1).nonzero()[0])
        raise ValueError(f"{caller}: {name} must be finite, got NaN or infinity in row {row}")
    return F.normalize(embeddings, dim=1)


def check_index(index: Tensor, rows: int, limit: int, caller: str, name: str) -> None:
    """Raise ValueError unless ``index`` holds ``rows`` integers in [0, limit)."""
    if index.shape != (rows,) or index.is_floating_point():
        raise ValueError(
            f"{caller}: {name} must be {rows} integers, got {index.dtype} of shape {tuple(index.shape)}"
        )
    if rows and (int(index.min()) < 0 or int(index.max()) >= limit):
        wrong = int(index.min()) if int(index.min()) < 0 else int(index.max())
        raise ValueError(f"{caller}: {name} must lie in [0, {limit}), got {wrong}")


def ranks(queries: Tensor, answers: Tensor, right: Tensor, chunk: int = 1024) -> Tensor:
    """Rank of the right answer of each query, from 0.

    A tie counts against the model: one that embeds everything alike must not look perfect.

    Args:
        queries: (Q, C) unit rows.
        answers: (A, C) unit rows.
        right: (Q,) index of the right answer.
    """
    found = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ answers.T
        own = scores.gather(1, right[start : start + chunk, None].long())
        found.append((scores >= own).sum(dim=1) - 1)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def share_within(rank: Tensor, k: int) -> float:
    """Share of ranks below ``k``; NaN of none."""
    return (rank < k).double().mean().item()
