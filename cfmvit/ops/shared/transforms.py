"""What of PyTorch is at work around a call: transforms under which an op is computed by plain PyTorch, which composes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch = torch._C._functorch
level = _functorch.maybe_current_level  # None outside of ``torch.func``


def plain_only() -> str:
    """Name the transform under which plain PyTorch computes the ops; empty where none is at work.

    The native kernels know reverse-mode derivatives alone, and ONNX has no words for them. What ``torch.compile`` or
    ``torch.export`` trace is decided when it runs, by the kernels of ``NativeOp``.
    """
    if torch.compiler.is_compiling():
        return "ONNX export" if torch.onnx.is_in_onnx_export() else ""
    if level() is not None:
        return "torch.func transforms"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._is_tracing() and torch.onnx.is_in_onnx_export():
        return "ONNX export"
    return ""


def leaves(args: Iterable[Any]) -> Iterator[Any]:
    """Yield the arguments of an op, and those in its lists."""
    for arg in args:
        if isinstance(arg, (list, tuple)):
            yield from arg
        else:
            yield arg


def has_tangent(args: Iterable[Any]) -> bool:
    """Whether a tensor among the arguments carries a forward-mode derivative at the current level."""
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in leaves(args))


def is_recorded(args: Iterable[Any]) -> bool:
    """Whether a gradient of these arguments is wanted at the current level."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in leaves(args))


def has_values(x: Tensor) -> bool:
    """Whether what is computed next may depend on the values of x: not while tracing, nor where ``vmap`` has many of them in one."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or type(x) is not Tensor or x.is_meta:
        return False
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def at_least_one(size: int | Tensor) -> Any:
    """Return a size to divide by, which may be known only at run time; ``torch.jit.trace`` has tensors for sizes."""
    if isinstance(size, Tensor):
        return size.clamp(min=1)
    # sym_max of plain numbers breaks a graph under torch 2.11.
    return max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1)


def stable_argsort(x: Tensor) -> Tensor:
    """Order the last dimension, equals by their place. ONNX has no stable sort, but its TopK, which a sort becomes, does so."""
    return x.argsort() if torch.onnx.is_in_onnx_export() else x.argsort(stable=True)


def unwrapped(value: Tensor) -> Tensor:
    """Return the tensor that holds the values, the dimensions that ``vmap`` hides first: for checks, which look at numbers."""
    while _functorch.is_functorch_wrapped_tensor(value):
        hidden = _functorch.maybe_get_bdim(value)
        value = _functorch.get_unwrapped(value)
        if hidden >= 0:
            value = value.movedim(hidden, 0)
    return value
