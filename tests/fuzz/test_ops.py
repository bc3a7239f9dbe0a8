"""Every op on random and hostile arguments: the kernels agree with the reference, reject what it rejects, and never crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cfmvit import ops
from cfmvit.ops.regions import checks as regions_checks
from cfmvit.ops.shared import checks, library

from . import hostile
from .hostile import Choices, assert_alike, boxes, floating, fuzz, outcome, permuted, spoiled

pytestmark = pytest.mark.skipif(library.core is None, reason=library.core_missing)


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing looks at values before the kernels do, as under torch.compile."""
    with (
        patch.object(checks, "readable", lambda value, values=True: False),
        patch.object(regions_checks, "image_numbers"),
    ):
        yield


def compare(op: Callable[..., Any], *inputs: Any, backward: bool = True, spread: bool = False) -> None:
    """The kernel and the reference have the same outcome; the kernel alone, on what no check has seen, does not crash."""
    run = lambda impl: lambda *inputs: op(*inputs, impl=impl)
    found, expected = (outcome(run(impl), inputs, backward=backward) for impl in ("native", "reference"))
    assert_alike(found, expected, spread=spread)
    if isinstance(expected, Exception):
        with unchecked(), patch.object(hostile, "REJECTED", (*hostile.REJECTED, RuntimeError)):
            outcome(run("native"), inputs, backward=backward)


def some_dtype(choose: Choices) -> torch.dtype:
    return choose.choice(hostile.FLOATS)


def some_values(choose: Choices, share: int) -> Sequence[float]:
    return hostile.HOSTILE if choose.rarely(share) else ()


def wrong(choose: Choices, inputs: list[Any]) -> list[Any]:
    """Now and then, one tensor of another dtype, shape or rank, or no tensor at all."""
    if not choose.rarely(7):
        return inputs
    place = choose.choice([i for i, x in enumerate(inputs) if isinstance(x, Tensor)])
    x = inputs[place]
    changed = choose.choice(
        [x.new_zeros(x.shape).to(dtype) for dtype in hostile.WRONG_DTYPES]
        + [
            x[None],
            x.flatten(),
            x.new_zeros([n + 1 for n in x.shape]),
            x.new_zeros([0] * x.dim()),
            None,
            3,
        ]
    )
    return [*inputs[:place], changed, *inputs[place + 1 :]]


@fuzz
def test_random_masking(choose: Choices) -> None:
    batch, count = choose.size(), choose.size()
    noise = floating(choose, batch, count, dtype=some_dtype(choose), values=some_values(choose, 3))
    ratio = choose.mostly((0.0, 0.3, 0.75, 1.0), (1.5, -0.1, float("nan")))
    (noise,) = wrong(choose, [noise])

    def op(noise: Tensor | None, impl: str) -> tuple[Tensor, ...]:
        torch.manual_seed(0)  # of noise that is drawn
        return tuple(ops.random_masking(batch, count, ratio, noise=noise, impl=impl))

    compare(op, noise, backward=False)


@fuzz
def test_gather_tokens(choose: Choices) -> None:
    batch, count, width = choose.size(), choose.size(), choose.size()
    tokens = floating(choose, batch, count, width, dtype=some_dtype(choose), values=some_values(choose, 3))
    index = permuted(choose, batch, count, choose.randint(0, count))
    index = spoiled(choose, index) if choose.rarely(4) else index
    tokens, index, pos, coins = wrong(choose, [tokens, index, *positions(choose, batch, count, width)])
    compare(
        lambda tokens, index, pos, coins, impl: ops.gather_tokens(
            tokens, index, pos_embed=pos, keep_pos=coins, impl=impl
        ),
        tokens, index, pos, coins,
    )  # fmt: skip


