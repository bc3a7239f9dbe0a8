"""What a drop-in does with input that its op can't take: the original's way, said once."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cfmvit.ops import _library

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
    return _library.why_not_native(op, features.device.type)
