"""What the modules of other libraries compute."""

from __future__ import annotations

from typing import Any

from torch import nn

from cfmvit.models.architecture import Activation
from cfmvit.models.importing.build import refuse


def activation(module: nn.Module) -> Activation:
    """Name an activation.

    Raises:
        ValueError: it is none that is served.
    """
    kind = type(module).__name__
    if kind in ("QuickGELU", "QuickGELUActivation"):
        return "quick_gelu"
    # timm has a GELU of its own, which computes torch's.
    if kind in ("GELU", "GELUTanh"):
        return (
            "gelu_tanh" if kind == "GELUTanh" or getattr(module, "approximate", "none") == "tanh" else "gelu"
        )
    refuse(f"the activation {kind}", "known are GELU, its tanh form and QuickGELU")


def is_plain(norm: Any) -> bool:
    """Whether a norm is a LayerNorm with weight and bias; the one that computes in float32 is."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
