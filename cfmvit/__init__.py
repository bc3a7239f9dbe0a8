"""CFM-ViT: contrastive feature masking pretraining and open-vocabulary detection, on native kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfmvit._installed import prefer_installed
from cfmvit._lazy import hand_on

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
    # So that `import cfmvit` and `import cfmvit.ops` stay light.
    __getattr__, __dir__ = hand_on(
        __name__,
        {
            "cfmvit.detection": ("Detector", "classify_regions", "pipeline"),
            "cfmvit.models": ("CFMViT", "Tokenizer", "create_model", "list_models"),
        },
    )