def positions(choose: Choices, batch: int, count: int, width: int) -> tuple[Tensor | None, Tensor | None]:
    pos = None if choose.rarely(2) else floating(choose, count, width, values=some_values(choose, 8))
    coins = None if choose.rarely(2) else torch.arange(batch) % 2 == choose.randint(0, 1)
    return pos, coins


@fuzz
def test_split_tokens(choose: Choices) -> None:
    batch, count, width = choose.size(), choose.size(), choose.size()
    kept = choose.randint(0, count)
    tokens = floating(choose, batch, count, width, dtype=some_dtype(choose), values=some_values(choose, 3))
    order = permuted(choose, batch, count)
    order = spoiled(choose, order) if choose.rarely(4) else order
    inputs = [tokens, order[:, :kept], order[:, kept:], *positions(choose, batch, count, width)]
    compare(
        lambda tokens, keep, masked, pos, coins, impl: ops.split_tokens(
            tokens, ops.Masking(keep, masked, masked), pos_embed=pos, keep_pos=coins, impl=impl
        ),
        *wrong(choose, inputs),
    )


@fuzz
def test_restore_tokens(choose: Choices) -> None:
    batch, count, width = choose.size(), choose.size(), choose.size()
    kept = choose.randint(0, count + 1)
    visible = floating(choose, batch, kept, width, dtype=some_dtype(choose), values=some_values(choose, 3))
    order = permuted(choose, batch, count)
    order = spoiled(choose, order) if choose.rarely(4) else order
    pos, _ = positions(choose, batch, count, width)
    compare(
        lambda visible, token, order, pos, impl: ops.restore_tokens(
            visible, token, order, pos_embed=pos, impl=impl
        ),
        *wrong(choose, [visible, floating(choose, width), order, pos]),
    )


@fuzz
def test_gather_patches(choose: Choices) -> None:
    batch, channels, patch = choose.size(), choose.randint(1, 4), choose.randint(1, 5)
    rows, columns = choose.randint(0, 3), choose.randint(0, 3)
    images = floating(
        choose,
        batch,
        channels,
        rows * patch,
        columns * patch,
        dtype=some_dtype(choose),
        values=some_values(choose, 3),
    )
    if choose.rarely(3):
        images = (images.nan_to_num(0, 0, 0) * 50).to(torch.uint8)
    index = (
        None
        if choose.rarely(3)
        else permuted(choose, batch, rows * columns, choose.randint(0, rows * columns))
    )
    index = spoiled(choose, index) if index is not None and choose.rarely(4) else index
    means = choose.mostly((None, [0.5] * channels), ([0.5] * (channels + 1),))
    patch = choose.mostly((patch,), (0, -1, patch + 1))
    dtype = choose.choice((None, *hostile.FLOATS))
    compare(
        lambda images, index, impl: ops.gather_patches(
            images, index, patch, mean=means, std=means, dtype=dtype, impl=impl
        ),
        *wrong(choose, [images, index]),
    )


@fuzz
def test_masked_cosine_loss(choose: Choices) -> None:
    batch, count, width = choose.size(), choose.size(), choose.size()
    dtype = some_dtype(choose)
    pred = floating(choose, batch, count, width, dtype=dtype, values=some_values(choose, 3))
    target = floating(choose, batch, count, width, dtype=choose.choice((dtype, torch.float32)))
    index = None if choose.rarely(3) else permuted(choose, batch, count, choose.randint(0, count))
    index = spoiled(choose, index) if index is not None and choose.rarely(4) else index
    rows = count if index is None else index.shape[1]
    weight = floating(choose, batch, rows).abs().detach() if choose.rarely(3) else None
    reduction = choose.mostly(("mean", "sum", "none"), ("max",))
    compare(
        lambda pred, target, index, weight, impl: ops.masked_cosine_loss(
            pred, target, index, weight=weight, reduction=reduction, impl=impl
        ),
        *wrong(choose, [pred, target, index, weight]),
    )


