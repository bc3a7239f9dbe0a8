"""What pretraining and finetuning share: typed configuration, the loop, checkpoints, metrics, schedules."""

from cfmvit.training.config import format_config, load_config, save_config
from cfmvit.training.gradients import MeanGradients, NonFiniteLossError
from cfmvit.training.loop import Evaluation, LoopConfig, fit
from cfmvit.training.optim import param_groups, warmup_cosine, warmup_linear, warmup_steps, warmup_within
from cfmvit.training.world import MissingRankError, World, join

__all__ = [
    "Evaluation",
    "LoopConfig",
    "MeanGradients",
    "MissingRankError",
    "NonFiniteLossError",
    "World",
    "fit",
    "format_config",
    "join",
    "load_config",
    "param_groups",
    "save_config",
    "warmup_cosine",
    "warmup_linear",
    "warmup_steps",
    "warmup_within",
]
