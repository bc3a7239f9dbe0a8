"""A small call of every op, public and of ``torch.ops.cfmvit``: what the tests that hold for all ops run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cfmvit import ops
from cfmvit.ops.masking import Masking

B, N, K, D, P = 3, 8, 3, 4, 2


@dataclass
class Sample:
    """A call: ``run(**values, **indices)``, differentiable by its values."""

    op: str
    run: Callable[..., Any]
    values: dict[str, Tensor]
    indices: dict[str, Tensor] = field(default_factory=dict)
    label: str = ""
    public: bool = True

    def __str__(self) -> str:
        return f"{self.op}{'-' * bool(self.label)}{self.label}"

    def __call__(self, *values: Tensor, indices: dict[str, Tensor] | None = None, **options: Any) -> Tensor:
        """Run with other values, and return all that is differentiable as one vector."""
        named = dict(zip(self.values, values or self.values.values(), strict=True))
        out = self.run(**named, **(self.indices if indices is None else indices), **options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        return torch.cat([x.flatten() for x in outs if x.is_floating_point()])


def public(dtype: torch.dtype = torch.float64) -> list[Sample]:
    """Calls of the functions of ``cfmvit.ops``, options that take other ways among them."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    masking = ops.random_masking(B, N, 1 - K / N, generator=generator)
    keep = torch.tensor([True, False, True])
    tokens = {"tokens": draw(B, N, D), "pos_embed": draw(N, D)}
    images = draw(2, 3, 2 * P, 2 * P)
    some = torch.tensor([[0, 3], [2, 1]])
    boxes = torch.tensor(
        [[0, 1.1, 2.3, 9.7, 12.2], [1, 3.9, 0.2, 14.1, 7.3], [0, 5.2, 5.1, 15.3, 13.4]], dtype=dtype
    )
    towers = {"image": draw(4, D), "text": draw(4, D), "logit_scale": draw().abs() + 1}
    regions = {"region_embeds": draw(3, D), "text_embeds": draw(5, D)}
    grid = {"grid_size": (4, 4), "spatial_scale": 0.25, "output_size": 2}
    levels = {"fine": draw(2, 3, 8, 8), "coarse": draw(2, 3, 4, 4)}
    groups = torch.tensor([0, 1, 0, 2])

    def multilevel(fine: Tensor, coarse: Tensor, boxes: Tensor, **options: Any) -> Tensor:
        return ops.multilevel_roi_align(
            [fine, coarse], boxes, 2, strides=(2, 4), canonical_scale=8, **options
        )

    def split(tokens: Tensor, pos_embed: Tensor, keep: Tensor, masked: Tensor, **options: Any) -> Any:
        return ops.split_tokens(
            tokens, Masking(keep, masked, masking.restore), pos_embed=pos_embed, **options
        )

    def random_masking(noise: Tensor, **options: Any) -> Any:
        return [x.double() for x in ops.random_masking(*noise.shape, 0.5, noise=noise, **options)]

    def stats(**arguments: Any) -> Any:
        loss, found = ops.info_nce(**arguments, return_stats=True)
        return loss, *found

    def with_options(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
        return lambda **arguments: function(**fixed, **arguments)

    pixels = {"pred": draw(2, 2, 3 * P * P)}
    linear = {"hidden": draw(B, N, 3), "weight": draw(D, 3), "bias": draw(D)}
    target = draw(B, N, D)
    masked = {"index": masking.masked}
    call = with_options
    score = {
        **regions,
        "vlm_embeds": draw(3, D),
        "objectness": draw(3).abs(),
        "temperature": draw().abs() + 0.5,
    }
    return [
        Sample("random_masking", random_masking, {"noise": draw(B, N)}),
        Sample("gather_tokens", call(ops.gather_tokens, keep_pos=keep), tokens, masked),
        Sample("split_tokens", split, tokens, {"keep": masking.keep, "masked": masking.masked}),
        Sample("restore_tokens", ops.restore_tokens,
               {"visible": draw(B, K, D), "mask_token": draw(D), "pos_embed": draw(N, D)}, {"restore": masking.restore}),
        Sample("gather_patches", call(ops.gather_patches, patch_size=P, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)),
               {"images": images}, {"index": some}),
        Sample("masked_cosine_loss", call(ops.masked_cosine_loss, target=target), {"pred": draw(B, N, D)}, masked),
        Sample("masked_cosine_loss", call(ops.masked_cosine_loss, target=target),
               {"pred": draw(B, N, D), "weight": draw(B, N - K).abs()}, masked, "weight"),
        Sample("linear_masked_cosine_loss", call(ops.linear_masked_cosine_loss, target=target), linear, masked),
        Sample("linear_masked_cosine_loss", call(ops.linear_masked_cosine_loss, target=target, reduction="none"), linear,
               masked, "none"),
        Sample("masked_pixel_loss", call(ops.masked_pixel_loss, images=images, patch_size=P), pixels, {"index": some}),
        Sample("roi_align", call(ops.roi_align, output_size=2, spatial_scale=0.25, sampling_ratio=2),
               {"input": draw(2, 3, 4, 4)}, {"boxes": boxes}),
        Sample("roi_align", call(ops.roi_align, output_size=2, spatial_scale=0.5, aligned=True),
               {"input": draw(2, 3, 8, 8)}, {"boxes": boxes}, "adaptive"),
        Sample("multilevel_roi_align", multilevel, levels, {"boxes": boxes}),
        Sample("pool_regions", call(ops.pool_regions, **grid), {"tokens": draw(2, 16, D)}, {"boxes": boxes}),
        Sample("pool_regions", call(ops.pool_regions, **grid, normalize=True, num_prefix_tokens=1),
               {"tokens": draw(2, 17, D)}, {"boxes": boxes}, "normalize"),
        Sample("score_regions", ops.score_regions, regions),
        Sample("score_regions", call(ops.score_regions, base=groups > 0), score, {}, "vlm"),
        Sample("info_nce", ops.info_nce, towers),
        Sample("info_nce", call(ops.info_nce, label_smoothing=0.1, reduction="none"), towers, {"group_ids": groups}, "groups"),
        Sample("info_nce", stats, {**towers, "logit_bias": draw()}, {}, "stats"),
        Sample("siglip_loss", ops.siglip_loss, {**towers, "logit_bias": draw()}),
    ]  # fmt: skip
