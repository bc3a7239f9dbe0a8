"""Drop-ins in ONNX programs of both exporters, run by onnxruntime."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfmvit.integrations import huggingface, mae

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
