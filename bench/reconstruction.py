"""Reconstruction losses: the eager chains that they replace, and MAE's own.

Letters: B samples, N tokens, M masked, D width of the target, H width of the decoder, P patch size, ``item`` bytes of an
element.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops
from cfmvit.bench.draw import Draw
from cfmvit.bench.masking import INDEX, pick
from cfmvit.bench.registry import Case, Cost, Peer, benchmark


def _masked(draw: Draw, B: int, N: int) -> ops.Masking:
    return ops.random_masking(B, N, 0.75, noise=draw.uniform(B, N))


@benchmark(
    "reconstruction",
    tiny={"B": 3, "N": 16, "D": 24},
    small={"B": 64, "N": 196, "D": 768},
    large={"B": 4096, "N": 196, "D": 768},
)
def masked_cosine_loss(draw: Draw, B: int, N: int, D: int) -> Case:
    """Compare predicted with target features of masked tokens."""
    index, item = _masked(draw, B, N).masked, draw.dtype.itemsize
    M = index.shape[1]

    def eager(pred: Tensor, target: Tensor) -> Tensor:
        cosine = F.cosine_similarity(pick(pred, index).float(), pick(target, index).float(), dim=-1)
        return (1 - cosine).mean()

    return Case(
        inputs={"pred": draw.normal(B, N, D), "target": draw.normal(B, N, D)},
        run=lambda pred, target: ops.masked_cosine_loss(pred, target, index),
        truth=lambda pred, target: ops.masked_cosine_loss(pred, target, index, impl="reference"),
        forward=Cost(2 * B * M * D * item + B * M * INDEX, 6 * B * M * D),
        backward=Cost((2 * M + N) * B * D * item + B * M * INDEX, 4 * B * M * D),
        both=Cost((2 * M + N) * B * D * item + B * M * INDEX, 10 * B * M * D),
        gradients=("pred",),
        peers={"eager": Peer(eager)},
    )


@benchmark(
    "reconstruction",
    tiny={"B": 2, "M": 12, "H": 16, "D": 24},
    small={"B": 16, "M": 147, "H": 512, "D": 768},
    large={"B": 4096, "M": 147, "H": 512, "D": 768},
    gate_size={"large": "small"},
)
def linear_masked_cosine_loss(draw: Draw, B: int, M: int, H: int, D: int) -> Case:
    """Project and compare."""
    item, rows = draw.dtype.itemsize, B * M

    def eager(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        pred = F.linear(hidden, weight, bias)
        return (1 - F.cosine_similarity(pred.float(), target.float(), dim=-1)).mean()

    read = (rows * (H + D) + D * H) * item
    return Case(
        inputs={
            "hidden": draw.normal(B, M, H),
            "weight": draw.normal(D, H) / H**0.5,
            "bias": draw.normal(D),
            "target": draw.normal(B, M, D),
        },
        run=ops.linear_masked_cosine_loss,
        truth=lambda **inputs: ops.linear_masked_cosine_loss(**inputs, impl="reference"),
        forward=Cost(read, 2 * rows * H * D),
        backward=Cost(read + (rows * H + D * H) * item, 4 * rows * H * D),
        gradients=("hidden", "weight", "bias"),
        peers={"eager": Peer(eager)},
    )


@benchmark(
    "reconstruction",
    tiny={"B": 2, "side": 16, "P": 4},
    small={"B": 64, "side": 224, "P": 16},
    large={"B": 4096, "side": 224, "P": 16},
)
def masked_pixel_loss(draw: Draw, B: int, side: int, P: int) -> Case:
    """Compare predicted with normalised pixels of masked patches."""
    N, D, item = (side // P) ** 2, 3 * P * P, draw.dtype.itemsize
    masking = _masked(draw, B, N)
    index = masking.masked
    M = index.shape[1]
    mask = (masking.restore >= N - M).float()

    def mae(pred: Tensor, images: Tensor) -> Tensor:
        grid = images.reshape(B, 3, side // P, P, side // P, P)
        target = grid.permute(0, 2, 4, 3, 5, 1).reshape(B, N, D)
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
        loss = ((pred.float() - target) ** 2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    return Case(
        inputs={"pred": draw.normal(B, N, D), "images": draw.uniform(B, 3, side, side)},
        run=lambda pred, images: ops.masked_pixel_loss(pred, images, index, P),
        truth=lambda pred, images: ops.masked_pixel_loss(pred, images, index, P, impl="reference"),
        forward=Cost(B * M * (D * (item + 4) + INDEX), 6 * B * M * D),
        backward=Cost(B * (M * (D * (item + 4) + INDEX) + N * D * item), 6 * B * M * D),
        both=Cost(B * (M * (D * (item + 4) + INDEX) + N * D * item), 8 * B * M * D),
        gradients=("pred",),
        peers={"MAE": Peer(mae)},
    )
