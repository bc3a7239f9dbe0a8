"""The networks of CFM-ViT and their checkpoints, and models of other libraries made into one."""

from cfmvit.models.cfm_vit import CFMViT, create_model
from cfmvit.models.config import ModelConfig, list_models, model_config
from cfmvit.models.importing import from_hf, from_mae, from_open_clip, from_timm, import_model
from cfmvit.models.tokenizer import Tokenizer

__all__ = [
    "CFMViT",
    "ModelConfig",
    "Tokenizer",
    "create_model",
    "from_hf",
    "from_mae",
    "from_open_clip",
    "from_timm",
    "import_model",
    "list_models",
    "model_config",
]