@fuzz
def test_linear_masked_cosine_loss(choose: Choices) -> None:
    batch, count, inner, width = choose.size(), choose.size(), choose.size(), choose.size()
    dtype = choose.choice((torch.float32, torch.float64))
    hidden = floating(choose, batch, count, inner, dtype=dtype, values=some_values(choose, 4))
    bias = floating(choose, width, dtype=dtype) if choose.rarely(2) else None
    target = floating(choose, batch, count, width, dtype=dtype)
    index = permuted(choose, batch, count, choose.randint(0, count)) if choose.rarely(3) else None
    compare(
        lambda hidden, weight, bias, target, index, impl: ops.linear_masked_cosine_loss(
            hidden, weight, bias, target, index, reduction="none", impl=impl
        ),
        *wrong(choose, [hidden, floating(choose, width, inner, dtype=dtype), bias, target, index]),
    )


@fuzz
def test_masked_pixel_loss(choose: Choices) -> None:
    batch, channels, patch = choose.size(), choose.randint(1, 4), choose.randint(1, 4)
    rows, columns = choose.randint(0, 3), choose.randint(0, 3)
    images = floating(choose, batch, channels, rows * patch, columns * patch, values=some_values(choose, 3))
    index = permuted(choose, batch, rows * columns, choose.randint(0, rows * columns))
    whole = choose.rarely(2)
    shape = (batch, rows * columns if whole else index.shape[1], channels * patch**2)
    pred = floating(choose, *shape, dtype=some_dtype(choose), values=some_values(choose, 3))
    index = spoiled(choose, index) if choose.rarely(4) else index
    normalize = patch * channels > 1 and choose.rarely(2)
    compare(
        lambda pred, images, index, impl: ops.masked_pixel_loss(
            pred, images, index, patch, normalize=normalize, reduction="none", impl=impl
        ),
        *wrong(choose, [pred, images, index]),
    )


def regions(choose: Choices, batch: int, count: int) -> Tensor | list[Tensor]:
    some = boxes(choose, count, hostile=choose.rarely(2))
    if choose.rarely(3):
        return [some[image::batch] for image in range(batch)] if batch else [some]
    image = torch.arange(count) % max(1, batch)
    image = image.to(some.dtype)
    if count and choose.rarely():
        image[0] = choose.choice((-1.0, float(batch), float("nan"), 1e9, 0.5))
    return torch.cat([image[:, None], some], 1)


def sampling(choose: Choices) -> dict[str, Any]:
    return {
        "output_size": choose.mostly((1, 2, 3, 7, (2, 5), (7, 1)), (0, (1, 2, 3))),
        "sampling_ratio": choose.mostly((2, 1, 3, -1, 0), (70000,)),
        "aligned": choose.rarely(2),
    }


@fuzz
def test_roi_align(choose: Choices) -> None:
    batch, channels = choose.randint(0 if choose.rarely() else 1, 3), choose.size()
    height, width = (choose.size(0 if choose.rarely() else 1) for _ in range(2))
    map = floating(choose, batch, channels, height, width, dtype=some_dtype(choose), values=hostile.FINITE)
    scale = choose.mostly((1.0, 0.25, 0.7, 1 / 16), (0.0, -1.0, float("nan")))
    rois, options = regions(choose, batch, choose.size()), sampling(choose)
    (map,) = wrong(choose, [map])
    compare(lambda map, impl: ops.roi_align(map, rois, spatial_scale=scale, **options, impl=impl), map)


@fuzz
def test_multilevel_roi_align(choose: Choices) -> None:
    batch, channels, dtype = choose.randint(0 if choose.rarely() else 1, 3), choose.size(), some_dtype(choose)
    levels = [
        floating(choose, batch, channels, choose.size(1), choose.size(1), dtype=dtype)
        for _ in range(choose.choice((1, 2, 3, 4)))
    ]
    strides = [4.0 * 2**level for level in range(len(levels))]
    rois, options = regions(choose, batch, choose.size()), sampling(choose)
    canonical = choose.choice((8.0, 20.0, 224.0))
    compare(
        lambda *maps, impl: ops.multilevel_roi_align(
            maps, rois, strides=strides, canonical_scale=canonical, canonical_level=3, **options, impl=impl
        ),
        *wrong(choose, levels),
    )


