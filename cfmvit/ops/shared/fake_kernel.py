"""Kernels of an op in Python: those for tensors without data, which torch.compile, torch.export and the meta device call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.shared import checks


def register_fake(name: str, shapes: Callable[..., Any]) -> None:
    """Register ``shapes``, which makes the results of ``cfmvit::name`` without values."""
    torch.library.register_fake(f"cfmvit::{name}", on_one_device(name, shapes))


def on_one_device(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Let the kernel of ``cfmvit::name`` refuse tensors on several devices, as csrc/torch/registration.h does.

    A call with one meta tensor among others comes to a fake kernel, too, and would get unwritten memory.
    """
    arguments = [argument.name for argument in getattr(torch.ops.cfmvit, name).default._schema.arguments]

    def checked(*args: Any) -> Any:
        tensors: dict[str, Tensor | None] = {}
        for argument, value in zip(arguments, args):
            if isinstance(value, Tensor):
                tensors[argument] = value
            elif isinstance(value, list):
                tensors.update((f"{argument}[{i}]", x) for i, x in enumerate(value) if isinstance(x, Tensor))
        checks.same_device(name, **tensors)
        return kernel(*args)

    return checked
