"""How fast a device is at best, as its maker says."""

from __future__ import annotations

import re

import torch

# Dense products of bfloat16 with sums in float32, TFLOP/s, by what torch.cuda.get_device_name() has in it, the longer names first.
_BF16 = {
    "B300": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return a GPU's peak rate of products of bfloat16 in TFLOP/s; None for another device or precision."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return known_tflops(torch.cuda.get_device_name(device))


def known_tflops(name: str) -> float | None:
    """Return the peak of the GPU of a name; None where it isn't known, as of a part of one or a laptop's."""
    if re.search(r"\b(MIG|Laptop)\b", name):
        return None
    return next((peak for part, peak in _BF16.items() if re.search(rf"\b{part}\b", name)), None)