@fuzz
def test_pool_regions(choose: Choices) -> None:
    batch, width, prefix = choose.randint(0 if choose.rarely() else 1, 3), choose.size(), choose.randint(0, 2)
    grid = (choose.randint(0 if choose.rarely() else 1, 9), choose.randint(1, 9))
    tokens = floating(
        choose, batch, prefix + grid[0] * grid[1], width, dtype=some_dtype(choose), values=hostile.FINITE
    )
    rois, options, normalize = regions(choose, batch, choose.size()), sampling(choose), choose.rarely(2)
    (tokens,) = wrong(choose, [tokens])
    compare(
        lambda tokens, impl: ops.pool_regions(
            tokens, rois, grid_size=grid, spatial_scale=0.25, num_prefix_tokens=prefix, normalize=normalize,
            **options, impl=impl,
        ),
        tokens,
    )  # fmt: skip


@fuzz
def test_score_regions(choose: Choices) -> None:
    count, labels, width = choose.size(), choose.size(), choose.size(1)
    regions, vlm = (floating(choose, count, width, values=some_values(choose, 4)) for _ in range(2))
    texts = floating(choose, 1 + labels, width)
    base = torch.arange(labels) % 2 == 0 if choose.rarely(2) else None
    objectness = floating(choose, count).abs() if choose.rarely(2) else None
    renormalize, power = choose.rarely(2), choose.choice((3.0, 1.0, 0.0, 0.5))
    compare(
        lambda regions, texts, vlm, base, objectness, impl: ops.score_regions(
            regions, texts, vlm_embeds=vlm, base=base, objectness=objectness, renormalize=renormalize,
            objectness_power=power, temperature=0.5, vlm_temperature=0.5, impl=impl,
        ),
        *wrong(choose, [regions, texts, vlm if choose.rarely(2) else None, base, objectness]),
        backward=False,
    )  # fmt: skip


def pair(choose: Choices) -> list[Tensor | None]:
    rows, width = (choose.size(0 if choose.rarely(12) else 1) for _ in range(2))
    dtype = some_dtype(choose)
    image, text = (
        torch.nn.functional.normalize(
            floating(choose, rows, width, dtype=dtype, values=some_values(choose, 6)), dim=-1
        )
        for _ in range(2)
    )
    scale = torch.tensor(choose.choice((1.0, 10.0, 100.0, 0.0, -5.0)))
    bias = torch.tensor(-3.0) if choose.rarely(2) else None
    return [image.detach(), text.detach(), scale, bias]


@fuzz
def test_info_nce(choose: Choices) -> None:
    inputs = pair(choose)
    rows = len(inputs[0])
    ids = torch.arange(rows) // 2 if choose.rarely(3) else None
    options = {
        "direction": choose.choice(("both", "image_to_text", "text_to_image")),
        "reduction": choose.choice(("mean", "sum", "none")),
        "label_smoothing": choose.mostly((0.0, 0.0, 0.1), (1.0,)),
    }
    compare(
        lambda image, text, scale, bias, ids, impl: ops.info_nce(
            image, text, scale, logit_bias=bias, group_ids=ids, **options, impl=impl
        ),
        *wrong(choose, [*inputs, ids]),
        spread=True,
    )


@fuzz
def test_siglip_loss(choose: Choices) -> None:
    reduction = choose.mostly(("mean", "sum"), ("none",))
    compare(
        lambda image, text, scale, bias, impl: ops.siglip_loss(
            image, text, scale, bias, reduction=reduction, impl=impl
        ),
        *wrong(choose, pair(choose)),
        spread=True,
    )
