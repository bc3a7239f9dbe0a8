"""multilevel_roi_align: torchvision's numbers, the levels of boxes, odd boxes, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from cfmvit.ops import multilevel_roi_align
from cfmvit.ops.regions import reference

from .families import TOLERANCES, assert_parity, assert_same_bits, moved

B = 2
NAN, INF = float("nan"), float("inf")


def pyramid(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(B, 20, s, s + 1, generator=generator, dtype=torch.float64).to(dtype)
        for s in (32, 16, 8, 4)
    ]


def pyramid_boxes() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(30, 2, generator=generator, dtype=torch.float64) * 90
    size = torch.rand(30, 2, generator=generator, dtype=torch.float64) ** 2 * 120 + 1
    size[0] = 56.0  # exactly canonical
    boxes = torch.cat([corner, corner + size], 1)
    return [boxes[:18], boxes[18:]]


def test_pyramid_equals_torchvision(device: str, torchvision: ModuleType) -> None:
    """torchvision's MultiScaleRoIAlign with aligned=False, its only way."""
    maps, boxes = moved((pyramid(), pyramid_boxes()), device)
    theirs = torchvision.ops.MultiScaleRoIAlign(
        ["0", "1", "2", "3"], 5, 2, canonical_scale=56, canonical_level=4
    )
    expected = theirs({str(i): m for i, m in enumerate(maps)}, boxes, [(128, 132)] * B)
    for impl in ("native", "reference"):
        actual = multilevel_roi_align(
            maps, boxes, 5, sampling_ratio=2, aligned=False, canonical_scale=56, canonical_level=4, impl=impl
        )
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("finest", "count"), [(2, 4), (3, 3), (0, 1), (-1, 9)])
def test_levels_of_a_pyramid(finest: int, count: int, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(7)
    sides = 2 ** (12 * torch.rand(500, 2, generator=generator, dtype=torch.float64) - 2)
    exact = 2.0 ** torch.arange(-2, 12, dtype=torch.float64)  # on the border of two levels
    sides = torch.cat([sides, exact[:, None].expand(-1, 2)])
    odd = torch.tensor(
        [[0, 0, 0, 0, 0], [0, 9, 9, 3, 3], [0, NAN, 0, 1, 1], [0, 0, 0, INF, 5], [0, 5, 5, 9, 3]]
    )
    rois = torch.cat([torch.cat([torch.zeros(len(sides), 3), sides], 1), odd.double()]).to(device, dtype)
    wide = torch.cat([rois, rois], 1)[:, :5]  # rows apart
    expected = reference.pyramid_levels(rois, finest, count, 256.0, 4.0)
    assert torch.equal(torch.ops.cfmvit.pyramid_levels(wide, finest, count, 256.0, 4.0), expected)
    assert expected.unique().tolist() == list(range(count))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_pyramid_parity_with_float64(dtype: torch.dtype, device: str) -> None:
    boxes = moved(pyramid_boxes(), device)

    def make(impl: str):
        return lambda *maps: multilevel_roi_align(maps, boxes, 3, canonical_scale=40, impl=impl)

    assert_parity(make, pyramid(), dtype, device)
    if dtype == torch.float32:
        assert_same_bits(make("native"), moved(pyramid(dtype), device))


def test_pyramid_of_odd_boxes(device: str) -> None:
    """Boxes without area or finite corners belong to some level; unused levels have zero gradients."""
    odd = [[0.0, 0, 0, 0], [9, 9, 3, 3], [NAN, 0, 1, 1], [0, 0, INF, 5]]
    maps, boxes = moved((pyramid(), [torch.tensor(odd), torch.zeros(0, 4)]), device)
    maps = [m.requires_grad_() for m in maps]
    for impl in ("native", "reference"):
        out = multilevel_roi_align(maps, boxes, 2, impl=impl)
        assert out.isfinite().all()
        assert not out[2:].any()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), maps))


@pytest.mark.parametrize(
    "maps, options, error, message",
    [
        ([], {}, ValueError, "features must have at least one level, got none"),
        (pyramid()[:3], {}, ValueError, "strides must have one number for each of 3 levels, got 4"),
        (
            pyramid(),
            {"strides": (4, 8, 12, 16)},
            ValueError,
            r"strides must .* twice .* got \(4, 8, 12, 16\)",
        ),
        (
            [*pyramid()[:3], torch.zeros(2, 7, 4, 4)],
            {},
            ValueError,
            "features must have equal batch and channels",
        ),
        ([*pyramid()[:3], torch.zeros(2, 20, 4, 4)], {}, TypeError, "features must have equal dtype"),
        (pyramid(), {"canonical_scale": 0}, ValueError, "canonical_scale must be positive and finite, got 0"),
    ],
)
def test_pyramid_refusals(
    maps: Sequence[Tensor], options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="multilevel_roi_align: " + message):
        multilevel_roi_align(maps, [torch.zeros(1, 4)] * B, 2, **options)
