"""Masking: MAE's formulation, adding the positions first, and the same by a gather and an addition afterwards.

Letters: B samples, N tokens, D width, K kept, M masked, ``item`` bytes of an element.
"""

from __future__ import annotations

from math import comb
from typing import Any

import torch
from torch import Tensor

from cfmvit import ops
from cfmvit.bench.draw import Draw
from cfmvit.bench.registry import Case, Cost, Peer, benchmark, peer
from cfmvit.ops.masking import reference

TOKENS = {
    "tiny": {"B": 3, "N": 16, "D": 24},
    "small": {"B": 64, "N": 196, "D": 768},
    "large": {"B": 4096, "N": 196, "D": 768},
}
INDEX = 8  # bytes of an int64
SECTOR = 32  # bytes that a GPU's memory gives at once
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def kept(N: int) -> int:
    """Return how many tokens a mask of 75 % leaves."""
    return int(N * 0.25)


def pick(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather rows as MAE does."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def placed(tokens: Tensor, pos_embed: Tensor, keep_pos: Tensor) -> Tensor:
    """Add the positions to the samples where keep_pos is true, before anything is masked, as in MAE's encoder."""
    return tokens + pos_embed * keep_pos.to(tokens.dtype)[:, None, None]


@benchmark(
    "masking",
    dtypes=("float32",),
    tiny={"B": 3, "N": 16},
    small={"B": 256, "N": 196},
    large={"B": 4096, "N": 196},
)
def random_masking(draw: Draw, B: int, N: int) -> Case:
    """Rank noise."""
    K = kept(N)

    def mae(noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        order = noise.argsort(dim=1)
        return order[:, :K], order[:, K:], order.argsort(dim=1)

    return Case(
        inputs={"noise": draw.uniform(B, N)},
        run=lambda noise: ops.random_masking(B, N, 0.75, noise=noise),
        truth=lambda noise: reference.random_masking(noise, K),
        forward=Cost(B * N * (4 + 2 * INDEX)),
        peers={"MAE": Peer(mae)},
    )


def _tokens(draw: Draw, B: int, N: int, D: int) -> tuple[dict[str, Any], ops.Masking]:
    inputs = {
        "tokens": draw.normal(B, N, D),
        "pos_embed": draw.normal(N, D),
        "keep_pos": draw.uniform(B) < 0.5,
    }
    return inputs, ops.random_masking(B, N, 0.75, noise=draw.uniform(B, N))


@benchmark("masking", **TOKENS)
def gather_tokens(draw: Draw, B: int, N: int, D: int) -> Case:
    """Take the masked tokens with their positions."""
    inputs, masking = _tokens(draw, B, N, D)
    index, item = masking.masked, draw.dtype.itemsize
    M = index.shape[1]

    def eager(tokens: Tensor, pos_embed: Tensor, keep_pos: Tensor) -> Tensor:
        return pick(tokens, index) + pos_embed[index] * keep_pos.to(tokens.dtype)[:, None, None]

    return Case(
        inputs=inputs,
        run=lambda tokens, pos_embed, keep_pos: ops.gather_tokens(
            tokens, index, pos_embed=pos_embed, keep_pos=keep_pos
        ),
        truth=lambda tokens, pos_embed, keep_pos: reference.gather_tokens(tokens, index, pos_embed, keep_pos),
        forward=Cost(2 * B * M * D * item + N * D * item + B * M * INDEX),
        backward=Cost(B * (M + N) * D * item + N * D * item + B * M * INDEX),
        gradients=("tokens", "pos_embed"),
        peers={"MAE": Peer(lambda tokens, **pos: pick(placed(tokens, **pos), index)), "eager": Peer(eager)},
    )


@benchmark("masking", **TOKENS)
def split_tokens(draw: Draw, B: int, N: int, D: int) -> Case:
    """Part visible and masked tokens, with their positions."""
    inputs, masking = _tokens(draw, B, N, D)
    item = draw.dtype.itemsize

    def mae(tokens: Tensor, **positions: Tensor) -> tuple[Tensor, Tensor]:
        tokens = placed(tokens, **positions)
        return pick(tokens, masking.keep), pick(tokens, masking.masked)

    moved = Cost(2 * B * N * D * item + N * D * item + B * N * INDEX)
    return Case(
        inputs=inputs,
        run=lambda tokens, **positions: ops.split_tokens(tokens, masking, **positions),
        truth=lambda tokens, **positions: ops.split_tokens(tokens, masking, impl="reference", **positions),
        forward=moved,
        backward=moved,
        gradients=("tokens", "pos_embed"),
        peers={"MAE": Peer(mae)},
    )


@benchmark("masking", **TOKENS)
def restore_tokens(draw: Draw, B: int, N: int, D: int) -> Case:
    """Build the decoder's input."""
    K, item = kept(N), draw.dtype.itemsize
    restore = ops.random_masking(B, N, 0.75, noise=draw.uniform(B, N)).restore

    def mae(visible: Tensor, mask_token: Tensor, pos_embed: Tensor) -> Tensor:
        masks = mask_token.reshape(1, 1, D).repeat(B, N - K, 1)
        return pick(torch.cat([visible, masks], dim=1), restore) + pos_embed

    moved = Cost(B * (K + N) * D * item + N * D * item + B * N * INDEX)
    return Case(
        inputs={
            "visible": draw.normal(B, K, D),
            "mask_token": draw.normal(D),
            "pos_embed": draw.normal(N, D),
        },
        run=lambda visible, mask_token, pos_embed: ops.restore_tokens(
            visible, mask_token, restore, pos_embed=pos_embed
        ),
        truth=lambda visible, mask_token, pos_embed: reference.restore_tokens(
            visible, mask_token, restore, pos_embed
        ),
        forward=moved,
        backward=moved,
        gradients=("visible", "mask_token", "pos_embed"),
        peers={"MAE": Peer(mae)},
    )


def bytes_of_patches(side: int, P: int, K: int) -> int:
    """Return how many bytes of a channel are read for K patches of uint8, drawn at random: whole sectors, neighbours sharing one."""
    N = (side // P) ** 2
    if SECTOR % P:
        return K * P * P
    shared = min(SECTOR, side) // P
    return round(N * P * P * (1 - comb(N - shared, K) / comb(N, K)))


@benchmark(
    "masking",
    tiny={"B": 2, "side": 16, "P": 4},
    small={"B": 64, "side": 224, "P": 16},
    large={"B": 4096, "side": 224, "P": 16},
)
def gather_patches(draw: Draw, B: int, side: int, P: int) -> Case:
    """Cut the visible patches out of uint8 images."""
    N = (side // P) ** 2
    index = ops.random_masking(B, N, 0.75, noise=draw.uniform(B, N)).keep
    K, dtype = index.shape[1], draw.dtype

    def eager(images: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in (MEAN, STD))
        pixels = ((images / 255 - mean) / std).to(dtype)
        grid = pixels.reshape(B, 3, side // P, P, side // P, P).permute(0, 2, 4, 1, 3, 5)
        return pick(grid.reshape(B, N, 3 * P * P), index)

    def run(images: Tensor, dtype: torch.dtype = dtype, impl: str | None = None) -> Tensor:
        return ops.gather_patches(images, index, P, mean=MEAN, std=STD, dtype=dtype, impl=impl)

    return Case(
        inputs={"images": draw.pixels(B, 3, side, side)},
        run=run,
        truth=lambda images: run(images, torch.float64, "reference"),
        forward=Cost(B * (3 * bytes_of_patches(side, P, K) + K * (3 * P * P * dtype.itemsize + INDEX))),
        peers={"eager": Peer(eager)},
    )


@benchmark("masking", **TOKENS)
def patch_dropout(draw: Draw, B: int, N: int, D: int) -> Case:
    """Draw a mask and keep the visible tokens: timm's PatchDropout."""
    K, item = kept(N), draw.dtype.itemsize

    def run(tokens: Tensor, impl: str | None = None) -> Tensor:
        torch.manual_seed(0)  # timm draws the same noise
        noise = torch.randn(B, N, device=tokens.device)
        return ops.gather_tokens(tokens, ops.random_masking(B, N, 0.75, noise=noise).keep, impl=impl)

    def timm(layers: Any) -> Any:
        drop = layers.PatchDropout(0.75, num_prefix_tokens=0).train()

        def run(tokens: Tensor) -> Tensor:
            torch.manual_seed(0)
            return drop(tokens)

        return run

    return Case(
        inputs={"tokens": draw.normal(B, N, D)},
        run=run,
        truth=lambda tokens: run(tokens, impl="reference"),
        forward=Cost(2 * B * K * D * item + B * N * 4),
        backward=Cost(B * (K + N) * D * item + B * K * INDEX),
        gradients=("tokens",),
        peers={"timm": peer("timm.layers", timm)},
    )
