"""The region ops under opcheck, torch.compile, export and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit import ops

from .families import moved

N = torch.ops.cfmvit
GENERATOR = torch.Generator().manual_seed(0)
ROIS = torch.tensor([[0, 1.0, 2, 9, 7], [1, 0, 0, 30, 30], [1, 4, 4, 4.5, 6], [0, 9, 9, 2, 2]])


def rand(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR).requires_grad_(grad)


def channels_last(x: Tensor) -> Tensor:
    return x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


MAP, GRAD = rand(2, 5, 6, 8), rand(4, 5, 3, 2, grad=False)
MAPS = [rand(2, 5, s, s) for s in (8, 4)]
LEVELS, SCALES = torch.tensor([0, 1, 0, 1]), [0.5, 0.25]
TOKENS = rand(2, 2 + 48, 5)
POOLED = (6, 8, 0.5, 3, 2, 2, True, 2)
CASES: dict[str, tuple[Any, tuple]] = {
    "roi_align": (N.roi_align, (MAP, ROIS, 0.5, 3, 2, 2, True)),
    "roi_align_last": (N.roi_align, (channels_last(MAP), ROIS, 0.5, 3, 2, -1, False)),
    "roi_align_backward": (N.roi_align_backward, (GRAD, ROIS, 0.5, 2, 5, 6, 8, 2, True, True)),
    "multilevel": (N.multilevel_roi_align, (MAPS, ROIS, LEVELS, SCALES, 3, 2, 2, True)),
    "multilevel_backward": (
        N.multilevel_roi_align_backward,
        (GRAD, ROIS, LEVELS, SCALES, 2, 5, [8, 4], [8, 4], 2, True, False),
    ),
    "pool": (N.pool_regions, (TOKENS, ROIS, *POOLED, False)),
    "pool_normalized": (N.pool_regions, (TOKENS, ROIS, *POOLED, True)),
    "pool_backward": (N.pool_regions_backward, (GRAD[:, :, 0, 0], ROIS, None, 2, 50, *POOLED)),
    "pool_normalized_backward": (
        N.pool_regions_backward,
        (GRAD[:, :, 0, 0], ROIS, TOKENS.detach(), 2, 50, *POOLED),
    ),
    "levels": (N.pyramid_levels, (ROIS.detach(), 2, 4, 224.0, 4.0)),
    "score_regions": (
        N.score_regions,
        (
            rand(4, 3, grad=False),
            rand(6, 3, grad=False),
            rand(4, 3, grad=False),
            torch.rand(5),
            torch.rand(4),
            torch.tensor(0.1),
            torch.tensor(0.2),
            3.0,
            True,
        ),
    ),
    "scores_of_one_tower": (
        N.score_regions,
        (
            rand(4, 3, grad=False).bfloat16(),
            rand(6, 3, grad=False).bfloat16(),
            None,
            torch.rand(5),
            None,
            torch.tensor(0.1),
            torch.tensor(0.2),
            3.0,
            True,
        ),
    ),
}


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck's own access
@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str, device: str) -> None:
    op, arguments = CASES[case]
    torch.library.opcheck(op.default, moved(arguments, device))


class Heads(nn.Module):
    """Every function of the family once."""

    def forward(self, map: Tensor, tokens: Tensor, rois: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        crops = ops.roi_align(map, rois, 3, 0.5, 2, True)
        levels = ops.multilevel_roi_align(
            [map, map[:, :, ::2, ::2]], rois, 2, strides=(2, 4), canonical_scale=8
        )
        pooled = ops.pool_regions(tokens, rois, grid_size=(6, 8), spatial_scale=0.5, num_prefix_tokens=2)
        scores = ops.score_regions(
            pooled, text, vlm_embeds=crops.mean((2, 3)), base=torch.arange(len(text) - 1, device=text.device) % 2 > 0,
            temperature=0.1, objectness=levels.mean((1, 2, 3)).sigmoid(),
        )  # fmt: skip
        return crops, levels, pooled, scores


class PoolMap(nn.Module):
    """pool_regions on a grid of any size."""

    def forward(self, map: Tensor, rois: Tensor) -> Tensor:
        return ops.pool_regions(map.flatten(2).mT, rois, grid_size=map.shape[2:], spatial_scale=0.5)


def test_compiles_in_one_graph_of_any_number_of_boxes(device: str) -> None:
    heads, (text, map, tokens, boxes) = Heads(), moved((rand(7, 5), MAP, TOKENS, ROIS), device)
    compiled = torch.compile(heads, backend="aot_eager", fullgraph=True, dynamic=True)
    for rois in (boxes, boxes[:2].repeat(5, 1), boxes[:3]):
        outs = [run(map, tokens, rois, text) for run in (heads, compiled)]
        torch.testing.assert_close(outs[1], outs[0])
        grads = [torch.autograd.grad(sum(o.sum() for o in out), (map, tokens, text)) for out in outs]
        torch.testing.assert_close(grads[1], grads[0])


def test_meta_tensors_give_meta_results() -> None:
    arguments = moved((MAP, TOKENS, ROIS, rand(7, 5)), "cpu")
    expected, found = Heads()(*arguments), Heads()(*moved(arguments, "meta"))
    for a, e in zip(found, expected, strict=True):
        assert a.is_meta
        assert a.requires_grad
        assert (a.shape, a.dtype, a.stride()) == (e.shape, e.dtype, e.stride())
    lists = ops.roi_align(MAP.to("meta"), [ROIS[:2, 1:].to("meta")] * 2, 3)
    assert (lists.device.type, lists.shape) == ("meta", (4, 5, 3, 3))


def test_export() -> None:
    rows = torch.export.Dim("rows", min=2)
    inputs = (MAP.detach(), TOKENS.detach(), ROIS, rand(7, 5, grad=False))
    program = torch.export.export(Heads(), inputs, dynamic_shapes=(None, None, {0: rows}, None))
    other = (*inputs[:2], ROIS.repeat(3, 1), inputs[3])
    torch.testing.assert_close(program.module()(*other), Heads()(*other))
    names = {str(node.target) for node in program.graph.nodes}
    pool = PoolMap()
    pooling = torch.export.export(
        pool,
        (MAP.detach(), ROIS),
        dynamic_shapes=({i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}, {0: rows}),
    )
    larger = torch.cat([MAP.detach(), MAP.detach()], 3)
    torch.testing.assert_close(pooling.module()(larger, ROIS[:3]), pool(larger, ROIS[:3]))
    for op in ("roi_align", "multilevel_roi_align", "pool_regions", "score_regions"):
        assert f"cfmvit.{op}.default" in names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_rounds_neither_features_nor_boxes(dtype: torch.dtype, device: str) -> None:
    map, tokens, boxes = (x.detach().to(device) for x in (MAP.to(dtype), TOKENS.to(dtype), ROIS + 0.123))
    boxes[:, 0] = ROIS[:, 0]

    def run() -> tuple[Tensor, ...]:
        return (
            ops.roi_align(map, boxes, 3),
            ops.multilevel_roi_align([map], boxes, 3, strides=(4,)),
            ops.pool_regions(tokens, boxes, grid_size=(6, 8), spatial_scale=1.0, num_prefix_tokens=2),
        )

    plain = run()
    with torch.autocast(device, torch.bfloat16):
        cast = run()
    for a, b in zip(plain, cast):
        assert a.dtype == dtype
        assert torch.equal(a, b)
