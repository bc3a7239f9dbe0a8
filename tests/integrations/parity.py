"""What the tests of all drop-ins do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Roundings of sums in another order, on values of order one.
CLOSE = {
    torch.float64: {"atol": 1e-10, "rtol": 1e-9},
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.bfloat16: {"atol": 3e-2, "rtol": 2e-2},
    torch.float16: {"atol": 4e-3, "rtol": 4e-3},
}


def run(function: Callable[..., Tensor], *inputs: Any) -> list[Tensor]:
    """Return the output of `function` and the gradients of its floating inputs under a fixed upstream gradient."""
    leaves = [
        x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.is_floating_point())
        if isinstance(x, Tensor)
        else x
        for x in inputs
    ]
    out = function(*leaves)
    weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64).view(out.shape)
    (out.double() * weights).sum().backward()
    return [out.detach()] + [x.grad for x in leaves if isinstance(x, Tensor) and x.requires_grad]


def assert_same(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None], dtype: torch.dtype) -> None:
    """Compare outputs and gradients; a gradient that theirs lacks must be absent or zero."""
    for mine, other in zip(ours, theirs, strict=True):
        if other is None:
            assert mine is None or not mine.any()
        else:
            torch.testing.assert_close(mine.double(), other.double(), **CLOSE[dtype])
