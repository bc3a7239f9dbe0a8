"""Checks that several families share. Messages name the op, the argument, the rule and the value seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.shared.index_checking import readable
from cfmvit.ops.shared.transforms import unwrapped


def tensor(op: str, name: str, value: Any, ndim: int, shape: str) -> None:
    """Raise unless ``value`` is a tensor of ``ndim`` dimensions, described as ``shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.ndim != ndim:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(value.shape)}")


FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def float_dtype(op: str, name: str, value: Tensor) -> None:
    """Raise unless ``value`` has a dtype that the ops compute with."""
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, bfloat16 or float16, got {value.dtype}")


def floating(op: str, name: str, value: Any, ndim: int, shape: str) -> None:
    """Raise unless ``value`` is a floating-point tensor of that shape."""
    tensor(op, name, value, ndim, shape)
    float_dtype(op, name, value)


def certain(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds; False where only a run will tell, and the op itself looks again then."""
    if torch.compiler.is_compiling() or isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(condition)
    return condition


def compiled_rule(holds: bool | torch.SymBool, message: str) -> None:
    """Raise unless a condition on sizes holds, while compiling: where only a run will tell, the run looks."""

    def said(message: str = message) -> str:  # torch 2.11 takes no function with a closure
        return message

    torch._check(holds, said)


def shape(op: str, name: str, value: Tensor, wanted: tuple[int, ...]) -> None:
    """Raise unless ``value`` has exactly the shape ``wanted``."""
    if value.ndim != len(wanted) or any(certain(a != b) for a, b in zip(value.shape, wanted, strict=True)):
        raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(value.shape)}")


def index(
    op: str,
    name: str,
    value: Any,
    batch: int,
    count: int,
    shape: str = "(B, K)",
    *,
    distinct: bool = False,
    values: bool = True,
) -> None:
    """Raise unless ``value`` is int32 or int64, (batch, K), with entries in 0..count-1, ``distinct`` ones in each row.

    ``values`` as for ``readable``.
    """
    tensor(op, name, value, 2, shape)
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: {name} must be int32 or int64, got {value.dtype}")
    if certain(value.shape[0] != batch):
        raise ValueError(f"{op}: {name} must have one row a sample, {batch} rows, got {value.shape[0]}")
    if not readable(value, values) or not value.numel():
        return
    value = unwrapped(value)
    value = value.reshape(-1, value.shape[-1])
    low, high = (int(bound) for bound in value.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"{op}: {name} must lie in 0..{count - 1}, got {low if low < 0 else high}")
    if distinct:
        named = torch.zeros(value.shape[0], count, dtype=torch.bool, device=value.device).scatter_(
            1, value.long(), True
        )
        if int(named.sum()) != value.numel():
            row = int((named.sum(1) != value.shape[1]).nonzero()[0])
            entry = int(value[row].long().bincount().argmax())
            raise ValueError(f"{op}: {name} must not repeat an entry, got {entry} twice in row {row}")


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise unless all tensors given are on one device."""
    first = None
    for value in tensors.values():
        if value is not None:
            first = value.device if first is None else first
            if value.device != first:
                break
    else:
        return
    found = ", ".join(f"{name} on {value.device}" for name, value in tensors.items() if value is not None)
    raise ValueError(f"{op}: all tensors must be on one device, got {found}")
