"""The kernel of an op for tensors without data: what torch.compile, torch.export and the meta device call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfmvit.ops.shared import checks


def register_fake(name: str, shapes: Callable[..., Any]) -> None:
    """Register ``shapes``, which makes the results of ``cfmvit::name`` without values.

    A call with one meta tensor among others comes here too, and would get unwritten memory: it is refused, as in
    csrc/torch/registration.h.
    """
    arguments = [argument.name for argument in getattr(torch.ops.cfmvit, name).default._schema.arguments]

    def fake(*args: Any) -> Any:
        tensors: dict[str, Tensor | None] = {}
        for argument, value in zip(arguments, args):
            if isinstance(value, Tensor):
                tensors[argument] = value
            elif isinstance(value, list):
                tensors.update((f"{argument}[{i}]", x) for i, x in enumerate(value) if isinstance(x, Tensor))
        checks.same_device(name, **tensors)
        return shapes(*args)

    torch.library.register_fake(f"cfmvit::{name}", fake)
