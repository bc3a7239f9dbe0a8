"""The networks of CFM-ViT and their checkpoints."""

from cfmvit.models.cfm_vit import CFMViT, create_model
from cfmvit.models.config import ModelConfig, list_models, model_config
from cfmvit.models.tokenizer import Tokenizer

__all__ = ["CFMViT", "ModelConfig", "Tokenizer", "create_model", "list_models", "model_config"]
