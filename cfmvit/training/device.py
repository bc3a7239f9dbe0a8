"""Where to train."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """Return the device named, or for ``"auto"`` a GPU when there is one, else the CPU.

    Raises:
        ValueError: not a device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"config: device must be auto, cpu or cuda[:N], got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"config: device must be auto, cpu or cuda[:N], got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"config: device {name!r} was asked for, but torch sees no CUDA GPU here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"config: device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs"
        )
    return device
