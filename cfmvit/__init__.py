"""CFM-ViT: contrastive feature masking pretraining and open-vocabulary detection, on native kernels."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "CFMViT": "cfmvit.models",
    "Tokenizer": "cfmvit.models",
    "create_model": "cfmvit.models",
    "list_models": "cfmvit.models",
    "Detector": "cfmvit.detection",
}

__all__ = ["CFMViT", "Detector", "Tokenizer", "__version__", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    """Import the models only when they are asked for, so that ``import cfmvit.ops`` stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'cfmvit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
