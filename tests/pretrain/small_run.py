"""A pretraining of seconds, for tests of what goes on around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.models import CFMViT
from cfmvit.pretrain import OptimConfig, PretrainConfig
from cfmvit.training import LoopConfig

TINY = {
    "width": 32,
    "heads": 2,
    "depth": 1,
    "text_width": 32,
    "text_heads": 2,
    "text_depth": 1,
    "decoder_width": 32,
}


def make_data(root: Path) -> str:
    """Make 60 small scenes with captions; return what names them."""
    none = SplitConfig(images=0, size=64)
    return f"lvis:{make_scenes(root, ScenesConfig(pretrain=SplitConfig(images=60, size=64), train=none, val=none))}"


def config(data: str, *, steps: int = 6, save_every: int = 3, **options: Any) -> PretrainConfig:
    return PretrainConfig(
        **{
            "data": data,
            "model": "cfm_vit_tiny",
            "model_options": dict(TINY),
            "vocab_size": 400,
            "batch_size": 8,
            "device": "cpu",
            "optim": OptimConfig(lr=2e-3, warmup=2),
            "loop": LoopConfig(steps=steps, log_every=1, save_every=save_every),
            **options,
        }
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return CFMViT.from_pretrained(folder / "model").state_dict()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
