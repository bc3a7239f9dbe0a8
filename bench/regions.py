"""Features of boxes: torchvision's RoIAlign, and the eager chain of detection scores.

Letters: B images, C channels, S places along each side of a map, R boxes an image, P bins along each side of a box, n labels,
``item`` bytes of an element. Boxes come in COCO's sizes; a place of the map is 16 pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit import ops
from cfmvit.bench.draw import Draw
from cfmvit.bench.registry import Case, Cost, Peer, benchmark, peer
from cfmvit.ops.regions import reference

STRIDE = 16
BOX = 20  # bytes of a row of rois


def draw_boxes(draw: Draw, B: int, R: int, side: float) -> list[Tensor]:
    """Draw R boxes (x1, y1, x2, y2) in each of B images."""
    return [draw.boxes(R, side) for _ in range(B)]


def rois_of(boxes: list[Tensor]) -> Tensor:
    """Put the number of its image before each box: (B * R, 5)."""
    return torch.cat([F.pad(some, (1, 0), value=image) for image, some in enumerate(boxes)])


def _known(draw: Draw) -> torch.dtype | None:
    """Return the dtype in which torchvision computes where it does not know bfloat16."""
    return torch.float32 if draw.dtype == torch.bfloat16 else None


def _roi_align_sizes() -> dict[str, dict[str, int]]:
    common = {"B": 1, "C": 256, "S": 64, "R": 1000, "P": 7, "ratio": 2}
    sweep = {
        f"sweep-{axis}{value}": {**common, axis: value}
        for axis, values in {
            "R": (1, 10, 100),
            "C": (1, 3, 16, 64),
            "S": (8, 32, 200),
            "P": (1, 3, 14),
        }.items()
        for value in values
    }
    return {
        "tiny": {"B": 2, "C": 8, "S": 8, "R": 5, "P": 3, "ratio": 2},
        "small": common,
        "large": {**common, "B": 16, "S": 200},
        "channels-last": {**common, "B": 16, "S": 200, "last": 1},
        "adaptive": {**common, "ratio": -1},
        **sweep,
    }


@benchmark("regions", **_roi_align_sizes())
def roi_align(draw: Draw, B: int, C: int, S: int, R: int, P: int, ratio: int, last: int = 0) -> Case:
    """Align boxes with maps of channels before places, as torchvision keeps them, or of channels last."""
    rois, scale, item = rois_of(draw_boxes(draw, B, R, STRIDE * S)), 1 / STRIDE, draw.dtype.itemsize
    moved = Cost(B * (C * S * S * item + R * (C * P * P * item + BOX)))

    def torchvision(library: Any) -> Any:
        return lambda input: library.roi_align(input, rois.to(input.dtype), P, scale, ratio, True)

    return Case(
        inputs={
            "input": draw.normal(B, C, S, S).to(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )
        },
        run=lambda input: ops.roi_align(input, rois, P, scale, ratio, True),
        truth=lambda input: reference.roi_align(input, rois, scale, P, P, ratio, True),
        forward=moved,
        backward=moved,
        gradients=("input",),
        peers={"torchvision": peer("torchvision.ops", torchvision, _known(draw))},
    )


@benchmark(
    "regions",
    tiny={"B": 2, "C": 8, "S": 32, "R": 5, "P": 3},
    small={"B": 1, "C": 256, "S": 200, "R": 1000, "P": 7},
    large={"B": 16, "C": 256, "S": 200, "R": 1000, "P": 7},
)
def multilevel_roi_align(draw: Draw, B: int, C: int, S: int, R: int, P: int) -> Case:
    """Align boxes with the four levels of a feature pyramid, S places along the finest."""
    strides, item, side = (4, 8, 16, 32), draw.dtype.itemsize, 4 * S
    boxes = draw_boxes(draw, B, R, side)
    maps = {f"p{level}": draw.normal(B, C, S >> level, S >> level) for level in range(4)}
    places = sum((S >> level) ** 2 for level in range(4))
    moved = Cost(B * (C * places * item + R * (C * P * P * item + BOX)))

    def run(impl: str | None = None, **maps: Tensor) -> Tensor:
        return ops.multilevel_roi_align(
            list(maps.values()), boxes, P, strides=strides, aligned=False, impl=impl
        )

    def torchvision(library: Any) -> Any:
        pool = library.MultiScaleRoIAlign(list(maps), P, 2)
        return lambda **maps: pool(maps, [some.to(maps["p0"].dtype) for some in boxes], [(side, side)] * B)

    return Case(
        inputs=maps,
        run=run,
        truth=lambda **maps: run("reference", **maps),
        forward=moved,
        backward=moved,
        gradients=tuple(maps),
        peers={"torchvision": peer("torchvision.ops", torchvision, _known(draw))},
    )


@benchmark(
    "regions",
    tiny={"B": 2, "C": 8, "S": 8, "R": 5},
    small={"B": 1, "C": 768, "S": 64, "R": 1000},
    large={"B": 64, "C": 768, "S": 64, "R": 1000},
)
def pool_regions(draw: Draw, B: int, C: int, S: int, R: int) -> Case:
    """Pool a Vision Transformer's tokens over boxes."""
    rois, scale, item = rois_of(draw_boxes(draw, B, R, STRIDE * S)), 1 / STRIDE, draw.dtype.itemsize
    moved = Cost(B * (S * S * C * item + R * (C * item + BOX)))

    def torchvision(library: Any) -> Any:
        def run(tokens: Tensor) -> Tensor:
            maps = tokens.transpose(1, 2).reshape(B, C, S, S)
            return library.roi_align(maps, rois.to(maps.dtype), 7, scale, 2, True).mean((2, 3))

        return run

    return Case(
        inputs={"tokens": draw.normal(B, S * S, C)},
        run=lambda tokens: ops.pool_regions(tokens, rois, grid_size=(S, S), spatial_scale=scale),
        truth=lambda tokens: reference.pool_regions(tokens, rois, S, S, scale, 7, 7, 2, True, 0, False),
        forward=moved,
        backward=moved,
        gradients=("tokens",),
        peers={"torchvision": peer("torchvision.ops", torchvision, _known(draw))},
    )


