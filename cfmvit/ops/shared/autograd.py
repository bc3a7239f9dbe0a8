"""The autograd node of a native op, and the op that is its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from cfmvit.ops.shared import transforms

Backward = Callable[..., Any]
Setup = Callable[[Any, tuple[Any, ...], Any], None]


def recorder(
    op: torch._ops.OpOverload, run: Callable[..., Any], backward: Backward, setup: Setup
) -> Callable[..., Any]:
    """Return what runs an op and records its node.

    ``torch.autograd.Function`` does not look into lists: they are laid out for it, and ``needs_input_grad`` counts them so.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        setup(ctx, args, output)
        return output

    def forward_of_lists(ctx: Any, lengths: list[int], *flat: Any) -> Any:
        ctx.lengths, rest = lengths, iter(flat)
        args = tuple(next(rest) if length < 0 else list(islice(rest, length)) for length in lengths)
        return forward(ctx, *args)

    def backward_of_lists(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        flat: list[Tensor | None] = [None]
        for grad, length in zip(backward(ctx, *grads), ctx.lengths, strict=True):
            flat += [grad] if length < 0 else grad or [None] * length
        return tuple(flat)

    def record_lists(*args: Any) -> Any:
        lengths = [len(arg) if isinstance(arg, (list, tuple)) else -1 for arg in args]
        return node.apply(lengths, *transforms.leaves(args))

    if any(str(argument.type) == "List[Tensor]" for argument in op._schema.arguments):
        node = _node(op, forward_of_lists, backward_of_lists)
        return record_lists
    return _node(op, forward, backward).apply


def register_backward(name: str) -> None:
    """Let the op that is the backward pass of op ``name`` refuse derivatives of its own, and run in a loop under ``vmap``."""
    qualified = f"cfmvit::{name}_backward"
    op = getattr(torch.ops.cfmvit, f"{name}_backward").default

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError(f"{name}: double backward is not supported; impl='reference' has it")

    def below(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    record = recorder(op, below, refuse, lambda *_: None)

    def with_gradients(*args: Any) -> Any:
        recorded = transforms.is_recorded(args)
        if transforms.has_tangent(args) or (recorded and transforms.level() is not None):
            refuse()
        return record(*args) if recorded else below(*args)

    torch.library.impl(qualified, "Autograd", with_gradients)
    torch.library.register_vmap(
        qualified, lambda info, in_dims, *args: _loop(op, info.batch_size, in_dims, args)
    )


def _node(op: torch._ops.OpOverload, forward: Callable[..., Any], backward: Backward) -> Any:
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(op.name(), (torch.autograd.Function,), methods)


def _loop(
    op: Callable[..., Any], size: int, in_dims: Iterable[int | None], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Call the op for each slice of its arguments, and stack what it returns."""

    def at(i: int) -> list[Any]:
        return [x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(args, in_dims, strict=True)]

    found = [op(*at(i)) for i in range(size)]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    stacked = [torch.stack(parts) for parts in zip(*found, strict=True)]
    return type(found[0])(stacked), type(found[0])([0] * len(stacked))
