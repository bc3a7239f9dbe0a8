"""RoIAlign against the installed torchvision: values, gradients, errors, and torchvision's own detectors patched."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit.integrations import torchvision as ours

from .parity import assert_same, run

torchvision = pytest.importorskip("torchvision")
theirs = torchvision.ops
GENERATOR = torch.Generator().manual_seed(0)
SIZES = (80, 112)


def boxes_of(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes (count, 4), some of them partly outside the image, one without area."""
    corners = torch.rand(count, 2, 2, generator=GENERATOR, dtype=torch.float64) * 1.3 - 0.15
    low, high = corners.amin(1), corners.amax(1)
    scale = torch.tensor(SIZES[::-1])
    boxes = torch.cat([low * scale, high * scale], 1)
    boxes[:1, 2:] = boxes[:1, :2]
    return boxes.to(dtype)


def maps_of(*strides: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(3, 6, SIZES[0] // stride, SIZES[1] // stride, generator=GENERATOR, dtype=torch.float64).to(dtype)
        for stride in strides
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["roi_align", "RoIAlign", "MultiScaleRoIAlign"])
def test_same_interface(name: str) -> None:
    mine, other = (inspect.signature(getattr(module, name)) for module in (ours, theirs))
    assert [(p.name, p.kind, p.default) for p in mine.parameters.values()] == [
        (p.name, p.kind, p.default) for p in other.parameters.values()
    ]


@pytest.mark.parametrize("arguments", [((7, 5), 0.25, 2, True), (3, 0.25, -1)])
def test_same_layer(arguments: tuple) -> None:
    mine, other = ours.RoIAlign(*arguments), theirs.RoIAlign(*arguments)
    assert repr(mine) == repr(other)
    assert mine.state_dict() == other.state_dict()
    names = ["a", "b"]
    mine, other = ours.MultiScaleRoIAlign(names, 7, 2), theirs.MultiScaleRoIAlign(names, 7, 2)
    assert repr(mine) == repr(other)
    assert mine.state_dict() == other.state_dict()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling_ratio", [2, -1, 0])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(
    aligned: bool, sampling_ratio: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    map = maps_of(4, dtype=dtype)[0].contiguous(memory_format=layout)
    parts = [boxes_of(count, dtype) for count in (5, 0, 7)]
    options = ((3, 4), 0.25, sampling_ratio, aligned)
    for boxes in (parts, parts[:2], tuple(parts), theirs._utils.convert_boxes_to_roi_format(parts)):
        mine = run(lambda x, b=boxes: ours.roi_align(x, b, *options), map)
        other = run(lambda x, b=boxes: theirs.roi_align(x, b, *options), map)
        assert_same(mine, other, dtype)
    layer = ours.RoIAlign(*options)
    assert torch.equal(layer(map, parts), ours.roi_align(map, parts, *options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    map, boxes = maps_of(4)[0], [boxes_of(4) for _ in range(3)]
    expected = run(lambda x: theirs.roi_align(x, boxes, 3, 0.25), map)
    assert_same(run(lambda x: ours.roi_align(x.to(dtype), boxes, 3, 0.25), map), expected, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(lambda x: ours.roi_align(x, boxes, 3, 0.25), map)
    assert_same(found, expected, torch.float32)


def pooled(layer: nn.Module, boxes: list[Tensor], names: str = "abc") -> Any:
    def function(*maps: Tensor) -> Tensor:
        return layer(OrderedDict(zip(names, maps)), boxes, [(80, 100), SIZES, (70, 112)])

    return function


@pytest.mark.parametrize("sampling_ratio", [2, 0])
@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "c"], ["b"]])
def test_multiscale(names: list[str], sampling_ratio: int) -> None:
    maps = maps_of(4, 8, 16)
    boxes = [boxes_of(count) for count in (5, 0, 9)]
    boxes[0][1] = torch.tensor([50.0, 60, 20, 70])  # width below zero: torchvision leaves zeros
    layers = [
        module.MultiScaleRoIAlign(names, (3, 2), sampling_ratio, canonical_scale=40, canonical_level=3)
        for module in (ours, theirs)
    ]
    if len(names) == 1:  # there is no choice of a level, so torchvision does pool that box
        boxes[0] = boxes[0][2:]
    mine, other = (run(pooled(layer, boxes), *maps) for layer in layers)
    assert_same(mine, other, torch.float32)
    assert layers[0].scales == layers[1].scales
    assert vars(layers[0].map_levels) == vars(layers[1].map_levels)


def test_multiscale_keeps_its_first_scales_and_mixes_dtypes() -> None:
    mine, other = (module.MultiScaleRoIAlign(["a", "b"], 2, 2) for module in (ours, theirs))
    boxes = [boxes_of(3) for _ in range(3)]
    for maps in (maps_of(4, 8), maps_of(8, 16)):
        torch.testing.assert_close(pooled(mine, boxes)(*maps), pooled(other, boxes)(*maps))
    maps = [maps_of(4)[0].bfloat16(), maps_of(8)[0]]
    found = pooled(mine, boxes)(*maps)
    assert found.dtype == torch.bfloat16
    expected = pooled(other, boxes)(*(x.float() for x in maps))
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=1e-2)