@benchmark(
    "regions",
    tiny={"R": 5, "n": 6, "C": 8},
    small={"R": 1000, "n": 1203, "C": 512},
    large={"R": 64000, "n": 1203, "C": 512},
)
def score_regions(draw: Draw, R: int, n: int, C: int) -> Case:
    """Score regions against a vocabulary and the background, with the frozen tower's vote and objectness."""
    base, objectness = draw.uniform(n) < 0.7, draw.uniform(R)

    def eager(region_embeds: Tensor, text_embeds: Tensor, vlm_embeds: Tensor) -> Tensor:
        text = F.normalize(text_embeds.float(), dim=1).T
        p = (F.normalize(region_embeds.float(), dim=1) @ text / 0.01).softmax(1)
        z = (F.normalize(vlm_embeds.float(), dim=1) @ text / 0.01).softmax(1)
        weight = torch.where(base, 0.35, 0.65)
        scores = p[:, 1:] ** (1 - weight) * z[:, 1:] ** weight
        scores = scores / (p[:, :1] + scores.sum(1, keepdim=True))
        return scores * objectness[:, None] ** 3

    def run(impl: str | None = None, **embeds: Tensor) -> Tensor:
        return ops.score_regions(**embeds, base=base, objectness=objectness, impl=impl)

    item = draw.dtype.itemsize
    text = draw.normal(1 + n, C)
    # Each region near one text, as a trained detector's are: probabilities of random directions would all be alike.
    near = torch.arange(R, device=draw.device) % (1 + n)
    return Case(
        inputs={
            "region_embeds": text[near] + 2 * draw.normal(R, C),
            "text_embeds": text,
            "vlm_embeds": text[near] + 2 * draw.normal(R, C),
        },
        run=run,
        truth=lambda **embeds: run("reference", **embeds),
        forward=Cost((2 * R + 1 + n) * C * item + R * n * 4, 4 * R * (1 + n) * C),
        peers={"eager": Peer(eager)},
    )
