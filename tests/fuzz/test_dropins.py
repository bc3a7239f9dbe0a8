"""Every drop-in on random and hostile arguments: what its original computes, wherever that is defined."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit.integrations import mae, open_clip, timm, torchvision

from ..integrations.masked_autoencoder import MaskedAutoencoderViT
from .hostile import FINITE, HOSTILE, Choices, assert_alike, boxes, floating, fuzz, outcome, permuted

EXACT = (torch.float32, torch.float64)


def compare(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Any, spread: bool = False) -> None:
    """Both have the same values and gradients, from the same random numbers."""

    def seeded(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            torch.manual_seed(0)
            return function(*inputs)

        return run

    found = outcome(seeded(ours), inputs)
    assert not isinstance(found, Exception)
    try:
        expected = outcome(seeded(theirs), inputs)
    except RuntimeError:  # torchvision asks for room of a negative size
        return
    if isinstance(expected, ValueError) and "std::vector larger than max_size" in str(expected):
        return  # the same, as other versions say it
    assert_alike(found, expected, spread=spread)


def sane_boxes(choose: Choices, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Finite boxes, some inverted or far outside, for as many images or fewer; more would hang the original."""
    lists = []
    for _ in range(choose.randint(1, batch)):
        some = boxes(choose, choose.randint(0, 5)).to(dtype)
        if len(some) and choose.rarely(3):
            some = some.clone()
            some[0, choose.randrange(4)] = choose.choice((-60.0, 90.0))
        lists.append(some)
    return lists


@fuzz
def test_roi_align(choose: Choices) -> None:
    theirs = pytest.importorskip("torchvision").ops
    batch, dtype = choose.randint(1, 3), choose.choice(EXACT)
    map = floating(choose, batch, choose.size(), choose.size(1), choose.size(1), dtype=dtype, values=FINITE)
    some: Any = sane_boxes(choose, batch, dtype)
    if choose.rarely(2):
        some = theirs._utils.convert_boxes_to_roi_format(some)
    options = (
        choose.choice((1, 3, (2, 5))), choose.choice((1.0, 0.25)), choose.choice((2, 1, -1, 0)), choose.rarely(2),
    )  # fmt: skip
    compare(
        lambda map: torchvision.roi_align(map, some, *options),
        lambda map: theirs.roi_align(map, some, *options),
        map,
    )


@fuzz
def test_multiscale_roi_align(choose: Choices) -> None:
    theirs = pytest.importorskip("torchvision").ops
    batch, channels, dtype = choose.randint(1, 3), choose.size(), choose.choice(EXACT)
    strides = choose.choice(((4, 8), (2, 4, 8), (4, 16), (8,), (8, 4)))
    maps = [floating(choose, batch, channels, 64 // stride, 32 // stride, dtype=dtype) for stride in strides]
    some = sane_boxes(choose, batch, dtype)
    names = [str(i) for i in range(len(maps))]
    arguments = (names, choose.choice((1, (3, 2))), choose.choice((2, 0)))
    canonical = {"canonical_scale": choose.choice((10, 20, 224)), "canonical_level": choose.choice((2, 3, 4))}
    mine, other = (module.MultiScaleRoIAlign(*arguments, **canonical) for module in (torchvision, theirs))
    run = lambda layer: lambda *maps: layer(OrderedDict(zip(names, maps)), some, [(64, 32)] * batch)
    compare(run(mine), run(other), *maps)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_losses(name: str) -> None:
    theirs = pytest.importorskip("open_clip.loss")

    @fuzz
    def losses(choose: Choices) -> None:
        rows, width, dtype = choose.size(1), choose.size(1), choose.choice(EXACT)
        values = HOSTILE if choose.rarely(5) else ()
        image, text = (floating(choose, rows, width, dtype=dtype, values=values) for _ in range(2))
        scale = torch.tensor(choose.choice((0.0, 1.0, 10.0)), dtype=dtype)
        # A bias cancels: its gradient is zero here, whatever the features.
        bias = choose.choice((None, torch.tensor(-2.0, dtype=dtype))) if not values else None
        length = math.sqrt(width)
        run = lambda loss: lambda image, text, scale, bias: loss(image / length, text, scale, bias)
        mine, other = getattr(open_clip, name)(), getattr(theirs, name)()
        compare(run(mine), run(other), image, text, scale, bias, spread=True)

    losses()


@fuzz
def test_mae_random_masking(choose: Choices) -> None:
    x = floating(choose, choose.size(1), choose.size(), choose.size(), values=HOSTILE)
    ratio = choose.choice((0.0, 0.25, 0.75, 0.99, 1.0))
    compare(
        lambda x: mae.random_masking(x, ratio),
        lambda x: MaskedAutoencoderViT.random_masking(None, x, ratio),
        x,
    )


@fuzz
def test_mae_unshuffle(choose: Choices) -> None:
    batch, count, width = choose.size(1), choose.size(), choose.size()
    restore = permuted(choose, batch, count).long()
    model = nn.Module()
    model.decoder_embed = nn.Identity()

    def theirs(x: Tensor, token: Tensor, pos: Tensor) -> Tensor:
        vars(model).update(mask_token=token, decoder_pos_embed=pos)
        return MaskedAutoencoderViT.unshuffle(model, x, restore)

    x = floating(choose, batch, 1 + choose.randint(0, count), width, values=HOSTILE)
    token, pos = floating(choose, 1, 1, width), floating(choose, 1, 1 + count, width)
    compare(lambda x, token, pos: mae.unshuffle(x, token, restore, pos), theirs, x, token, pos)


@fuzz
def test_mae_forward_loss(choose: Choices) -> None:
    batch, side, patch, normalize = (
        choose.size(1),
        choose.randint(1, 3),
        choose.randint(1, 4),
        choose.rarely(2),
    )
    values = HOSTILE if choose.rarely(4) else ()
    imgs = floating(choose, batch, 3, side * patch, side * patch)
    pred = floating(choose, batch, side**2, 3 * patch**2, values=values)
    mask = (floating(choose, batch, side**2) > 0).float()
    model = MaskedAutoencoderViT(patch_size=patch, image_size=patch, norm_pix_loss=normalize)
    compare(
        lambda pred: mae.forward_loss(imgs, pred, mask, patch, normalize),
        lambda pred: model.forward_loss(imgs, pred, mask),
        pred,
        spread=True,
    )


@fuzz
def test_patch_dropout(choose: Choices) -> None:
    theirs = pytest.importorskip("timm.layers")
    prefix = choose.randint(0, 3)
    x = floating(choose, choose.size(1), prefix + choose.size(), choose.size(), values=HOSTILE)
    options = (choose.choice((0.0, 0.1, 0.5, 0.99)), prefix, choose.rarely(2), not choose.rarely(5))
    compare(
        lambda x: timm.patch_dropout_forward(x, *options),
        lambda x: theirs.patch_dropout_forward(x, *options),
        x,
    )
