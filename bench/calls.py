"""The cost of a call: each op on tiny tensors beside the operator of PyTorch that comes nearest to it.

The nearest operator computes something else; it says what the dispatcher, autograd and one allocation cost here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfmvit.bench.draw import Draw
from cfmvit.bench.registry import ENTRIES, Case, Peer, Skip, benchmark, peer


@cache
def _constant(value: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, value, dtype=dtype, device=device)


def _gather(tokens: Tensor, **_: Any) -> Tensor:
    return tokens.gather(1, _constant(0, (1, 1, 1), torch.int64, tokens.device))


def _first_map(tv: Any) -> Callable[..., Tensor]:
    def run(**maps: Tensor) -> Tensor:
        map_ = next(iter(maps.values()))
        map_ = map_ if map_.ndim == 4 else map_.unsqueeze(1)
        return tv.roi_align(map_, _constant(0, (1, 5), map_.dtype, map_.device), 3, 1.0, 2, True)

    return run


_ROI_ALIGN = peer("torchvision.ops", _first_map)
NEAREST: dict[str, Peer | Skip] = {
    "random_masking": Peer(lambda noise: noise.argsort(1)),
    "gather_tokens": Peer(_gather),
    "split_tokens": Peer(_gather),
    "restore_tokens": Peer(lambda visible, **_: _gather(visible)),
    "gather_patches": Peer(lambda images: F.pixel_unshuffle(images, 4)),
    "masked_cosine_loss": Peer(lambda pred, target: F.cosine_similarity(pred, target, dim=-1)),
    "linear_masked_cosine_loss": Peer(lambda hidden, weight, bias, target: F.linear(hidden, weight, bias)),
    "masked_pixel_loss": Peer(lambda pred, images: F.mse_loss(pred, pred.detach())),
    "roi_align": _ROI_ALIGN,
    "multilevel_roi_align": _ROI_ALIGN,
    "pool_regions": _ROI_ALIGN,
    "score_regions": Peer(lambda region_embeds, text_embeds, **_: region_embeds @ text_embeds.T),
    "info_nce": Peer(lambda image, **_: image.logsumexp(1)),
    "siglip_loss": Peer(lambda image, **_: F.logsigmoid(image)),
}


def _call(op: str, nearest: Peer | Skip) -> Callable[[Draw], Case]:
    def build(draw: Draw) -> Case:
        case = ENTRIES[op].case("tiny", draw.dtype, str(draw.device))
        other = nearest if isinstance(nearest, Skip) else replace(nearest, alike=False)
        return replace(case, peers={"ATen": other})

    build.__name__ = f"call_{op}"
    return build


for op, nearest in NEAREST.items():
    benchmark("calls", dtypes=("float32",), any={})(_call(op, nearest))
