"""Whether checks look at the values of indices, boxes and noise: always on the CPU, on a GPU on demand."""

from __future__ import annotations

import os

import torch
from torch import Tensor

_on_devices = os.environ.get("CFMVIT_CHECK_INDICES", "0") not in ("", "0")


def readable(value: Tensor, values: bool = True) -> bool:
    """Whether a check may look at the values: outside tracing, and on a GPU only after ``check_indices``: it waits for the device.

    Args:
        values: False where a native op looks for itself, as those of the CPU do.
    """
    if torch.compiler.is_compiling() or torch._C._is_tracing() or type(value) is not Tensor or value.is_meta:
        return False
    return values if value.device.type == "cpu" else _on_devices


def check_indices(enabled: bool = True) -> None:
    """Check the values of indices and noise on a GPU too, as on the CPU: a bad one raises ValueError, which names the op.

    Without it an index out of range reads zeros and passes no gradient on, and noise that is NaN ranks last. Each op then waits
    for the device, so this is for finding a fault, not for CUDA graphs. The environment variable CFMVIT_CHECK_INDICES=1 does it
    from the start. What ``torch.compile`` has traced is not checked.
    """
    global _on_devices
    _on_devices = enabled
