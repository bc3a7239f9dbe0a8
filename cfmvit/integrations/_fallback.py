"""What a drop-in does with input that its op can't take: the original's way, said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

    Args:
        name: of the drop-in, for the warning.
        op, formula: the same function of `inputs`, without and with derivatives of every order.
    """
    if (
        torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or not any(x.requires_grad for x in inputs)
    ):
        return op(*inputs)
    if torch._C._are_functorch_transforms_active():
        say(name, "a function transform")
        return formula(*inputs)
    return _Twice.apply(name, op, formula, *inputs)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, op: Callable, formula: Callable, *inputs: Tensor) -> Tensor:
        ctx.name, ctx.op, ctx.formula = name, op, formula
        device = inputs[0].device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*inputs)
        ctx.graph = _graph(op, inputs)
        return ctx.graph[1].detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        again = torch.is_grad_enabled()  # in a backward pass: whether a graph of it is made
        with torch.autocast(*ctx.autocast):
            if again:
                say(ctx.name, "a second derivative")
                leaves, out = inputs, ctx.formula(*inputs)
            else:
                leaves, out = ctx.graph or _graph(ctx.op, inputs)
                ctx.graph = None  # frees what the op saved
        some = [x for x, needed in zip(leaves, wanted, strict=True) if needed]
        found = iter(
            torch.autograd.grad(out, some, grad.to(out.dtype), create_graph=again, allow_unused=True)
        )
        return None, None, None, *(next(found) if needed else None for needed in wanted)


def _graph(op: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        return leaves, op(*leaves)
