"""What the tests of all families do alike: compare two implementations with a float64 truth, count threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

# About four roundings of the result's dtype on values of order one.
TOLERANCES = {
    torch.float64: {"atol": 1e-11, "rtol": 1e-9},
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 3e-2, "rtol": 2e-2},
    torch.float16: {"atol": 4e-3, "rtol": 4e-3},
}


def values_and_grads(function: Function, inputs: Sequence[Tensor], seed: int = 3) -> list[Tensor]:
    """Return outputs of ``function`` and the gradients of its floating inputs under a random upstream gradient."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    # clone() of a strided view keeps its values, not its strides: rebuild them.
    leaves = [
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        .copy_(x.detach())
        .requires_grad_(leaf.requires_grad)
        for x, leaf in zip(inputs, leaves)
    ]
    out = function(*leaves)
    outs = [x for x in (out if isinstance(out, tuple) else (out,)) if x.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (x.double() * torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)).sum()
        for x in outs
    )
    total.backward()
    return [x.detach() for x in outs] + [leaf.grad for leaf in leaves if leaf.requires_grad]


def cast(inputs: Sequence[Tensor], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Return the inputs on a device, strides kept, the floating ones in ``dtype``."""
    return [
        torch.empty_strided(
            x.shape, x.stride(), dtype=dtype if x.is_floating_point() else x.dtype, device=device
        ).copy_(x)
        for x in inputs
    ]


def moved(arguments: Any, device: str) -> Any:
    """Return arguments with every tensor in them on a device, leaves of the graph still leaves."""
    if isinstance(arguments, Tensor):
        return arguments.detach().to(device).requires_grad_(arguments.requires_grad)
    return (
        type(arguments)(moved(x, device) for x in arguments)
        if isinstance(arguments, (list, tuple))
        else arguments
    )


def assert_parity(
    make: Callable[[str], Function], inputs: Sequence[Tensor], dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Compare the native op in ``dtype`` with the reference in float64 on the same (rounded) numbers."""
    rounded = cast(inputs, dtype, device)
    exact = cast(rounded, torch.float64, device)
    native = values_and_grads(make("native"), rounded)
    truth = values_and_grads(make("reference"), exact)
    for ours, expected in zip(native, truth, strict=True):
        torch.testing.assert_close(ours.double(), expected, **TOLERANCES[dtype])


def assert_gradcheck(function: Function, inputs: Sequence[Tensor], device: str = "cpu") -> None:
    """Compare the gradients of the floating inputs with numerical ones."""
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in cast(inputs, torch.float64, device)]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def assert_same_bits(function: Function, inputs: Sequence[Tensor]) -> None:
    """Outputs and gradients are the same bits on every run and for any number of threads."""
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            runs.append(values_and_grads(function, inputs))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a, b)


def strided(x: Tensor) -> Tensor:
    """Return the values of x in a view with gaps between rows and samples, NaN in the gaps."""
    room = torch.full(
        (x.shape[0], 2 * x.shape[1] + 1, x.shape[2]), float("nan"), dtype=x.dtype, device=x.device
    )
    view = room[:, 1::2]
    view.copy_(x)
    return view
