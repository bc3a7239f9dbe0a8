"""What a drop-in does with input that its op can't take: the original's way, said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cfmvit.ops.shared import library

_said: set[str] = set()


def say(name: str, reason: str) -> None:
    """Warn, once for each reason, that the drop-in `name` computes as the original does."""
    if torch.compiler.is_compiling():
        return
    message = f"{name}: {reason}; computed as the original does"
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=3)


def why_not(op: str, features: Tensor) -> str:
    """Say why `op` has no kernel for such features; empty where it has one."""
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        return f"no kernel for {features.dtype}"
    return library.why_not_native(op, features.device.type)


def twice(name: str, op: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Compute op(*inputs); where a second derivative is wanted, the first one is taken of `formula`, as the original does.

    So are all derivatives under a function transform and in forward mode.

    Args:
        name: of the drop-in, for the warning.
        op, formula: the same function of `inputs`, without and with derivatives of every order.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return op(*inputs)
    if torch._C._are_functorch_transforms_active() or any(_has_tangent(x) for x in inputs):
        say(name, "a function transform")
        return formula(*inputs)
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in inputs):
        return op(*inputs)
    out = op(*(_FirstOrder.apply(x) if x.requires_grad else x for x in inputs))
    return _HigherOrder.apply(name, formula, out, *inputs)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


class _FirstOrder(torch.autograd.Function):
    """Identity whose gradient is left out where a graph of the backward pass is made: `_HigherOrder` gives it then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        return None if torch.is_grad_enabled() else grad


class _HigherOrder(torch.autograd.Function):
    """Identity of an op's output; where a graph of the backward pass is made, the gradients are the formula's."""

    @staticmethod
    def forward(ctx: Any, name: str, formula: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> Tensor:
        ctx.name, ctx.formula = name, formula
        device = out.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*inputs)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        if not torch.is_grad_enabled():  # in a backward pass: whether a graph of it is made
            return None, None, grad, *[None] * len(wanted)
        say(ctx.name, "a second derivative")
        inputs = ctx.saved_tensors
        with torch.autocast(*ctx.autocast):
            out = ctx.formula(*inputs)
        some = [x for x, needed in zip(inputs, wanted, strict=True) if needed]
        found = iter(torch.autograd.grad(out, some, grad.to(out.dtype), create_graph=True, allow_unused=True))
        return None, None, None, *(next(found) if needed else None for needed in wanted)
