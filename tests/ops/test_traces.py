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


def close(ours: Tensor, truth: Tensor) -> bool:
    """To rounding: under a trace, groups are summed in another order."""
    return torch.allclose(ours, truth, rtol=1e-5, atol=1e-6)


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
                assert truth is None or close(ours, truth)
            graph.zero_grad()


def exported(layer: Layer, example: tuple[Tensor, ...], dynamo: bool) -> bytes:
    file = io.BytesIO()
    options = {"verbose": False, "optimize": False} if dynamo else {"opset_version": 17}
    program = torch.onnx.export(layer, example, None if dynamo else file, dynamo=dynamo, **options)
    if dynamo:
        program.save(file)
    return file.getvalue()


# The exporter of today takes seconds: the ops that had no form once, and the others in the long tier.
ONCE = ("random_masking", "restore_tokens", "score_regions")
EXPORTS = [pytest.param(sample, False, id=f"{sample}-script") for sample in SAMPLES] + [
    pytest.param(sample, True, id=f"{sample}-dynamo", marks=() if str(sample) in ONCE else pytest.mark.long)
    for sample in SAMPLES
]


@pytest.mark.parametrize("sample, dynamo", EXPORTS)
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_onnx_computes_the_op(sample: Sample, dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = Layer(sample).eval().requires_grad_(False)
    content = exported(layer, arguments(sample, 1.0), dynamo)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    other = arguments(sample, 1.25, 1)
    names = [x.name for x in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy() for x in other), strict=True)))
    # Exporters write log(sigmoid(x)) for what PyTorch computes as one, which loses digits.
    loose = sample.op in ("info_nce", "siglip_loss")
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if loose else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(torch.from_numpy(found), layer(*other), **tolerance)
