"""Small models of other libraries with random weights, and how far ours is from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfmvit.models import CFMViT

BOUND = 1e-5
SIZES = (32, 48)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomised(model: nn.Module) -> nn.Module:
    """Give every weight a value that matters: fresh models have biases of zero and norms of one."""
    with seeded(1), torch.no_grad():
        for weight in model.parameters():
            if weight.ndim < 2:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.normal_(std=2 * weight[0].numel() ** -0.5)
    return model.eval()


def pixels(height: int, width: int | None = None, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width or height, generator=torch.Generator().manual_seed(height))


def standardised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of unit vectors."""
    assert ours.shape == theirs.shape
    return (F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).abs().max().item()


def check_images(model: CFMViT, original: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Hold ``encode_image`` against the original's embedding, of length 1 and as it comes."""
    with torch.no_grad():
        theirs, ours = original(images), model.encode_image(images, normalize=False)
    assert theirs.std() > 0.01  # something that a mistake would change
    assert distance(ours, theirs) < BOUND
    torch.testing.assert_close(ours, theirs, atol=BOUND * float(theirs.abs().max().clamp(min=1)), rtol=BOUND)


def check_texts(model: CFMViT, original: Callable[[Tensor], Tensor], ids: Tensor) -> None:
    with torch.no_grad():
        theirs, ours = original(ids), model.encode_text(ids, normalize=False)
    assert distance(theirs[:1], theirs[1:2]) > 0.01
    assert distance(ours, theirs) < BOUND
    torch.testing.assert_close(ours, theirs, atol=BOUND * float(theirs.abs().max().clamp(min=1)), rtol=BOUND)


def check_same(model: CFMViT, other: CFMViT, ids: Tensor) -> None:
    """Hold a model that was imported at hand against that of the file, whose memory is laid out otherwise."""
    assert model.config.to_dict() | {"name": ""} == other.config.to_dict() | {"name": ""}
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels(32)), other.encode_image(pixels(32)))
        torch.testing.assert_close(model.encode_text(ids), other.encode_text(ids))


def peer(name: str) -> Any:
    return pytest.importorskip(name)
