"""Autocast, where an op chooses its own precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for the device of a tensor; meta tensors have none."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
