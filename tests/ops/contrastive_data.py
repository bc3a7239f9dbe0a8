"""Features, and what the tests of the contrastive losses compare them by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def features(rows: int, width: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=1).to(dtype)


def trained_pairs(rows: int, width: int, cosine: float) -> tuple[Tensor, Tensor]:
    """Unit features whose pairs have the given cosine, exact in bfloat16."""
    image, noise = features(rows, width, seed=1), features(rows, width, seed=2)
    noise = F.normalize(noise - (noise * image).sum(1, keepdim=True) * image, dim=1)
    text = cosine * image + (1 - cosine**2) ** 0.5 * noise
    return image.bfloat16().double(), text.bfloat16().double()


def loss_and_grads(loss_fn, image: Tensor, text: Tensor, scale: Tensor, **options) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (image, text, scale)]
    loss = loss_fn(*leaves, **options)
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)  # 0.5 for a scalar
    (loss * weight).sum().backward()
    return [loss.detach(), *(x.grad for x in leaves)]


def eager_clip(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())