def test_compile() -> None:
    maps, boxes = maps_of(4, 8, 16), [boxes_of(count) for count in (5, 2, 9)]
    single = lambda x: ours.roi_align(x, boxes, 3, 0.25)
    several = pooled(ours.MultiScaleRoIAlign(["a", "b", "c"], 3, 2), boxes)
    for function, inputs in ((single, maps[:1]), (several, maps)):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(run(compiled, *inputs), run(function, *inputs), torch.float32)


def test_bad_input_is_rejected_as_torchvision_does() -> None:
    map = maps_of(4)[0]
    for wrong, message in (
        (torch.zeros(2, 4), r"boxes must have shape \(R, 5\), got \(2, 4\)"),
        ([torch.zeros(2, 5)], r"boxes must have shape \(R_i, 4\) for each image, got \(2, 5\)"),
        (7, "boxes must be a tensor .* got int"),
    ):
        with pytest.raises(AssertionError, match=message):
            ours.roi_align(map, wrong, 3)
        with pytest.raises(AssertionError):
            theirs.roi_align(map, wrong, 3)
    with pytest.raises(ValueError, match=r"image number in \[0, 3\) first, got 3"):
        ours.roi_align(map, torch.tensor([[3.0, 0, 0, 4, 4]]), 3)
    layer = ours.MultiScaleRoIAlign(["a"], 3, 2)
    with pytest.raises(ValueError, match="x must have maps named as in"):
        layer({"b": map}, [boxes_of(1)], [SIZES])
    for module in (ours, theirs):
        with pytest.raises(ValueError, match="image"):
            module.MultiScaleRoIAlign(["a"], 3, 2)({"a": map}, [boxes_of(1)], [])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_maps_go_the_original_way() -> None:
    map = torch.quantize_per_tensor(maps_of(4)[0][:1], 0.1, 0, torch.qint8)
    boxes = torch.quantize_per_tensor(torch.tensor([[0.0, 1, 2, 30, 40]]), 1.0, 0, torch.qint8)
    expected = theirs.roi_align(map, boxes, 3, 0.25)
    with pytest.warns(UserWarning, match="roi_align: a quantised map; computed as the original does"):
        assert torch.equal(ours.roi_align(map, boxes, 3, 0.25).int_repr(), expected.int_repr())
    with ours.install():  # the original is found behind the patch, and the warning is not repeated
        assert torch.equal(theirs.roi_align(map, boxes, 3, 0.25).int_repr(), expected.int_repr())


class Pyramid(nn.Module):
    """A backbone of two maps."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x).relu()
        return {"0": fine, "1": self.coarse(fine).relu()}


def mask_rcnn() -> nn.Module:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    return MaskRCNN(
        Pyramid(),
        4,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=theirs.MultiScaleRoIAlign(["0", "1"], 5, 2, canonical_scale=20, canonical_level=3),
        mask_roi_pool=theirs.MultiScaleRoIAlign(["0", "1"], 6, 2, canonical_scale=20, canonical_level=3),
    )


def trained(model: nn.Module) -> list[Tensor]:
    images = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    boxes = torch.tensor([[4.0, 4, 30, 40], [20, 10, 70, 60]])
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 4:40, 4:30], masks[1, 20:60, 30:70] = 1, 1
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    model.zero_grad()
    torch.manual_seed(1)  # of the sampling of proposals
    losses = model(images, [dict(target) for _ in images])
    sum(losses.values()).backward()
    return [x.detach() for x in losses.values()] + [p.grad for p in model.parameters()]


def test_unmodified_mask_rcnn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mask_rcnn()
    expected = trained(model)
    calls: list[str] = []
    inner = ours.regions._choose
    monkeypatch.setattr(ours.regions, "_choose", lambda op, *rest: calls.append(op) or inner(op, *rest))
    with ours.install():
        assert_same(trained(model), expected, torch.float32)
        mine = model.eval()([torch.rand(3, 64, 80, generator=GENERATOR)])
    assert {"roi_align", "multilevel_roi_align"} <= set(calls)
    assert mine[0]["masks"].shape[1:] == (1, 64, 80)
    calls.clear()
    trained(model.train())
    assert not calls


def test_install_is_nested_and_exception_safe() -> None:
    from torchvision.models.detection import roi_heads
    from torchvision.ops import poolers

    def state() -> list[Any]:
        return [theirs.roi_align, roi_heads.roi_align, poolers.roi_align, poolers._multiscale_roi_align]

    before = state()
    with pytest.raises(KeyError), ours.install():
        assert state() == [ours.roi_align] * 3 + [ours._multiscale_roi_align]
        with ours.install():
            pass
        assert theirs.roi_align is ours.roi_align
        raise KeyError
    assert state() == before
    first, second = ours.install(), ours.install()
    first.remove()
    assert roi_heads.roi_align is ours.roi_align
    second.remove()
    assert state() == before
