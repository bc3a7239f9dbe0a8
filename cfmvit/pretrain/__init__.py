"""Pretraining: objective, configuration and engine."""

from cfmvit.pretrain.config import OptimConfig, PretrainConfig
from cfmvit.pretrain.engine import pretrain
from cfmvit.pretrain.objective import pretraining_losses

__all__ = ["OptimConfig", "PretrainConfig", "pretrain", "pretraining_losses"]
