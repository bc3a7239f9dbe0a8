"""CFM-ViT: contrastive feature masking pretraining and open-vocabulary detection, on native kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cfmvit._installed import prefer_installed

prefer_installed(__path__)

__version__ = "0.1.0"

__all__ = [
    "CFMViT",
    "Detector",
    "Tokenizer",
    "__version__",
    "classify_regions",
    "create_model",
    "data",
    "detection",
    "evaluation",
    "integrations",
    "list_models",
    "models",
    "ops",
    "pipeline",
    "pretrain",
]

if TYPE_CHECKING:
    from cfmvit import data, detection, evaluation, integrations, models, ops, pretrain
    from cfmvit.detection import Detector, classify_regions, pipeline
    from cfmvit.models import CFMViT, Tokenizer, create_model, list_models
else:
    # Imported when first asked for, so that `import cfmvit` and `import cfmvit.ops` stay light.
    _HOMES = dict.fromkeys(("Detector", "classify_regions", "pipeline"), "cfmvit.detection") | dict.fromkeys(
        ("CFMViT", "Tokenizer", "create_model", "list_models"), "cfmvit.models"
    )

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in __all__:
            return importlib.import_module(f"cfmvit.{name}")
        raise AttributeError(f"module 'cfmvit' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)
