"""In what precision to train."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch

from cfmvit.ops.shared import library

Config = TypeVar("Config")


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision named, or for ``"auto"`` bf16 where the device has products of it, else fp32.

    A processor without them takes tens of times as long for one in bf16 as for one in fp32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        has_products = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_products = library.core is not None and "bfloat16" in library.core.build_info()["instruction_set"]
    return "bf16" if has_products else "fp32"


def with_precision(config: Config, device: torch.device) -> Config:
    """Return a run's configuration with its ``loop.precision`` chosen, so that the run keeps it when it is resumed elsewhere."""
    precision = choose_precision(config.loop.precision, device)
    return replace(config, loop=replace(config.loop, precision=precision))
