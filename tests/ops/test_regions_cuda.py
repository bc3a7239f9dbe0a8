"""The region ops on a GPU, where no check sees what boxes hold and a stream may be under capture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cfmvit import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible"),
]
NAN, INF = float("nan"), float("inf")
IMAGES, SIZE, CHANNELS = 2, (24, 40), 136


def tokens(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, 1 + SIZE[0] * SIZE[1], CHANNELS)
    return torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_()


def boxes(count: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * 36 - 4
    size = torch.rand(count, 2, generator=generator) ** 2 * 40 + 0.1
    image = torch.randint(0, IMAGES, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], 1).cuda()


def heads(x: Tensor, rois: Tensor, impl: str | None = None) -> list[Tensor]:
    """Every op of the family that reads maps, and the gradients of the tokens."""
    map = x[:, 1:].transpose(1, 2).unflatten(2, SIZE)
    outs = [
        ops.pool_regions(x, rois, grid_size=SIZE, spatial_scale=1.0, num_prefix_tokens=1, impl=impl),
        ops.roi_align(map, rois, (5, 3), sampling_ratio=2, aligned=True, impl=impl),
        ops.roi_align(map.contiguous(), rois, 2, impl=impl),
        ops.multilevel_roi_align(
            [map, map[:, :, ::2, ::2]],
            rois,
            2,
            strides=(1, 2),
            canonical_scale=8,
            canonical_level=1,
            impl=impl,
        ),
    ]
    return outs + [torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out in outs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_replays_as_a_graph_with_other_numbers(dtype: torch.dtype) -> None:
    x, rois = tokens(dtype), boxes()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels and autograd warm up outside the capture
        heads(x, rois)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = heads(x, rois)
    with torch.no_grad():
        x.mul_(-0.5)
        rois[:, 1:].add_(1.5)
    graph.replay()
    for a, b in zip(captured, heads(x, rois)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_boxes_that_no_check_has_seen(dtype: torch.dtype) -> None:
    """Images that there are not, coordinates that are not finite: zeros, and the other boxes as if alone."""
    x, rois = tokens(dtype), boxes(60)
    rois[::6, 0] = torch.tensor([-1.0, IMAGES, NAN, INF, -INF, 1e30, -0.5, 7, 2.5, -3]).cuda()
    rois[1::6, 1] = NAN
    rois[2::6, 3] = INF
    found = heads(x, rois)
    bad = torch.zeros(60, dtype=torch.bool, device="cuda")
    bad[::6] = bad[1::6] = bad[2::6] = True
    alone = heads(x, rois[~bad])
    for some, others in zip(found[:4], alone[:4]):
        assert not some[bad].any()
        assert (
            torch.equal(some[~bad], others) or dtype == torch.bfloat16
        )  # tiles of products hold other boxes
        torch.testing.assert_close(some[~bad], others)
    for some, others in zip(found[4:], alone[4:]):
        torch.testing.assert_close(some, others)


def test_products_of_large_boxes_are_as_exact_as_sums() -> None:
    x, rois = tokens(torch.bfloat16), boxes()
    options = dict(grid_size=SIZE, spatial_scale=1.0, num_prefix_tokens=1)
    exact = ops.pool_regions(x.double(), rois, **options, impl="reference")
    error = (ops.pool_regions(x, rois, **options).double() - exact).abs()
    rounding = (exact.bfloat16().double() - exact).abs()
    assert error.max() <= 1.1 * rounding.max()
