"""RoIAlign against the installed torchvision: values, gradients, errors, and torchvision's own detectors patched."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit.integrations import torchvision as ours

from .parity import assert_same, run

torchvision = pytest.importorskip("torchvision")
theirs = torchvision.ops
get_graph_node_names = pytest.importorskip("torchvision.models.feature_extraction").get_graph_node_names
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


def mask_rcnn(**options: Any) -> nn.Module:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    pool = theirs.MultiScaleRoIAlign(["0", "1"], 5, 2, canonical_scale=20, canonical_level=3)
    return MaskRCNN(
        Pyramid(),
        4,
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=options.get("box_roi_pool", pool),
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


def test_layers_are_torchvisions_own_kind() -> None:
    """So that its detectors take them; they are pickled, and without torchvision they are modules of their own."""
    for name, arguments in (("RoIAlign", (3, 0.25, 2)), ("MultiScaleRoIAlign", (["a"], 3, 2))):
        layer = getattr(ours, name)(*arguments)
        assert isinstance(layer, getattr(theirs, name))
        assert repr(pickle.loads(pickle.dumps(layer))) == repr(copy.deepcopy(layer)) == repr(layer)
        assert name in dir(ours)
    with pytest.raises(AttributeError, match="has no attribute 'RoIPool'"):
        ours.RoIPool  # noqa: B018
    code = (
        "import sys; sys.modules['torchvision'] = None; from cfmvit.integrations.torchvision import RoIAlign, torch; "
        "print(RoIAlign(1, 1.0, 2)(torch.ones(1, 1, 4, 4), torch.tensor([[0., 0, 0, 2, 2]])).item())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1.0\n"


def test_a_detector_takes_our_layer() -> None:
    model = mask_rcnn()
    expected = trained(model)
    pool = ours.MultiScaleRoIAlign(["0", "1"], 5, 2, canonical_scale=20, canonical_level=3)
    assert_same(trained(mask_rcnn(box_roi_pool=pool)), expected, torch.float32)


def test_boxes_of_more_or_fewer_images_than_there_are() -> None:
    map = maps_of(4)[0]
    boxes = [boxes_of(count) for count in (5, 0, 7, 0, 0)]
    for some in (boxes, boxes[:1], boxes[:3]):
        torch.testing.assert_close(ours.roi_align(map, some, 3, 0.25), theirs.roi_align(map, some, 3, 0.25))
        mine, other = (module.MultiScaleRoIAlign(["a", "b"], 3, 2) for module in (ours, theirs))
        maps = [map, map[..., ::2, ::2]]
        torch.testing.assert_close(pooled(mine, some)(*maps), pooled(other, some)(*maps))
    with pytest.raises(ValueError, match=r"image number in \[0, 3\) first, got 3"):
        ours.roi_align(map, [*boxes[:3], boxes_of(1)], 3)
    with pytest.raises(TypeError, match="boxes must be a list of tensors, got one of list"):
        ours.roi_align(map, [[0.0, 0.0, 4.0, 4.0]], 3)
    with pytest.raises(ValueError, match="boxes must have a tensor for each image, got an empty list"):
        ours.roi_align(map, [], 3)


@pytest.mark.parametrize("options", [(0,), ((0, 3),), (2, 0.0), (2, 0.0, -1, True), (2, -1.0)])
def test_no_bins_and_odd_scales(options: tuple) -> None:
    map, boxes = maps_of(4)[0], [boxes_of(2) for _ in range(3)]
    assert_same(
        run(lambda x: ours.roi_align(x, boxes, *options), map),
        run(lambda x: theirs.roi_align(x, boxes, *options), map),
        torch.float32,
    )


def test_a_pyramid_without_bins() -> None:
    maps, boxes = maps_of(4, 8), [boxes_of(2) for _ in range(3)]
    for names in (["a"], ["a", "b"]):
        mine, other = (module.MultiScaleRoIAlign(names, 0, 2) for module in (ours, theirs))
        assert pooled(mine, boxes)(*maps).shape == pooled(other, boxes)(*maps).shape == (6, 6, 0, 0)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_layers() -> None:
    """Compiled as torchvision's own, also when they were called before, and from a graph of torch.fx."""
    maps, boxes = maps_of(4, 8), [boxes_of(count) for count in (5, 0, 9)]
    for layer in (ours.RoIAlign(3, 0.25, 2), ours.RoIAlign([3, 2], 0.25, -1, True)):
        expected = layer(maps[0], boxes)
        for made in (torch.jit.script(layer), torch.fx.symbolic_trace(layer)):
            torch.testing.assert_close(made(maps[0], boxes), expected)
        torch.testing.assert_close(torch.jit.script(made)(maps[0], boxes), expected)
        names = get_graph_node_names(nn.Sequential(nn.Identity(), Pool(layer)))
        assert names[0][1:] == ["0", "1.layer"]
    layer = ours.MultiScaleRoIAlign(["a", "b"], 3, 2)
    before = pooled(torch.jit.script(layer), boxes)(*maps)
    torch.testing.assert_close(before, pooled(layer, boxes)(*maps))
    torch.testing.assert_close(before, pooled(torch.jit.script(layer), boxes)(*maps))


class Pool(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        """Pool fixed boxes."""
        return self.layer(x, [torch.ones(1, 4)])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_mask_rcnn() -> None:
    """An untouched detector is scripted as ever, before, during and after an install."""
    model, images = mask_rcnn().eval(), [torch.rand(3, 64, 80, generator=GENERATOR)]
    expected = model(images)
    for patched in (True, False):
        with ours.install() if patched else nullcontext():
            found = torch.jit.script(model)(images)[1]
        torch.testing.assert_close(found, expected)


def test_what_install_does_not_find_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="no loaded module of absent holds torchvision's roi_align"):
        ours.install("absent").remove()
    monkeypatch.delattr("torchvision.ops.poolers._multiscale_roi_align")
    with pytest.warns(
        UserWarning, match=r"install: torchvision .* has no torchvision.ops.poolers._multiscale_roi_align"
    ):
        ours.install().remove()
