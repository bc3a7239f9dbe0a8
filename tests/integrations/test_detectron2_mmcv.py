"""The RoIAlign layers of detectron2 and mmcv, neither of which is needed."""

from __future__ import annotations

import inspect

import pytest
import torch

from cfmvit.integrations import detectron2, mmcv, torchvision

GENERATOR = torch.Generator().manual_seed(0)
MAP = torch.randn(2, 4, 12, 16, generator=GENERATOR)
ROIS = torch.tensor([[0, 1.0, 2, 30, 40], [1, 5, 5, 60, 44.4]])


def defaults(function: object) -> dict[str, object]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_signatures() -> None:
    empty = inspect.Parameter.empty
    rest = {"spatial_scale": 1.0, "sampling_ratio": 0, "pool_mode": "avg", "aligned": True}
    assert defaults(mmcv.RoIAlign) == {"output_size": empty, **rest, "use_torchvision": False}
    assert defaults(mmcv.roi_align) == {"input": empty, "rois": empty, "output_size": empty, **rest}
    assert defaults(detectron2.ROIAlign) == {
        "output_size": empty, "spatial_scale": empty, "sampling_ratio": empty, "aligned": True,
    }  # fmt: skip


def test_layers() -> None:
    expected = torchvision.roi_align(MAP, ROIS, (3, 2), 0.25, 2, True)
    mine = detectron2.ROIAlign((3, 2), 0.25, 2)
    assert torch.equal(mine(MAP, ROIS), expected)
    assert repr(mine) == "ROIAlign(output_size=(3, 2), spatial_scale=0.25, sampling_ratio=2, aligned=True)"
    mine = mmcv.RoIAlign((3, 2), 0.25, 2)
    assert torch.equal(mine(MAP, ROIS), expected)
    assert torch.equal(mmcv.roi_align(MAP, ROIS, (3, 2), 0.25, 2), expected)
    assert torch.equal(mmcv.RoIAlign((3, 2), 0.25, 2, "max", use_torchvision=True)(MAP, ROIS), expected)
    assert repr(mine) == (
        "RoIAlign(output_size=(3, 2), spatial_scale=0.25, sampling_ratio=2, pool_mode=avg, aligned=True, "
        "use_torchvision=False)"
    )
    assert mmcv.RoIAlign(3).output_size == (3, 3)


def test_boxes_keep_their_digits_beside_half_precision_maps() -> None:
    rois = torch.tensor([[1, 1021.0, 3, 1050, 40]])
    found = detectron2.ROIAlign(2, 1 / 64, 2)(MAP.bfloat16(), rois).float()
    torch.testing.assert_close(found, detectron2.ROIAlign(2, 1 / 64, 2)(MAP, rois), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("layer", [detectron2.ROIAlign(3, 0.25, 2), mmcv.RoIAlign(3, 0.25, 2)])
def test_autocast_and_compile(layer: torch.nn.Module) -> None:
    expected = layer(MAP, ROIS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(MAP, ROIS), expected)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(MAP, ROIS), expected)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_the_originals_take_beside() -> None:
    """Integer rois and a quantised map go to detectron2's layer, older names of arguments to mmcv's."""
    layer = detectron2.ROIAlign(3, 0.25, 2)
    assert torch.equal(layer(MAP, ROIS.long()), layer(MAP, ROIS.long().float()))
    assert torch.equal(layer(MAP.bfloat16(), ROIS.long()), layer(MAP.bfloat16(), ROIS.long().float()))
    quantised = torch.quantize_per_tensor(MAP, 0.1, 0, torch.qint8)
    assert torch.equal(layer(quantised, ROIS), layer(quantised.dequantize(), ROIS))
    with pytest.warns(DeprecationWarning, match="is an older name of"):
        layer = mmcv.RoIAlign(out_size=(3, 2), spatial_scale=0.25, sample_num=2)
    assert torch.equal(layer(MAP, ROIS), mmcv.RoIAlign((3, 2), 0.25, 2)(MAP, ROIS))
    with pytest.raises(AssertionError, match="sample_num must not be given beside sampling_ratio"):
        mmcv.RoIAlign(3, sample_num=2, sampling_ratio=2)


def test_bad_input_is_rejected() -> None:
    for function in (detectron2.ROIAlign(3, 1.0, 2), mmcv.RoIAlign(3)):
        with pytest.raises(AssertionError, match=r"rois must have shape \(R, 5\), got \(2, 4\)"):
            function(MAP, ROIS[:, 1:])
    with pytest.raises(AssertionError, match="pool_mode must be 'max' or 'avg', got 'median'"):
        mmcv.roi_align(MAP, ROIS, 3, pool_mode="median")


def test_max_pooling_is_left_to_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mmcv.ops", None)
    with (
        pytest.warns(UserWarning, match="pool_mode 'max'; computed as the original does"),
        pytest.raises(ImportError, match='pip install "mmcv"'),
    ):
        mmcv.roi_align(MAP, ROIS, 3, pool_mode="max")
