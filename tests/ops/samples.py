"""A small call of every public op: what the tests that hold for all ops run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cfmvit import ops
from cfmvit.ops.masking import Masking

P = 2


class Sizes(NamedTuple):
    """What a program may leave open."""

    batch: int = 3
    tokens: int = 8
    visible: int = 3
    images: int = 2
    patches: int = 2  # of an image, masked
    boxes: int = 3
    labels: int = 4
    pairs: int = 4
    width: int = 4  # of features; the channels of maps are one less


@dataclass
class Sample:
    """A call: ``run(**values, **indices)``, differentiable by its values.

    ``shapes`` has a letter for each dimension of each of them: what has the same letter has the same size, and a program may
    leave open those with a capital one.
    """

    op: str
    shapes: dict[str, str]
    run: Callable[..., Any]
    values: dict[str, Tensor]
    indices: dict[str, Tensor] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.op}{'-' * bool(self.label)}{self.label}"

    def __call__(self, *values: Tensor, indices: dict[str, Tensor] | None = None, **options: Any) -> Tensor:
        """Run with other values, and return all that is differentiable as one vector."""
        named = dict(zip(self.values, values or self.values.values(), strict=True))
        out = self.run(**named, **(self.indices if indices is None else indices), **options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        return torch.cat([x.flatten() for x in outs if x.is_floating_point()])


def public(dtype: torch.dtype = torch.float64, sizes: Sizes = Sizes()) -> list[Sample]:  # noqa: B008  # a tuple
    """Calls of the functions of ``cfmvit.ops``, options that take other ways among them."""
    generator = torch.Generator().manual_seed(0)
    B, N, K, D, C = *sizes[:3], sizes.width, sizes.width - 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def places(batch: int, count: int, some: int) -> Tensor:
        return torch.rand(batch, count, generator=generator).argsort(1)[:, :some]

    corners = 9 * torch.rand(sizes.boxes, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat([corners, corners + 1 + 6 * torch.rand(sizes.boxes, 2, generator=generator)], 1)
    image = torch.arange(sizes.boxes)[:, None] % sizes.images
    boxes = torch.cat([image, boxes], 1).to(dtype)
    of_boxes = {"boxes": boxes}
    masking = ops.random_masking(B, N, 1 - K / N, generator=generator)
    keep_pos = torch.arange(B) % 2 == 0
    tokens = {"tokens": draw(B, N, D), "pos_embed": draw(N, D)}
    masked = {"index": masking.masked}
    images, some = draw(sizes.images, 3, 2 * P, 2 * P), places(sizes.images, 4, sizes.patches)
    pixels = {"images": images, "index": some}
    cosine = {"target": draw(B, N, D), **masked}
    linear = {"hidden": draw(B, N, C), "weight": draw(D, C), "bias": draw(D)}
    levels = {"fine": draw(sizes.images, C, 8, 8), "coarse": draw(sizes.images, C, 4, 4)}
    grid = {"grid_size": (4, 4), "spatial_scale": 0.25, "output_size": 2}
    towers = {"image": draw(sizes.pairs, D), "text": draw(sizes.pairs, D), "logit_scale": draw().abs() + 1}
    groups = {"group_ids": (torch.arange(sizes.pairs) * 5) % 3}
    regions = {"region_embeds": draw(sizes.boxes, D), "text_embeds": draw(1 + sizes.labels, D)}
    score = {
        **regions,
        "vlm_embeds": draw(sizes.boxes, D),
        "objectness": draw(sizes.boxes).abs(),
        "temperature": draw().abs() + 0.5,
    }
    base = {"base": torch.arange(sizes.labels) % 2 == 0}

    def multilevel(fine: Tensor, coarse: Tensor, boxes: Tensor, **options: Any) -> Tensor:
        return ops.multilevel_roi_align(
            [fine, coarse], boxes, 2, strides=(2, 4), canonical_scale=16, **options
        )

    def lists(input: Tensor, first: Tensor, second: Tensor, **options: Any) -> Tensor:
        return ops.roi_align(input, [first, second], 2, 0.5, 2, True, **options)

    def split(keep: Tensor, masked: Tensor, **arguments: Any) -> Any:
        return ops.split_tokens(masking=Masking(keep, masked, keep), **arguments)

    def random_masking(noise: Tensor, **options: Any) -> Any:
        return [x.double() for x in ops.random_masking(*noise.shape, 0.5, noise=noise, **options)]

    def stats(**arguments: Any) -> Any:
        loss, found = ops.info_nce(**arguments, return_stats=True)
        return loss, *found

    def call(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
        return lambda **arguments: function(**fixed, **arguments)

    of_tokens = {"tokens": "BNd", "pos_embed": "Nd"}
    of_cosine = {"pred": "BNd", "target": "BNd", "index": "BM"}
    of_linear = {"hidden": "BNh", "weight": "dh", "bias": "d", "target": "BNd", "index": "BM"}
    of_pixels = {"images": "Bchw", "index": "BM"}
    of_regions = {"region_embeds": "Rd", "text_embeds": "Td"}
    of_towers = {"image": "Bd", "text": "Bd", "logit_scale": ""}
    cut = {"patch_size": P, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    return [
        Sample("random_masking", {"noise": "BN"}, random_masking, {"noise": draw(B, N)}),
        Sample("gather_tokens", {**of_tokens, "index": "BM", "keep_pos": "B"}, ops.gather_tokens, tokens,
               {**masked, "keep_pos": keep_pos}),
        Sample("split_tokens", {**of_tokens, "keep": "BK", "masked": "BM"}, split, tokens,
               {"keep": masking.keep, "masked": masking.masked}),
        Sample("restore_tokens", {"visible": "BKd", "mask_token": "d", "pos_embed": "Nd", "restore": "BN"}, ops.restore_tokens,
               {"visible": draw(B, K, D), "mask_token": draw(D), "pos_embed": draw(N, D)}, {"restore": masking.restore}),
        Sample("gather_patches", of_pixels, call(ops.gather_patches, **cut), {"images": images}, {"index": some}),
        Sample("masked_cosine_loss", of_cosine, ops.masked_cosine_loss, {"pred": draw(B, N, D)}, cosine),
        Sample("masked_cosine_loss", {**of_cosine, "weight": "BM"}, ops.masked_cosine_loss,
               {"pred": draw(B, N, D), "weight": draw(B, N - K).abs()}, cosine, "weight"),
        Sample("linear_masked_cosine_loss", of_linear, ops.linear_masked_cosine_loss, linear, cosine),
        Sample("linear_masked_cosine_loss", of_linear, call(ops.linear_masked_cosine_loss, reduction="none"), linear, cosine,
               "none"),
        Sample("masked_pixel_loss", {**of_pixels, "pred": "BMp"}, call(ops.masked_pixel_loss, patch_size=P),
               {"pred": draw(sizes.images, sizes.patches, 3 * P * P)}, pixels),
        Sample("masked_pixel_loss", {**of_pixels, "pred": "Bnp"}, call(ops.masked_pixel_loss, patch_size=P),
               {"pred": draw(sizes.images, 4, 3 * P * P)}, pixels, "all"),
        Sample("roi_align", {"input": "Bchw", "boxes": "R5"}, call(ops.roi_align, output_size=2, spatial_scale=0.25, sampling_ratio=2),
               {"input": draw(sizes.images, C, 4, 4)}, of_boxes),
        Sample("roi_align", {"input": "Bchw", "boxes": "R5"}, call(ops.roi_align, output_size=2, spatial_scale=0.5, aligned=True),
               {"input": draw(sizes.images, C, 8, 8)}, of_boxes, "adaptive"),
        Sample("roi_align", {"input": "nchw", "first": "R4", "second": "S4"}, lists, {"input": draw(2, C, 8, 8)},
               {"first": boxes[:, 1:], "second": boxes[1:, 1:] + 0.7}, "lists"),
        Sample("multilevel_roi_align", {"fine": "Bchw", "coarse": "Bcij", "boxes": "R5"}, multilevel, levels, of_boxes),
        Sample("pool_regions", {"tokens": "Bnd", "boxes": "R5"}, call(ops.pool_regions, **grid), {"tokens": draw(sizes.images, 16, D)}, of_boxes),
        Sample("pool_regions", {"tokens": "Bnd", "boxes": "R5"}, call(ops.pool_regions, **grid, normalize=True, num_prefix_tokens=1),
               {"tokens": draw(sizes.images, 17, D)}, of_boxes, "normalize"),
        Sample("score_regions", of_regions, ops.score_regions, regions),
        Sample("score_regions", {**of_regions, "vlm_embeds": "Rd", "objectness": "R", "temperature": "", "base": "L"},
               ops.score_regions, score, base, "vlm"),
        Sample("info_nce", of_towers, ops.info_nce, towers),
        Sample("info_nce", {**of_towers, "group_ids": "B"}, call(ops.info_nce, label_smoothing=0.1, reduction="none"), towers,
               groups, "groups"),
        Sample("info_nce", {**of_towers, "text": "Td"}, call(ops.info_nce, direction="image_to_text", label_offset=1, label_smoothing=0.1),
               {**towers, "text": draw(sizes.pairs + 2, D)}, {}, "local"),
        Sample("info_nce", {**of_towers, "logit_bias": ""}, stats, {**towers, "logit_bias": draw()}, {}, "stats"),
        Sample("siglip_loss", {**of_towers, "logit_bias": ""}, ops.siglip_loss, {**towers, "logit_bias": draw()}),
    ]  # fmt: skip
