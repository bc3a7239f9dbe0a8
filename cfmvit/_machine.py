"""Names of devices, for whatever publishes a measured figure."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name(device: torch.device | str = "cpu") -> str:
    """Return the model of a GPU, or of the CPU with the number of torch's threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """Return the CPU's model as the system names it; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
