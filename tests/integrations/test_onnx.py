"""Drop-ins in ONNX programs of both exporters, run by onnxruntime."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit import ops
from cfmvit.integrations import huggingface, mae
from cfmvit.integrations import torchvision as ours

from .test_huggingface import autoencoder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))


class Program(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        """A function as the exporters take it."""
        return self.function(*inputs)


def check(function: Callable[..., Any], *inputs: Tensor, dynamo: bool) -> None:
    """Compare what onnxruntime computes with the function itself."""
    expected, file = function(*inputs), io.BytesIO()
    if dynamo:
        torch.onnx.export(Program(function), inputs, dynamo=True, verbose=False).save(file)
    else:
        torch.onnx.export(Program(function), inputs, file, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue())
    given = {place.name: x.numpy() for place, x in zip(session.get_inputs(), inputs, strict=True)}
    found = [torch.tensor(value) for value in session.run(None, given)]
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_masked_autoencoder(dynamo: bool) -> None:
    def whole(x: Tensor, noise: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        kept, mask, order = mae.random_masking(x, 0.75, noise)
        full = mae.unshuffle(torch.cat([x[:, :1], kept], 1), torch.ones(1, 1, 12), order)
        return mask, order, full, mae.forward_loss(images, full[:, 1:], mask, 2, True)

    check(whole, torch.randn(2, 16, 12), NOISE, torch.randn(2, 3, 8, 8), dynamo=dynamo)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_transformers_model(dynamo: bool) -> None:
    model = autoencoder().eval().requires_grad_(False)

    def outputs(images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        found = model(images, noise=noise)
        return found.loss, found.logits, found.mask

    with huggingface.install():
        check(outputs, torch.randn(2, 3, 16, 16), NOISE, dynamo=dynamo)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("installed", [False, True], ids=["ours", "installed"])
def test_detection_head(installed: bool, dynamo: bool) -> None:
    """Lists of boxes, a pyramid, scores: as our layers, and as torchvision's own under `install()`."""
    layers = pytest.importorskip("torchvision").ops if installed else ours
    pool = layers.MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=20, canonical_level=3)

    def head(fine: Tensor, coarse: Tensor, first: Tensor, second: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        boxes = [first, second]
        crops = layers.roi_align(fine, boxes, 2, 0.25, 2, True)
        pooled = pool(OrderedDict([("0", fine), ("1", coarse)]), boxes, [(64, 64)] * 2)
        plain = ops.roi_align(fine, boxes, 2, 0.25)
        scores = ops.score_regions(pooled.mean((2, 3)), text, vlm_embeds=crops.mean((2, 3)), temperature=0.5)
        return crops, pooled, plain, scores

    boxes = torch.tensor([[1.0, 2, 30, 40], [3, 4, 13, 12], [5, 5, 20, 60]])
    maps = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
    with ours.install() if installed else nullcontext():
        check(head, *maps, boxes[:2], boxes[2:], torch.randn(5, 3), dynamo=dynamo)
