"""In what precision to train."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from cfmvit.ops.shared import library

if TYPE_CHECKING:
    from cfmvit.training.loop import LoopConfig


def choose_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision named, or for ``"auto"`` bf16 where the device has products of it, else fp32.

    A processor without them takes tens of times as long for one in bf16 as for one in fp32.

    Raises:
        ValueError: another precision.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision must be auto, fp32 or bf16, got {name!r}")
    if name != "auto":
        return name
    if device.type == "cuda":
        has_products = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_products = library.core is not None and "bfloat16" in library.core.build_info()["instruction_set"]
    return "bf16" if has_products else "fp32"


def with_precision(config: LoopConfig, device: torch.device) -> LoopConfig:
    """Return a run's configuration with its ``precision`` chosen, so that the run keeps it when it is resumed elsewhere."""
    return replace(config, precision=choose_precision(config.precision, device))
