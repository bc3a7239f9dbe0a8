"""Every op in graphs that others write: ``torch.jit.trace``, ``torch.compile`` and ``torch.export`` with sizes known at run time, ONNX."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from tests.ops.samples import Sample, public

SAMPLES = public(torch.float32)
each = pytest.mark.parametrize("sample", SAMPLES, ids=str)


class Layer(nn.Module):
    """An op whose values are trained."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        self.weights = nn.ParameterList(sample.values.values())

    def forward(self, factor: Tensor, *indices: Tensor) -> Tensor:
        values = [x * factor for x in self.weights]
        return self.sample(*values, indices=dict(zip(self.sample.indices, indices, strict=True)))


def arguments(sample: Sample, factor: float, shift: int = 0) -> tuple[Tensor, ...]:
    return torch.tensor(factor), *(x.roll(shift, 0) for x in sample.indices.values())


@each
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_is_the_layer(sample: Sample) -> None:
    layer = Layer(sample)
    traced = torch.jit.trace(layer, arguments(sample, 1.0), check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    other = arguments(sample, 1.25, 1)
    expected = layer(*other)
    for graph in (traced, loaded):
        out = graph(*other)
        torch.testing.assert_close(out, expected, atol=0, rtol=0)
        if expected.requires_grad:
            out.sum().backward()
            gradients = torch.autograd.grad(layer(*other).sum(), list(layer.weights), allow_unused=True)
            found = [x.grad for x in graph.weights.parameters()]
            for ours, truth in zip(found, gradients, strict=True):
                assert (ours is None) == (truth is None)
                assert truth is None or torch.equal(ours, truth)
            graph.zero_grad()
