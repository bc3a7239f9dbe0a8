"""What pretraining and finetuning share: typed configuration, the loop, checkpoints, metrics, schedules."""

from cfmvit.training.config import format_config, load_config, save_config
from cfmvit.training.loop import LoopConfig, NonFiniteLossError, fit
from cfmvit.training.optim import param_groups, warmup_cosine, warmup_linear, warmup_steps, warmup_within

__all__ = [
    "LoopConfig",
    "NonFiniteLossError",
    "fit",
    "format_config",
    "load_config",
    "param_groups",
    "save_config",
    "warmup_cosine",
    "warmup_linear",
    "warmup_steps",
    "warmup_within",
]
